//! Rebuilds the containers that agents before this one left: from their records, and from what
//! init handed over.
//!
//! Promises: a container whose Create was (or may have been) answered is there again, with its stdio
//! moving from where it stopped; one whose Create was not is removed without a trace, as after any
//! Create that failed; what was published is not published again.
//! Never: asks the kernel whether a process lives: init knows.
//!
//! Restoring replays a record through the state machine. What was published is marked in the
//! container's counters, so a replayed step does not publish it a second time. The mark of
//! TaskCreate, which is set before Create answers, tells the two cases apart.
//!
//! | record | init says | becomes |
//! |---|---|---|
//! | no exit, marked | launched | created; running too, if it was told to start |
//! | no exit, not marked | launched | killed and removed |
//! | no exit | launching | cancelled, and removed after init's answer |
//! | no exit | failed, or nothing | removed |
//! | exit | anything | stopped |
//! | unreadable | anything | removed as far as its id tells what there is |
//!
//! Removing goes on while the agent serves already; until it is done, the id is taken.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tracing::{info, warn};
use vminitd_protocol::handshake::StreamId;

use super::cleanup::{self, Remains};
use super::container::{Container, kept_outputs, kept_stdin};
use super::process::Process;
use super::record::{Counters, Mark, Record};
use super::start::notify;
use super::table::Reservation;
use crate::agent::Agent;
use crate::agent::cgroup::Cgroup;
use crate::agent::errors::chain;
use crate::agent::handover::{Handover, Process as Known};
use crate::agent::id::ContainerId;
use crate::agent::init_client::{Inherited, Launched, Outcome};
use crate::agent::lock;
use crate::agent::process::lifecycle::Event;
use crate::agent::stdio::end::End;
use crate::agent::stdio::listener::kept_id;
use crate::agent::stdio::wiring::{Pipes, Uris};
use crate::link::message::{RequestId, Target};
use crate::sys::pidfd::send_signal;

/// Containers whose launch was still under way when their agent died, and is being cancelled.
#[derive(Default)]
pub struct Pending(Mutex<HashMap<RequestId, Orphan>>);

/// A container without an agent.
struct Orphan {
    id: ContainerId,
    record: Record,
    reservation: Reservation,
    streams: HashMap<StreamId, Arc<End>>,
    pipes: Pipes,
    /// A launcher is at its start or deletion, with hooks.
    hooks_run: bool,
}

/// Rebuilds everything. Returns when every container that stays is there again.
pub async fn restore(agent: &Arc<Agent>, mut handover: Handover) {
    let records = load(agent);
    let mut streams = streams(&mut handover);
    for exit in std::mem::take(&mut handover.exits) {
        agent.init.handle_exit(exit);
    }
    let mut known = vec![];
    for (id, record) in records {
        let Some(orphan) = adopt_record(agent, id, record, &mut handover, &mut streams) else {
            continue;
        };
        let request = orphan.record.request;
        let process = handover.launched.remove(&request);
        known.extend(process.as_ref().map(|process| process.process));
        if handover.launching.contains_key(&request) {
            lock(&agent.pending.0).insert(request, orphan);
            if let Err(error) = agent.init.cancel(request).await {
                warn!(error = %chain(&error), "a launch is not cancelled");
            }
            continue;
        }
        let launched = process.and_then(|process| launched(agent, process));
        let stays =
            orphan.record.exit.is_some() || (launched.is_some() && was_answered(agent, &orphan.id));
        if stays {
            rebuild(agent, orphan, launched).await;
        } else {
            tokio::spawn(destroy(agent.clone(), orphan, launched));
        }
    }
    forget_strangers(agent, handover, known).await;
    register_unclaimed(agent, streams);
}

/// A launch of an earlier agent has ended.
pub async fn inherited(agent: Arc<Agent>, inherited: Inherited) {
    let orphan = lock(&agent.pending.0).remove(&inherited.request);
    let launched = match inherited.outcome {
        Outcome::Launched(launched) => Some(launched),
        Outcome::Failed(_) | Outcome::Done => None,
    };
    match (orphan, launched) {
        (Some(orphan), launched) => destroy(agent, orphan, launched).await,
        // Its container is not there any more: nor may the process be.
        (None, Some(launched)) => {
            let _ = send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
            let _ = agent.init.forget(launched.process).await;
        }
        (None, None) => {}
    }
}

