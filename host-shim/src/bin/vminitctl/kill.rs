//! `vminitctl kill`: a signal for the container of a VM.

use host_shim::guest::unlimited;
use vminitd_protocol::pb::containerd::task::v3::KillRequest;

use crate::cli::KillArgs;
use crate::reach::{ReachError, with_guest};

/// Sends it; returns the exit status.
pub fn kill(args: &KillArgs) -> Result<i32, ReachError> {
    with_guest(args.vm.name.as_ref(), async |vm| {
        let request = KillRequest {
            id: vm.container().await?,
            exec_id: String::new(),
            signal: args.signal.0 as u32,
            all: args.all,
        };
        vm.guest.task().kill(unlimited(), &request).await.map_err(|error| vm.refused(error))?;
        Ok(0)
    })
}
