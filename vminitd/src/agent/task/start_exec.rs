//! `Task.Start` of an exec: streams, pipes, then a launch.
//!
//! Promises: the exec counts from before its launch, so that the init's exit waits for its own; if
//! the start fails nothing of it is left but its id, and a Wait returns.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use tracing::{debug, warn};
use vminitd_protocol::handshake::StreamId;
use vminitd_protocol::pb::containerd::task::v3::StartResponse;

use super::container::Container;
use super::exec::joinable;
use super::io::{self, Wired};
use super::kept;
use super::process::Process;
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::init_client::Outcome;
use crate::agent::process::lifecycle::{Event, Refusal};
use crate::agent::stdio::end::End;
use crate::agent::stdio::listener;
use crate::agent::stdio::wiring::Owner;
use crate::chain;
use crate::link::message::{FdRole, Job, Launch};

/// The call, for an exec.
pub async fn start(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    process: &Arc<Process>,
) -> Result<StartResponse, RpcError> {
    process.apply(Event::StartAsked)?;
    match run(agent, container, process).await {
        Ok(()) => {
            let pid = process.pid();
            debug!(container = %container.id, exec = process.target.exec, pid, "started");
            Ok(StartResponse { pid })
        }
        Err(error) => {
            warn!(container = %container.id, exec = process.target.exec, %error, "not started");
            undo(agent, container, process).await;
            Err(error)
        }
    }
}

async fn run(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    process: &Arc<Process>,
) -> Result<(), RpcError> {
    let request = agent.init.next_request();
    // First where the next agent finds it, so that it adopts what becomes of the launch.
    process.note_in_record(|record| (record.request, record.started) = (request, true));
    joinable(container)?;
    if let Some(exec) = &process.exec {
        container.reserve_exec(exec)?;
    }
    let (record, of_container) = (process.record(), container.record());
    let habits = of_container.habits;
    let streams = io::claim(agent, &record)?;
    process.set_streams(streams.clone());
    let owner = Owner { uid: habits.io_uid, gid: habits.io_gid };
    let Wired { ends, pipes, fds } =
        io::wire(agent, &process.target, &of_container.namespace, &record, owner, &streams).await?;
    let init = container.init.pidfd().ok_or(Refusal::Gone)?;
    let all = fds.iter().map(|(role, fd)| (*role, fd.as_fd())).chain([(FdRole::Init, init)]);
    let (roles, borrowed): (Vec<_>, Vec<_>) = all.unzip();
    let launch = Launch {
        target: process.target.clone(),
        fds: roles,
        deadline_ms: agent.launch_deadline_ms(0),
        job: Job::Exec {
            program: process.directory.display().to_string(),
            namespaces: habits.namespaces,
            personality: habits.personality,
            terminal: record.terminal,
            no_new_keyring: habits.no_new_keyring,
            allow_vsock: habits.allow_vsock,
        },
    };
    let outcome = agent.init.launch(request, launch, &borrowed).await;
    drop(fds);
    let launched = match outcome.map_err(|error| RpcError::failed(&error))? {
        Outcome::Launched(launched) => launched,
        Outcome::Failed(error) => {
            // Whatever the launcher stumbled over: with its init the container is gone.
            if let Err(gone @ Refusal::InitGone { .. }) = joinable(container) {
                return Err(gone.into());
            }
            return Err(RpcError::RuntimeExec(error.reason));
        }
        Outcome::Done => return Err(RpcError::RuntimeExec("init launched no process".to_owned())),
    };
    let pid = launched.pid;
    let (exit, master) = process.set_launched(launched);
    if let Err(error) = io::start(agent, process, streams, ends, pipes, master) {
        let _ = process.signal(libc::SIGKILL);
        warn!(container = %container.id, %error, "an exec without its stdio: killed");
    }
    running(agent, container, process, pid);
    container.watch_exit(agent, process, exit);
    Ok(())
}

/// The exec's process is there.
pub fn running(agent: &Arc<Agent>, container: &Arc<Container>, process: &Arc<Process>, pid: u32) {
    let actions = process.note(Event::Launched { pid });
    container.perform(agent, process, &actions);
    // It came too late to be ended with the container.
    if container.init.state().exit().is_some() {
        let _ = process.signal(libc::SIGKILL);
    }
}

/// Takes back what a start has made.
pub async fn undo(agent: &Arc<Agent>, container: &Arc<Container>, process: &Arc<Process>) {
    release(agent, process).await;
    let actions = process.note(Event::LaunchFailed);
    container.perform(agent, process, &actions);
}

/// The streams of a process, also those of one that never came to claim them.
pub fn take_streams(agent: &Agent, process: &Process) -> HashMap<StreamId, Arc<End>> {
    let mut streams = process.take_streams();
    if process.handle().is_none() {
        streams.extend(io::claim_leftovers(agent, &process.record()));
    }
    streams
}

/// Closes a process's stdio, init's copies first.
pub async fn release(agent: &Arc<Agent>, process: &Process) {
    process.end_tasks().await;
    let streams = take_streams(agent, process);
    let keys = kept::all(&process.target).into_iter().chain(streams.keys().map(listener::kept_key));
    if let Err(error) = agent.init.release_all(keys).await {
        warn!(container = process.target.container, error = %chain(&error), "stdio not released");
    }
    for (id, end) in streams {
        drop(end);
        agent.streams.forget(&id);
    }
    // Their input has ended with that.
    agent.loggers.end(&process.target).await;
}
