//! `Task.Wait`: returns when the process has exited, its output is handed over and TaskExit is
//! published. Any number may wait, for hours; each ends with its connection.

use std::sync::Arc;

use vminitd_protocol::pb::containerd::task::v3::{WaitRequest, WaitResponse};

use super::container::timestamp;
use crate::agent::Agent;
use crate::agent::errors::RpcError;

/// The call.
pub async fn wait(agent: Arc<Agent>, request: WaitRequest) -> Result<WaitResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let gone = || match process.exec {
        None => RpcError::NoContainer,
        Some(_) => RpcError::NoProcess { exec: request.exec_id.clone() },
    };
    let finished = process.finished().await.ok_or_else(gone)?;
    Ok(WaitResponse {
        exit_status: finished.exit.status,
        exited_at: Some(timestamp(finished.exit)),
        stdout_bytes: finished.stdout_bytes,
        stderr_bytes: finished.stderr_bytes,
    })
}
