//! What goes wrong in an RPC, as hosts see it: the one place where errors become ttrpc codes and
//! texts.
//!
//! Promises: codes and texts are those that containerd's clients and the existing host shims
//! branch on; each has a byte-exact test below.
//! Never: decides that something is wrong.

use ttrpc::{Code, get_status};

use super::id::NameError;
use super::process::lifecycle::Refusal;
use crate::chain;

/// An RPC's failure. A text ends in the name of its class where the code is one of containerd's
/// classes.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// No such container.
    #[error("container not created: not found")]
    NoContainer,
    /// No such exec.
    #[error("process does not exist {exec}: not found")]
    NoProcess {
        /// The exec's id.
        exec: String,
    },
    /// The id of a Create or of a bundle is taken.
    #[error("{what} {id}: already exists")]
    Exists {
        /// What has the id.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// The process's state does not allow it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The Mount service has mounted nothing there.
    #[error("cannot unmount {0}: not found")]
    NotMounted(String),
    /// The container has no cgroup any more.
    #[error("cgroup does not exist: not found")]
    NoCgroup,
    /// A stdio URI of a kind that is not served.
    #[error("unsupported STDIO scheme {0}")]
    Scheme(String),
    /// A stdio URI names a stream that was not opened, or that another process has.
    #[error("unable to get stream {0:?}: not found")]
    NoStream(String),
    /// libcontainer, or what leads to it, failed.
    #[error("OCI runtime create failed: {0}")]
    Runtime(String),
    /// The same for a further process.
    #[error("OCI runtime exec failed: {0}")]
    RuntimeExec(String),
    /// The request is not one that can be done, whatever the state.
    #[error("{0}: invalid argument")]
    Invalid(String),
    /// Not built (yet), or never will be.
    #[error("{0}: not implemented")]
    Unimplemented(String),
    /// The VM is going down.
    #[error("the VM is shutting down: unavailable")]
    ShuttingDown,
    /// A limit of ours was met.
    #[error("{0}: resource exhausted")]
    Exhausted(String),
    /// A stream cannot take the place of what is none.
    #[error("{0} of the process is no stream: failed precondition")]
    NotAStream(String),
    /// The events that a subscriber wants to go on with are no longer there.
    #[error("events before {oldest} are gone: out of range")]
    EventsGone {
        /// The oldest that is there.
        oldest: u64,
    },
    /// No supervisor was injected.
    #[error("supervisor does not exist: not found")]
    NoSupervisor,
    /// init's reason.
    #[error("supervisor: {0}: failed precondition")]
    SupervisorRefused(String),
    /// No such CPU or memory block.
    #[error("{0} does not exist: not found")]
    NoDevice(String),
    /// A CPU or memory block that stays.
    #[error("{0} cannot be taken offline: failed precondition")]
    NoSwitch(String),
    /// The guest failed at something that should have worked: the whole cause chain.
    #[error("{0}")]
    Failed(String),
}

impl RpcError {
    /// The guest failed: what it was doing, and the causes.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(chain(error))
    }

    /// The request is invalid: what is wrong with it, and the causes.
    pub fn invalid(error: &dyn std::error::Error) -> Self {
        Self::Invalid(chain(error))
    }

    /// The ttrpc code.
    pub fn code(&self) -> Code {
        match self {
            Self::NoContainer
            | Self::NoProcess { .. }
            | Self::NoCgroup
            | Self::NoSupervisor
            | Self::NoDevice(_)
            | Self::NoStream(_)
            | Self::NotMounted(_)
            | Self::Refused(Refusal::Finished | Refusal::Gone) => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::Refused(Refusal::NotStarted | Refusal::InitGone { .. }) => {
                Code::FAILED_PRECONDITION
            }
            Self::Refused(Refusal::Cannot { .. } | Refusal::CannotExec { .. })
            | Self::Runtime(_)
            | Self::RuntimeExec(_)
            | Self::Failed(_) => Code::UNKNOWN,
            Self::Scheme(_) | Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::ShuttingDown => Code::UNAVAILABLE,
            Self::Exhausted(_) => Code::RESOURCE_EXHAUSTED,
            Self::EventsGone { .. } => Code::OUT_OF_RANGE,
            Self::NotAStream(_) | Self::NoSwitch(_) | Self::SupervisorRefused(_) => {
                Code::FAILED_PRECONDITION
            }
        }
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        Self::RpcStatus(get_status(error.code(), error))
    }
}

