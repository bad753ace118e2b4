//! A child with a terminal of its own: openpty(3), setsid(2), TIOCSCTTY of tty(4).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::pty::openpty;

use super::TAKE_TERMINAL;

/// Makes a new terminal `command`'s standard input, and its controlling one: the leader of a session of its own. When
/// the other end, which this returns, is closed, however that comes, the child gets SIGHUP.
pub fn give(command: &mut Command) -> io::Result<OwnedFd> {
    let pty = openpty(None, None)?;
    // Both ends were made without close-on-exec; the child shall have only its own, as stdin.
    let (master, slave) = (close_on_exec(pty.master)?, close_on_exec(pty.slave)?);
    command.stdin(slave);
    let take = || {
        // SAFETY: no arguments; of async-signal-safe functions only.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: stdin is the terminal by now; the argument is a plain number.
        if unsafe { libc::ioctl(0, TAKE_TERMINAL, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor locks.
    unsafe { command.pre_exec(take) };
    Ok(master)
}

fn close_on_exec(fd: OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::AsRawFd;

    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_child_whose_terminal_hangs_up_ends() {
        let mut command = Command::new("sh");
        command.args(["-c", "test -t 0 && echo yes; exec sleep 1000"]).stdout(Stdio::piped());
        let terminal = give(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut said = [0; 4];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(&said, b"yes\n");
        drop(terminal);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGHUP));
    }
}
