//! Sets a process's stdio in motion: after its launch, and again in a new agent.
//!
//! Owns: nothing; the tasks are the process's.
//! Promises: what init keeps for stdin and for a terminal is closed as soon as these have ended,
//! since the other side sees an end only then.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;
use vminitd_protocol::handshake::StreamId;

use super::kept;
use super::process::{Io, Process};
use super::record::{Count, Flag, ProcessRecord};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::stdio::end::End;
use crate::agent::stdio::input::Input;
use crate::agent::stdio::output::{Output, Sink};
use crate::agent::stdio::terminal::Terminal;
use crate::agent::stdio::uri::Uri;
use crate::agent::stdio::wiring::{Ends, Owner, Pipes, ProcessFds, STDERR_TO, STDOUT_TO, Uris};
use crate::link::message::Target;
use crate::paths;

/// What a process's stdio is made of before its launch.
pub struct Wired {
    /// What its URIs name.
    pub ends: Ends,
    /// Our ends of its pipes.
    pub pipes: Pipes,
    /// Its ends; none with a terminal.
    pub fds: ProcessFds,
}

/// The URIs of a process.
pub fn uris(record: &ProcessRecord) -> Result<Uris, RpcError> {
    if record.terminal {
        Uris::parse_terminal(&record.stdin, &record.stdout)
    } else {
        Uris::parse(&record.stdin, &record.stdout, &record.stderr)
    }
}

/// Opens what a process's URIs name (`streams` are claimed already), makes its pipes and puts them
/// into safe keeping; starts the programs that take its output.
pub async fn wire(
    agent: &Agent,
    target: &Target,
    namespace: &str,
    record: &ProcessRecord,
    owner: Owner,
    streams: &HashMap<StreamId, Arc<End>>,
) -> Result<Wired, RpcError> {
    let uris = uris(record)?;
    let mut ends = uris.open(streams).map_err(|error| RpcError::failed(&error))?;
    let made = match record.terminal {
        true => uris.make_console_pipes().map(|pipes| (pipes, vec![])),
        false => uris.make_pipes(owner),
    };
    let (pipes, fds) = made.map_err(|error| RpcError::failed(&error))?;
    kept::keep(agent, target, &pipes, &ends).await.map_err(|error| RpcError::failed(&error))?;
    for logger in std::mem::take(&mut ends.loggers) {
        agent.loggers.start(agent, target, namespace, logger).await?;
    }
    Ok(Wired { ends, pipes, fds })
}

/// Claims the streams that a process names. On failure none stays claimed.
pub fn claim(
    agent: &Agent,
    record: &ProcessRecord,
) -> Result<HashMap<StreamId, Arc<End>>, RpcError> {
    let mut claimed = HashMap::new();
    for id in uris(record)?.streams() {
        match agent.streams.claim(&id) {
            Some(end) => drop(claimed.insert(id, end)),
            None => {
                for (id, end) in claimed {
                    agent.streams.give_back(&id, end);
                }
                return Err(RpcError::NoStream(id.to_string()));
            }
        }
    }
    Ok(claimed)
}

/// Claims what a process that will not run names, each stream by itself, so that nothing stays of
/// what the host prepared for it.
pub fn claim_leftovers(agent: &Agent, record: &ProcessRecord) -> HashMap<StreamId, Arc<End>> {
    let mut claimed = HashMap::new();
    for uri in [&record.stdin, &record.stdout, &record.stderr] {
        let Ok(Uri::Stream(id, _)) = Uri::parse(uri) else { continue };
        if let Some(end) = agent.streams.claim(&id) {
            claimed.insert(id, end);
        }
    }
    claimed
}

/// Begins to move. `master` is the terminal's, if there is one.
pub fn start(
    agent: &Arc<Agent>,
    process: &Arc<Process>,
    streams: HashMap<StreamId, Arc<End>>,
    ends: Ends,
    pipes: Pipes,
    master: Option<OwnedFd>,
) -> io::Result<()> {
    process.set_streams(streams);
    let terminal = master.map(Terminal::new).transpose()?;
    if let Some(terminal) = &terminal {
        move_terminal(agent, process, terminal, pipes.console_out, pipes.console_in)?;
    }
    let stdout =
        Way { pipe: pipes.stdout, sink: ends.stdout, count: Count::Stdout, kept: STDOUT_TO };
    let stderr =
        Way { pipe: pipes.stderr, sink: ends.stderr, count: Count::Stderr, kept: STDERR_TO };
    let stdout = move_output(agent, process, stdout)?;
    let stderr = move_output(agent, process, stderr)?;
    let closing = watch::Sender::new(process.counters.is_set(Flag::StdinClosing));
    let mut stdin = None;
    if let (Some(pipe), Some(source)) = (pipes.stdin, ends.stdin) {
        let input = Input::new(source, process.counters.counter(Count::Stdin));
        stdin = Some(input.clone());
        let (pipe, closing) = (End::new(pipe)?, closing.subscribe());
        let (agent, target) = (agent.clone(), process.target.clone());
        process.spawn(async move {
            input.run(&pipe, closing, agent.profile.close_io).await;
            // init has a copy of the write end: stdin ends when that is closed too.
            if let Err(error) = agent.init.release(kept::stdin(&target)).await {
                warn!(container = target.container, %error, "stdin cannot be closed");
            }
            drop(pipe);
        });
    }
    process.set_io(Io { stdin, stdout, stderr, terminal, closing });
    Ok(())
}

/// An output, from the process to wherever it goes.
struct Way {
    pipe: Option<OwnedFd>,
    sink: Option<Sink>,
    count: Count,
    /// Under which name what it goes to is kept, if that is in the guest.
    kept: &'static str,
}

fn move_output(
    agent: &Arc<Agent>,
    process: &Arc<Process>,
    Way { pipe, sink, count, kept }: Way,
) -> io::Result<Option<Arc<Output>>> {
    let Some(pipe) = pipe else { return Ok(None) };
    let sink = match sink {
        Some(sink) => sink,
        // A terminal whose output nobody wants.
        None => Sink::File(End::new(OpenOptions::new().write(true).open(paths::NULL)?.into())?),
    };
    let output = Output::new(pipe, sink, process.counters.counter(count))?;
    let in_guest = output.goes_into_guest();
    let (agent, target, running) = (agent.clone(), process.target.clone(), output.clone());
    process.spawn(async move {
        running.run().await;
        // Who reads it sees its end when init's copy is closed too.
        if in_guest && let Err(error) = agent.init.release(kept::sink(&target, kept)).await {
            warn!(container = target.container, %error, "the end of an output cannot be told");
        }
    });
    Ok(Some(output))
}

fn move_terminal(
    agent: &Arc<Agent>,
    process: &Arc<Process>,
    terminal: &Arc<Terminal>,
    to_host: Option<OwnedFd>,
    from_host: Option<OwnedFd>,
) -> io::Result<()> {
    // Not there any more if an agent before this one has seen the end.
    if let Some(pipe) = to_host {
        let pipe = End::new(pipe)?;
        let (agent, target, terminal) = (agent.clone(), process.target.clone(), terminal.clone());
        process.spawn(async move {
            terminal.run_output(&pipe).await;
            if let Err(error) = agent.init.release(kept::console(&target)).await {
                warn!(container = target.container, %error, "a terminal's end cannot be told");
            }
            drop(pipe);
        });
    }
    if let Some(pipe) = from_host {
        let (pipe, terminal) = (End::new(pipe)?, terminal.clone());
        process.spawn(async move { terminal.run_input(&pipe).await });
    }
    Ok(())
}
