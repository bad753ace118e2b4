//! Events: the guest's, on their way to containerd, and those that a VM's end makes.
//!
//! ```text
//! guest --Events.Stream--> follow --> lane of its container --(an exit: its output first)--> Publisher
//! ```
//!
//! Owns: the subscription, and the number of the last event that came. Promises: the events of one container stay in
//! order, and one container's slow reader does not hold up another's; a new agent is asked for what follows the last
//! number; every process that ran has one exit, also when its VM is gone.
//! Never: loses an event to a full queue of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host_shim::guest::{CallError, Guest, resume_after};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{error, info, warn};
use ttrpc::Code;
use vminitd_protocol::pb::containerd::events::{
    TaskCreate, TaskDelete, TaskExit, TaskIo, TaskStart,
};
use vminitd_protocol::pb::containerd::task::v3::DeleteResponse;
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::pb::google::protobuf::{Any, Empty, Timestamp};
use vminitd_protocol::topics::{TASK_CREATE, TASK_DELETE, TASK_EXIT, TASK_START};

use super::process::{Container, Process, lock};
use super::sandbox::{Sandbox, tell_tail};
use super::shim::Shim;
use crate::protocol::delete::{Exit, killed, record};

/// Between two attempts to subscribe.
const PAUSE: Duration = Duration::from_millis(20);

/// A lane per container.
#[derive(Default)]
pub struct Lanes {
    open: Mutex<HashMap<String, mpsc::UnboundedSender<Envelope>>>,
    /// Containers whose end was published before the guest has told it.
    over: Mutex<HashSet<String>>,
    /// Lanes whose last event was not passed on yet.
    busy: watch::Sender<usize>,
}

impl Lanes {
    /// Leaves out what the guest will tell of a container's end.
    pub fn tell_no_end(&self, container: &str) {
        lock(&self.over).insert(container.to_owned());
    }

    /// Waits until all containers' last events were passed on.
    pub async fn empty(&self) {
        let _ = self.busy.subscribe().wait_for(|busy| *busy == 0).await;
    }
}

/// Follows a VM's events, and waits for its end.
pub fn follow(shim: &Arc<Shim>, sandbox: &Arc<Sandbox>) {
    tokio::spawn(subscribe(shim.clone(), sandbox.clone()));
    tokio::spawn(watch_end(shim.clone(), sandbox.clone()));
}

