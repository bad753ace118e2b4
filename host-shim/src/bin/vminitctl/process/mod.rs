//! A process in the guest that our own stdio, terminal and signals are connected to: a container's own, or one that is
//! executed in it.
//!
//! ```text
//! streams -> (made by run or exec) -> Wait asked -> Start -> signals, size, stdio ... -> exit -> output drained
//! ```
//!
//! Promises: output that the process wrote before it exited is written before [`attend`] returns; the terminal is as
//! before by then; an agent that is replaced meanwhile is not noticed.
//! Never: makes or deletes the process.

mod error;
pub mod signals;
pub mod stdio;
pub mod terminal;

use std::future::pending;

use host_shim::guest::{CallError, SteadyGuest, unlimited};
use host_shim::sys::terminal::Size;
use tokio::time::{Instant, sleep_until};
use vminitd_protocol::pb::containerd::task::v3::{
    KillRequest, ResizePtyRequest, StartRequest, StateRequest, WaitRequest, WaitResponse,
};
use vminitd_protocol::pb::containerd::v1::types::Status;

pub use error::ProcessError;
use signals::{Arrival, HANGUP_GRACE, Signal, Signals};
use stdio::Stdio;
use terminal::Terminal;

/// How often a process is made anew when the agent is lost meanwhile.
pub const TRIES: usize = 5;

/// A process in the guest.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its container.
    pub container: String,
    /// Empty for the container's own.
    pub exec: String,
}

impl Target {
    /// The id of one of its streams.
    pub fn stream(&self, name: &str) -> String {
        match self.exec.as_str() {
            "" => format!("{}-{name}", self.container),
            exec => format!("{}-{exec}-{name}", self.container),
        }
    }
}

/// What a terminal's program is told of it, with `-t`: KEY=VALUE.
pub fn term_entry() -> String {
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
    format!("TERM={}", term.as_deref().unwrap_or("xterm"))
}

/// `KEY=VALUE` as it is, `KEY` with the value that it has here.
pub fn resolve_env(entry: &str) -> Result<String, ProcessError> {
    match entry.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(entry.to_owned()),
        None if !entry.is_empty() => std::env::var(entry)
            .map(|value| format!("{entry}={value}"))
            .map_err(|_| ProcessError::Env { entry: entry.to_owned() }),
        _ => Err(ProcessError::Env { entry: entry.to_owned() }),
    }
}

/// Puts `entries` into an environment: each replaces what has the same key.
pub fn set_env(env: &mut Vec<String>, entries: impl IntoIterator<Item = String>) {
    for entry in entries {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key).to_owned();
        env.retain(|other| other.split_once('=').map_or(other.as_str(), |(name, _)| name) != key);
        env.push(entry);
    }
}

/// What a process that was made is connected to.
pub struct Connected {
    /// Its streams.
    pub stdio: Stdio,
    /// True when it has a terminal.
    pub tty: bool,
}

/// What has come to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Start has returned.
    Started,
    /// Wait has returned.
    Exited,
    /// All output is written.
    Drained,
}

/// Starts the process, and stays with it until it has exited and all its output is written. `note` hears of each step.
pub async fn attend(
    guest: &SteadyGuest,
    target: &Target,
    connected: Connected,
    signals: &mut Signals,
    mut note: impl FnMut(Moment),
) -> Result<WaitResponse, ProcessError> {
    // Before the program runs: what it prints first is meant for a raw terminal.
    let terminal = match connected.tty {
        true => Some(Terminal::raw().map_err(ProcessError::Terminal)?),
        false => None,
    };
    // Asked before Start, so that the exit comes without a further round trip.
    let waiting = tokio::spawn(wait(guest.clone(), target.clone()));
    start(guest, target).await?;
    note(Moment::Started);
    resize(guest, target, terminal.as_ref().and_then(Terminal::size)).await;

    let mut running = connected.stdio.run();
    let exit =
        see_through(guest, target, waiting, signals, &mut running, terminal.as_ref()).await?;
    note(Moment::Exited);
    let copied = running.finish(exit.stdout_bytes, exit.stderr_bytes).await;
    note(Moment::Drained);
    drop(terminal);
    copied.map_err(ProcessError::Output)?;
    Ok(exit)
}

async fn wait(guest: SteadyGuest, target: Target) -> Result<WaitResponse, CallError> {
    let request = WaitRequest { id: target.container, exec_id: target.exec };
    let call = |guest: host_shim::guest::Guest| {
        let request = request.clone();
        async move { guest.task().wait(unlimited(), &request).await }
    };
    guest.call(call).await
}

