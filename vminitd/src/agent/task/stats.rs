//! `Task.Stats`: what a container's cgroup has used.

use std::io;
use std::sync::Arc;

use prost::Message;
use vminitd_protocol::pb::containerd::task::v3::{StatsRequest, StatsResponse};
use vminitd_protocol::pb::google::protobuf::Any;

use crate::agent::Agent;
use crate::agent::cgroup::stats;
use crate::agent::errors::RpcError;

/// The message's proto name, which is the type URL.
const METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// The call. The kernel sums up over CPUs and children at each reading, so it is not done on this
/// thread.
pub async fn stats(agent: Arc<Agent>, request: StatsRequest) -> Result<StatsResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let path = container.cgroup.path().to_owned();
    let metrics = tokio::task::spawn_blocking(move || stats::read(&path))
        .await
        .map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))?
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RpcError::NoCgroup,
            _ => RpcError::Failed(format!("read the cgroup: {error}")),
        })?;
    let stats = Any { type_url: METRICS.to_owned(), value: metrics.encode_to_vec() };
    Ok(StatsResponse { stats: Some(stats) })
}
