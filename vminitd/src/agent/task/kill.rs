//! `Task.Kill`: a signal for the process, or for all of the container's.
//!
//! Promises: only processes of this container get it, whatever becomes of their pids.

use std::sync::Arc;

use vminitd_protocol::pb::containerd::task::v3::KillRequest;

use super::container::Container;
use crate::agent::Agent;
use crate::agent::cgroup::CgroupError;
use crate::agent::errors::RpcError;
use crate::agent::process::lifecycle::{Event, Refusal};

/// The call.
pub fn kill(agent: &Arc<Agent>, request: &KillRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let signal = i32::try_from(request.signal).ok().filter(|signal| *signal <= libc::SIGRTMAX());
    let signal = signal
        .ok_or_else(|| RpcError::Invalid(format!("signal {} does not exist", request.signal)))?;
    let applied = process.apply(Event::KillAsked);
    if process.exec.is_some() {
        // `all` is about the container's processes, and this is one.
        applied?;
        return process.signal(signal);
    }
    match applied {
        Ok(_) if request.all => kill_all(&container, signal).map(drop),
        Ok(_) => process.signal(signal),
        // Its init is gone, but what it left behind may not be.
        Err(Refusal::Finished) if request.all && kill_all(&container, signal)? > 0 => Ok(()),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Returns how many processes there were.
fn kill_all(container: &Container, signal: i32) -> Result<usize, RpcError> {
    let done = if signal == libc::SIGKILL {
        container.cgroup.pids().and_then(|pids| container.cgroup.kill().map(|()| pids.len()))
    } else {
        container.cgroup.signal(signal)
    };
    match done {
        Ok(count) => Ok(count),
        Err(CgroupError::Absent(_)) => Ok(0),
        Err(error) => Err(RpcError::failed(&error)),
    }
}
