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
//! | record of an init | init says | becomes |
//! |---|---|---|
//! | no exit, marked | launched | created; running too, if it was told to start |
//! | no exit, not marked | launched | killed and removed |
//! | no exit | launching | cancelled, and removed after init's answer |
//! | no exit | failed, or nothing | removed |
//! | exit | anything | stopped |
//! | exit, TaskDelete marked | anything | removed |
//! | unreadable | anything | removed as far as its id tells what there is |
//!
//! An exec goes with its container; its record and its pipes are its own. One whose start was under
//! way is adopted, whether or not the host was told: it is Added and asked for, so it may run.
//!
//! | record of an exec | init says | becomes |
//! |---|---|---|
//! | never started | - | added |
//! | started, no exit | launched | running |
//! | started, no exit | launching | launching; then running or failed |
//! | started, no exit | failed, or nothing | failed |
//! | exit | anything | stopped |
//!
//! Removing goes on while the agent serves already; until it is done, the id is taken.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tracing::{info, warn};
use vminitd_protocol::handshake::StreamId;

use super::cleanup::{self, Remains};
use super::container::Container;
use super::process::Process;
use super::record::{self, Counters, Habits, Mark, ProcessRecord, Record, RecordError, Saved};
use super::start::notify;
use super::table::Reservation;
use super::{io, kept, loggers, start_exec};
use super::{oom, pause};
use crate::agent::Agent;
use crate::agent::cgroup::Cgroup;
use crate::agent::handover::{Handover, Process as Known};
use crate::agent::id::{ContainerId, ExecId};
use crate::agent::init_client::{ExitSlot, Inherited, Launched, Outcome};
use crate::agent::lock;
use crate::agent::process::lifecycle::{Event, Exited};
use crate::agent::stdio::end::End;
use crate::agent::stdio::listener::kept_id;
use crate::agent::stdio::wiring::{Ends, Pipes};
use crate::chain;
use crate::link::message::{RequestId, Target};
use crate::sys::pidfd::send_signal;

/// Containers whose launch was still under way when their agent died, and is being cancelled.
#[derive(Default)]
pub struct Pending(Mutex<HashMap<RequestId, Awaited>>);

/// Who waits for the end of an inherited launch.
enum Awaited {
    /// Nobody wants the container any more.
    Unwanted(Box<Orphan>),
    /// An exec that goes on.
    Exec(Arc<Container>, Arc<Process>, HashMap<StreamId, Arc<End>>, Pipes),
}

/// A container without an agent.
struct Orphan {
    id: ContainerId,
    record: Record,
    init: OrphanProcess,
    execs: Vec<(ExecId, OrphanProcess)>,
    reservation: Reservation,
    /// A launcher is at its start or deletion, with hooks.
    hooks_run: bool,
}

/// A process without an agent.
struct OrphanProcess {
    record: ProcessRecord,
    streams: HashMap<StreamId, Arc<End>>,
    pipes: Pipes,
    launched: Option<Launched>,
    /// Its launch is under way.
    launching: bool,
}

/// Rebuilds everything. Returns when every container that stays is there again.
pub async fn restore(agent: &Arc<Agent>, mut handover: Handover) {
    let records = load(agent);
    let mut streams = streams(&mut handover);
    for exit in std::mem::take(&mut handover.exits) {
        agent.init.handle_exit(exit);
    }
    let mut known = adopt_loggers(agent, &mut handover, &records);
    for (id, record) in records {
        let Some(orphan) = adopt_record(agent, id, record, &mut handover, &mut streams) else {
            continue;
        };
        let processes = [&orphan.init].into_iter().chain(orphan.execs.iter().map(|(_, exec)| exec));
        let launched = processes.filter_map(|process| process.launched.as_ref());
        known.extend(launched.map(|launched| launched.process));
        let request = orphan.init.record.request;
        if orphan.init.launching {
            lock(&agent.pending.0).insert(request, Awaited::Unwanted(Box::new(orphan)));
            if let Err(error) = agent.init.cancel(request).await {
                warn!(error = %chain(&error), "a launch is not cancelled");
            }
            continue;
        }
        let was = |mark| was_published(agent, &orphan.id, mark);
        let stays = match orphan.init.record.exit {
            Some(_) => !was(Mark::Deleted),
            None => orphan.init.launched.is_some() && was(Mark::Created),
        };
        if stays {
            rebuild(agent, orphan).await;
        } else {
            tokio::spawn(destroy(agent.clone(), orphan));
        }
    }
    forget_strangers(agent, handover, known).await;
    register_unclaimed(agent, streams);
}

