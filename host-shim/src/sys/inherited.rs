//! What a process has from its parent, on every system: dup(2), umask(2), getrlimit(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
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

/// Files made from now on are for their owner alone, and as many may be open as the system lets this process.
pub fn be_private_and_unbounded() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}
