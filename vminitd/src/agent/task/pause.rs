//! `Task.Pause` and `Task.Resume`: the cgroup's freezer.
//!
//! Promises: Pause returns when everything stands still; a Pause that takes too long is undone.

use std::sync::Arc;

use vminitd_protocol::pb::containerd::task::v3::{PauseRequest, ResumeRequest};

use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::process::lifecycle::Event;
use crate::limits::FREEZE;

/// Pause.
pub async fn pause(agent: Arc<Agent>, request: PauseRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    refuse_without_freezer(&agent)?;
    container.init.apply(Event::PauseAsked)?;
    let frozen = container.cgroup.freeze(FREEZE).await;
    let event = if frozen.is_ok() { Event::Froze } else { Event::FreezeFailed };
    let actions = container.init.note(event);
    if frozen.is_err() {
        // What is frozen of it must not stay so.
        let _ = container.cgroup.thaw(FREEZE).await;
    }
    container.perform(&agent, &container.init, &actions);
    frozen.map_err(|error| RpcError::failed(&error))
}

/// Resume.
pub async fn resume(agent: Arc<Agent>, request: ResumeRequest) -> Result<(), RpcError> {
    let container = agent.tasks.get(&request.id)?;
    refuse_without_freezer(&agent)?;
    container.init.apply(Event::ResumeAsked)?;
    container.cgroup.thaw(FREEZE).await.map_err(|error| RpcError::failed(&error))?;
    let actions = container.init.note(Event::Thawed);
    container.perform(&agent, &container.init, &actions);
    Ok(())
}

fn refuse_without_freezer(agent: &Agent) -> Result<(), RpcError> {
    if agent.profile.freezer {
        Ok(())
    } else {
        Err(RpcError::Unimplemented("pause by the guest".to_owned()))
    }
}