async fn subscribe(shim: Arc<Shim>, sandbox: Arc<Sandbox>) {
    let mut seen = 0;
    loop {
        let client = sandbox.guest.guest().await.events();
        let lost = match client.stream(resume_after(seen), &Empty {}).await {
            Ok(mut stream) => loop {
                match stream.recv().await {
                    Ok(Some(event)) => {
                        seen = event.seq;
                        shim.pass_on(event);
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            },
            Err(error) => Some(error),
        };
        match lost {
            Some(ttrpc::Error::RpcStatus(status)) if status.code() == Code::OUT_OF_RANGE => {
                // More than the guest keeps came while nobody listened. Its text names the oldest that is there.
                warn!(error = status.message, "events of the guest are lost");
                let oldest = status.message.split(' ').find_map(|word| word.parse::<u64>().ok());
                seen = oldest.unwrap_or(1) - 1;
            }
            _ => {}
        }
        let info = |guest: Guest| async move { guest.info().await };
        match sandbox.guest.call(info).await {
            Err(CallError::Gone(_)) => return,
            _ => sleep(PAUSE).await,
        }
    }
}

impl Shim {
    /// Gives an event to its container's lane.
    fn pass_on(self: &Arc<Self>, event: Envelope) {
        let Some(container) = event.event.as_ref().and_then(container_of) else {
            return;
        };
        let is_last = event.topic == TASK_DELETE
            && event.event.as_ref().is_some_and(|any| is_inits(any, &container));
        if is_last && lock(&self.lanes.over).remove(&container) {
            return;
        }
        let mut open = lock(&self.lanes.open);
        let lane = open.entry(container.clone()).or_insert_with(|| {
            let (sender, events) = mpsc::unbounded_channel();
            self.lanes.busy.send_modify(|busy| *busy += 1);
            tokio::spawn(pass_lane(self.clone(), container.clone(), events));
            sender
        });
        // The lane ends only when this is dropped.
        let _ = lane.send(event);
        if is_last {
            open.remove(&container);
        }
    }

    /// Publishes the end of a container of which nothing more is to be heard but that.
    pub fn publish_delete(&self, id: &str, deleted: &DeleteResponse) {
        lock(&self.lanes.open).remove(id);
        let event = TaskDelete {
            container_id: id.to_owned(),
            pid: deleted.pid,
            exit_status: deleted.exit_status,
            exited_at: deleted.exited_at,
            ..Default::default()
        };
        self.publish(TASK_DELETE, any("containerd.events.TaskDelete", &event), now());
    }

    /// Publishes an exit, unless that was done.
    fn publish_exit(&self, container: &Container, process: &Process, exit: Exit) {
        process.set_exit(exit);
        if !process.tell_exit() {
            return;
        }
        if process.exec.is_empty()
            && let Err(error) = record(&container.bundle, exit)
        {
            warn!(%error, "an exit could not be recorded");
        }
        let exited_at = Timestamp { seconds: exit.seconds, nanos: exit.nanos };
        let id = if process.exec.is_empty() { &container.id } else { &process.exec };
        let event = TaskExit {
            container_id: container.id.clone(),
            id: id.clone(),
            pid: self.host_pid(&container.id, &process.exec, exit.pid),
            exit_status: exit.status,
            exited_at: Some(exited_at),
            ..Default::default()
        };
        self.publish(TASK_EXIT, any("containerd.events.TaskExit", &event), Some(exited_at));
    }

    fn publish(&self, topic: &str, event: Any, timestamp: Option<Timestamp>) {
        self.publisher.publish(Envelope {
            timestamp,
            namespace: self.settings.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event),
            ..Default::default()
        });
    }
}

async fn pass_lane(shim: Arc<Shim>, id: String, mut events: mpsc::UnboundedReceiver<Envelope>) {
    let container = shim.container(&id).ok();
    while let Some(event) = events.recv().await {
        let Some(any) = event.event else { continue };
        match (&container, event.topic.as_str()) {
            (Some(container), TASK_EXIT) => {
                if let Ok(exit) = TaskExit::decode(&*any.value) {
                    pass_exit(&shim, container, exit).await;
                }
            }
            (Some(container), TASK_CREATE) => {
                let pid = |pid| shim.host_pid(&container.id, "", pid);
                let any = TaskCreate::decode(&*any.value).map_or(any, |told| {
                    created(container, TaskCreate { pid: pid(told.pid), ..told })
                });
                shim.publish(&event.topic, any, event.timestamp);
            }
            (Some(container), TASK_START) => {
                let pid = |pid| shim.host_pid(&container.id, "", pid);
                let any = TaskStart::decode(&*any.value).map_or(any, |told| {
                    super::events::any(
                        "containerd.events.TaskStart",
                        &TaskStart { pid: pid(told.pid), ..told },
                    )
                });
                shim.publish(&event.topic, any, event.timestamp);
            }
            (Some(container), TASK_DELETE) => {
                let any = TaskDelete::decode(&*any.value).map_or(any, |told| {
                    let exec = if told.id == container.id { "" } else { told.id.as_str() };
                    let pid = shim.host_pid(&container.id, exec, told.pid);
                    super::events::any("containerd.events.TaskDelete", &TaskDelete { pid, ..told })
                });
                shim.publish(&event.topic, any, event.timestamp);
            }
            _ => shim.publish(&event.topic, any, event.timestamp),
        }
    }
    shim.lanes.busy.send_modify(|busy| *busy -= 1);
}

async fn pass_exit(shim: &Arc<Shim>, container: &Arc<Container>, told: TaskExit) {
    let exec = if told.id == container.id { "" } else { told.id.as_str() };
    // An exec that was deleted at once is gone, and so is its output.
    let process = container.process(exec).unwrap_or_else(|| {
        Arc::new(Process::new(exec.to_owned(), Default::default(), Default::default()))
    });
    process.stdio().handed_over(told.stdout_bytes, told.stderr_bytes).await;
    let at = told.exited_at.unwrap_or_default();
    let exit =
        Exit { pid: told.pid, status: told.exit_status, seconds: at.seconds, nanos: at.nanos };
    shim.publish_exit(container, &process, exit);
}

/// As containerd knows it: with the host's bundle, mounts and paths.
fn created(container: &Container, told: TaskCreate) -> Any {
    let wish = container.init.wish.clone();
    let event = TaskCreate {
        bundle: container.bundle.display().to_string(),
        rootfs: container.rootfs.clone(),
        io: Some(TaskIo {
            stdin: wish.stdin,
            stdout: wish.stdout,
            stderr: wish.stderr,
            terminal: wish.terminal,
        }),
        ..told
    };
    any("containerd.events.TaskCreate", &event)
}

fn now() -> Option<Timestamp> {
    let Exit { seconds, nanos, .. } = killed();
    Some(Timestamp { seconds, nanos })
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: name.to_owned(), value: message.encode_to_vec() }
}

/// What every task event begins with.
#[derive(Clone, PartialEq, Message)]
struct Beginning {
    #[prost(string, tag = "1")]
    container_id: String,
}

fn container_of(event: &Any) -> Option<String> {
    let begin = Beginning::decode(&*event.value).ok()?;
    (!begin.container_id.is_empty()).then_some(begin.container_id)
}

fn is_inits(event: &Any, container: &str) -> bool {
    let event = vminitd_protocol::pb::containerd::events::TaskDelete::decode(&*event.value);
    event.is_ok_and(|event| event.id.is_empty() || event.id == container)
}

/// Tells containerd when the VM ends and nobody has asked for it.
async fn watch_end(shim: Arc<Shim>, sandbox: Arc<Sandbox>) {
    let exited = sandbox.machine.exited().await;
    if shim.is_stopping() {
        info!(%exited, "the VM has ended");
        return;
    }
    error!(%exited, "the VM has ended by itself");
    tell_tail(&sandbox.machine);
    shim.ended.send_replace(Some(format!("the VM has ended: {exited}")));
    for container in shim.containers() {
        let started = container.execs().into_iter().filter(|exec| exec.started());
        for process in started.chain([container.init.clone()]) {
            // What has come out of the guest belongs before.
            process.stdio().ended().await;
            let exit = Exit { pid: process.pid(), ..killed() };
            shim.publish_exit(&container, &process, exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_tells_its_container_and_the_inits_delete_is_the_last() {
        use vminitd_protocol::pb::containerd::events::TaskOom;
        let oom = any("containerd.events.TaskOOM", &TaskOom { container_id: "c1".into() });
        assert_eq!(container_of(&oom).as_deref(), Some("c1"));
        let delete = |id: &str| {
            let event =
                TaskDelete { container_id: "c1".into(), id: id.into(), ..Default::default() };
            any("containerd.events.TaskDelete", &event)
        };
        assert!(is_inits(&delete("c1"), "c1") && is_inits(&delete(""), "c1"));
        assert!(!is_inits(&delete("exec"), "c1"));
    }
}
