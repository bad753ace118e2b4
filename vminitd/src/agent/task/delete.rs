//! `Task.Delete`: removes a container or an exec that has exited, or that was never started.
//!
//! Promises: what the process wrote is handed over first, within bounds; when this returns nothing
//! of the container is left and its id is free; if something could not be removed, the container
//! is still there, stopped, and Delete can be tried again.

use std::sync::Arc;

use tracing::{debug, warn};
use vminitd_protocol::pb::containerd::task::v3::{DeleteRequest, DeleteResponse};

use super::cleanup::{self, Remains};
use super::container::{Container, timestamp};
use super::process::Process;
use super::{record, start_exec};
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::id::ExecId;
use crate::agent::process::lifecycle::{Action, Event, Refusal};
use crate::chain;

/// The call.
pub async fn delete(agent: Arc<Agent>, request: DeleteRequest) -> Result<DeleteResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    loop {
        let actions = process.apply(Event::DeleteAsked)?;
        container.perform(&agent, &process, &actions);
        if actions.contains(&Action::CleanUp) {
            break;
        }
        if actions.contains(&Action::Kill) {
            match process.signal(libc::SIGKILL) {
                Ok(()) | Err(RpcError::Refused(Refusal::Finished)) => {}
                Err(error) => return Err(error),
            }
        }
        process.finished().await;
    }
    let cleaned = match &process.exec {
        None => clean_up(&agent, &container).await,
        Some(exec) => clean_up_exec(&agent, &container, &process, exec).await,
    };
    if let Err(error) = cleaned {
        process.note(Event::CleanUpFailed);
        return Err(RpcError::failed(&error));
    }
    // TaskDelete before its mark goes, which is with the record. Nobody gets a word in between.
    let actions = process.note(Event::CleanedUp);
    container.perform(&agent, &process, &actions);
    if process.exec.is_none() {
        if let Err(error) = record::remove_directory(&container.directory) {
            warn!(container = %container.id, error = %chain(&error), "a record stays");
        }
        agent.tasks.remove(&container.id);
    }
    debug!(container = %container.id, exec = process.target.exec, "deleted");
    let finished = process.finished_already();
    Ok(DeleteResponse {
        pid: finished.map_or(0, |finished| finished.pid),
        exit_status: finished.map_or(0, |finished| finished.exit.status),
        exited_at: finished.map(|finished| timestamp(finished.exit)),
    })
}

async fn clean_up_exec(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    exec: &ExecId,
) -> Result<(), cleanup::CleanupError> {
    process.hand_over().await;
    start_exec::release(agent, process).await;
    if let Some(handle) = process.handle() {
        agent.init.forget(handle).await?;
    }
    record::remove_directory(&process.directory)?;
    container.remove_exec(exec);
    Ok(())
}

async fn clean_up(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
) -> Result<(), cleanup::CleanupError> {
    // Whatever the init left running writes no more after this, so the pipes hold the rest.
    cleanup::stop(&container.cgroup).await?;
    let processes = container.processes();
    for process in &processes {
        process.hand_over().await;
    }
    container.end_tasks().await;
    let remains = Remains {
        id: container.id.clone(),
        record: container.record(),
        streams: processes
            .iter()
            .flat_map(|process| start_exec::take_streams(agent, process))
            .collect(),
        handles: processes.iter().filter_map(|process| process.handle()).collect(),
    };
    let removed = cleanup::remove_all_but_record(agent, remains).await;
    if let Err(error) = &removed {
        warn!(container = %container.id, error = %chain(error), "not deleted");
    }
    removed
}