impl From<NameError> for RpcError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen_by_host(error: impl Into<RpcError>) -> (Code, String) {
        match ttrpc::Error::from(error.into()) {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("not a status: {other:?}"),
        }
    }

    /// One row per row of the table that hosts match on.
    #[test]
    fn codes_and_texts_are_those_that_hosts_branch_on() {
        let rows: Vec<(RpcError, Code, &str)> = vec![
            (RpcError::NoContainer, Code::NOT_FOUND, "container not created: not found"),
            (
                RpcError::NoProcess { exec: "e1".into() },
                Code::NOT_FOUND,
                "process does not exist e1: not found",
            ),
            (
                RpcError::Exists { what: "container", id: "c1".into() },
                Code::ALREADY_EXISTS,
                "container c1: already exists",
            ),
            (
                RpcError::Exists { what: "id", id: "e1".into() },
                Code::ALREADY_EXISTS,
                "id e1: already exists",
            ),
            (
                Refusal::InitGone { container: "c1".into() }.into(),
                Code::FAILED_PRECONDITION,
                "container c1 init process is not running: failed precondition",
            ),
            (Refusal::Finished.into(), Code::NOT_FOUND, "process already finished: not found"),
            (
                Refusal::NotStarted.into(),
                Code::FAILED_PRECONDITION,
                "process not created: failed precondition",
            ),
            (Refusal::Gone.into(), Code::NOT_FOUND, "container not created: not found"),
            (
                Refusal::Cannot { verb: "delete", state: "running" }.into(),
                Code::UNKNOWN,
                "cannot delete a running process",
            ),
            (
                Refusal::Cannot { verb: "start", state: "running" }.into(),
                Code::UNKNOWN,
                "cannot start a running process",
            ),
            (
                RpcError::NotMounted("/mnt/x".into()),
                Code::NOT_FOUND,
                "cannot unmount /mnt/x: not found",
            ),
            (RpcError::NoCgroup, Code::NOT_FOUND, "cgroup does not exist: not found"),
            (
                RpcError::Scheme("binary".into()),
                Code::UNIMPLEMENTED,
                "unsupported STDIO scheme binary",
            ),
            (
                RpcError::NoStream("c1-stdout".into()),
                Code::NOT_FOUND,
                "unable to get stream \"c1-stdout\": not found",
            ),
            (
                RpcError::Runtime("no such file".into()),
                Code::UNKNOWN,
                "OCI runtime create failed: no such file",
            ),
            (
                RpcError::RuntimeExec("no such file".into()),
                Code::UNKNOWN,
                "OCI runtime exec failed: no such file",
            ),
            (
                Refusal::CannotExec { state: "paused" }.into(),
                Code::UNKNOWN,
                "cannot exec in a paused state",
            ),
            (
                RpcError::Invalid("empty id".into()),
                Code::INVALID_ARGUMENT,
                "empty id: invalid argument",
            ),
            (
                RpcError::Unimplemented("checkpoint".into()),
                Code::UNIMPLEMENTED,
                "checkpoint: not implemented",
            ),
            (RpcError::ShuttingDown, Code::UNAVAILABLE, "the VM is shutting down: unavailable"),
            (
                RpcError::Exhausted("64 streams are open".into()),
                Code::RESOURCE_EXHAUSTED,
                "64 streams are open: resource exhausted",
            ),
            (
                RpcError::NotAStream("stdin".into()),
                Code::FAILED_PRECONDITION,
                "stdin of the process is no stream: failed precondition",
            ),
            (RpcError::NoSupervisor, Code::NOT_FOUND, "supervisor does not exist: not found"),
            (
                RpcError::SupervisorRefused("it is being stopped".into()),
                Code::FAILED_PRECONDITION,
                "supervisor: it is being stopped: failed precondition",
            ),
            (
                RpcError::NoDevice("cpu 9".into()),
                Code::NOT_FOUND,
                "cpu 9 does not exist: not found",
            ),
            (
                RpcError::NoSwitch("cpu 0".into()),
                Code::FAILED_PRECONDITION,
                "cpu 0 cannot be taken offline: failed precondition",
            ),
            (
                RpcError::EventsGone { oldest: 17 },
                Code::OUT_OF_RANGE,
                "events before 17 are gone: out of range",
            ),
            (RpcError::Failed("mount x: busy".into()), Code::UNKNOWN, "mount x: busy"),
        ];
        for (error, code, text) in rows {
            assert_eq!(seen_by_host(error), (code, text.to_owned()));
        }
    }

    #[test]
    fn names_that_are_refused_are_invalid_arguments() {
        let error = super::super::id::ContainerId::try_from("..").unwrap_err();
        let (code, text) = seen_by_host(error);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.ends_with(": invalid argument"), "{text}");
    }
}
