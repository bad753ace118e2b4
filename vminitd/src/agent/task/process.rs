//! A process of a container: its state, its stdio, its exit. The container's init and each exec is
//! one.
//!
//! Owns: the pidfd, the state machine's state, the agent's ends of the process's stdio, its record,
//! and every task that works for it.
//! Promises: the state changes by the state machine only, in one short section each; whoever waits
//! for the exit learns of it once its output is handed over and TaskExit is published.
//! Never: publishes (the container does), or signals by number.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;
use vminitd_protocol::handshake::StreamId;

use super::record::{Count, Counters, Flag, ProcessRecord, RecordError, Recorded};
use crate::agent::errors::RpcError;
use crate::agent::id::{ContainerId, ExecId};
use crate::agent::init_client::{ExitSlot, Launched};
use crate::agent::lock;
use crate::agent::process::lifecycle::{Action, Event, Exited, Refusal, State, step};
use crate::agent::stdio::end::End;
use crate::agent::stdio::input::Input;
use crate::agent::stdio::output::{Output, Rest};
use crate::agent::stdio::terminal::Terminal;
use crate::limits::DRAIN_PATIENCE;
use crate::link::message::{ProcessHandle, Target};
use crate::sys::pidfd;
use crate::sys::terminal::Size;

/// A process.
pub struct Process {
    /// How init and the host call it.
    pub target: Target,
    /// Its id, if it is not the init.
    pub exec: Option<ExecId>,
    /// Bytes and marks that outlive the agent.
    pub counters: Counters,
    /// Where its record is.
    pub directory: PathBuf,
    recorded: Recorded<ProcessRecord>,
    state: Mutex<State>,
    /// Set once, when it is launched or found again.
    launched: OnceLock<Handle>,
    /// Set once, when its stdio begins to move.
    io: OnceLock<Io>,
    /// What a host asked for before there was a terminal.
    wanted_size: Mutex<Option<Size>>,
    /// Streams that it has claimed, open until its deletion.
    streams: Mutex<HashMap<StreamId, Arc<End>>>,
    tasks: Mutex<JoinSet<()>>,
    end: watch::Sender<Ending>,
}

/// What those who wait for the end of a process learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Not yet.
    Open,
    /// How it ended.
    Finished(Finished),
    /// It was deleted without ever having run.
    Never,
}

/// What a launched process is known by.
#[derive(Debug)]
struct Handle {
    process: ProcessHandle,
    pidfd: OwnedFd,
}

/// A process's stdio while it moves.
pub struct Io {
    /// Its stdin, unless that is /dev/null or has ended in another agent's time.
    pub stdin: Option<Arc<Input>>,
    /// Its stdout, unless that is /dev/null.
    pub stdout: Option<Arc<Output>>,
    /// Its stderr, unless that is /dev/null.
    pub stderr: Option<Arc<Output>>,
    /// Its terminal, if it has one.
    pub terminal: Option<Arc<Terminal>>,
    /// Becomes true with `CloseIO`.
    pub closing: watch::Sender<bool>,
}

/// How a process ended, as those who wait are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The pid it had; 0 if its start failed.
    pub pid: u32,
    /// The exit.
    pub exit: Exited,
    /// Bytes of stdout that had been handed over.
    pub stdout_bytes: u64,
    /// Bytes of stderr that had been handed over.
    pub stderr_bytes: u64,
}

impl Process {
    /// A container's init whose launch is under way.
    pub fn init(
        id: &ContainerId,
        directory: PathBuf,
        record: ProcessRecord,
        counters: Counters,
    ) -> Arc<Self> {
        let target = Target { container: id.to_string(), exec: String::new() };
        Self::new(target, None, directory, record, counters, State::Creating)
    }

    /// An exec that waits for its start.
    pub fn exec(
        container: &ContainerId,
        exec: ExecId,
        directory: PathBuf,
        record: ProcessRecord,
        counters: Counters,
    ) -> Arc<Self> {
        let target = Target { container: container.to_string(), exec: exec.to_string() };
        Self::new(target, Some(exec), directory, record, counters, State::Added)
    }