/// Takes over the loggers of containers that there are; returns init's names for them.
fn adopt_loggers(
    agent: &Agent,
    handover: &mut Handover,
    records: &[(ContainerId, Record)],
) -> Vec<u64> {
    let is_there = |target: &Target| records.iter().any(|(id, _)| id.as_str() == target.container);
    let loggers = handover.launched.extract_if(|_, process| {
        loggers::process_of(&process.target).is_some_and(|target| is_there(&target))
    });
    let mut known = vec![];
    for (_, process) in loggers {
        let (of, handle) = (loggers::process_of(&process.target), process.process);
        if let (Some(of), Some(launched)) = (of, launched_of(agent, process)) {
            agent.loggers.adopt(&agent.init, &of, launched);
            known.push(handle);
        }
    }
    known
}

/// A launch of an earlier agent has ended.
pub async fn inherited(agent: Arc<Agent>, inherited: Inherited) {
    let awaited = lock(&agent.pending.0).remove(&inherited.request);
    let launched = match inherited.outcome {
        Outcome::Launched(launched) => Some(launched),
        Outcome::Failed(_) | Outcome::Done => None,
    };
    match (awaited, launched) {
        (Some(Awaited::Unwanted(mut orphan)), launched) => {
            orphan.init.launched = launched;
            destroy(agent, *orphan).await;
        }
        (Some(Awaited::Exec(container, process, streams, pipes)), Some(launched)) => {
            exec_launched(&agent, &container, &process, launched, streams, pipes);
        }
        (Some(Awaited::Exec(container, process, streams, _)), None) => {
            process.set_streams(streams);
            start_exec::undo(&agent, &container, &process).await;
        }
        // Its container is not there any more: nor may the process be.
        (None, Some(launched)) => {
            let _ = send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
            let _ = agent.init.forget(launched.process).await;
        }
        (None, None) => {}
    }
}

/// Whether the host may know that the container was created, or deleted.
fn was_published(agent: &Agent, id: &ContainerId, mark: Mark) -> bool {
    let counters = Counters::open(&agent.dirs.container(id));
    counters.is_ok_and(|counters| agent.events.was_published(counters.mark(mark)))
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
        poststart: false,
        poststop: false,
        habits: Habits::default(),
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
    let directory = agent.dirs.container(&id);
    // Without its own record an init is as good as never asked for.
    let init = record::load_process(&directory).unwrap_or_default();
    let of_hooks = |(request, target): (&RequestId, &Target)| {
        *request != init.request && target.container == id.as_str() && target.exec.is_empty()
    };
    let hooks_run = handover.launching.iter().any(of_hooks);
    let mut adopt = |exec: String, record| {
        let target = Target { container: id.to_string(), exec };
        adopt_process(agent, &target, record, handover, streams)
    };
    let init = adopt(String::new(), init);
    let execs = record::execs(&directory).into_iter().map(|exec| {
        let record = record::load_process(&record::exec_directory(&directory, &exec));
        let process = adopt(exec.to_string(), record.unwrap_or_default());
        (exec, process)
    });
    let execs = execs.collect();
    Some(Orphan { id, record, init, execs, reservation, hooks_run })
}