/// Starts it. When the agent is lost meanwhile, what became of the process says whether to start it again.
async fn start(guest: &SteadyGuest, target: &Target) -> Result<(), ProcessError> {
    let (container, exec) = (&target.container, &target.exec);
    let request = StartRequest { id: container.clone(), exec_id: exec.clone() };
    for _ in 0..TRIES {
        let call = |guest: host_shim::guest::Guest| {
            let request = request.clone();
            async move { guest.task().start(unlimited(), &request).await }
        };
        match guest.once(call).await {
            Ok(_) => return Ok(()),
            Err(CallError::Lost(_)) => {}
            Err(error) => return Err(ProcessError::create("Task.Start")(error)),
        }
        let request = StateRequest { id: container.clone(), exec_id: exec.clone() };
        let call = |guest: host_shim::guest::Guest| {
            let request = request.clone();
            async move { guest.task().state(unlimited(), &request).await }
        };
        let state = guest.call(call).await.map_err(ProcessError::call("Task.State"))?;
        if state.status() != Status::Created {
            return Ok(());
        }
    }
    Err(ProcessError::Unmade(TRIES))
}

type Waiting = tokio::task::JoinHandle<Result<WaitResponse, CallError>>;

/// Waits for the exit; meanwhile passes on signals and the terminal's size, and ends a command whose reader or whose
/// terminal went away.
async fn see_through(
    guest: &SteadyGuest,
    target: &Target,
    mut waiting: Waiting,
    signals: &mut Signals,
    running: &mut stdio::Running,
    terminal: Option<&Terminal>,
) -> Result<WaitResponse, ProcessError> {
    let mut kill_at = None;
    loop {
        let patience = async {
            match kill_at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            answer = &mut waiting => {
                return answer.expect("Wait does not panic").map_err(ProcessError::call("Task.Wait"));
            }
            arrival = signals.next() => match arrival {
                Arrival::ToForward(signal) => {
                    forward(guest, target, signal).await;
                    if signal.is_hangup() && terminal.is_some() {
                        kill_at = Some(Instant::now() + HANGUP_GRACE);
                    }
                }
                Arrival::Resized => resize(guest, target, terminal.and_then(Terminal::size)).await,
                Arrival::Continued => if let Some(terminal) = terminal {
                    terminal.again();
                    resize(guest, target, terminal.size()).await;
                },
            },
            () = running.reader_gone() => {
                // A local command would die of SIGPIPE; PID 1 of a namespace ignores that.
                forward(guest, target, Signal::kill()).await;
            }
            () = patience => {
                kill_at = None;
                forward(guest, target, Signal::kill()).await;
            }
        }
    }
}

/// Sends the signal to the process. That it may be gone already is no error.
async fn forward(guest: &SteadyGuest, target: &Target, signal: Signal) {
    let request = KillRequest {
        id: target.container.clone(),
        exec_id: target.exec.clone(),
        signal: signal.number() as u32,
        all: false,
    };
    let call = |guest: host_shim::guest::Guest| {
        let request = request.clone();
        async move { guest.task().kill(unlimited(), &request).await }
    };
    let _ = guest.call(call).await;
}

/// Tells the process's terminal its size. A process that has ended needs none, so nothing that fails here matters.
async fn resize(guest: &SteadyGuest, target: &Target, size: Option<Size>) {
    let Some(Size { width, height }) = size.filter(|size| size.width > 0 && size.height > 0) else {
        return;
    };
    let request = ResizePtyRequest {
        id: target.container.clone(),
        exec_id: target.exec.clone(),
        width: width.into(),
        height: height.into(),
    };
    let call = |guest: host_shim::guest::Guest| {
        let request = request.clone();
        async move { guest.task().resize_pty(unlimited(), &request).await }
    };
    let _ = guest.call(call).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_replaces_what_has_its_key() {
        let mut env = ["A=1", "B", "AB=2"].map(str::to_owned).to_vec();
        set_env(&mut env, ["A=3", "B=x=y", "C="].map(str::to_owned));
        assert_eq!(env, ["AB=2", "A=3", "B=x=y", "C="]);
    }

    #[test]
    fn streams_of_execs_have_names_of_their_own() {
        let target = |exec: &str| Target { container: "main".into(), exec: exec.into() };
        assert_eq!(target("").stream("stdout"), "main-stdout");
        assert_eq!(target("x").stream("stdout"), "main-x-stdout");
    }
}
