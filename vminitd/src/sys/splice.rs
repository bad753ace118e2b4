//! Moving bytes between a pipe and something else inside the kernel, see splice(2), pipe(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, SpliceFFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pipe, close-on-exec: the read end, then the write end. pipe2(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Gives a pipe room for so many bytes; the usual is 64 KiB. F_SETPIPE_SZ, see fcntl(2).
pub fn set_room(pipe: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).map_err(io::Error::other)?;
    nix::fcntl::fcntl(pipe.as_raw_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(bytes))?;
    Ok(())
}

/// Moves at most `most` bytes. One of the two is a pipe. `Ok(0)` is the source's end; `EAGAIN`
/// says that one of them would block, not which one. splice(2).
///
/// The call never sleeps when both descriptions are non-blocking: SPLICE_F_NONBLOCK speaks for the
/// pipe only, a socket's side is decided by its own O_NONBLOCK.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    Ok(nix::fcntl::splice(from, None, to, None, most, flags)?)
}

/// Bytes that can be read from a pipe or socket at once. FIONREAD, see ioctl_pipe(2).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `bytes` outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// What a descriptor is ready for, now. poll(2) without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// POLLIN.
    pub readable: bool,
    /// POLLOUT.
    pub writable: bool,
    /// POLLHUP: the other side is gone for good.
    pub hung_up: bool,
    /// POLLERR.
    pub error: bool,
}

/// Looks at a descriptor without waiting. poll(2).
pub fn readiness(fd: BorrowedFd<'_>) -> io::Result<Readiness> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN | PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let seen = fds[0].revents().unwrap_or(PollFlags::empty());
    Ok(Readiness {
        readable: seen.contains(PollFlags::POLLIN),
        writable: seen.contains(PollFlags::POLLOUT),
        hung_up: seen.contains(PollFlags::POLLHUP),
        error: seen.contains(PollFlags::POLLERR),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::fcntl::set_nonblocking;

    #[test]
    fn pipe_to_socket_moves_what_the_pipe_holds_and_then_would_block() {
        let (read, write) = pipe().unwrap();
        set_nonblocking(read.as_fd()).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut write = std::fs::File::from(write);
        write.write_all(b"hello").unwrap();
        assert_eq!(readable_bytes(read.as_fd()).unwrap(), 5);
        assert_eq!(splice(read.as_fd(), ours.as_fd(), 4096).unwrap(), 5);
        let error = splice(read.as_fd(), ours.as_fd(), 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        drop(write);
        assert_eq!(splice(read.as_fd(), ours.as_fd(), 4096).unwrap(), 0);
        assert!(readiness(read.as_fd()).unwrap().hung_up);
        let mut got = [0; 5];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
}
