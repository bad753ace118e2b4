//! The end of the VM, as far as the agent has a part in it. init orders it, and goes on behind it.
//!
//! ```text
//! Containers    SIGTERM, grace, SIGKILL; all side by side
//! Output        what they wrote is handed to the host, and their exits are told
//! Filesystems   their mounts are undone, which writes them back
//! Replies       events and answers leave the VM
//! ```
//!
//! Promises: every step is bounded; what was given up, killed or not taken is reported; it begins
//! once, whoever asks; a restarted agent begins anew.
//! Never: powers off itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use super::machine::freezer;
use super::mounts::place::Ground;
use super::mounts::undo::undo;
use super::process::lifecycle::State;
use super::stdio::output::Rest;
use super::task::cleanup;
use super::task::container::Container;
use super::{Agent, lock};
use crate::chain;
use crate::limits::{KILL_TO_GONE, LAST_REPLIES_LOOK, LAST_REPLIES_TURNS};
use crate::shutdown::{Action, Event, Sequence};

/// What the agent does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Containers,
    Output,
    Filesystems,
    Replies,
}

/// What was still dirty or busy, and what a step still waits for.
#[derive(Debug, Default)]
struct Findings {
    left: Mutex<Vec<String>>,
    /// By container, or what it is.
    waits_for: Mutex<BTreeMap<String, String>>,
}

/// Asks init for the end. No container is made from now on.
pub async fn ask(agent: &Arc<Agent>, reboot: bool, grace: Option<Duration>, reason: &str) {
    if !agent.tasks.close() {
        return;
    }
    let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    if let Err(error) = agent.init.shut_down(reboot, grace_ms, reason.to_owned()).await {
        error!(error = %chain(&error), "init cannot be asked for the end");
    }
}

/// Begins it, as init asks; returns at once.
pub fn begin(agent: &Arc<Agent>, grace_ms: u64) {
    agent.tasks.close();
    // The VM's last task: nobody is left to own it.
    tokio::spawn(run(agent.clone(), Duration::from_millis(grace_ms)));
}

async fn run(agent: Arc<Agent>, grace: Duration) {
    let limit = agent.config.stop_step;
    let mut sequence = Sequence::new(vec![
        (Step::Containers, grace + limit),
        (Step::Output, limit),
        (Step::Filesystems, limit),
        (Step::Replies, limit / 2),
    ]);
    let (began, findings) = (Instant::now(), Arc::new(Findings::default()));
    let mut actions = sequence.handle(Event::Asked, Duration::ZERO);
    while !actions.is_empty() {
        let mut next = Vec::new();
        for action in actions {
            match action {
                Action::Begin(step) => {
                    let due = sequence.deadline().unwrap_or_default();
                    let work = step.run(&agent, &findings, grace);
                    let event = match tokio::time::timeout_at(began + due, work).await {
                        Ok(()) => Event::Done(step),
                        Err(_) => Event::TimerFired,
                    };
                    next = sequence.handle(event, began.elapsed().max(due));
                }
                Action::Abandon(step) => findings.given_up(step),
                Action::End => {}
            }
        }
        actions = next;
    }
    let left = std::mem::take(&mut *lock(&findings.left));
    if let Err(error) = agent.init.stopped(left).await {
        error!(error = %chain(&error), "init does not hear that all is stopped");
    }
}

impl Step {
    async fn run(self, agent: &Arc<Agent>, findings: &Arc<Findings>, grace: Duration) {
        match self {
            Step::Containers => {
                // What is frozen can be neither written nor ended.
                freezer::thaw_all(agent).await;
                let patience = agent.config.stop_step;
                each(agent, findings, move |container, findings| async move {
                    stop(&container, grace, patience, &findings).await;
                })
                .await;
            }
            Step::Output => {
                each(agent, findings, |container, findings| async move {
                    hand_over(&container, &findings).await;
                })
                .await;
            }
            Step::Filesystems => {
                each(agent, findings, |container, findings| async move {
                    unmount(&container, &findings).await;
                })
                .await;
                if let Err(error) = agent.host_mounts.unmount_all().await {
                    findings.left(format!("mounts of the host: {error}"));
                }
            }
            Step::Replies => replies(agent, findings).await,
        }
    }
}

impl Findings {
    fn left(&self, what: String) {
        warn!("shutdown: {what}");
        lock(&self.left).push(what);
    }

    fn wait_for(&self, key: String, what: String) {
        lock(&self.waits_for).insert(key, what);
    }

