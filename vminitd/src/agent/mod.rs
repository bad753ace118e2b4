//! The agent: serves the host over vsock. Crash-only.
//!
//! ```text
//! host --1024--> server/   ttrpc: a server per connection --> task/ bundle/ system events/
//! host --1025--> stdio/    streams, moved by splice           |  containers, one state machine each
//! init <--link--> init_client  launches, exits, safe keeping <+
//! ```
//!
//! Owns: the runtime, and with it everything that the agent does.
//! Promises: a new agent goes on where the one before was killed, whenever that was: what it needs
//! is in /run/vminitd before it is done, or kept by init; what can block is done on other threads,
//! so that one call never waits for another's; pings are answered by the same thread that serves.
//! Never: forks, or runs code of a container's; init's launchers do. (A mount with mapped ids needs a
//! user namespace, and that a process for a moment: `sys/user_namespace.rs`.)
//!
//! Absent on purpose: locks over more than one assignment, and timers that poll.

pub mod block;
pub mod bundle;
pub mod cgroup;
pub mod confine;
pub mod dirs;
pub mod errors;
pub mod events;
pub mod exec_spec;
pub mod extras;
pub mod foreseen;
pub mod handover;
pub mod host_mounts;
pub mod id;
pub mod init_client;
pub mod machine;
pub mod mounts;
pub mod network;
mod plan;
pub mod power;
pub mod process;
pub mod profile;
pub mod server;
pub mod spec;
pub mod stdio;
pub mod supervisor;
pub mod system;
pub mod task;
pub mod var;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, error};

use self::cgroup::guard::Guard;
use self::confine::cache::Cache;
use self::dirs::Dirs;
use self::events::hub::{Hub, HubError};
use self::foreseen::Foreseen;
use self::handover::Handover;
use self::host_mounts::HostMounts;
use self::init_client::{InitClient, Notice};
use self::machine::freezer::Freezer;
use self::network::Network;
use self::profile::Profile;
use self::server::accept::HostListener;
use self::server::socket::Connections;
use self::stdio::streams::Streams;
use self::supervisor::Supervisor;
use self::task::loggers::Loggers;
use self::task::restore::Pending;
use self::task::table::Table;
use crate::chain;
use crate::config::Config;
use crate::limits::BLOCKING_THREADS;
use crate::link::agent::{Link, LinkError};
use crate::link::message::SUPERVISOR_KEY;
use crate::paths;
use crate::sys::memory;
use crate::sys::signals::ignore_sigpipe;

/// What every part of the agent may use.
pub struct Agent {
    /// How this boot is to go.
    pub config: Config,
    /// Whose habits are followed.
    pub profile: Profile,
    /// Where things are.
    pub dirs: Dirs,
    /// init.
    pub init: Arc<InitClient>,
    /// Containers.
    pub tasks: Arc<Table>,
    /// Containers of agents before, whose launch goes on.
    pub pending: Pending,
    /// Programs that take output.
    pub loggers: Loggers,
    /// Streams that the host has opened.
    pub streams: Arc<Streams>,
    /// What is published.
    pub events: Arc<Hub>,
    /// What keeps containers from devices.
    pub guard: Arc<Guard>,
    /// Mounts of the Mount service.
    pub host_mounts: HostMounts,
    /// Seccomp filters that were compiled.
    pub filters: Arc<Cache>,
    /// Configs that a Create will ask for.
    pub foreseen: Arc<Foreseen>,
    /// The injected supervisor.
    pub supervisor: Supervisor,
    /// The VM's networks.
    pub network: Arc<Network>,
    /// Of hosts, to the RPC port.
    pub connections: Connections,
    /// Filesystems that a host has frozen.
    pub freezer: Freezer,
    /// Which agent of this boot this is, from 1 on.
    pub generation: u32,
}

