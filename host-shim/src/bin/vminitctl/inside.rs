//! `vminitctl features`, `metrics`, `diag`: looks inside a VM that a `vminitctl run` owns.
//!
//! Promises: what is printed is what the guest says, without control characters; nothing in the VM changes.

use host_shim::guest::{Guest, unlimited};
use vminitd_protocol::pb::google::protobuf::Empty;

use crate::cli::VmArgs;
use crate::reach::{ReachError, plain, print, with_guest};

/// Prints what the guest can do.
pub fn features(args: &VmArgs) -> Result<i32, ReachError> {
    let told = ask(args, async |guest| guest.machine().features(unlimited(), &Empty {}).await)?;
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
    print(&plain(&text))?;
    Ok(0)
}

/// Prints its figures.
pub fn metrics(args: &VmArgs) -> Result<i32, ReachError> {
    let told = ask(args, async |guest| guest.machine().metrics(unlimited(), &Empty {}).await)?;
    print(&plain(&told.text))?;
    Ok(0)
}

/// Prints what it knows of itself.
pub fn diag(args: &VmArgs) -> Result<i32, ReachError> {
    let told = ask(args, async |guest| guest.machine().diagnostics(unlimited(), &Empty {}).await)?;
    print(&plain(&told.text))?;
    Ok(0)
}

fn ask<T>(
    args: &VmArgs,
    ask: impl AsyncFnOnce(&Guest) -> ttrpc::Result<T>,
) -> Result<T, ReachError> {
    with_guest(args.name.as_ref(), async |vm| ask(&vm.guest).await.map_err(|e| vm.refused(e)))
}
