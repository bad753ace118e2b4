//! `Task.Update`: new resources for a container's cgroup.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use vminitd_protocol::pb::containerd::task::v3::UpdateTaskRequest;

use crate::agent::Agent;
use crate::agent::cgroup::apply;
use crate::agent::errors::RpcError;

/// The call. Writing a limit can take the kernel a while, so it is not done on this thread.
pub async fn update(agent: Arc<Agent>, request: UpdateTaskRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let Some(resources) = request.resources else { return Ok(()) };
    let resources: LinuxResources =
        serde_json::from_slice(&resources.value).map_err(|error| RpcError::invalid(&error))?;
    let plan = apply::plan(&resources).map_err(|error| RpcError::failed(&error))?;
    let path = container.cgroup.path().to_owned();
    tokio::task::spawn_blocking(move || apply::apply(&path, &plan))
        .await
        .map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))?
        .map_err(|error| RpcError::failed(&error))
}