    fn given_up(&self, step: Step) {
        let waits_for = std::mem::take(&mut *lock(&self.waits_for));
        let waits_for: Vec<String> = waits_for.into_values().collect();
        self.left(format!("step {step:?} given up: {}", waits_for.join(", ")).to_lowercase());
    }
}

/// Does it for all containers, side by side; those that are not through can be told.
async fn each<F>(
    agent: &Arc<Agent>,
    findings: &Arc<Findings>,
    act: impl Fn(Arc<Container>, Arc<Findings>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut all = JoinSet::new();
    lock(&findings.waits_for).clear();
    for container in agent.tasks.all() {
        let (id, findings) = (container.id.to_string(), findings.clone());
        lock(&findings.waits_for).insert(id.clone(), id.clone());
        let done = act(container, findings.clone());
        all.spawn(async move {
            done.await;
            lock(&findings.waits_for).remove(&id);
        });
    }
    while all.join_next().await.is_some() {}
}

async fn stop(
    container: &Arc<Container>,
    grace: Duration,
    patience: Duration,
    findings: &Findings,
) {
    let asked = match container.init.state() {
        State::Running { .. } | State::Starting { .. } | State::Pausing { .. } => {
            container.init.signal(libc::SIGTERM).is_ok()
        }
        State::Paused { .. } => {
            let asked = container.init.signal(libc::SIGTERM).is_ok();
            let _ = container.cgroup.thaw(grace).await;
            asked
        }
        // It has no handler for anything yet, or it has ended.
        State::Created { .. }
        | State::Added
        | State::Launching
        | State::Failed
        | State::Creating
        | State::Draining { .. }
        | State::Stopped { .. }
        | State::Deleting { .. }
        | State::Deleted => false,
    };
    if asked && container.cgroup.wait_empty(grace).await.is_err() {
        let seconds = grace.as_secs_f32();
        findings.left(format!("container {} killed after {seconds} s", container.id));
    }
    match timeout(patience.min(KILL_TO_GONE), cleanup::stop(&container.cgroup)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => findings.left(format!("container {}: {}", container.id, chain(&error))),
        Err(_) => findings.left(format!("container {} does not die", container.id)),
    }
}

async fn hand_over(container: &Arc<Container>, findings: &Findings) {
    for process in container.processes() {
        if matches!(process.state(), State::Draining { .. } | State::Running { .. }) {
            process.finished().await;
        }
        process.hand_over().await;
        let exec = &process.target.exec;
        let whose = if exec.is_empty() { String::new() } else { format!(" exec {exec}") };
        // Without a process left, each output comes to its end.
        loop {
            let rest = process.output_rest();
            let stays: u64 = rest
                .iter()
                .map(|rest| if let Rest::Stays(bytes) = rest { *bytes } else { 0 })
                .sum();
            let moves = rest.iter().filter_map(|rest| match rest {
                Rest::Moves(bytes) => Some(*bytes),
                Rest::None | Rest::Stays(_) => None,
            });
            let Some(moves) = moves.reduce(|one, other| one + other) else {
                if stays > 0 {
                    findings.left(format!(
                        "output of {}{whose}: {stays} bytes, its stream is lost",
                        container.id
                    ));
                }
                break;
            };
            let id = container.id.to_string();
            findings.wait_for(
                id.clone(),
                format!("output of {id}{whose}: {moves} bytes not taken by the host"),
            );
            tokio::time::sleep(LAST_REPLIES_LOOK).await;
        }
    }
}

async fn unmount(container: &Arc<Container>, findings: &Findings) {
    let record = container.record();
    let undone =
        tokio::task::spawn_blocking(move || undo(Ground::Bundle(&record.bundle), &record.places))
            .await;
    match undone {
        Ok(Ok(())) => {}
        Ok(Err(error)) => findings.left(format!("container {}: {}", container.id, chain(&error))),
        Err(error) => findings.left(format!("container {}: {error}", container.id)),
    }
}

/// Waits until every subscriber has every event and every connection's bytes have left the VM.
async fn replies(agent: &Arc<Agent>, findings: &Findings) {
    loop {
        for _ in 0..LAST_REPLIES_TURNS {
            tokio::task::yield_now().await;
        }
        let (_, _, behind) = agent.events.progress();
        let unsent = agent.connections.unsent();
        if behind == 0 && unsent == 0 {
            return;
        }
        let text = format!("{behind} events and {unsent} bytes not taken by the host");
        findings.wait_for("replies".to_owned(), text);
        tokio::time::sleep(LAST_REPLIES_LOOK).await;
    }
}