/// Whether the host may know that the container was created.
fn was_answered(agent: &Agent, id: &ContainerId) -> bool {
    let counters = Counters::open(&agent.dirs.container(id));
    counters.is_ok_and(|counters| agent.events.was_published(counters.mark(Mark::Created)))
}

fn load(agent: &Agent) -> Vec<(ContainerId, Record)> {
    let mut records = vec![];
    for entry in std::fs::read_dir(&agent.dirs.containers).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(id) = ContainerId::try_from(&*name.to_string_lossy()) else { continue };
        let record = Record::load(&entry.path()).unwrap_or_else(|error| {
            warn!(container = %id, error = %chain(&error), "record unreadable: container removed");
            unknown(agent, &id)
        });
        records.push((id, record));
    }
    records
}

/// What can be said of a container by its id alone; no request has the number 0.
fn unknown(agent: &Agent, id: &ContainerId) -> Record {
    Record {
        id: id.to_string(),
        namespace: String::new(),
        bundle: agent.dirs.bundle(id),
        places: places(&agent.dirs.bundle(id)),
        stdin: String::new(),
        stdout: String::new(),
        stderr: String::new(),
        terminal: false,
        request: 0,
        poststart: false,
        poststop: false,
        started: false,
        exit: None,
    }
}

/// Wherever a bundle may have mounts.
fn places(bundle: &Path) -> Vec<std::path::PathBuf> {
    let numbered = std::fs::read_dir(bundle.join("mounts")).into_iter().flatten().flatten();
    let numbered = numbered.map(|entry| Path::new("mounts").join(entry.file_name()));
    numbered.chain([std::path::PathBuf::from("rootfs")]).collect()
}

/// Streams that init kept, by id.
fn streams(handover: &mut Handover) -> HashMap<StreamId, Arc<End>> {
    let keys: Vec<String> = handover.kept.keys().cloned().collect();
    let mut streams = HashMap::new();
    for key in keys {
        let Some(id) = kept_id(&key) else { continue };
        let kept = handover.kept.remove(&key).unwrap_or_default();
        let Some((_, fd)) = kept.into_iter().next() else { continue };
        match End::new(fd) {
            Ok(end) => drop(streams.insert(id, Arc::new(end))),
            Err(error) => warn!(stream = %id, %error, "a kept stream is no use"),
        }
    }
    streams
}

fn adopt_record(
    agent: &Arc<Agent>,
    id: ContainerId,
    record: Record,
    handover: &mut Handover,
    streams: &mut HashMap<StreamId, Arc<End>>,
) -> Option<Orphan> {
    let reservation = match agent.tasks.reserve(&id, &record.bundle) {
        Ok(reservation) => reservation,
        Err(error) => {
            warn!(container = %id, %error, "two records for one container");
            return None;
        }
    };
    let mut take = |key: String| handover.kept.remove(&key).unwrap_or_default();
    let kept: Vec<(String, OwnedFd)> =
        take(kept_outputs(&id)).into_iter().chain(take(kept_stdin(&id))).collect();
    let mut own = HashMap::new();
    for stream in uris(&record).iter().flat_map(Uris::streams) {
        if let Some(end) = streams.remove(&stream) {
            own.insert(stream, end);
        }
    }
    let of_hooks = |(request, target): (&RequestId, &Target)| {
        *request != record.request && target.container == id.as_str() && target.exec.is_empty()
    };
    let hooks_run = handover.launching.iter().any(of_hooks);
    let pipes = Pipes::from_kept(kept);
    Some(Orphan { id, record, reservation, streams: own, pipes, hooks_run })
}

fn uris(record: &Record) -> Option<Uris> {
    Uris::parse(&record.stdin, &record.stdout, &record.stderr).ok()
}

fn launched(agent: &Agent, known: Known) -> Option<Launched> {
    match agent.init.launched(known.process, known.pid, known.fds) {
        Outcome::Launched(launched) => Some(launched),
        Outcome::Done | Outcome::Failed(_) => None,
    }
}

