//! `Task.State`: what a container or an exec is at, now.

use vminitd_protocol::pb::containerd::task::v3::{StateRequest, StateResponse};
use vminitd_protocol::pb::containerd::v1::types::Status;

use super::container::timestamp;
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::process::lifecycle::State;

/// The call.
pub fn state(agent: &Agent, request: &StateRequest) -> Result<StateResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let (state, record) = (process.state(), process.record());
    let exit = state.exit();
    Ok(StateResponse {
        id: container.id.to_string(),
        bundle: container.record().bundle.display().to_string(),
        pid: state.pid().unwrap_or(0),
        status: status(state).into(),
        stdin: record.stdin,
        stdout: record.stdout,
        stderr: record.stderr,
        terminal: record.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(timestamp),
        exec_id: request.exec_id.clone(),
    })
}

fn status(state: State) -> Status {
    match state {
        State::Added | State::Launching | State::Created { .. } | State::Starting { .. } => {
            Status::Created
        }
        State::Running { .. } => Status::Running,
        State::Pausing { .. } => Status::Pausing,
        State::Paused { .. } => Status::Paused,
        State::Failed | State::Draining { .. } | State::Stopped { .. } => Status::Stopped,
        State::Creating | State::Deleting { .. } | State::Deleted => Status::Unknown,
    }
}
