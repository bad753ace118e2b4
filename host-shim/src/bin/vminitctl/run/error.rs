//! What can go wrong in `vminitctl run`, and which exit status tells so.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use host_shim::guest::{NotServing, StreamError};
use host_shim::locate::LocateError;
use host_shim::machine::{BootError, Exited};
use host_shim::vm::{CmdlineError, DescriptionError, NameError};
use ttrpc::Error as RpcError;

use super::console::Console;
use super::signals::Signal;

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Neither a command nor a bundle that has one.
    #[error("no command: give one behind `--`, for example `-- sh -c 'echo hello'`")]
    NoCommand,
    /// The root filesystem is no directory.
    #[error("--rootfs {path:?}: no directory that can be read")]
    Rootfs {
        /// As given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The bundle's config.json cannot be read.
    #[error("--bundle: {path:?}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// `-e` without a usable value.
    #[error("--env: {entry:?} is not KEY=VALUE, and no such variable is set here")]
    Env {
        /// As given.
        entry: String,
    },
    /// Signal handlers could not be set up.
    #[error("signal handlers")]
    Signals(#[source] io::Error),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// The console file could not be made.
    #[error("--console")]
    Console(#[source] io::Error),
    /// `--name`.
    #[error("--name")]
    Name(#[source] NameError),
    /// `--append`.
    #[error("--append")]
    Cmdline(#[source] CmdlineError),
    /// A guest file or program is missing.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The VM makes no sense.
    #[error(transparent)]
    Description(#[from] DescriptionError),
    /// The VM could not be started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The guest did not come up.
    #[error("{source}\n{console}")]
    NotServing {
        /// How long it was tried.
        source: NotServing,
        /// What the guest said last.
        console: String,
    },
    /// The VM ended before the command did.
    #[error("{when}: {reason}\n{console}")]
    Died {
        /// In which phase.
        when: &'static str,
        /// The machine's reason.
        reason: String,
        /// What the guest said last.
        console: String,
    },
    /// A signal came before the command ran.
    #[error("interrupted by signal {0} before the command ran")]
    Interrupted(Signal),
    /// The agent in the guest was lost, and none came back.
    #[error("lost the guest while the command ran")]
    AgentGone(#[source] NotServing),
    /// A stream could not be opened.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The container could not be made or started.
    #[error("{0}")]
    Create(String),
    /// Another call failed.
    #[error("{call}")]
    Rpc {
        /// Which.
        call: &'static str,
        /// The guest's answer.
        #[source]
        source: RpcError,
    },
    /// Our stdout or stderr could not be written.
    #[error("output")]
    Output(#[source] io::Error),
}

impl RunError {
    /// For `map_err`: a failed call by its name.
    pub fn rpc(call: &'static str) -> impl FnOnce(RpcError) -> Self {
        move |source| Self::Rpc { call, source }
    }

    /// For `map_err`: the container's own failures, without the wire's wrapping.
    pub fn create(error: RpcError) -> Self {
        match error {
            RpcError::RpcStatus(status) => Self::Create(status.message),
            other => Self::Rpc { call: "Task.Create or Task.Start", source: other },
        }
    }

    /// The VM is gone.
    pub fn died(when: &'static str, exited: &Exited, console: &Console) -> Self {
        Self::Died { when, reason: exited.to_string(), console: console.story() }
    }

    /// Our exit status for it.
    pub fn status(&self) -> i32 {
        match self {
            Self::Create(text) => of_program(text),
            Self::Interrupted(signal) => 128 + signal.number(),
            _ => crate::FAILED,
        }
    }
}

/// What a shell would answer for a program that cannot run; the guest's words are those of other runtimes:
/// `exec: "PROGRAM": REASON`.
fn of_program(text: &str) -> i32 {
    match text.rsplit_once("exec: \"").map(|(_, reason)| reason) {
        Some(reason) if reason.contains("executable file not found") => 127,
        Some(reason) if reason.contains("no such file or directory") => 127,
        Some(reason) if reason.contains("permission denied") => 126,
        Some(reason) if reason.contains("is a directory") => 126,
        _ => crate::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_a_shells_for_a_program_that_cannot_run_and_125_else() {
        for (reason, status) in [
            ("exec: \"nope\": executable file not found in $PATH", 127),
            ("exec: \"/bin/nope\": stat /bin/nope: no such file or directory", 127),
            ("exec: \"mode\": permission denied", 126),
            ("exec: \"/bin\": is a directory", 126),
            ("mount /x: no such file or directory", 125),
        ] {
            let text = format!("OCI runtime create failed: failed to create container: {reason}");
            assert_eq!(RunError::Create(text).status(), status, "{reason}");
        }
    }
}
