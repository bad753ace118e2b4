//! `vminitctl stop`: ends a VM that a `vminitctl run` owns.
//!
//! Promises: when it returns, the VM has ended, or an error says why that is not known; one that does not end by
//! itself is killed.
//! Never: touches the container itself: the guest has its order for that.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use host_shim::ctl::{self, Control, ControlError, LookupError};
use host_shim::guest::{Guest, Ports, unlimited};
use tokio::time::timeout;
use vminitd_protocol::pb::vminitd::v1::MachineShutdownRequest;

use crate::cli::StopArgs;

/// The VM did not end by itself.
const KILLED: i32 = 1;

/// What the guest has beside the container's grace: each of its steps is bounded, and all together take less, unless
/// several hang.
const STEPS: Duration = Duration::from_secs(90);

/// The grace of a guest that is not told another, at most.
const GRACE: Duration = Duration::from_secs(10);

/// How long the guest may take to hear of it.
const HEARD: Duration = Duration::from_secs(10);

/// How long a killed VM may take.
const GONE: Duration = Duration::from_secs(20);

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The VM is not found, or is not unique.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// Its process cannot be spoken to.
    #[error("VM {name}")]
    Control {
        /// The VM.
        name: String,
        /// Why not.
        #[source]
        source: ControlError,
    },
    /// It does not even die.
    #[error("VM {name} was killed and has not ended within {} s", GONE.as_secs())]
    Immortal {
        /// The VM.
        name: String,
    },
}

/// Stops it; returns the exit status.
pub fn stop(args: &StopArgs) -> Result<i32, StopError> {
    let vm = ctl::lookup(args.vm.name.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StopError::Runtime)?;
    let control = vm.control();
    runtime.block_on(stop_and_wait(args, vm.to_string(), control))
}

async fn stop_and_wait(args: &StopArgs, name: String, control: Control) -> Result<i32, StopError> {
    // Asked for first: afterwards there may be nobody to ask.
    let watched = control.clone();
    let mut ended = tokio::spawn(async move { watched.ended().await });
    let heard = tokio::select! {
        told = &mut ended => return told_how(&name, told),
        heard = ask(args, &control) => heard,
    };
    if heard.is_ok() {
        let patience = args.timeout.unwrap_or(GRACE) + STEPS;
        if let Ok(told) = timeout(patience, &mut ended).await {
            return told_how(&name, told);
        }
    }
    let why = heard.err().unwrap_or_else(|| "the guest does not end".to_owned());
    eprintln!("vminitctl: VM {name} is killed: {why}");
    let killed = control.kill().await;
    match timeout(GONE, &mut ended).await {
        Ok(told) => told_how(&name, told).map(|_| KILLED),
        Err(_) => Err(match killed {
            Err(source) => StopError::Control { name, source },
            Ok(()) => StopError::Immortal { name },
        }),
    }
}

async fn ask(args: &StopArgs, control: &Control) -> Result<(), String> {
    let guest = Guest::connect(Arc::new(control.clone()), Ports::default(), HEARD).await;
    let guest = guest.map_err(|error| format!("{error}: {}", error.last))?;
    let grace_ms = args.timeout.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    let request = MachineShutdownRequest { reboot: args.reboot, grace_ms };
    let client = guest.machine();
    match timeout(HEARD, client.shutdown(unlimited(), &request)).await {
        Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(status.message),
        // The VM may be gone before the answer is through.
        Ok(_) => Ok(()),
        Err(_) => Err("the guest does not answer".to_owned()),
    }
}

type Told = Result<Result<(String, String), ControlError>, tokio::task::JoinError>;

fn told_how(name: &str, told: Told) -> Result<i32, StopError> {
    match told {
        Ok(Ok((reason, detail))) => {
            if !detail.is_empty() {
                let plain: String = detail.chars().filter(|c| !c.is_control()).collect();
                eprintln!("vminitctl: VM {name} ended: {reason} ({plain})");
            }
            Ok(0)
        }
        // Its owner has gone, and the VM with it.
        Ok(Err(ControlError::Gone(_))) | Err(_) => Ok(0),
        Ok(Err(source)) => Err(StopError::Control { name: name.to_owned(), source }),
    }
}
