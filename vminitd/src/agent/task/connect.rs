//! `Task.Connect`: who serves this task. An unknown container is no error.

use vminitd_protocol::pb::containerd::task::v3::{ConnectRequest, ConnectResponse};

use crate::agent::Agent;

/// What stands for the shim in the guest: init.
const SHIM_PID: u32 = 1;

/// The call.
pub fn connect(agent: &Agent, request: &ConnectRequest) -> ConnectResponse {
    let task_pid = agent.tasks.get(&request.id).map_or(0, |container| container.init.pid());
    let version = env!("CARGO_PKG_VERSION").to_owned();
    ConnectResponse { shim_pid: SHIM_PID, task_pid, version }
}
