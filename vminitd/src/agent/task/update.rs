//! `Task.Update`: new resources for a container's cgroup.
//!
//! Promises: all of them or none; what cannot be applied is an error that names it.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use vminitd_protocol::pb::containerd::task::v3::UpdateTaskRequest;

use crate::agent::Agent;
use crate::agent::cgroup::CgroupError;
use crate::agent::errors::RpcError;

/// The call. Writing a limit can take the kernel a while, so it is not done on this thread.
pub async fn update(agent: Arc<Agent>, request: UpdateTaskRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let Some(resources) = request.resources else { return Ok(()) };
    let resources: LinuxResources =
        serde_json::from_slice(&resources.value).map_err(|error| RpcError::invalid(&error))?;
    // One after the other: what one that fails puts back must not be another's.
    let _turn = container.updating.lock().await;
    let (cgroup, guard) = (container.cgroup.clone(), agent.guard.clone());
    let updated = tokio::task::spawn_blocking(move || cgroup.update(&guard, &resources))
        .await
        .map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))?;
    updated.map_err(|error| match error {
        CgroupError::Absent(_) => RpcError::NoCgroup,
        error => RpcError::failed(&error),
    })
}