/// Why an agent ends. init starts another.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("link to init")]
    Link(#[from] LinkError),
    #[error("init handed over {0} listeners instead of 2")]
    Listeners(usize),
    #[error(transparent)]
    Events(#[from] HubError),
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// The agent's life, in a fork of init that has parted from it. `link` is its end of the link.
pub fn run(config: Config, link: OwnedFd) {
    memory::keep_one_arena();
    ignore_sigpipe();
    let error = match start(config, link) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    error!(error = %chain(&error), "the agent ends");
}

/// A value that there is none of.
enum Never {}

fn start(config: Config, link: OwnedFd) -> Result<Never, AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(AgentError::Runtime)?;
    let ended = runtime.block_on(live(config, link));
    // A mount that hangs on its thread must not keep the next agent from starting.
    runtime.shutdown_background();
    ended
}

async fn live(config: Config, link: OwnedFd) -> Result<Never, AgentError> {
    let link = Link::new(link)?;
    let mut handover = handover::receive(&link).await?;
    let listeners = std::mem::take(&mut handover.listeners);
    let count = listeners.len();
    let [rpc, stream] =
        <[OwnedFd; 2]>::try_from(listeners).map_err(|_| AgentError::Listeners(count))?;
    let agent = Agent::new(config, Dirs::of_guest(), link, &mut handover).await?;
    tokio::select! {
        ended = listen_to_init(&agent) => ended,
        ended = serve(&agent, handover, rpc, stream) => ended,
    }
}

/// Keeps the link going.
async fn listen_to_init(agent: &Arc<Agent>) -> Result<Never, AgentError> {
    loop {
        match agent.init.next_notice().await? {
            Notice::Inherited(inherited) => {
                tokio::spawn(task::restore::inherited(agent.clone(), inherited));
            }
            Notice::ShuttingDown { grace_ms } => power::begin(agent, grace_ms),
        }
    }
}

async fn serve(
    agent: &Arc<Agent>,
    mut handover: Handover,
    rpc: OwnedFd,
    stream: OwnedFd,
) -> Result<Never, AgentError> {
    let listener = |fd, name| {
        HostListener::new(fd, name)
            .map_err(|source| AgentError::Io { what: "use a listener of init's", source })
    };
    let (rpc, stream) = (listener(rpc, "rpc")?, listener(stream, "streams")?);
    let (generation, shutting_down) = (handover.generation, handover.shutting_down);
    let supervisors_output = handover.kept.remove(SUPERVISOR_KEY);
    if generation > 1 {
        machine::freezer::take_over(agent, &mut handover);
        bundle::remove::remove_leftovers(&agent.dirs.bundles);
    }
    task::restore::restore(agent, handover).await;
    if let Some(grace_ms) = shutting_down {
        power::begin(agent, grace_ms);
    }
    agent.init.serving().await?;
    // init says so in the log: a line takes as long as a mount.
    debug!(generation, "serving");
    if generation == 1 {
        let init = agent.init.clone();
        tokio::spawn(async move {
            init.boot_complete().await;
            machine::time::take_hypervisors();
        });
    }
    agent.supervisor.take_over(agent, supervisors_output);
    network::start(agent);
    let stamp = machine::stamp::FirstAccept::of(generation);
    let services = |gone| {
        stamp.take();
        agent.connections.note(&gone);
        server::services::services(agent, &gone)
    };
    let streams = stdio::listener::serve(stream, agent.streams.clone(), agent.init.clone());
    tokio::join!(server::connection::serve(rpc, services), streams);
    unreachable!("both serve until the agent ends")
}

impl Agent {
    async fn new(
        config: Config,
        dirs: Dirs,
        link: Link,
        handover: &mut Handover,
    ) -> Result<Arc<Self>, AgentError> {
        let boot_id = std::fs::read_to_string(paths::BOOT_ID)
            .map_err(|source| AgentError::Io { what: "read the boot id", source })?;
        let kept = handover.kept.keys().cloned();
        let (first, complete) = (handover.first_request, handover.boot_complete);
        let init = Arc::new(InitClient::new(link, first, complete, kept));
        let events = Hub::take_over(&init, &mut handover.kept, &boot_id).await?;
        Ok(Arc::new(Self {
            profile: config.profile.into(),
            network: Network::new(&config),
            config,
            dirs,
            init,
            tasks: Arc::default(),
            pending: Pending::default(),
            loggers: Loggers::default(),
            streams: Arc::default(),
            events: Arc::new(events),
            guard: Arc::default(),
            host_mounts: HostMounts::new(paths::STATE_DIR.into()),
            filters: Arc::default(),
            foreseen: Arc::default(),
            supervisor: Supervisor::default(),
            connections: Connections::default(),
            freezer: Freezer::default(),
            generation: handover.generation,
        }))
    }

    /// How long a launch may take in milliseconds, when its hooks may take this long.
    pub fn launch_deadline_ms(&self, hook_seconds: u64) -> u64 {
        let deadline =
            self.config.launcher_timeout.saturating_add(Duration::from_secs(hook_seconds));
        u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Locks for a short section without await or system call that can block. A section that panicked
/// has left nothing half done that a lock would guard: each of ours is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
