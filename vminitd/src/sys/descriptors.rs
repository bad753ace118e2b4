//! The table of descriptors of this process, see close_range(2) (5.9), dup2(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

/// Closes every descriptor but those listed, for a fresh fork: whatever objects the parent's
/// memory has for the others must never be dropped in this process, which ends with an exec or
/// with [`crate::sys::clone::exit_now`].
pub fn close_all_but(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let mut first: libc::c_uint = 0;
    for fd in kept.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, libc::c_uint::MAX)
}

/// Closes these descriptors by number, whoever thinks to own them; for the last steps before an
/// exec in a fresh fork.
pub fn close_numbers(fds: &[RawFd]) {
    for fd in fds {
        // SAFETY: takes an integer. No owner of the number in this process will use it again: the
        // caller is about to exec or to exit.
        unsafe { libc::close(*fd) };
    }
}

/// Makes `number` a duplicate of `fd`, not close-on-exec: standard input and the like. dup2(2).
pub fn install(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        fcntl(number, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        return Ok(());
    }
    nix::unistd::dup2(fd.as_raw_fd(), number)?;
    Ok(())
}

/// A duplicate with a number of at least `least`, close-on-exec. F_DUPFD_CLOEXEC in fcntl(2).
pub fn duplicate_above(fd: BorrowedFd<'_>, least: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let number = fcntl(fd.as_raw_fd(), FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: takes integers; see `close_all_but` for who may be hurt.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
