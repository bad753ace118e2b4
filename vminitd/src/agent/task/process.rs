//! A process of a container: its state, its stdio, its exit. Now the container's init; execs are
//! processes of the same kind.
//!
//! Owns: the pidfd, the state machine's state, and the agent's ends of the process's stdio.
//! Promises: the state changes by the state machine only, in one short section each; whoever waits
//! for the exit learns of it once its output is handed over and TaskExit is published.
//! Never: publishes (the container does), or signals by number.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch;
use tracing::warn;

use super::record::{Count, Counters, Flag};
use crate::agent::errors::RpcError;
use crate::agent::init_client::Launched;
use crate::agent::lock;
use crate::agent::process::lifecycle::{Action, Event, Exited, Refusal, State, step};
use crate::agent::stdio::output::Output;
use crate::limits::DRAIN_PATIENCE;
use crate::link::message::ProcessHandle;
use crate::sys::pidfd;

/// A process.
pub struct Process {
    /// Bytes and marks that outlive the agent.
    pub counters: Counters,
    state: Mutex<State>,
    /// Set once, when it is launched or found again.
    launched: OnceLock<Handle>,
    /// Set once, when its stdio begins to move.
    io: OnceLock<Io>,
    finished: watch::Sender<Option<Finished>>,
}

/// What a launched process is known by.
#[derive(Debug)]
struct Handle {
    process: ProcessHandle,
    pidfd: OwnedFd,
}

/// A process's stdio while it moves.
pub struct Io {
    /// Its stdout, unless that is /dev/null.
    pub stdout: Option<Arc<Output>>,
    /// Its stderr, unless that is /dev/null.
    pub stderr: Option<Arc<Output>>,
    /// Becomes true with `CloseIO`.
    pub closing: watch::Sender<bool>,
}

/// How a process ended, as those who wait are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The pid it had.
    pub pid: u32,
    /// The exit.
    pub exit: Exited,
    /// Bytes of stdout that had been handed over.
    pub stdout_bytes: u64,
    /// Bytes of stderr that had been handed over.
    pub stderr_bytes: u64,
}

impl Process {
    /// One whose launch is under way.
    pub fn new(counters: Counters) -> Self {
        Self {
            counters,
            state: Mutex::new(State::Creating),
            launched: OnceLock::new(),
            io: OnceLock::new(),
            finished: watch::Sender::new(None),
        }
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

    /// It was launched.
    pub fn set_launched(&self, launched: Launched) {
        let handle = Handle { process: launched.process, pidfd: launched.pidfd };
        if self.launched.set(handle).is_err() {
            warn!(pid = launched.pid, "a process was launched twice");
        }
    }

    /// Its stdio moves.
    pub fn set_io(&self, io: Io) {
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

    /// Returns when what lies in its output pipes is handed over, or when nothing moved for too
    /// long.
    pub async fn hand_over(&self) {
        let Some(io) = self.io.get() else { return };
        let hand_over = async |output: &Option<Arc<Output>>| match output {
            Some(output) => output.hand_over(DRAIN_PATIENCE).await,
            None => true,
        };
        let (stdout, stderr) = tokio::join!(hand_over(&io.stdout), hand_over(&io.stderr));
        if !(stdout && stderr) {
            warn!(pid = self.pid(), "the host does not take a process's output: going on");
        }
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

    /// The exit is published: those who wait may know.
    pub fn finish(&self, finished: Finished) {
        self.finished.send_replace(Some(finished));
    }

    /// The published exit, if it is.
    pub fn finished_already(&self) -> Option<Finished> {
        *self.finished.borrow()
    }

    /// Returns once the exit is published; at once when it was. None when the process is deleted
    /// without ever having been.
    pub async fn finished(&self) -> Option<Finished> {
        let mut finished = self.finished.subscribe();
        let found = finished.wait_for(Option::is_some).await.ok()?;
        *found
    }

    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.launched.get().map(|handle| handle.pidfd.as_fd())
    }
}
