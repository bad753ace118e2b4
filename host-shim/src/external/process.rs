//! The program that runs the VM. Owns: the process, its terminal, and the end of what it writes to stderr.
//! Promises: it ends with this, and with this process however that ends (its terminal hangs up, on which programs end
//! that do not say otherwise); a signal never meets a recycled pid, since only this reaps.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use crate::stderr::Tail;
use crate::sys::own_terminal;

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stderr: Tail,
    /// Reads stderr to its end; taken when it is waited for.
    reader: Option<JoinHandle<()>>,
    /// Our end of its terminal.
    _terminal: OwnedFd,
}

impl Process {
    /// Starts `program`. What it writes to stdout goes to `console`; `ended` is called when it will say no more, on a
    /// thread of its own.
    pub fn start(
        program: &Path,
        arguments: Vec<OsString>,
        console: OwnedFd,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdout(console).stderr(Stdio::piped());
        let terminal = own_terminal::give(&mut command)?;
        let mut child = command.spawn()?;
        let stderr = Tail::default();
        let (pipe, tail) = (child.stderr.take(), stderr.clone());
        let read = move || {
            if let Some(pipe) = pipe {
                tail.follow(pipe);
            }
            ended();
        };
        let reader = std::thread::Builder::new().name("stderr".into()).spawn(read);
        // Dropped on an error, it ends.
        let mut process = Self { child, stderr, reader: None, _terminal: terminal };
        process.reader = Some(reader?);
        Ok(process)
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

    /// Waits for its end (call it after `ended`): whether it was a good one, and how it was, in words.
    pub fn reap(&mut self) -> (bool, String) {
        let status = self.child.wait();
        if let Some(reader) = self.reader.take() {
            // A panic of the thread has been printed by it.
            let _ = reader.join();
        }
        let said = self.stderr.text();
        match status {
            Ok(status) if said.is_empty() => (status.success(), status.to_string()),
            Ok(status) => (status.success(), format!("{status}: {said}")),
            Err(error) => (false, format!("it could not be waited for: {error}")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
