//! A running VM, from what a person called it to calls to its guest.
//!
//! Promises: what failed is told with the VM's name. Never: goes past the VM's owner: its ctl.sock gives connections.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use host_shim::ctl::{self, ControlError, Description, LookupError, Place, Selector};
use host_shim::guest::{BOOT_DEADLINE, Guest, NotServing, Ports};

use crate::process::ProcessError;

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The VM is not found, or is not unique.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// The VM cannot be asked what runs in it.
    #[error("VM {place}")]
    Control {
        /// The VM.
        place: Place,
        /// Why not.
        #[source]
        source: ControlError,
    },
    /// The guest cannot be reached.
    #[error("VM {place}")]
    NotServing {
        /// The VM.
        place: Place,
        /// How long it was tried, and what happened.
        #[source]
        source: NotServing,
    },
    /// The guest says no.
    #[error("VM {place}: {text}")]
    Call {
        /// The VM.
        place: Place,
        /// Its words.
        text: String,
    },
    /// Its console's file cannot be read.
    #[error("VM {place}: console {path:?}; its owner may keep it elsewhere (--console)", path = place.console())]
    Console {
        /// The VM.
        place: Place,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What the guest answered is not what was asked for.
    #[error("VM {place}: {what} makes no sense")]
    Answer {
        /// The VM.
        place: Place,
        /// Which answer.
        what: &'static str,
    },
    /// A file of ours that a command needs.
    #[error("{what}")]
    Local {
        /// What was to be done with it.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The command's own failure, or its stdio's.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Our stdout could not be written.
    #[error("output")]
    Output(#[source] io::Error),
}

impl ReachError {
    /// Our exit status for it.
    pub fn status(&self) -> i32 {
        match self {
            Self::Process(error) => error.status(),
            _ => crate::FAILED,
        }
    }
}

/// A VM whose guest serves.
pub struct Reached {
    /// Where it was found.
    pub place: Place,
    /// The guest.
    pub guest: Guest,
}

impl Reached {
    /// The id of the VM's container, as soon as that has been started.
    pub async fn container(&self) -> Result<String, ReachError> {
        Ok(self.described().await?.container)
    }

    /// What the VM's owner says of it, as soon as its container has been started.
    pub async fn described(&self) -> Result<Description, ReachError> {
        let told = self.place.control().describe(true).await;
        told.map_err(|source| ReachError::Control { place: self.place.clone(), source })
    }

    /// The guest's refusal, or the end of the connection.
    pub fn refused(&self, error: ttrpc::Error) -> ReachError {
        let text = match error {
            ttrpc::Error::RpcStatus(status) => status.message,
            other => other.to_string(),
        };
        ReachError::Call { place: self.place.clone(), text }
    }
}

/// Finds the VM and its guest, and does something with it on a runtime of its own.
pub fn with_guest<T>(
    selector: Option<&Selector>,
    work: impl AsyncFnOnce(Reached) -> Result<T, ReachError>,
) -> Result<T, ReachError> {
    let place = ctl::lookup(selector)?;
    runtime()?.block_on(async { work(reach(place).await?).await })
}

/// A runtime for one thing.
pub fn runtime() -> Result<tokio::runtime::Runtime, ReachError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ReachError::Runtime)
}

async fn reach(place: Place) -> Result<Reached, ReachError> {
    match Guest::connect(Arc::new(place.control()), Ports::default(), BOOT_DEADLINE).await {
        Ok(guest) => Ok(Reached { place, guest }),
        Err(source) => Err(ReachError::NotServing { place, source }),
    }
}

/// Prints; who reads no further wants no more, which is `false`.
pub fn print(text: &str) -> Result<bool, ReachError> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).map_err(ReachError::Output),
    }
}

/// A guest shall not drive the terminal of who reads this.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}
