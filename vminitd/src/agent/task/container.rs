//! A container, and what happens to it that nobody asked for: exits.
//!
//! Owns: its init and its execs; every task that works for the container as a whole.
//! Promises: an exit is recorded before init is told so, and published after what the process wrote;
//! the init's is the last of the container's.
//! Never: answers a call.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::task::JoinSet;
use tracing::{debug, warn};
use vminitd_protocol::pb::containerd::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIo, TaskStart,
};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::google::protobuf::Timestamp;

use super::process::{Finished, Process};
use super::record::{Mark, Record, Recorded};
use super::{oom, pause};
use crate::agent::Agent;
use crate::agent::cgroup::{Cgroup, CgroupError};
use crate::agent::errors::RpcError;
use crate::agent::events::hub::Event as Published;
use crate::agent::id::{ContainerId, ExecId};
use crate::agent::init_client::ExitSlot;
use crate::agent::lock;
use crate::agent::process::exit_order::ExitOrder;
use crate::agent::process::lifecycle::{Action, Event, Exited, Refusal};
use crate::chain;
use crate::limits::EVENT_ROOTFS_BYTES;

/// A container.
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its init.
    pub init: Arc<Process>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// As requested, for the event; empty for a container of an earlier agent.
    pub rootfs: Vec<Mount>,
    /// Where its record is.
    pub directory: PathBuf,
    /// Held by the Update that is at work.
    pub updating: tokio::sync::Mutex<()>,
    recorded: Recorded<Record>,
    execs: Mutex<BTreeMap<ExecId, Arc<Process>>>,
    exits: Mutex<ExitOrder<ExecId, Exit>>,
    tasks: Mutex<JoinSet<()>>,
}

/// An exit that waits to be published.
struct Exit {
    process: Arc<Process>,
    pid: u32,
    exit: Exited,
}

/// What a process that was never there "exited" with, as containerd has it.
const NEVER_STARTED: u32 = 255;

impl Container {
    /// One whose init is being launched.
    pub fn new(
        id: ContainerId,
        record: Record,
        rootfs: Vec<Mount>,
        directory: PathBuf,
        cgroup: Cgroup,
        init: Arc<Process>,
    ) -> Self {
        Self {
            id,
            init,
            cgroup,
            rootfs,
            recorded: Recorded::new(directory.clone(), record),
            directory,
            updating: tokio::sync::Mutex::default(),
            execs: Mutex::default(),
            exits: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// What is recorded of it.
    pub fn record(&self) -> Record {
        self.recorded.get()
    }

    /// Lets a task work for the container until that is deleted.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(task);
    }

    /// Ends every task that works for the container or a process of it; returns when they are gone.
    pub async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
        for process in self.processes() {
            process.end_tasks().await;
        }
    }

