//! Descriptors for a program under numbers that it knows: dup2(2), fcntl(2).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::child::let_none_through;

/// Lets `command` have `fds` as its descriptors 3, 4 and so on, and no others beside stdio.
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
        let_none_through()?;
        for (fd, number) in fds.iter().zip(3..) {
            // What std keeps for itself, to tell of a failed exec, may have the number: it is marked like all others, and
            // a failure is then told as an end without a word.
            // SAFETY: plain numbers; the fd is owned by this closure, and the copy has no close-on-exec flag.
            check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor locks.
    unsafe { command.pre_exec(place) };
}

/// A call's result, or the error that it left in errno.
pub(in crate::sys) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn descriptors_get_the_numbers_that_a_program_knows_them_by() {
        let (mut first, one) = std::io::pipe().unwrap();
        let (mut second, two) = std::io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&3; echo second >&4; ls /proc/self/fd | wc -l"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        numbered(&mut command, vec![one.into(), two.into()]);
        let output = command.output().unwrap();
        drop(command);
        let mut told = String::new();
        first.read_to_string(&mut told).unwrap();
        second.read_to_string(&mut told).unwrap();
        assert_eq!(told, "first\nsecond\n");
        // stdio, the two, and the directory that ls reads.
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "6");
    }
}
