//! What can go wrong with a process in the guest that our stdio is connected to, and which exit status tells so.

use std::io;

use host_shim::guest::{CallError, NotServing, StreamError};

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `--tty` without a terminal. The caller's fault.
    #[error("{wanted_by}: stdin is no terminal; leave out --tty, or start this from a terminal")]
    NoTerminal {
        /// What asked for a terminal.
        wanted_by: &'static str,
        /// What the system says of stdin.
        #[source]
        source: io::Error,
    },
    /// The terminal could not be made raw.
    #[error("make the terminal raw")]
    Terminal(#[source] io::Error),
    /// Signal handlers could not be set up.
    #[error("signal handlers")]
    Signals(#[source] io::Error),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// `-e` without a usable value. The caller's fault.
    #[error("--env: {entry:?} is not KEY=VALUE, and no such variable is set here")]
    Env {
        /// As given.
        entry: String,
    },
    /// A stream could not be opened.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The process could not be made or started; the guest's words.
    #[error("{0}")]
    Create(String),
    /// The agent in the guest was lost while the process was made, again and again.
    #[error("the guest's agent was lost {0} times while the command was made")]
    Unmade(usize),
    /// The guest was lost, and none came back.
    #[error("lost the guest while the command ran")]
    Gone(#[source] NotServing),
    /// Another call failed.
    #[error("{call}")]
    Call {
        /// Which.
        call: &'static str,
        /// The guest's answer.
        #[source]
        source: CallError,
    },
    /// Our stdout or stderr could not be written.
    #[error("output")]
    Output(#[source] io::Error),
}

impl ProcessError {
    /// For `map_err`: a failed call by its name.
    pub fn call(call: &'static str) -> impl FnOnce(CallError) -> Self {
        move |source| match source {
            CallError::Gone(source) => Self::Gone(source),
            source => Self::Call { call, source },
        }
    }

    /// For `map_err`: a process's own failures, without the wire's wrapping.
    pub fn create(call: &'static str) -> impl FnOnce(CallError) -> Self {
        move |source| match source {
            CallError::Refused(status) => Self::Create(status.message),
            source => Self::call(call)(source),
        }
    }

    /// Our exit status for it.
    pub fn status(&self) -> i32 {
        match self {
            Self::Create(text) => of_program(text),
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
            assert_eq!(ProcessError::Create(text).status(), status, "{reason}");
        }
    }
}
