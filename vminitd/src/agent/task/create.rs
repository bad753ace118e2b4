//! `Task.Create`: bundle, mounts, cgroup, stdio, then a launch.
//!
//! Promises: on any failure nothing is left, not even what the host prepared for it (its bundle,
//! the streams that it names); one Create for an id at a time; a slow one holds up nobody.
//! Never: starts the process.
//!
//! Order: the record first, so that an agent that dies anywhere after it leaves what the next one
//! needs to clean up; the launch last, since only then somebody else works on the container.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use tracing::{debug, warn};
use vminitd_protocol::handshake::StreamId;
use vminitd_protocol::pb::containerd::runc::v1::Options;
use vminitd_protocol::pb::containerd::task::v3::{CreateTaskRequest, CreateTaskResponse};
use vminitd_protocol::pb::containerd::types::Mount;
use vminitd_protocol::pb::google::protobuf::Any;

use super::cleanup::{self, Remains};
use super::container::Container;
use super::io;
use super::oom;
use super::process::Process;
use super::record::{self, Counters, Habits, ProcessRecord, Record, RecordError, Saved};
use crate::agent::Agent;
use crate::agent::cgroup::Cgroup;
use crate::agent::cgroup::guard::Guard;
use crate::agent::confine::cache::Cache;
use crate::agent::errors::RpcError;
use crate::agent::foreseen::Foreseen;
use crate::agent::id::ContainerId;
use crate::agent::init_client::{ExitSlot, Launched, Outcome};
use crate::agent::mounts::devices;
use crate::agent::mounts::make;
use crate::agent::mounts::place::Ground;
use crate::agent::mounts::plan::{Planned, plan};
use crate::agent::network::container;
use crate::agent::process::lifecycle::Event;
use crate::agent::spec::{self, Prepared};
use crate::agent::stdio::end::End;
use crate::agent::stdio::wiring::{Owner, ProcessFds};
use crate::chain;
use crate::link::confinement::Confinement;
use crate::link::left::{Left, LeftError};
use crate::link::message::{Job, Launch, Target};
use crate::link::plan::Plan;
use crate::paths;
use crate::sys::terminal::Size;

/// The type of the options that are understood.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// The call.
pub async fn create(
    agent: Arc<Agent>,
    namespace: String,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse, RpcError> {
    let id = ContainerId::try_from(&*request.id)?;
    let bundle = PathBuf::from(&request.bundle);
    agent.init.boot_complete().await;
    let reservation = agent.tasks.reserve(&id, &bundle)?;
    let mut attempt = Attempt::new(&agent, &id, &bundle, namespace, &request);
    match attempt.run(&request).await {
        Ok((container, exit)) => {
            let (init, pid) = (&container.init, container.init.pid());
            debug!(container = %id, pid, "created");
            reservation.fill(container.clone());
            container.spawn(oom::watch(agent.clone(), container.clone()));
            // The event first: whoever gets the answer may start it, and whoever watches may wait.
            container.perform(&agent, init, &attempt.actions);
            container.watch_exit(&agent, init, exit);
            Ok(CreateTaskResponse { pid })
        }
        Err(error) => {
            warn!(container = %id, %error, "not created");
            attempt.undo().await;
            Err(error)
        }
    }
}

/// One Create, and what it has made so far.
struct Attempt<'a> {
    agent: &'a Arc<Agent>,
    id: ContainerId,
    record: Record,
    process: ProcessRecord,
    /// Claimed streams; moved into the container at the end.
    streams: HashMap<StreamId, Arc<End>>,
    /// The container, once its process is there.
    container: Option<Arc<Container>>,
    actions: Vec<crate::agent::process::lifecycle::Action>,
}

/// What is done on a thread that may block: config, record, mounts, cgroup.
struct OnDisk {
    record: Record,
    process: ProcessRecord,
    /// There are records of both already.
    recorded: bool,
    id: ContainerId,
    planned: Vec<Planned>,
    cgroup: Cgroup,
    guard: Arc<Guard>,
    /// The bundle is one that we have made.
    owns_bundle: bool,
    directory: PathBuf,
    filters: Arc<Cache>,
    foreseen: Arc<Foreseen>,
    no_pivot: bool,
}