fn adopt_process(
    agent: &Agent,
    target: &Target,
    record: ProcessRecord,
    handover: &mut Handover,
    streams: &mut HashMap<StreamId, Arc<End>>,
) -> OrphanProcess {
    let kept: Vec<(String, OwnedFd)> = kept::all(target)
        .into_iter()
        .flat_map(|key| handover.kept.remove(&key).unwrap_or_default())
        .collect();
    let named = io::uris(&record).map(|uris| uris.streams()).unwrap_or_default();
    // Streams of an exec that was never started are still nobody's.
    let own = named.into_iter().filter(|_| record.request != 0);
    let own = own.filter_map(|id| streams.remove(&id).map(|end| (id, end))).collect();
    let launched = handover.launched.remove(&record.request);
    OrphanProcess {
        launched: launched.and_then(|process| launched_of(agent, process)),
        launching: handover.launching.contains_key(&record.request),
        pipes: Pipes::from_kept(kept),
        streams: own,
        record,
    }
}

fn launched_of(agent: &Agent, known: Known) -> Option<Launched> {
    match agent.init.launched(known.process, known.pid, known.fds) {
        Outcome::Launched(launched) => Some(launched),
        Outcome::Done | Outcome::Failed(_) => None,
    }
}

/// Makes the container again, as it was.
async fn rebuild(agent: &Arc<Agent>, orphan: Orphan) {
    let directory = agent.dirs.container(&orphan.id);
    let counters = match Counters::open(&directory) {
        Ok(counters) => counters,
        Err(error) => {
            warn!(container = %orphan.id, error = %chain(&error), "container removed");
            return destroy(agent.clone(), orphan).await;
        }
    };
    let Orphan { id, record, init, execs, reservation, hooks_run } = orphan;
    let cgroup = Cgroup::at(agent.dirs.cgroup(&id));
    let process = Process::init(&id, directory.clone(), init.record.clone(), counters);
    let container = Container::new(id, record, vec![], directory, cgroup, process.clone());
    let container = Arc::new(container);
    let recorded = init.record.exit.map(|(pid, _)| pid);
    let pid = init.launched.as_ref().map(|launched| launched.pid).or(recorded).unwrap_or(0);
    info!(container = %container.id, pid, "taken over from the agent before");
    reservation.fill(container.clone());
    container.spawn(oom::watch(agent.clone(), container.clone()));
    let started = init.record.started;
    let (exit, slot) = (init.record.exit, resume_stdio(agent, &process, init));
    replay_init(agent, &container, started, exit.is_some(), pid, hooks_run);
    // Before the init's exit, which waits for those that count.
    let execs = execs.into_iter().filter_map(|(id, exec)| {
        rebuild_exec(agent, &container, &id, exec)
            .inspect_err(|error| warn!(container = %container.id, exec = %id, error = %chain(error), "exec lost"))
            .ok()
    });
    let execs: Vec<_> = execs.collect();
    for (process, exit, slot) in [(process, exit, slot)].into_iter().chain(execs) {
        if let Some((_, exit)) = exit {
            container.exited(agent, &process, exit);
        }
        // Recorded, but perhaps not acknowledged.
        if let Some(slot) = slot {
            container.watch_exit(agent, &process, slot);
        }
    }
}

/// Lets a process's stdio go on; returns where its exit is found.
fn resume_stdio(
    agent: &Arc<Agent>,
    process: &Arc<Process>,
    orphan: OrphanProcess,
) -> Option<ExitSlot> {
    let OrphanProcess { record, streams, mut pipes, launched, .. } = orphan;
    let (exit, master) = match launched.map(|launched| process.set_launched(launched)) {
        Some((exit, master)) => (Some(exit), master),
        None => (None, None),
    };
    let moving = ends(&record, &streams, &mut pipes)
        .and_then(|ends| io::start(agent, process, streams, ends, pipes, master));
    if let Err(error) = moving {
        warn!(container = process.target.container, %error, "stdio does not go on");
    }
    exit
}

