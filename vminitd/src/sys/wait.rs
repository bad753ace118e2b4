//! Children that ended or stopped, see waitid(2).

use std::io;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl End {
    /// As shells and containerd count: the code, or 128 and the signal.
    pub fn status(self) -> u32 {
        match self {
            End::Exited(code) => code as u32 & 0xff,
            End::Killed(signal) => 128 + signal as u32,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Exited(code) => write!(formatter, "exited with {code}"),
            End::Killed(signal) => write!(formatter, "was killed by signal {signal}"),
        }
    }
}

/// The first child that has ended, without reaping it: the next call finds the same one again.
/// `None` when there is none.
pub fn peek() -> io::Result<Option<i32>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    Ok(wait(libc::P_ALL, 0, flags)?.map(|(pid, _)| pid))
}

/// Reaps the child, if it has ended.
pub fn reap(pid: i32) -> io::Result<Option<End>> {
    let found = wait(libc::P_PID, pid, libc::WEXITED | libc::WNOHANG | libc::__WALL)?;
    Ok(found.map(|(_, end)| end))
}

/// Whether the child is stopped by a signal. Does not consume the report.
pub fn is_stopped(pid: i32) -> io::Result<bool> {
    Ok(wait(libc::P_PID, pid, libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT)?.is_some())
}

fn wait(kind: libc::idtype_t, id: i32, flags: i32) -> io::Result<Option<(i32, End)>> {
    // SAFETY: siginfo_t is plain data, for which all zero is valid.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is a siginfo_t of ours that outlives the call.
    let result = unsafe { libc::waitid(kind, id as libc::id_t, &raw mut found, flags) };
    if result != 0 {
        let error = io::Error::last_os_error();
        // No children at all is as good as none that ended.
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid has filled in the fields of SIGCHLD, or left all zero.
    let (pid, status) = unsafe { (found.si_pid(), found.si_status()) };
    let end = match found.si_code {
        libc::CLD_EXITED => End::Exited(status),
        _ => End::Killed(status),
    };
    Ok((pid != 0).then_some((pid, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_counts_as_containerd_does() {
        assert_eq!(End::Exited(3).status(), 3);
        assert_eq!(End::Killed(9).status(), 137);
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "waiting is what is tested")]
    fn child_is_seen_stopped_and_then_reaped_once() {
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(!is_stopped(pid).unwrap());
        assert_eq!(reap(pid).unwrap(), None);
        kill(pid, libc::SIGSTOP);
        until(|| is_stopped(pid).unwrap());
        assert!(is_stopped(pid).unwrap());
        kill(pid, libc::SIGKILL);
        let mut end = None;
        until(|| {
            end = reap(pid).unwrap();
            end.is_some()
        });
        assert_eq!(end, Some(End::Killed(libc::SIGKILL)));
        assert_eq!(reap(pid).unwrap(), None);
    }

    fn kill(pid: i32, signal: i32) {
        let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    fn until(mut done: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < std::time::Duration::from_secs(10));
            std::thread::yield_now();
        }
    }
}
