//! Tells the host that the kernel killed a container's process for lack of memory.
//!
//! Owns: nothing; how many were told is counted where the next agent finds it.
//! Promises: every kill is told once, whatever becomes of the agent, before the TaskExit of the
//! process that it ended: the kernel counts a kill before it sends the signal, and every exit is
//! published behind a look at that count; kills of processes that are not the init's or an exec's
//! are told as they happen. With `memory.oom.group` one TaskOOM stands for the whole group.
//! Never: tells of a container whose last exit is published.

use std::sync::Arc;

use tokio::io::Interest;
use tracing::{info, warn};
use vminitd_protocol::pb::containerd::events::TaskOom;

use super::container::Container;
use super::record::{Mark, Recurring};
use crate::agent::Agent;
use crate::agent::cgroup::CgroupError;
use crate::chain;

/// Tells what was not told yet. Before every exit of the container.
pub fn tell(agent: &Agent, container: &Container) {
    let counters = &container.init.counters;
    if agent.events.was_published(counters.mark(Mark::Exited)) {
        return;
    }
    let kills = match container.cgroup.oom_kills() {
        Ok(kills) => kills,
        Err(CgroupError::Absent(_)) => return,
        Err(error) => {
            return warn!(container = %container.id, error = %chain(&error), "kills for memory");
        }
    };
    let series = counters.series(Recurring::OutOfMemory);
    while series.count() < kills {
        info!(container = %container.id, "out of memory: a process was killed");
        let event = TaskOom { container_id: container.id.to_string() };
        series.publish_next(|mark| container.publish_under(agent, mark, &event));
    }
}

/// Tells of kills as they happen; ends with the container.
pub async fn watch(agent: Arc<Agent>, container: Arc<Container>) {
    let watch = match container.cgroup.watch("memory.events") {
        Ok(watch) => watch,
        // Then they are told with the exits.
        Err(error) => {
            return warn!(container = %container.id, error = %chain(&error), "kills for memory");
        }
    };
    loop {
        // The first one is at once: nothing was read through this descriptor yet.
        match watch.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => return warn!(container = %container.id, %error, "kills for memory"),
        }
        tell(&agent, &container);
    }
}
