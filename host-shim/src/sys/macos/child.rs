//! Child processes: fork, execve(2).
//!
//! What std opens is close-on-exec, and the programs that start others link no library that opens descriptors of its own
//! (the one that links Virtualization.framework starts none): so there is nothing to be closed before an exec.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets `command` have `fds` as its descriptors 3, 4 and so on.
pub fn numbered(command: &mut Command, fds: Vec<OwnedFd>) {
    // Out of the way of the numbers that they are to get, so that none is overwritten before its turn.
    let above = 3 + fds.len() as RawFd;
    let high = move |fd: OwnedFd| -> io::Result<OwnedFd> {
        // SAFETY: plain numbers; the fd is owned.
        let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
        check(moved)?;
        // SAFETY: fcntl has just made it, and nothing else has its number.
        Ok(unsafe { OwnedFd::from_raw_fd(moved) })
    };
    let fds: io::Result<Vec<OwnedFd>> = fds.into_iter().map(high).collect();
    let place = move || {
        let Ok(fds) = &fds else { return Err(io::Error::from_raw_os_error(libc::EMFILE)) };
        for (fd, number) in fds.iter().zip(3..) {
            // SAFETY: plain numbers; the fd is owned by this closure, and the copy has no close-on-exec flag.
            check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor locks.
    unsafe { command.pre_exec(place) };
}

/// A call's result, or the error that it left in errno.
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
