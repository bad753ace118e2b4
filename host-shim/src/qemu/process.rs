//! A child of vminit-vmm: QEMU, virtiofsd.
//! Owns: the process and the end of what it wrote to stderr. Promises: dropping it kills and reaps it; a signal never
//! meets a recycled pid, since only the owner of this reaps.
//! Never: outlives the thread that started it.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::stderr::Tail;
use crate::sys::child;

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stderr: Tail,
    /// Reads stderr and waits for the end; taken by [`Process::reap`].
    watcher: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` with `fds` under their own numbers and an environment of PATH alone. `ended` is called once,
    /// on a thread of its own, when the process is dead and not yet reaped.
    pub fn start(
        name: impl Into<String>,
        command: &mut Command,
        fds: &[BorrowedFd<'_>],
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let name = name.into();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let mut child = child::spawn(command, fds)?;
        let stderr = Tail::default();
        let (pipe, tail) = (child.stderr.take(), stderr.clone());
        let pid = Pid::from_raw(child.id().cast_signed());
        let watcher =
            std::thread::Builder::new().name(name.clone()).stack_size(64 << 10).spawn(move || {
                if let Some(pipe) = pipe {
                    tail.follow(pipe);
                }
                // Not reaped here: until its owner does, nobody else gets the pid.
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                while waitid(Id::Pid(pid), flags) == Err(nix::Error::EINTR) {}
                ended();
            });
        match watcher {
            Ok(watcher) => Ok(Self { name, child, stderr, watcher: Some(watcher) }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it, if it still runs.
    pub fn kill(&mut self) {
        // It cannot have been reaped, and killing the dead is no error.
        let _ = self.child.kill();
    }

    /// Waits for its end (call it after `ended`, or after a kill), and says how it was.
    pub fn reap(&mut self) -> String {
        let status = self.child.wait();
        if let Some(watcher) = self.watcher.take() {
            // A panic of the thread has been printed by it.
            let _ = watcher.join();
        }
        let said = self.stderr.text();
        let how = match status {
            Ok(status) => describe(status),
            Err(error) => format!("could not be waited for: {error}"),
        };
        match said.as_str() {
            "" => format!("{} {how}", self.name),
            said => format!("{} {how}: {said}", self.name),
        }
    }

    /// True when it has ended with status 0; call it after `ended`.
    pub fn succeeded(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if status.success())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(Ok(signal))) => format!("was killed by {signal}"),
        (None, _) => format!("ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::limits::STDERR_TAIL_BYTES;

    fn run(script: &str) -> String {
        let (sender, ended) = channel();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut process =
            Process::start("child", &mut command, &[], move || sender.send(()).unwrap()).unwrap();
        ended.recv().unwrap();
        process.reap()
    }

    #[test]
    fn an_end_is_told_with_the_last_words() {
        assert_eq!(
            run("echo first >&2; echo last >&2; exit 3"),
            "child exited with status 3: first\nlast"
        );
        assert_eq!(run("kill -9 $$"), "child was killed by SIGKILL");
    }

    #[test]
    fn of_many_words_the_end_is_kept() {
        let told = run("i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done");
        assert!(told.ends_with("line 1999") && told.len() < STDERR_TAIL_BYTES + 100);
    }

    #[test]
    fn a_dropped_child_is_dead() {
        let process =
            Process::start("child", Command::new("sleep").arg("1000"), &[], || ()).unwrap();
        let path = format!("/proc/{}", process.pid());
        drop(process);
        assert!(!std::path::Path::new(&path).exists());
    }
}
