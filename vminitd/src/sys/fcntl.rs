//! Flags of descriptors, see fcntl(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

/// O_NONBLOCK on.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// FD_CLOEXEC on.
pub fn set_cloexec(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Whether it is a pipe, socket or terminal, which can block; a file or a device like /dev/null
/// cannot, and epoll refuses it. fstat(2), isatty(3).
pub fn is_pollable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let kind = nix::sys::stat::fstat(fd.as_raw_fd())?.st_mode & libc::S_IFMT;
    let terminal = || nix::unistd::isatty(fd.as_raw_fd()).unwrap_or(false);
    Ok(kind == libc::S_IFIFO || kind == libc::S_IFSOCK || (kind == libc::S_IFCHR && terminal()))
}
