//! `Task.Delete`: removes a container that has exited, or that was never started.
//!
//! Promises: what the process wrote is handed over first, within bounds; when this returns nothing
//! of the container is left and its id is free; if something could not be removed, the container
//! is still there, stopped, and Delete can be tried again.

use std::sync::Arc;

use tracing::{debug, warn};
use vminitd_protocol::pb::containerd::task::v3::{DeleteRequest, DeleteResponse};

use super::cleanup::{self, Remains};
use super::container::{Container, timestamp};
use crate::agent::Agent;
use crate::agent::errors::{RpcError, chain};
use crate::agent::process::lifecycle::{Action, Event, Refusal};

/// The call.
pub async fn delete(agent: Arc<Agent>, request: DeleteRequest) -> Result<DeleteResponse, RpcError> {
    let container = agent.tasks.get(&request.id)?;
    super::no_execs(&request.exec_id)?;
    loop {
        let actions = container.init.apply(Event::DeleteAsked)?;
        if actions.contains(&Action::CleanUp) {
            break;
        }
        if actions.contains(&Action::Kill) {
            match container.init.signal(libc::SIGKILL) {
                Ok(()) | Err(RpcError::Refused(Refusal::Finished)) => {}
                Err(error) => return Err(error),
            }
        }
        container.init.finished().await;
    }
    if let Err(error) = clean_up(&agent, &container).await {
        container.init.note(Event::CleanUpFailed);
        return Err(RpcError::failed(&error));
    }
    agent.tasks.remove(&container.id);
    let actions = container.init.note(Event::CleanedUp);
    container.perform(&agent, &actions);
    debug!(container = %container.id, "deleted");
    let finished = container.init.finished_already();
    Ok(DeleteResponse {
        pid: finished.map_or(0, |finished| finished.pid),
        exit_status: finished.map_or(0, |finished| finished.exit.status),
        exited_at: finished.map(|finished| timestamp(finished.exit)),
    })
}

async fn clean_up(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
) -> Result<(), cleanup::CleanupError> {
    // Whatever the init left running writes no more after this, so the pipes hold the rest.
    cleanup::stop(&container.cgroup).await?;
    container.init.hand_over().await;
    container.end_tasks().await;
    let remains = Remains {
        id: container.id.clone(),
        record: container.record(),
        streams: container.take_streams(),
        process: container.init.handle(),
    };
    let removed = cleanup::remove(agent, remains).await;
    if let Err(error) = &removed {
        warn!(container = %container.id, error = %chain(error), "not deleted");
    }
    removed
}
