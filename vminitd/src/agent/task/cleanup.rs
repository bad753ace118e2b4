//! Removes all that a container leaves: the one way for Delete, for a Create that failed, and for a
//! container whose agent died half-way.
//!
//! Promises: every step may have been done before, or may have nothing to do; the record goes last,
//! so that whatever is interrupted is taken up again.
//! Never: decides whether a container may go.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{debug, warn};
use vminitd_protocol::handshake::StreamId;

use super::kept;
use super::record::{self, Record, RecordError};
use crate::agent::Agent;
use crate::agent::bundle::remove::{RemoveError, remove_bundle};
use crate::agent::cgroup::{Cgroup, CgroupError};
use crate::agent::id::ContainerId;
use crate::agent::init_client::Outcome;
use crate::agent::mounts::place::Ground;
use crate::agent::mounts::undo::{UnmountError, undo};
use crate::agent::network;
use crate::agent::spec::{self, SpecError};
use crate::agent::stdio::end::End;
use crate::agent::stdio::listener;
use crate::chain;
use crate::limits::KILL_TO_GONE;
use crate::link::agent::LinkError;
use crate::link::message::{Job, Launch, ProcessHandle, Target};

/// What is to be removed.
pub struct Remains {
    /// The container.
    pub id: ContainerId,
    /// What was recorded of it.
    pub record: Record,
    /// Streams that it has claimed. Ours are the last copies but init's.
    pub streams: HashMap<StreamId, Arc<End>>,
    /// init's names for its processes, as far as they came.
    pub handles: Vec<ProcessHandle>,
}

/// What could not be removed. The guest's fault; Delete can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The cgroup, or what still runs in it.
    #[error("remove the container's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A rootfs mount.
    #[error("remove the container's rootfs")]
    Mount(#[from] UnmountError),
    /// The bundle.
    #[error("remove the container's bundle")]
    Bundle(#[from] RemoveError),
    /// A bundle that is not ours has to get its config back.
    #[error("restore the bundle's config")]
    Spec(#[from] SpecError),
    /// libcontainer's directory.
    #[error("remove {path}")]
    State {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The record.
    #[error("remove the container's record")]
    Record(#[from] RecordError),
    /// The agent is about to end.
    #[error("release what init keeps")]
    Link(#[from] LinkError),
    /// The removal itself panicked.
    #[error("remove what the container leaves")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Kills what still runs in the container's cgroup; returns when nothing does. A cgroup that could
/// be removed had nothing in it.
pub async fn stop(cgroup: &Cgroup) -> Result<(), CgroupError> {
    if cgroup.remove_if_empty() {
        return Ok(());
    }
    match cgroup.kill() {
        Ok(()) => cgroup.wait_empty(KILL_TO_GONE).await,
        Err(CgroupError::Absent(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes everything.
pub async fn remove(agent: &Arc<Agent>, remains: Remains) -> Result<(), CleanupError> {
    let directory = agent.dirs.container(&remains.id);
    remove_all_but_record(agent, remains).await?;
    record::remove_directory(&directory)?;
    Ok(())
}

/// Removes everything but the record. What fails does not keep the rest from being tried; the first error is
/// returned, and then the record must stay.
pub async fn remove_all_but_record(
    agent: &Arc<Agent>,
    remains: Remains,
) -> Result<(), CleanupError> {
    let Remains { id, record, streams, handles } = remains;
    let cgroup = Cgroup::at(agent.dirs.cgroup(&id));
    stop(&cgroup).await?;
    if record.poststop {
        run_poststop(agent, &id).await;
    }
    let mut streams = streams;
    if agent.loggers.has(id.as_str()) {
        // A program may lie in the rootfs, and its input ends with what is released.
        release(agent, &id, std::mem::take(&mut streams)).await?;
        agent.loggers.end_all(id.as_str()).await;
    }
    let on_disk = tokio::task::spawn_blocking({
        let (agent, id) = (agent.clone(), id.clone());
        move || remove_from_disk(&agent, &id, &cgroup, &record)
    });
    let released = release(agent, &id, streams);
    let (on_disk, released) = tokio::join!(on_disk, released);
    on_disk??;
    released?;
    for process in handles {
        agent.init.forget(process).await?;
    }
    debug!(container = %id, "nothing is left of it but its record");
    Ok(())
}

fn remove_from_disk(
    agent: &Agent,
    id: &ContainerId,
    cgroup: &Cgroup,
    record: &Record,
) -> Result<(), CleanupError> {
    let mut first: Result<(), CleanupError> = Ok(());
    let mut note = |result: Result<(), CleanupError>| {
        if let Err(error) = result {
            warn!(container = %id, error = %chain(&error), "clean-up");
            if first.is_ok() {
                first = Err(error);
            }
        }
    };
    network::container::detach(&agent.network, &record.bundle, id);
    note(cgroup.remove().map_err(Into::into));
    note(remove_state(agent.dirs.libcontainer(id)));
    let unmounted = undo(Ground::Bundle(&record.bundle), &record.places);
    let mounts_gone = unmounted.is_ok();
    note(unmounted.map_err(Into::into));
    if agent.dirs.owns_bundle(id, &record.bundle) {
        // Removing stops at a mount anyway; this saves the half of the tree that comes before it.
        if mounts_gone {
            note(remove_bundle(&record.bundle).map_err(Into::into));
        }
    } else if record.bundle.exists() {
        for place in record.places.iter().rev().filter(|place| place.starts_with("mounts")) {
            let _ = std::fs::remove_dir(record.bundle.join(place));
        }
        let _ = std::fs::remove_dir(record.bundle.join("mounts"));
        note(spec::restore(&record.bundle).map_err(Into::into));
    }
    first
}

fn remove_state(path: PathBuf) -> Result<(), CleanupError> {
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| CleanupError::State { path, source }),
    }
}

/// init's copies go before ours, and before anybody is told that it is done.
async fn release(
    agent: &Agent,
    id: &ContainerId,
    streams: HashMap<StreamId, Arc<End>>,
) -> Result<(), LinkError> {
    let execs = record::execs(&agent.dirs.container(id)).into_iter();
    let of_processes = [String::new()]
        .into_iter()
        .chain(execs.map(|exec| exec.to_string()))
        .flat_map(|exec| kept::all(&Target { container: id.to_string(), exec }));
    let released =
        agent.init.release_all(of_processes.chain(streams.keys().map(listener::kept_key))).await;
    for (id, end) in streams {
        drop(end);
        agent.streams.forget(&id);
    }
    released
}

/// A hook that fails is logged and no more: the container is gone whatever it says.
async fn run_poststop(agent: &Agent, id: &ContainerId) {
    if !agent.dirs.libcontainer(id).exists() {
        return;
    }
    let launch = Launch {
        target: Target { container: id.to_string(), exec: String::new() },
        fds: vec![],
        deadline_ms: agent.launch_deadline_ms(0),
        job: Job::DeleteWithHooks,
    };
    match agent.init.launch(agent.init.next_request(), launch, &[]).await {
        Ok(Outcome::Done | Outcome::Launched(_)) => {}
        Ok(Outcome::Failed(error)) => {
            warn!(container = %id, %error, "a poststop hook failed; deleting goes on");
        }
        Err(error) => warn!(container = %id, error = %chain(&error), "poststop hooks not run"),
    }
}