fn ends(
    record: &ProcessRecord,
    streams: &HashMap<StreamId, Arc<End>>,
    pipes: &mut Pipes,
) -> std::io::Result<Ends> {
    io::uris(record).map_err(std::io::Error::other)?.reopen(streams, pipes)
}

fn replay_init(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    started: bool,
    exited: bool,
    pid: u32,
    hooks_run: bool,
) {
    let mut events = vec![Event::Launched { pid }];
    if started {
        // The agent before may have died between the record and the call. Telling the process
        // twice does no harm: who was told does not listen any more. A launcher that is at it will
        // tell it by itself.
        if !exited && !hooks_run && notify(agent, container).is_ok() && container.record().poststart
        {
            warn!(container = %container.id, "started without its poststart hooks");
        }
        events.extend([Event::StartAsked, Event::StartSent]);
        if !exited && pause::is_paused(agent, container) {
            events.extend([Event::PauseAsked, Event::Froze]);
        }
    }
    replay(agent, container, &container.init, events);
}

fn replay(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    events: impl IntoIterator<Item = Event>,
) {
    for event in events {
        let actions = process.note(event);
        container.perform(agent, process, &actions);
    }
}

/// An exec, its recorded exit, and where its exit is found.
type Rebuilt = (Arc<Process>, Option<(u32, Exited)>, Option<ExitSlot>);

fn rebuild_exec(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    id: &ExecId,
    orphan: OrphanProcess,
) -> Result<Rebuilt, RecordError> {
    let directory = record::exec_directory(&container.directory, id);
    let counters = Counters::open(&directory)?;
    let record = orphan.record.clone();
    let process = Process::exec(&container.id, id.clone(), directory, record.clone(), counters);
    container.add_exec(id, process.clone());
    container.publish_added(agent, &process);
    if record.request == 0 {
        return Ok((process, None, None));
    }
    replay(agent, container, &process, [Event::StartAsked]);
    let _ = container.reserve_exec(id);
    if orphan.launching {
        let OrphanProcess { streams, pipes, .. } = orphan;
        let awaited = Awaited::Exec(container.clone(), process.clone(), streams, pipes);
        lock(&agent.pending.0).insert(record.request, awaited);
        return Ok((process, None, None));
    }
    let recorded = record.exit.map(|(pid, _)| pid);
    let pid = orphan.launched.as_ref().map(|launched| launched.pid).or(recorded);
    let slot = resume_stdio(agent, &process, orphan);
    match pid {
        Some(pid) => start_exec::running(agent, container, &process, pid),
        None => {
            let (agent, container, process) = (agent.clone(), container.clone(), process.clone());
            tokio::spawn(async move { start_exec::undo(&agent, &container, &process).await });
        }
    }
    Ok((process, record.exit, slot))
}

/// An exec whose launch an agent before had asked for is there.
fn exec_launched(
    agent: &Arc<Agent>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    launched: Launched,
    streams: HashMap<StreamId, Arc<End>>,
    pipes: Pipes,
) {
    let pid = launched.pid;
    let record = process.record();
    let launched = Some(launched);
    let orphan = OrphanProcess { record, streams, pipes, launched, launching: false };
    let slot = resume_stdio(agent, process, orphan);
    start_exec::running(agent, container, process, pid);
    if let Some(slot) = slot {
        container.watch_exit(agent, process, slot);
    }
}

async fn destroy(agent: Arc<Agent>, orphan: Orphan) {
    let Orphan { id, record, init, execs, reservation, hooks_run: _ } = orphan;
    info!(container = %id, "a create that was never answered, or a deletion half done: removed");
    let (mut streams, mut handles) = (HashMap::new(), vec![]);
    for process in [init].into_iter().chain(execs.into_iter().map(|(_, exec)| exec)) {
        streams.extend(process.streams);
        handles.extend(process.launched.map(|launched| launched.process));
    }
    let remains = Remains { id: id.clone(), record, streams, handles };
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
    // What had been kept for those whose launch is awaited was taken over with them.
    for (key, _) in handover.kept {
        let _ = agent.init.release(key).await;
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
