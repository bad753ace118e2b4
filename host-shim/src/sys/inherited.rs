//! What a process has from its parent, on every system: dup(2), umask(2), getrlimit(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{close, dup2};

/// Takes over an inherited fd, named by its number: it gets another one above stdio, is close-on-exec, and the old
/// number is closed, or is /dev/null when it is one of stdio.
pub fn take_fd(number: RawFd) -> io::Result<OwnedFd> {
    let moved = fcntl(number, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: fcntl has just made it, and nothing else has its number.
    let moved = unsafe { OwnedFd::from_raw_fd(moved) };
    if number <= 2 {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2(null.as_raw_fd(), number)?;
    } else {
        close(number)?;
    }
    Ok(moved)
}

/// True when the fd was opened for reading too: F_GETFL of fcntl(2).
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let flags = fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE != OFlag::O_WRONLY)
}

/// Files made from now on are for their owner alone, and as many may be open as the system lets this process.
pub fn be_private_and_unbounded() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_pipes_ends_and_a_socket_are_told_apart() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_readable(reader.as_fd()) && is_readable(socket.as_fd()));
        assert!(!is_readable(writer.as_fd()));
    }
}
