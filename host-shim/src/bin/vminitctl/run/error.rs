//! What can go wrong in `vminitctl run`, and which exit status tells so.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use host_shim::container::ShareError;
use host_shim::ctl::DirectoryError;
use host_shim::extras::ExtrasError;
use host_shim::guest::{CallError, NotServing};
use host_shim::locate::LocateError;
use host_shim::machine::{BootError, Exited};
use host_shim::vm::{CmdlineError, DescriptionError};

use super::console::Console;
use crate::process::ProcessError;
use crate::process::signals::Signal;

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Neither a command nor a bundle that has one.
    #[error("no command: give one behind `--`, for example `-- sh -c 'echo hello'`")]
    NoCommand,
    /// Ports that lead nowhere.
    #[error("--publish needs a network; leave --net none away, or give --net user")]
    PublishWithoutNet,
    /// The root filesystem is no directory.
    #[error("--rootfs {path:?}: no directory that can be read")]
    Rootfs {
        /// As given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An image cannot be used.
    #[error("--image")]
    Image(#[source] Box<dyn Error + Send + Sync>),
    /// A path of the host cannot be shared.
    #[error("--volume")]
    Volume(#[source] ShareError),
    /// The bundle's config.json cannot be read.
    #[error("--bundle: {path:?}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The console file could not be made.
    #[error("--console")]
    Console(#[source] io::Error),
    /// `--chart`.
    #[error("--chart {path:?}")]
    Chart {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// `--extra`.
    #[error("--extra")]
    Extras(#[from] ExtrasError),
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
    /// The command's own failure, or its stdio's.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Another call failed.
    #[error("{call}")]
    Call {
        /// Which.
        call: &'static str,
        /// The guest's answer.
        #[source]
        source: CallError,
    },
    /// The control socket cannot be served.
    #[error("control socket")]
    Control(#[source] io::Error),
    /// The VM's directory on the host.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl RunError {
    /// The VM is gone.
    pub fn died(when: &'static str, exited: &Exited, console: &Console) -> Self {
        Self::Died { when, reason: exited.to_string(), console: console.story() }
    }

    /// Our exit status for it.
    pub fn status(&self) -> i32 {
        match self {
            Self::Process(error) => error.status(),
            Self::Interrupted(signal) => 128 + signal.number(),
            _ => crate::FAILED,
        }
    }
}