    /// The init, or the exec of this id.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, RpcError> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let unknown = || RpcError::NoProcess { exec: exec.to_owned() };
        let id = ExecId::try_from(exec).map_err(|_| unknown())?;
        lock(&self.execs).get(&id).cloned().ok_or_else(unknown)
    }

    /// Every process, the init first.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        let execs = lock(&self.execs);
        [&self.init].into_iter().chain(execs.values()).cloned().collect()
    }

    /// Takes an exec in. False when its id is taken.
    pub fn add_exec(&self, id: &ExecId, process: Arc<Process>) -> bool {
        let mut execs = lock(&self.execs);
        if execs.contains_key(id) {
            return false;
        }
        execs.insert(id.clone(), process);
        true
    }

    /// Frees an exec's id.
    pub fn remove_exec(&self, id: &ExecId) {
        lock(&self.execs).remove(id);
    }

    /// An exec is about to run: from now on the init's exit waits for it. An error if that exit is
    /// there already.
    pub fn reserve_exec(&self, id: &ExecId) -> Result<(), Refusal> {
        match lock(&self.exits).handle_reserved(id.clone()) {
            true => Ok(()),
            false => Err(Refusal::InitGone { container: self.id.to_string() }),
        }
    }

    /// Waits for a process's exit, records it and lets it take its course.
    pub fn watch_exit(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        process: &Arc<Process>,
        slot: ExitSlot,
    ) {
        let (agent, container, process_) = (agent.clone(), self.clone(), process.clone());
        process.spawn(async move {
            // The link's end is the agent's.
            let Ok(exit) = slot.wait().await else { return };
            let (seconds, nanos) = exit.at;
            let exited = Exited { status: exit.status, seconds, nanos };
            container.exited(&agent, &process_, exited);
            if let Err(error) = agent.init.recorded(exit.number).await {
                warn!(container = %container.id, %error, "exit not acknowledged");
            }
        });
    }

    /// A process has exited.
    pub fn exited(self: &Arc<Self>, agent: &Arc<Agent>, process: &Arc<Process>, exited: Exited) {
        let pid = process.pid();
        process.note_in_record(|record| {
            record.exit.get_or_insert((pid, exited));
        });
        let exec = &process.target.exec;
        debug!(container = %self.id, exec, pid, status = exited.status, "exited");
        if process.exec.is_none() {
            self.end_the_rest();
        }
        let actions = process.note(Event::Exited(exited));
        self.perform(agent, process, &actions);
    }

    /// With the init the container ends. The kernel sees to it where the init was pid 1 of a pid
    /// namespace; elsewhere we do.
    fn end_the_rest(&self) {
        if !self.recorded.look(|record| record.habits.shared_pids) {
            return;
        }
        match self.cgroup.kill() {
            Ok(()) | Err(CgroupError::Absent(_)) => {}
            Err(error) => {
                warn!(container = %self.id, error = %chain(&error), "what its init left runs on");
            }
        }
    }

    /// Does what the state machine orders, as far as nobody who called is to do it.
    pub fn perform(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        process: &Arc<Process>,
        actions: &[Action],
    ) {
        for action in actions {
            match action {
                Action::PublishCreate => self.publish_create(agent),
                Action::PublishStart => self.publish_start(agent, process),
                Action::PublishPaused => pause::publish(agent, self, true),
                Action::PublishResumed => pause::publish(agent, self, false),
                Action::Drain => self.drain(agent, process),
                Action::PublishExit => self.release_exit(agent, process),
                Action::Cancel => self.cancel(agent, process),
                Action::PublishDelete => self.publish_delete(agent, process),
                // Whoever asked is at it.
                Action::SendStart
                | Action::Freeze
                | Action::Thaw
                | Action::Signal
                | Action::Kill
                | Action::AwaitExit
                | Action::CleanUp => {}
            }
        }
    }

    fn drain(self: &Arc<Self>, agent: &Arc<Agent>, process: &Arc<Process>) {
        let (agent, container, process_) = (agent.clone(), self.clone(), process.clone());
        process.spawn(async move {
            process_.hand_over().await;
            let actions = process_.note(Event::Drained);
            container.perform(&agent, &process_, &actions);
        });
    }

    /// Publishes what happens once in a process's life, unless that was done.
    fn publish_once<E: Published + Message>(
        &self,
        agent: &Agent,
        process: &Process,
        mark: Mark,
        event: &E,
    ) {
        let namespace = self.recorded.look(|record| record.namespace.clone());
        agent.events.publish_once(process.counters.mark(mark), &namespace, event);
    }

    /// Publishes one of what happens again and again, unless the mark says that it was.
    pub fn publish_under<E: Published + Message>(
        &self,
        agent: &Agent,
        mark: &AtomicU64,
        event: &E,
    ) {
        let namespace = self.recorded.look(|record| record.namespace.clone());
        agent.events.publish_once(mark, &namespace, event);
    }

    fn publish_create(&self, agent: &Agent) {
        let (record, process) = (self.record(), self.init.record());
        let event = TaskCreate {
            container_id: record.id,
            bundle: record.bundle.display().to_string(),
            rootfs: self.rootfs_for_event(),
            io: Some(TaskIo {
                stdin: process.stdin,
                stdout: process.stdout,
                stderr: process.stderr,
                terminal: process.terminal,
            }),
            checkpoint: String::new(),
            pid: self.init.pid(),
        };
        self.publish_once(agent, &self.init, Mark::Created, &event);
    }

    /// Not so many that there is no room for the event among others.
    fn rootfs_for_event(&self) -> Vec<Mount> {
        let bytes: usize = self.rootfs.iter().map(Mount::encoded_len).sum();
        if bytes <= EVENT_ROOTFS_BYTES { self.rootfs.clone() } else { vec![] }
    }

    /// An exec has been added.
    pub fn publish_added(&self, agent: &Agent, process: &Process) {
        let (container_id, exec_id) = (self.id.to_string(), process.target.exec.clone());
        let event = TaskExecAdded { container_id, exec_id };
        self.publish_once(agent, process, Mark::Created, &event);
    }

    fn publish_start(&self, agent: &Agent, process: &Process) {
        let (container_id, pid) = (self.id.to_string(), process.pid());
        match &process.exec {
            None => {
                let event = TaskStart { container_id, pid };
                self.publish_once(agent, process, Mark::Started, &event);
            }
            Some(exec) => {
                let event = TaskExecStarted { container_id, exec_id: exec.to_string(), pid };
                self.publish_once(agent, process, Mark::Started, &event);
            }
        }
    }

    fn release_exit(&self, agent: &Agent, process: &Arc<Process>) {
        let state = process.state();
        let (Some(pid), Some(exit)) = (state.pid(), state.exit()) else { return };
        let exit = Exit { process: process.clone(), pid, exit };
        let released = match &process.exec {
            None => lock(&self.exits).handle_init_exited(exit),
            Some(exec) => lock(&self.exits).handle_exited(exec, exit),
        };
        self.publish_exits(agent, released);
    }

    /// An exec will never run.
    fn cancel(&self, agent: &Agent, process: &Process) {
        let Some(exec) = &process.exec else { return };
        let released = lock(&self.exits).handle_cancelled(exec);
        // Deleted before its start, or its start failed: a Wait learns that there is no exit, or
        // one that says so.
        match process.record().request {
            0 => process.finish_without_exit(),
            _ => {
                let now = crate::sys::clock::realtime();
                let exit = Exited { status: NEVER_STARTED, seconds: now.0, nanos: now.1 };
                process.finish(Finished { pid: 0, exit, stdout_bytes: 0, stderr_bytes: 0 });
            }
        }
        self.publish_exits(agent, released);
    }

    fn publish_exits(&self, agent: &Agent, exits: Vec<Exit>) {
        for exit in exits {
            self.publish_exit(agent, exit);
        }
    }

    fn publish_exit(&self, agent: &Agent, Exit { process, pid, exit }: Exit) {
        oom::tell(agent, self);
        let first_time = !agent.events.was_published(process.counters.mark(Mark::Exited));
        let (stdout_bytes, stderr_bytes) = process.totals(first_time);
        if first_time {
            let container_id = self.id.to_string();
            let id =
                process.exec.as_ref().map_or_else(|| container_id.clone(), ToString::to_string);
            let event = TaskExit {
                container_id,
                id,
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit)),
                stdout_bytes,
                stderr_bytes,
            };
            self.publish_once(agent, &process, Mark::Exited, &event);
        }
        process.finish(Finished { pid, exit, stdout_bytes, stderr_bytes });
    }

    fn publish_delete(&self, agent: &Agent, process: &Process) {
        if process.exec.is_some() || !agent.profile.publishes_delete {
            return;
        }
        let Some(finished) = process.finished_already() else { return };
        let event = TaskDelete {
            container_id: self.id.to_string(),
            pid: finished.pid,
            exit_status: finished.exit.status,
            exited_at: Some(timestamp(finished.exit)),
            id: String::new(),
        };
        self.publish_once(agent, process, Mark::Deleted, &event);
    }
}

/// An exit's time as hosts get it.
pub fn timestamp(exit: Exited) -> Timestamp {
    Timestamp { seconds: exit.seconds, nanos: i32::try_from(exit.nanos).unwrap_or(0) }
}