/// What the config says about the launch.
struct Ready {
    hook_seconds: u64,
    console_size: Option<Size>,
    own_networks: bool,
    new_namespaces: i32,
    /// There is a plan; else libcontainer makes it.
    planned: bool,
}

impl<'a> Attempt<'a> {
    fn new(
        agent: &'a Arc<Agent>,
        id: &ContainerId,
        bundle: &Path,
        namespace: String,
        request: &CreateTaskRequest,
    ) -> Self {
        let record = Record {
            id: id.to_string(),
            namespace,
            bundle: bundle.to_owned(),
            places: vec![],
            poststart: false,
            poststop: false,
            habits: Habits::default(),
        };
        let process = ProcessRecord {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            request: agent.init.next_request(),
            ..Default::default()
        };
        let (streams, actions) = (HashMap::new(), vec![]);
        Self { agent, id: id.clone(), record, process, streams, container: None, actions }
    }

    async fn run(
        &mut self,
        request: &CreateTaskRequest,
    ) -> Result<(Arc<Container>, ExitSlot), RpcError> {
        io::uris(&self.process)?;
        let options = options(request.options.as_ref())?;
        refuse_unbuilt(request)?;
        check_bundle(&self.record.bundle)?;
        let mut planned = plan(&self.record.bundle, &request.rootfs)
            .map_err(|error| RpcError::Invalid(format!("rootfs: {error}")))?;
        self.record.places = make::places(&planned);
        self.record.habits.io_uid = options.io_uid;
        self.record.habits.io_gid = options.io_gid;
        self.record.habits.no_new_keyring = options.no_new_keyring;
        self.streams = io::claim(self.agent, &self.process)?;
        let awaited = devices::named(&planned);
        if awaited {
            self.note_begun().await?;
        }
        devices::resolve(&mut planned, self.agent.config.device_timeout)
            .await
            .map_err(|error| RpcError::failed(&error))?;
        let (ready, record, counters) =
            self.prepare_disk(planned, awaited, options.no_pivot_root).await?;
        self.record = record;
        let directory = self.agent.dirs.container(&self.id);
        let init = Process::init(&self.id, directory.clone(), self.process.clone(), counters);
        let owner = Owner { uid: options.io_uid, gid: options.io_gid };
        let wired = io::wire(
            self.agent,
            &init.target,
            &self.record.namespace,
            &self.process,
            owner,
            &self.streams,
        )
        .await?;
        let launched = self.launch(&options, &ready, wired.fds).await?;
        let (container, exit, master) =
            self.container(request.rootfs.clone(), directory, init, launched);
        if ready.own_networks {
            self.attach_networks(container.init.pid()).await?;
        }
        if let Some(size) = ready.console_size {
            container.init.resize(size)?;
        }
        let streams = std::mem::take(&mut self.streams);
        io::start(self.agent, &container.init, streams, wired.ends, wired.pipes, master)
            .map_err(|error| RpcError::Failed(format!("set up stdio: {error}")))?;
        Ok((container, exit))
    }