/// Makes the container again, as it was.
async fn rebuild(agent: &Arc<Agent>, orphan: Orphan, launched: Option<Launched>) {
    let Orphan { id, record, reservation, streams, pipes, hooks_run } = orphan;
    let directory = agent.dirs.container(&id);
    let counters = match Counters::open(&directory) {
        Ok(counters) => counters,
        Err(error) => {
            warn!(container = %id, error = %chain(&error), "container removed");
            let orphan = Orphan { id, record, reservation, streams, pipes, hooks_run };
            return destroy(agent.clone(), orphan, launched).await;
        }
    };
    let cgroup = Cgroup::at(agent.dirs.cgroup(&id));
    let init = Process::new(counters);
    let container = Arc::new(Container::new(id, record.clone(), vec![], directory, cgroup, init));
    if let Some(uris) = uris(&record) {
        let moving = uris
            .open(&streams)
            .map_err(std::io::Error::other)
            .and_then(|ends| container.move_stdio(agent, streams, ends, pipes));
        if let Err(error) = moving {
            warn!(container = %container.id, %error, "stdio does not go on");
        }
    }
    let recorded = record.exit.map(|(pid, _)| pid);
    let pid = launched.as_ref().map(|launched| launched.pid).or(recorded).unwrap_or(0);
    let exit = launched.as_ref().map(|launched| launched.exit.clone());
    if let Some(launched) = launched {
        container.init.set_launched(launched);
    }
    info!(container = %container.id, pid, "taken over from the agent before");
    reservation.fill(container.clone());
    replay(agent, &container, &record, pid, hooks_run);
    match (record.exit, exit) {
        (Some((_, exit)), slot) => {
            container.exited(agent, exit);
            // Recorded, but perhaps not acknowledged.
            if let Some(slot) = slot {
                container.watch_exit(agent, slot);
            }
        }
        (None, Some(slot)) => container.watch_exit(agent, slot),
        (None, None) => {}
    }
}

fn replay(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    record: &Record,
    pid: u32,
    hooks_run: bool,
) {
    let mut events = vec![Event::Launched { pid }];
    if record.started {
        // The agent before may have died between the record and the call. Telling the process
        // twice does no harm: who was told does not listen any more. A launcher that is at it will
        // tell it by itself.
        if record.exit.is_none()
            && !hooks_run
            && notify(agent, container).is_ok()
            && record.poststart
        {
            warn!(container = %container.id, "started without its poststart hooks");
        }
        events.extend([Event::StartAsked, Event::StartSent]);
        if container.cgroup.is_frozen() {
            events.extend([Event::PauseAsked, Event::Froze]);
        }
    }
    for event in events {
        let actions = container.init.note(event);
        container.perform(agent, &actions);
    }
}

async fn destroy(agent: Arc<Agent>, orphan: Orphan, launched: Option<Launched>) {
    let Orphan { id, record, reservation, streams, pipes, hooks_run: _ } = orphan;
    info!(container = %id, "a create that was never answered: removed");
    drop(pipes);
    let process = launched.map(|launched| launched.process);
    let remains = Remains { id: id.clone(), record, streams, process };
    if let Err(error) = cleanup::remove(&agent, remains).await {
        warn!(container = %id, error = %chain(&error), "something of it stays");
    }
    drop(reservation);
}

/// What init keeps for nobody is let go.
async fn forget_strangers(agent: &Arc<Agent>, handover: Handover, known: Vec<u64>) {
    for (_, process) in handover.launched {
        warn!(container = process.target.container, pid = process.pid, "a process of no container");
        if let Some(pidfd) = process.fds.first() {
            let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let _ = agent.init.forget(process.process).await;
    }
    let pending: HashSet<String> = lock(&agent.pending.0)
        .values()
        .flat_map(|orphan| [kept_outputs(&orphan.id), kept_stdin(&orphan.id)])
        .collect();
    for (key, _) in handover.kept {
        if !pending.contains(&key) {
            let _ = agent.init.release(key).await;
        }
    }
    if let Err(error) = agent.init.settle(&known).await {
        warn!(error = %chain(&error), "exits not acknowledged");
    }
}

fn register_unclaimed(agent: &Agent, streams: HashMap<StreamId, Arc<End>>) {
    for (id, end) in streams {
        if agent.streams.register(&id, end).is_err() {
            warn!(stream = %id, "a kept stream has no place any more");
        }
    }
}
