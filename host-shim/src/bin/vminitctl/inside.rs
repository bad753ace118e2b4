//! `vminitctl features`, `metrics`, `diag`: looks inside a VM that a `vminitctl run` owns.
//!
//! Promises: what is printed is what the guest says, without control characters; nothing in the VM changes.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;

use host_shim::ctl::{self, LookupError};
use host_shim::guest::{BOOT_DEADLINE, Guest, NotServing, Ports, unlimited};
use vminitd_protocol::pb::google::protobuf::Empty;

use crate::cli::VmArgs;

/// Each variant is the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// The VM is not found, or is not unique.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The async runtime could not be set up.
    #[error("async runtime")]
    Runtime(#[source] io::Error),
    /// The guest cannot be reached.
    #[error("VM {name}")]
    NotServing {
        /// The VM.
        name: String,
        /// How long it was tried, and what happened.
        #[source]
        source: NotServing,
    },
    /// The guest says no.
    #[error("VM {name}: {call}")]
    Call {
        /// The VM.
        name: String,
        /// Which call.
        call: &'static str,
        /// Its answer.
        #[source]
        source: ttrpc::Error,
    },
    /// Our stdout could not be written.
    #[error("output")]
    Output(#[source] io::Error),
}

/// Prints what the guest can do.
pub fn features(args: &VmArgs) -> Result<i32, InsideError> {
    let told = ask(args, "Machine.Features", async |guest| {
        guest.machine().features(unlimited(), &Empty {}).await
    })?;
    let mut text = format!(
        "version {}\nprotocol {}\nbuild {}\nkernel {}\nkernel-config {}\n",
        told.version,
        told.protocol_version,
        told.build_id,
        told.kernel_release,
        told.kernel_config_digest
    );
    for service in told.services {
        text += &format!("service {}: {}\n", service.name, service.methods.join(" "));
    }
    let mut limits: Vec<_> = told.limits.into_iter().collect();
    limits.sort();
    for (name, value) in limits {
        text += &format!("limit {name} {value}\n");
    }
    print(&text)
}

/// Prints its figures.
pub fn metrics(args: &VmArgs) -> Result<i32, InsideError> {
    let told = ask(args, "Machine.Metrics", async |guest| {
        guest.machine().metrics(unlimited(), &Empty {}).await
    })?;
    print(&told.text)
}

/// Prints what it knows of itself.
pub fn diag(args: &VmArgs) -> Result<i32, InsideError> {
    let told = ask(args, "Machine.Diagnostics", async |guest| {
        guest.machine().diagnostics(unlimited(), &Empty {}).await
    })?;
    print(&told.text)
}

fn ask<T>(
    args: &VmArgs,
    call: &'static str,
    ask: impl AsyncFnOnce(Guest) -> ttrpc::Result<T>,
) -> Result<T, InsideError> {
    let vm = ctl::lookup(args.name.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(InsideError::Runtime)?;
    runtime.block_on(async {
        let control = Arc::new(vm.control());
        let guest = Guest::connect(control, Ports::default(), BOOT_DEADLINE).await;
        let guest =
            guest.map_err(|source| InsideError::NotServing { name: vm.to_string(), source })?;
        ask(guest).await.map_err(|source| InsideError::Call { name: vm.to_string(), call, source })
    })
}

/// A guest shall not drive the terminal of who reads this.
fn print(text: &str) -> Result<i32, InsideError> {
    let plain: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    match io::stdout().write_all(plain.as_bytes()) {
        // Who reads no further wants no more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        written => written.map(|()| 0).map_err(InsideError::Output),
    }
}