    /// A record before its time, with what is known: devices may be waited for until another agent is there.
    async fn note_begun(&self) -> Result<(), RpcError> {
        let (record, process) = (self.record.clone(), self.process.clone());
        let directory = self.agent.dirs.container(&self.id);
        tokio::task::spawn_blocking(move || keep_record(&record, &process, &directory, false))
            .await
            .map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))?
            .map_err(|error| RpcError::failed(&error))?;
        Ok(())
    }

    async fn prepare_disk(
        &self,
        planned: Vec<Planned>,
        recorded: bool,
        no_pivot: bool,
    ) -> Result<(Ready, Record, Counters), RpcError> {
        let work = OnDisk {
            record: self.record.clone(),
            process: self.process.clone(),
            recorded,
            id: self.id.clone(),
            planned,
            cgroup: Cgroup::at(self.agent.dirs.cgroup(&self.id)),
            guard: self.agent.guard.clone(),
            owns_bundle: self.agent.dirs.owns_bundle(&self.id, &self.record.bundle),
            directory: self.agent.dirs.container(&self.id),
            filters: self.agent.filters.clone(),
            foreseen: self.agent.foreseen.clone(),
            no_pivot,
        };
        tokio::task::spawn_blocking(move || work.run())
            .await
            .map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))?
    }

    async fn launch(
        &self,
        options: &Options,
        ready: &Ready,
        fds: ProcessFds,
    ) -> Result<Launched, RpcError> {
        let launch = Launch {
            target: Target { container: self.id.to_string(), exec: String::new() },
            fds: fds.iter().map(|(role, _)| *role).collect(),
            deadline_ms: self.agent.launch_deadline_ms(ready.hook_seconds),
            job: Job::Create {
                bundle: match ready.planned {
                    true => String::new(),
                    false => self.record.bundle.display().to_string(),
                },
                no_pivot: options.no_pivot_root,
                no_new_keyring: options.no_new_keyring,
                allow_vsock: self.record.habits.allow_vsock,
                new_namespaces: ready.new_namespaces,
                terminal: self.process.terminal,
            },
        };
        let borrowed: Vec<_> = fds.iter().map(|(_, fd)| std::os::fd::AsFd::as_fd(fd)).collect();
        let outcome = self.agent.init.launch(self.process.request, launch, &borrowed).await;
        match outcome.map_err(|error| RpcError::failed(&error))? {
            Outcome::Launched(launched) => Ok(launched),
            Outcome::Failed(error) => Err(RpcError::Runtime(error.reason)),
            Outcome::Done => Err(RpcError::Runtime("init launched no process".to_owned())),
        }
    }

    /// Links to the VM's networks, as the bundle says.
    async fn attach_networks(&self, pid: u32) -> Result<(), RpcError> {
        let (agent, bundle, id) = (self.agent.clone(), self.record.bundle.clone(), self.id.clone());
        let attach = move || container::attach(&agent.network, &bundle, &id, pid);
        let attached = tokio::task::spawn_blocking(attach).await;
        let attached =
            attached.map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))?;
        attached.map_err(|error| RpcError::Runtime(chain(&error)))
    }

    fn container(
        &mut self,
        rootfs: Vec<Mount>,
        directory: PathBuf,
        init: Arc<Process>,
        launched: Launched,
    ) -> (Arc<Container>, ExitSlot, Option<OwnedFd>) {
        self.actions = init.note(Event::Launched { pid: launched.pid });
        let (exit, master) = init.set_launched(launched);
        let container = Arc::new(Container::new(
            self.id.clone(),
            self.record.clone(),
            rootfs,
            directory,
            Cgroup::at(self.agent.dirs.cgroup(&self.id)),
            init,
        ));
        self.container = Some(container.clone());
        (container, exit, master)
    }

    /// Removes everything that was made, and everything that the host prepared for this container.
    async fn undo(self) {
        let Self { agent, id, record, process, mut streams, container, .. } = self;
        let mut handles = vec![];
        if let Some(container) = container {
            container.end_tasks().await;
            streams.extend(container.init.take_streams());
            handles.extend(container.init.handle());
        }
        // Another one may be what the create failed of.
        streams.extend(io::claim_leftovers(agent, &process));
        let remains = Remains { id: id.clone(), record, streams, handles };
        if let Err(error) = cleanup::remove(agent, remains).await {
            warn!(container = %id, error = %chain(&error), "a failed create leaves something");
        }
    }
}