    fn new(
        target: Target,
        exec: Option<ExecId>,
        directory: PathBuf,
        record: ProcessRecord,
        counters: Counters,
        state: State,
    ) -> Arc<Self> {
        counters.keep(&record);
        Arc::new(Self {
            target,
            exec,
            counters,
            recorded: Recorded::new(directory.clone(), record),
            directory,
            state: Mutex::new(state),
            launched: OnceLock::new(),
            io: OnceLock::new(),
            wanted_size: Mutex::default(),
            streams: Mutex::default(),
            tasks: Mutex::default(),
            end: watch::Sender::new(Ending::Open),
        })
    }

    /// What is recorded of it.
    pub fn record(&self) -> ProcessRecord {
        self.recorded.get()
    }

    /// Changes what is recorded of its life: the request, whether it was started, its exit.
    pub fn note_in_record(&self, change: impl FnOnce(&mut ProcessRecord)) {
        self.recorded.note(|record| {
            change(record);
            self.counters.keep(record);
        });
    }

    /// Changes what else is recorded. On failure the old record stands, here and on disk.
    pub fn update_record(
        &self,
        change: impl FnOnce(&mut ProcessRecord),
    ) -> Result<(), RecordError> {
        self.recorded.update(change)
    }

    /// Lets a task work for the process until that is deleted.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(task);
    }

    /// Ends every task that works for it; returns when they are gone.
    pub async fn end_tasks(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }

    /// It has claimed these streams.
    pub fn set_streams(&self, streams: HashMap<StreamId, Arc<End>>) {
        *lock(&self.streams) = streams;
    }

    /// Claims more streams, and lets go of those that nothing names any more; they are returned.
    pub fn change_streams(
        &self,
        more: HashMap<StreamId, Arc<End>>,
        named: &[StreamId],
    ) -> HashMap<StreamId, Arc<End>> {
        let mut streams = lock(&self.streams);
        streams.extend(more);
        streams.extract_if(|id, _| !named.contains(id)).collect()
    }

    /// Its stdio, once it moves.
    pub fn io(&self) -> Option<&Io> {
        self.io.get()
    }

    /// Takes the streams, for closing.
    pub fn take_streams(&self) -> HashMap<StreamId, Arc<End>> {
        std::mem::take(&mut *lock(&self.streams))
    }

    /// The state now.
    pub fn state(&self) -> State {
        *lock(&self.state)
    }

    /// Takes one step; returns what is to be done.
    pub fn apply(&self, event: Event) -> Result<Vec<Action>, Refusal> {
        let mut state = lock(&self.state);
        let (next, actions) = step(*state, event)?;
        *state = next;
        Ok(actions)
    }

    /// Takes one step that no state refuses: a fact, not a wish.
    pub fn note(&self, event: Event) -> Vec<Action> {
        self.apply(event).unwrap_or_default()
    }

    /// It was launched. Returns what is left for others: where its exit is found, and the master of
    /// its terminal.
    pub fn set_launched(&self, launched: Launched) -> (ExitSlot, Option<OwnedFd>) {
        let Launched { process, pid: _, pidfd, master, exit } = launched;
        if self.launched.set(Handle { process, pidfd }).is_err() {
            warn!(process, "a process was launched twice");
        }
        (exit, master)
    }

    /// Its stdio moves.
    pub fn set_io(&self, io: Io) {
        let wanted = lock(&self.wanted_size).take();
        if let (Some(size), Some(terminal)) = (wanted, &io.terminal) {
            let _ = terminal.resize(size);
        }
        if self.io.set(io).is_err() {
            warn!("a process's stdio was set up twice");
        }
    }

    /// init's name for it, if init still has it.
    pub fn handle(&self) -> Option<ProcessHandle> {
        self.launched.get().map(|handle| handle.process)
    }

    /// Its pid, or 0.
    pub fn pid(&self) -> u32 {
        self.state().pid().unwrap_or(0)
    }

    /// Sends it a signal; no other process can get it.
    pub fn signal(&self, signal: i32) -> Result<(), RpcError> {
        let Some(pidfd) = self.pidfd() else { return Err(Refusal::Finished.into()) };
        pidfd::send_signal(pidfd, signal).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Refusal::Finished.into(),
            Some(libc::EINVAL) => RpcError::Invalid(format!("signal {signal} does not exist")),
            _ => RpcError::Failed(format!("send signal {signal}: {error}")),
        })
    }

    /// `CloseIO`. Again, or without a stdin, is fine.
    pub fn close_stdin(&self) {
        // First where the next agent finds it: the host was told, and will not ask again.
        self.counters.set(Flag::StdinClosing);
        if let Some(io) = self.io.get() {
            io.closing.send_replace(true);
        }
    }

    /// `ResizePty`. Without a terminal there is nothing to resize, which is no error; before there
    /// is one, the size is remembered.
    pub fn resize(&self, size: Size) -> Result<(), RpcError> {
        match self.io.get() {
            Some(Io { terminal: Some(terminal), .. }) => terminal
                .resize(size)
                .map_err(|error| RpcError::Failed(format!("resize the terminal: {error}"))),
            Some(_) => Ok(()),
            None => {
                *lock(&self.wanted_size) = Some(size);
                Ok(())
            }
        }
    }

    /// Returns when what lies in its output pipes is handed over, or when nothing moved for too
    /// long.
    pub async fn hand_over(&self) {
        let Some(io) = self.io.get() else { return };
        let from_terminal = match &io.terminal {
            Some(terminal) => terminal.hand_over(DRAIN_PATIENCE).await,
            None => true,
        };
        let hand_over = async |output: &Option<Arc<Output>>| match output {
            Some(output) => output.hand_over(DRAIN_PATIENCE).await,
            None => true,
        };
        let (stdout, stderr) = tokio::join!(hand_over(&io.stdout), hand_over(&io.stderr));
        if !(from_terminal && stdout && stderr) {
            warn!(pid = self.pid(), "the host does not take a process's output: going on");
        }
    }

    /// What is left of its stdout and its stderr, as far as it has them.
    pub fn output_rest(&self) -> Vec<Rest> {
        let Some(io) = self.io.get() else { return Vec::new() };
        [&io.stdout, &io.stderr].into_iter().flatten().map(|output| output.rest()).collect()
    }

    /// Fixes the totals that go with the exit; the first time decides, also across agents.
    pub fn totals(&self, first_time: bool) -> (u64, u64) {
        let total = |now, at_exit| {
            if first_time {
                let bytes = self.counters.get(now).load(Relaxed);
                self.counters.get(at_exit).store(bytes, Relaxed);
            }
            self.counters.get(at_exit).load(Relaxed)
        };
        (total(Count::Stdout, Count::StdoutAtExit), total(Count::Stderr, Count::StderrAtExit))
    }

    /// The exit is published, or there will be none: those who wait may know.
    pub fn finish(&self, finished: Finished) {
        self.end.send_replace(Ending::Finished(finished));
    }

    /// It is deleted without ever having run.
    pub fn finish_without_exit(&self) {
        self.end.send_if_modified(|end| match end {
            Ending::Open => {
                *end = Ending::Never;
                true
            }
            Ending::Finished(_) | Ending::Never => false,
        });
    }

    /// The published exit, if it is.
    pub fn finished_already(&self) -> Option<Finished> {
        self.end.borrow().finished()
    }

    /// Returns once the exit is published; at once when it was. None when the process is deleted
    /// without ever having been.
    pub async fn finished(&self) -> Option<Finished> {
        let mut end = self.end.subscribe();
        let found = end.wait_for(|end| *end != Ending::Open).await.ok()?;
        found.finished()
    }

    /// Of the process, once it was launched.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.launched.get().map(|handle| handle.pidfd.as_fd())
    }
}

impl Ending {
    fn finished(self) -> Option<Finished> {
        match self {
            Self::Finished(finished) => Some(finished),
            Self::Open | Self::Never => None,
        }
    }
}
