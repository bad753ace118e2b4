//! The end of the VM, as far as the agent has a part in it: containers first, then init's turn.
//!
//! Promises: every process gets SIGTERM and time before SIGKILL; what they wrote is handed over and
//! their filesystems are written back, each within bounds; it begins once, whoever asks.
//! Never: powers off itself.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Agent;
use super::errors::chain;
use super::mounts::place::Ground;
use super::mounts::undo::undo;
use super::process::lifecycle::State;
use super::task::cleanup;
use super::task::container::Container;
use crate::limits::{KILL_TO_GONE, REPLY_BEFORE_POWER_OFF, TERM_TO_KILL};

/// Begins it, unless it has begun; returns at once.
pub fn begin(agent: &Arc<Agent>, reboot: bool, reason: &'static str) {
    if !agent.tasks.close() {
        return;
    }
    info!(reason, reboot, "shutting down");
    let agent = agent.clone();
    // The VM's last task: nobody is left to own it.
    tokio::spawn(async move {
        let mut stopping = JoinSet::new();
        for container in agent.tasks.all() {
            stopping.spawn(async move { stop(&container).await });
        }
        while stopping.join_next().await.is_some() {}
        if let Err(error) = agent.host_mounts.unmount_all().await {
            warn!(%error, "mounts of the host stay");
        }
        tokio::time::sleep(REPLY_BEFORE_POWER_OFF).await;
        if let Err(error) = agent.init.power_off(reboot, reason.to_owned()).await {
            error!(error = %chain(&error), "init cannot be asked to power off");
        }
    });
}

async fn stop(container: &Arc<Container>) {
    match container.init.state() {
        State::Running { .. } | State::Starting { .. } | State::Pausing { .. } => {
            let _ = container.init.signal(libc::SIGTERM);
        }
        State::Paused { .. } => {
            let _ = container.init.signal(libc::SIGTERM);
            let _ = container.cgroup.thaw(TERM_TO_KILL).await;
        }
        // It has no handler for anything yet.
        State::Created { .. } => {
            let _ = container.init.signal(libc::SIGKILL);
        }
        State::Added
        | State::Launching
        | State::Failed
        | State::Creating
        | State::Draining { .. }
        | State::Stopped { .. }
        | State::Deleting { .. }
        | State::Deleted => {}
    }
    if timeout(TERM_TO_KILL, container.init.finished()).await.is_err() {
        warn!(container = %container.id, "does not end on SIGTERM: killed");
    }
    if let Err(error) = cleanup::stop(&container.cgroup).await {
        warn!(container = %container.id, error = %chain(&error), "does not end");
    }
    let _ = timeout(KILL_TO_GONE, container.init.finished()).await;
    container.init.hand_over().await;
    let record = container.record();
    let unmounted =
        tokio::task::spawn_blocking(move || undo(Ground::Bundle(&record.bundle), &record.places))
            .await;
    if let Ok(Err(error)) = unmounted {
        warn!(container = %container.id, error = %chain(&error), "not unmounted");
    }
}
