//! `Task.Pids`: every process of the container, by its cgroup.

use vminitd_protocol::pb::containerd::task::v3::{PidsRequest, PidsResponse};
use vminitd_protocol::pb::containerd::v1::types::ProcessInfo;

use crate::agent::Agent;
use crate::agent::cgroup::CgroupError;
use crate::agent::errors::RpcError;

/// The call.
pub fn pids(agent: &Agent, request: &PidsRequest) -> Result<PidsResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let pids = container.cgroup.pids().map_err(|error| match error {
        CgroupError::Absent(_) => RpcError::NoCgroup,
        error => RpcError::failed(&error),
    })?;
    let processes = pids.into_iter().map(|pid| ProcessInfo { pid, info: None }).collect();
    Ok(PidsResponse { processes })
}
