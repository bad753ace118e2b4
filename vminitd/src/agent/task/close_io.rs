//! `Task.CloseIO`: ends the process's stdin, after what the host has sent. Twice is fine.

use vminitd_protocol::pb::containerd::task::v3::CloseIoRequest;

use crate::agent::Agent;
use crate::agent::errors::RpcError;

/// The call.
pub fn close_io(agent: &Agent, request: &CloseIoRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    if request.stdin {
        process.close_stdin();
    }
    Ok(())
}
