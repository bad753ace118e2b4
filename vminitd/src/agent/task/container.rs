//! A container, and what happens to it that nobody asked for: output, exit.
//!
//! Owns: every task that works for the container; they end with it.
//! Promises: an exit is recorded before init is told so, and published after what the process wrote;
//! the init's is the last of the container's.
//! Never: answers a call.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};
use vminitd_protocol::handshake::StreamId;
use vminitd_protocol::pb::containerd::events::{
    TaskCreate, TaskDelete, TaskExit, TaskIo, TaskPaused, TaskResumed, TaskStart,
};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::google::protobuf::Timestamp;

use super::process::{Finished, Io, Process};
use super::record::{Count, Flag, Mark, Record};
use crate::agent::Agent;
use crate::agent::cgroup::Cgroup;
use crate::agent::errors::chain;
use crate::agent::events::hub::Event as Published;
use crate::agent::id::ContainerId;
use crate::agent::init_client::ExitSlot;
use crate::agent::lock;
use crate::agent::process::exit_order::ExitOrder;
use crate::agent::process::lifecycle::{Action, Event, Exited};
use crate::agent::stdio::end::End;
use crate::agent::stdio::input;
use crate::agent::stdio::output::{Output, Sink};
use crate::agent::stdio::wiring::{Ends, Pipes, STDIN};
use crate::limits::EVENT_ROOTFS_BYTES;

/// A container.
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its init.
    pub init: Process,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// As requested, for the event; empty for a container of an earlier agent.
    pub rootfs: Vec<Mount>,
    /// Where its record is.
    directory: PathBuf,
    record: Mutex<Record>,
    exits: Mutex<ExitOrder<String, Exit>>,
    /// Streams that it has claimed, open until its deletion.
    streams: Mutex<HashMap<StreamId, Arc<End>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// An exit that waits to be published.
#[derive(Clone, Copy, Debug)]
struct Exit {
    pid: u32,
    exit: Exited,
}

impl Container {
    /// One whose init is being launched.
    pub fn new(
        id: ContainerId,
        record: Record,
        rootfs: Vec<Mount>,
        directory: PathBuf,
        cgroup: Cgroup,
        init: Process,
    ) -> Self {
        Self {
            id,
            init,
            cgroup,
            rootfs,
            directory,
            record: Mutex::new(record),
            exits: Mutex::default(),
            streams: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// What is recorded of it.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Changes what is recorded. On failure the old record stands, here and on disk.
    pub fn update_record(
        &self,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), super::record::RecordError> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed);
        changed.save(&self.directory)?;
        *record = changed;
        Ok(())
    }

