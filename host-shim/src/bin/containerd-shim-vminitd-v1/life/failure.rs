//! What a call of containerd's is answered when it fails: the one place for codes and texts.
//!
//! Promises: what the guest refuses is passed on as it is; containerd and its clients know our own texts from other
//! shims. Never: decides that something is wrong.

use host_shim::chain;
use host_shim::guest::CallError;
use ttrpc::{Code, get_status};

/// A call's failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The guest says no.
    #[error("{}", .0.message)]
    Guest(ttrpc::Status),
    /// No such container.
    #[error("container not created: not found")]
    NoContainer,
    /// No such exec.
    #[error("process does not exist {0}: not found")]
    NoProcess(String),
    /// The id is taken.
    #[error("{0}: already exists")]
    Exists(String),
    /// It has ended.
    #[error("process already finished: not found")]
    Finished,
    /// It has not ended.
    #[error("cannot delete a running process")]
    Running,
    /// There is no VM any more.
    #[error("{0}: failed precondition")]
    Ended(String),
    /// The request makes no sense.
    #[error("{0}: invalid argument")]
    Invalid(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// With all causes.
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(chain(error))
    }

    fn code(&self) -> Code {
        match self {
            Self::Guest(status) => status.code(),
            Self::NoContainer | Self::NoProcess(_) | Self::Finished => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Ended(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Running | Self::Failed(_) => Code::UNKNOWN,
        }
    }

    /// Whether it says that something is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NOT_FOUND
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Guest(status) => Self::RpcStatus(status),
            other => Self::RpcStatus(get_status(other.code(), other.to_string())),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(status) => Self::Guest(status),
            lost @ CallError::Lost(_) => Self::failed(&lost),
            gone @ CallError::Gone(_) => Self::Ended(chain(&gone)),
        }
    }
}
