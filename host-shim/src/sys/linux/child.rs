//! Child processes that end with us: fork, execve(2), PR_SET_PDEATHSIG in prctl(2).
//!
//! The kernel ties PDEATHSIG to the *thread* that forked: a child dies when that thread ends. Spawn from a thread
//! that lives as long as the child may.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use crate::sys::numbered::check;

/// Starts `command`. The child inherits `fds` under the numbers they have here and nothing else beside stdio, can
/// gain no privileges, and is killed when the calling thread ends (close_range(2) needs Linux 5.11).
pub fn spawn(command: &mut Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let keep: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor locks, and `keep`
    // was allocated before.
    unsafe { command.pre_exec(move || before_exec(&keep, parent)) };
    command.spawn()
}

/// In a child, before it executes a program: nothing above its stdio goes along. Marked, not closed: std tells its
/// parent of a failed exec through a descriptor of its own.
pub(in crate::sys) fn let_none_through() -> io::Result<()> {
    // SAFETY: changes flags of this process's descriptors only.
    check(unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) })
}

fn before_exec(keep: &[RawFd], parent: u32) -> io::Result<()> {
    // SAFETY: plain numbers; what prctl sets is this process's own.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: no arguments. A parent that died before prctl sends no signal.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // A core would hold the guest's memory, and be left where we were started.
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a value that lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &no_core) })?;
    let_none_through()?;
    for fd in keep {
        // SAFETY: plain numbers; the fds are open in the parent during the fork, since it borrows them.
        check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn the_child_has_the_fds_it_was_given_and_no_others() {
        let (given, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        // Another's fd that forgot its close-on-exec flag.
        // SAFETY: plain numbers.
        check(unsafe { libc::fcntl(other.as_raw_fd(), libc::F_SETFD, 0) }).unwrap();
        let path = |file: &std::fs::File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let target =
            |file: &std::fs::File| std::fs::read_link(path(file)).unwrap().display().to_string();
        let mut command = Command::new("readlink");
        command.args([path(&given), path(&other)]).stdin(Stdio::null()).stdout(Stdio::piped());
        let output = spawn(&mut command, &[given.as_fd()]).unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", target(&given)));
    }

    #[test]
    fn the_child_dies_with_the_thread_that_started_it() {
        let mut child =
            std::thread::spawn(|| spawn(Command::new("sleep").arg("1000"), &[]).unwrap())
                .join()
                .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_program_that_is_missing_is_an_error() {
        let error = spawn(&mut Command::new("/nowhere/program"), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