    /// Lets a task work for the container until that is deleted.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(task);
    }

    /// Ends every task that works for the container; returns when they are gone.
    pub async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }

    /// Takes the streams, for closing.
    pub fn take_streams(&self) -> HashMap<StreamId, Arc<End>> {
        std::mem::take(&mut *lock(&self.streams))
    }

    /// Begins to move the init's stdio.
    pub fn move_stdio(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        streams: HashMap<StreamId, Arc<End>>,
        ends: Ends,
        pipes: Pipes,
    ) -> std::io::Result<()> {
        *lock(&self.streams) = streams;
        let output = |pipe, sink, count| self.move_output(pipe, sink, count);
        let stdout = output(pipes.stdout, ends.stdout, Count::Stdout)?;
        let stderr = output(pipes.stderr, ends.stderr, Count::Stderr)?;
        let closing = watch::Sender::new(self.init.counters.is_set(Flag::StdinClosing));
        if let (Some(pipe), Some(source)) = (pipes.stdin, ends.stdin) {
            let (pipe, closing) = (End::new(pipe)?, closing.subscribe());
            let (agent, container) = (agent.clone(), self.clone());
            self.spawn(async move {
                let how = agent.profile.close_io;
                input::run(&source, &pipe, closing, how).await;
                // init has a copy of the write end: stdin ends when that is closed too.
                let key = kept_stdin(&container.id);
                if let Err(error) = agent.init.release(key).await {
                    warn!(container = %container.id, %error, "stdin cannot be closed");
                }
                drop(pipe);
            });
        }
        self.init.set_io(Io { stdout, stderr, closing });
        Ok(())
    }

    fn move_output(
        &self,
        pipe: Option<std::os::fd::OwnedFd>,
        sink: Option<Sink>,
        count: Count,
    ) -> std::io::Result<Option<Arc<Output>>> {
        let (Some(pipe), Some(sink)) = (pipe, sink) else { return Ok(None) };
        let output = Output::new(pipe, self.init.counters.counter(count))?;
        self.spawn(output.clone().run(sink));
        Ok(Some(output))
    }

    /// Waits for the init's exit, records it and lets it take its course.
    pub fn watch_exit(self: &Arc<Self>, agent: &Arc<Agent>, slot: ExitSlot) {
        let (agent, container) = (agent.clone(), self.clone());
        self.spawn(async move {
            // The link's end is the agent's.
            let Ok(exit) = slot.wait().await else { return };
            let (seconds, nanos) = exit.at;
            let exited = Exited { status: exit.status, seconds, nanos };
            container.exited(&agent, exited);
            // Not recorded is not acknowledged: init tells the next agent again.
            if container.record().exit.is_some()
                && let Err(error) = agent.init.recorded(exit.number).await
            {
                warn!(container = %container.id, %error, "exit not acknowledged");
            }
        });
    }

    /// The init has exited.
    pub fn exited(self: &Arc<Self>, agent: &Arc<Agent>, exited: Exited) {
        let pid = self.init.pid();
        if self.record().exit.is_none()
            && let Err(error) = self.update_record(|record| record.exit = Some((pid, exited)))
        {
            error!(container = %self.id, error = %chain(&error), "exit not recorded");
        }
        debug!(container = %self.id, pid, status = exited.status, "exited");
        let actions = self.init.note(Event::Exited(exited));
        self.perform(agent, &actions);
    }

    /// Does what the state machine orders, as far as nobody who called is to do it.
    pub fn perform(self: &Arc<Self>, agent: &Arc<Agent>, actions: &[Action]) {
        for action in actions {
            match action {
                Action::PublishCreate => self.publish_create(agent),
                Action::PublishStart => self.publish_start(agent),
                Action::PublishPaused => {
                    self.publish(agent, &TaskPaused { container_id: self.id.to_string() });
                }
                Action::PublishResumed => {
                    self.publish(agent, &TaskResumed { container_id: self.id.to_string() });
                }
                Action::Drain => {
                    let (agent, container) = (agent.clone(), self.clone());
                    self.spawn(async move {
                        container.init.hand_over().await;
                        let actions = container.init.note(Event::Drained);
                        container.perform(&agent, &actions);
                    });
                }
                Action::PublishExit => self.release_exit(agent),
                Action::PublishDelete => self.publish_delete(agent),
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

    fn publish<E: Published + Message>(&self, agent: &Agent, event: &E) {
        let namespace = lock(&self.record).namespace.clone();
        agent.events.publish(&namespace, event);
    }

    /// Publishes what happens once in the init's life, unless that was done.
    fn publish_once<E: Published + Message>(&self, agent: &Agent, mark: Mark, event: &E) {
        let namespace = lock(&self.record).namespace.clone();
        agent.events.publish_once(self.init.counters.mark(mark), &namespace, event);
    }

    fn publish_create(&self, agent: &Agent) {
        let record = self.record();
        let event = TaskCreate {
            container_id: record.id,
            bundle: record.bundle.display().to_string(),
            rootfs: self.rootfs_for_event(),
            io: Some(TaskIo {
                stdin: record.stdin,
                stdout: record.stdout,
                stderr: record.stderr,
                terminal: record.terminal,
            }),
            checkpoint: String::new(),
            pid: self.init.pid(),
        };
        self.publish_once(agent, Mark::Created, &event);
    }

    /// Not so many that there is no room for the event among others.
    fn rootfs_for_event(&self) -> Vec<Mount> {
        let bytes: usize = self.rootfs.iter().map(Mount::encoded_len).sum();
        if bytes <= EVENT_ROOTFS_BYTES { self.rootfs.clone() } else { vec![] }
    }

    fn publish_start(&self, agent: &Agent) {
        let pid = self.init.pid();
        let event = TaskStart { container_id: self.id.to_string(), pid };
        self.publish_once(agent, Mark::Started, &event);
    }

    fn release_exit(&self, agent: &Agent) {
        let state = self.init.state();
        let (Some(pid), Some(exit)) = (state.pid(), state.exit()) else { return };
        let released = lock(&self.exits).handle_init_exited(Exit { pid, exit });
        for exit in released {
            self.publish_exit(agent, exit);
        }
    }

    fn publish_exit(&self, agent: &Agent, Exit { pid, exit }: Exit) {
        let first_time = !agent.events.was_published(self.init.counters.mark(Mark::Exited));
        let (stdout_bytes, stderr_bytes) = self.init.totals(first_time);
        if first_time {
            let event = TaskExit {
                container_id: self.id.to_string(),
                id: self.id.to_string(),
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit)),
                stdout_bytes,
                stderr_bytes,
            };
            self.publish_once(agent, Mark::Exited, &event);
        }
        self.init.finish(Finished { pid, exit, stdout_bytes, stderr_bytes });
    }

    fn publish_delete(&self, agent: &Agent) {
        if !agent.profile.publishes_delete {
            return;
        }
        let Some(finished) = self.init.finished_already() else { return };
        let event = TaskDelete {
            container_id: self.id.to_string(),
            pid: finished.pid,
            exit_status: finished.exit.status,
            exited_at: Some(timestamp(finished.exit)),
            id: String::new(),
        };
        self.publish(agent, &event);
    }
}

/// An exit's time as hosts get it.
pub fn timestamp(exit: Exited) -> Timestamp {
    Timestamp { seconds: exit.seconds, nanos: i32::try_from(exit.nanos).unwrap_or(0) }
}

/// Under which key init keeps the init process's output pipes.
pub fn kept_outputs(id: &ContainerId) -> String {
    format!("process/{id}/")
}

/// Under which key init keeps the write end of the init process's stdin.
pub fn kept_stdin(id: &ContainerId) -> String {
    format!("{STDIN}/{id}/")
}

/// Puts a process's pipes into safe keeping.
pub async fn keep_pipes(
    agent: &Agent,
    id: &ContainerId,
    pipes: &Pipes,
) -> Result<(), crate::link::agent::LinkError> {
    let (names, fds) = pipes.outputs();
    if !fds.is_empty() {
        agent.init.keep(kept_outputs(id), names, &fds).await?;
    }
    if let Some(stdin) = &pipes.stdin {
        agent.init.keep(kept_stdin(id), vec![STDIN.to_owned()], &[stdin.as_fd()]).await?;
    }
    Ok(())
}
