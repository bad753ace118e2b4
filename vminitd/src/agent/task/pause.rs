//! `Task.Pause` and `Task.Resume`: the cgroup's freezer.
//!
//! Promises: Pause returns when everything stands still; a Pause that takes too long is undone, and
//! so is one whose agent died half-way, since nobody was told of it; TaskPaused and TaskResumed
//! come in turn, each once, whichever agent publishes them.

use std::sync::Arc;

use vminitd_protocol::pb::containerd::events::{TaskPaused, TaskResumed};
use vminitd_protocol::pb::containerd::task::v3::{PauseRequest, ResumeRequest};

use super::container::Container;
use super::record::Recurring;
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

/// Whether a running container of an agent before this one is paused.
pub fn is_paused(agent: &Agent, container: &Container) -> bool {
    let cgroup = &container.cgroup;
    let paused = cgroup.is_freezing() && (cgroup.is_frozen() || is_published(container));
    if !paused {
        if cgroup.is_freezing() {
            let _ = cgroup.let_run();
        }
        publish(agent, container, false);
    }
    paused
}

/// Publishes that it is paused, or that it no longer is, unless that was done.
pub fn publish(agent: &Agent, container: &Container, paused: bool) {
    if is_published(container) == paused {
        return;
    }
    let container_id = container.id.to_string();
    let series = container.init.counters.series(Recurring::PausedOrResumed);
    series.publish_next(|mark| match paused {
        true => container.publish_under(agent, mark, &TaskPaused { container_id }),
        false => container.publish_under(agent, mark, &TaskResumed { container_id }),
    });
}

/// Whether the host was told last that it is paused.
fn is_published(container: &Container) -> bool {
    container.init.counters.series(Recurring::PausedOrResumed).count() % 2 == 1
}

fn refuse_without_freezer(agent: &Agent) -> Result<(), RpcError> {
    if agent.profile.freezer {
        Ok(())
    } else {
        Err(RpcError::Unimplemented("pause by the guest".to_owned()))
    }
}