impl OnDisk {
    fn run(mut self) -> Result<(Ready, Record, Counters), RpcError> {
        let runtime = |error: &dyn std::error::Error| RpcError::Runtime(chain(error));
        let mounted = !self.planned.is_empty();
        let bundle = self.record.bundle.clone();
        let mut prepared = spec::read(&self.foreseen, &bundle, self.id.as_str(), mounted)
            .map_err(|e| runtime(&e))?;
        for warning in &prepared.warnings {
            warn!(container = %self.id, "config: {warning}");
        }
        prepared.set_terminal(self.process.terminal);
        let own_networks = bundle.join(paths::BUNDLE_NETWORKS).exists();
        if own_networks {
            // As far as it can be known before there is a process: no hook runs for a container that cannot be.
            container::check(&bundle, &self.id).map_err(|error| runtime(&error))?;
        }
        let counters = self.keep_record(&prepared).map_err(|error| RpcError::failed(&error))?;
        let plan = prepared.plan().filter(|_| !self.no_pivot);
        match &plan {
            Some(plan) => {
                leave_plan(plan, &self.directory).map_err(|error| RpcError::failed(&error))?
            }
            None => spec::write(&bundle, &prepared).map_err(|error| runtime(&error))?,
        }
        if self.owns_bundle
            && let Some(gid) = prepared.root_gid()
        {
            let_through(&bundle, gid).map_err(|error| RpcError::failed(&error))?;
        }
        let filter = prepared.seccomp.take().map(|profile| self.filters.filter(profile));
        let filter = filter.transpose().map_err(|error| runtime(&error))?;
        let filter = filter.map(|filter| (*filter).clone());
        let confinement = Confinement { capabilities: prepared.capabilities, filter };
        confinement.save(&self.directory).map_err(|error| RpcError::failed(&error))?;
        make::make(Ground::Bundle(&bundle), &self.planned)
            .map_err(|error| RpcError::failed(&error))?;
        if let Err(error) = prepared.make_cwd() {
            // Read-only, or in a volume: its absence is libcontainer's to tell.
            debug!(container = %self.id, %error, "its working directory is not made");
        }
        self.cgroup
            .set_up(&self.guard, prepared.resources.as_ref())
            .map_err(|error| runtime(&error))?;
        let ready = Ready {
            hook_seconds: prepared.hook_seconds,
            console_size: prepared.console_size(),
            own_networks,
            new_namespaces: prepared.new_namespaces(),
            planned: plan.is_some(),
        };
        Ok((ready, self.record, counters))
    }

    /// Leaves to the next agent what it needs to take away all that is made from here on.
    fn keep_record(&mut self, prepared: &Prepared) -> Result<Counters, RecordError> {
        (self.record.poststart, self.record.poststop) = (prepared.poststart, prepared.poststop);
        self.record.habits.allow_vsock = prepared.allow_vsock;
        self.record.habits.shared_pids = !prepared.new_pids();
        self.record.habits.namespaces = prepared.namespaces();
        self.record.habits.personality = prepared.personality();
        keep_record(&self.record, &self.process, &self.directory, self.recorded)
    }
}

/// Saves a container's records; `again` when there are some, of which something has to stay at any moment.
fn keep_record(
    record: &Record,
    process: &ProcessRecord,
    directory: &Path,
    again: bool,
) -> Result<Counters, RecordError> {
    record::make_directory(directory)?;
    let counters = Counters::open(directory)?;
    counters.keep(process);
    if again {
        process.save(directory)?;
        record.save(directory)?;
    } else {
        process.save_first(directory)?;
        record.save_first(directory)?;
    }
    Ok(counters)
}

/// For the launcher, with the pipe on which the process waits for its start.
fn leave_plan(plan: &Plan, directory: &Path) -> Result<(), LeftError> {
    plan.save(directory)?;
    let path = directory.join(paths::START_PIPE);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_retain(0o600))
        .map_err(|errno| LeftError::Io { verb: "make", path, source: errno.into() })
}

/// Root of a user namespace is somebody else outside, and has to reach its rootfs.
fn let_through(bundle: &Path, gid: u32) -> std::io::Result<()> {
    std::os::unix::fs::chown(bundle, None, Some(gid))?;
    std::fs::set_permissions(bundle, std::fs::Permissions::from_mode(0o710))
}

fn options(any: Option<&Any>) -> Result<Options, RpcError> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
        return Ok(Options::default());
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != RUNC_OPTIONS {
        warn!(kind = name, "runtime options of an unknown type are ignored");
        return Ok(Options::default());
    }
    Options::decode(&*any.value).map_err(|error| RpcError::invalid(&error))
}

fn refuse_unbuilt(request: &CreateTaskRequest) -> Result<(), RpcError> {
    if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
        return Err(RpcError::Unimplemented("create from a checkpoint".to_owned()));
    }
    Ok(())
}

fn check_bundle(bundle: &Path) -> Result<(), RpcError> {
    let up = bundle.components().any(|part| part == Component::ParentDir);
    if !bundle.is_absolute() || up {
        let path = bundle.display();
        return Err(RpcError::Invalid(format!(
            "bundle {path:?} is not an absolute path without `..`"
        )));
    }
    Ok(())
}
