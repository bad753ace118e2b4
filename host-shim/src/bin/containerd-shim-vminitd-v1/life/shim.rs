//! What a shim serves: its containers, the one VM, and how all of it ends.
//!
//! Owns: the table of containers, the VM. Promises: an id is in use from its Create's first step to the end of its Delete;
//! when the shim ends, so does the VM. Never: holds a lock across an await.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use vminitd_protocol::pb::containerd::task::v3::{DeleteRequest, KillRequest, ShutdownRequest};

use super::events::Lanes;
use super::failure::Failure;
use super::netns::Inside;
use super::network::TaskNetwork;
use super::process::{Container, Process, lock};
use super::sandbox::Sandbox;
use crate::protocol::publish::Publisher;

/// How long a task that is ended with its shim may take to die.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last events may take to come out of the guest.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How long containerd may take to hear them.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The same when containerd waits for us.
const HURRIED_WORDS: Duration = Duration::from_secs(1);

/// How long a shim without a container waits for one.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// How often it looks.
const IDLE_STEP: Duration = Duration::from_secs(10);

/// What a shim is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// containerd's namespace.
    pub namespace: String,
}

/// A shim.
pub struct Shim {
    /// What it was told.
    pub settings: Settings,
    /// Where events go.
    pub publisher: Publisher,
    /// The guest's events on their way.
    pub lanes: Lanes,
    /// The VM, once there is one.
    pub sandbox: OnceCell<Arc<Sandbox>>,
    /// The network of its tasks, on the host.
    pub network: TaskNetwork,
    /// Why there is no VM any more.
    pub ended: watch::Sender<Option<String>>,
    /// The container that the VM was made for.
    first: OnceLock<String>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Ids whose Create is under way.
    reserved: Mutex<HashSet<String>>,
    /// Containers that the guest has yet to delete; see [`Left`].
    leaving: watch::Sender<usize>,
    /// Nothing is left to be served.
    done: Notify,
    /// The end was asked for.
    stopping: watch::Sender<bool>,
    /// And is waited for.
    hurried: watch::Sender<bool>,
}

/// An id whose Create is under way; free again when this is dropped.
pub struct Reserved {
    shim: Arc<Shim>,
    id: String,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.shim.reserved).remove(&self.id);
    }
}

/// A container that containerd has deleted and the guest deletes still, until this is dropped.
pub struct Left(Arc<Shim>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.leaving.send_modify(|leaving| *leaving -= 1);
    }
}

impl Shim {
    /// One that serves nothing yet.
    pub fn new(settings: Settings, publisher: Publisher, inside: Inside) -> Arc<Self> {
        Arc::new(Self {
            settings,
            publisher,
            lanes: Lanes::default(),
            sandbox: OnceCell::new(),
            network: TaskNetwork::new(inside),
            first: OnceLock::new(),
            ended: watch::Sender::new(None),
            containers: Mutex::default(),
            reserved: Mutex::default(),
            leaving: watch::Sender::new(0),
            done: Notify::new(),
            stopping: watch::Sender::new(false),
            hurried: watch::Sender::new(false),
        })
    }

    /// Takes an id for a Create.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reserved, Failure> {
        let taken =
            lock(&self.containers).contains_key(id) || !lock(&self.reserved).insert(id.to_owned());
        match taken {
            true => Err(Failure::Exists(format!("container {id}"))),
            false => Ok(Reserved { shim: self.clone(), id: id.to_owned() }),
        }
    }

    /// Counts a container that the guest has yet to delete.
    pub fn leave(self: &Arc<Self>) -> Left {
        self.leaving.send_modify(|leaving| *leaving += 1);
        Left(self.clone())
    }

    /// Waits until the guest has deleted all that containerd has, for as long as a task may take to die.
    pub async fn all_left(&self) {
        let mut leaving = self.leaving.subscribe();
        let _ = timeout(END_DEADLINE, leaving.wait_for(|leaving| *leaving == 0)).await;
    }

    /// Adds a container.
    pub fn add(&self, container: Arc<Container>) {
        lock(&self.containers).insert(container.id.clone(), container);
    }

    /// Forgets a container.
    pub fn remove(&self, id: &str) {
        lock(&self.containers).remove(id);
    }

    /// All containers.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// The container of that id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        lock(&self.containers).get(id).cloned().ok_or(Failure::NoContainer)
    }

    /// A process of it; the init's name is empty.
    pub fn process(&self, id: &str, exec: &str) -> Result<(Arc<Container>, Arc<Process>), Failure> {
        let container = self.container(id)?;
        let process = container.process(exec);
        Ok((container, process.ok_or_else(|| Failure::NoProcess(exec.to_owned()))?))
    }

    /// Notes for which container the VM is made.
    pub fn made_for(&self, id: &str) {
        let _ = self.first.set(id.to_owned());
    }

    /// The pid by which containerd knows a process, of which `pid` is the guest's: of the init for which the VM was made
    /// it is the shim's, whose network namespace is the task's. CNI plugins and hooks find that by it.
    pub fn host_pid(&self, id: &str, exec: &str, pid: u32) -> u32 {
        let inits = exec.is_empty() && self.first.get().is_some_and(|first| first == id);
        if inits && pid != 0 { std::process::id() } else { pid }
    }

    /// The guest's pid of that init.
    pub fn first_pid(&self) -> Option<u32> {
        let container = self.container(self.first.get()?).ok()?;
        Some(container.init.pid()).filter(|pid| *pid != 0)
    }

    /// The VM; a container whose VM is not there is none.
    pub fn vm(&self) -> Result<Arc<Sandbox>, Failure> {
        self.sandbox.get().cloned().ok_or(Failure::NoContainer)
    }

    /// Why there is no VM any more, as a failure.
    pub fn over(&self) -> Failure {
        let why = self.ended.borrow().clone();
        Failure::Ended(why.unwrap_or_else(|| "the VM has ended".to_owned()))
    }

    /// True when the VM's end was asked for.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// `Shutdown`: ends the task of that id, if it lives, and the shim when that was the last; with `now` all of them.
    pub async fn shutdown(self: &Arc<Self>, request: ShutdownRequest) -> Result<(), Failure> {
        for container in self.containers() {
            if request.now || container.id == request.id {
                self.end(&container).await;
            }
        }
        if self.containers().is_empty() {
            self.done.notify_one();
        }
        Ok(())
    }

    /// Kills a container, waits for its output and deletes it.
    async fn end(self: &Arc<Self>, container: &Arc<Container>) {
        info!(container = container.id, "ending a container that still is there");
        let kill =
            KillRequest { id: container.id.clone(), signal: 9, all: true, ..Default::default() };
        // One that has not been started, or has ended, needs none.
        let _ = self.kill(kill).await;
        if container.init.started() {
            let _ = timeout(END_DEADLINE, container.init.exited()).await;
        }
        let delete = DeleteRequest { id: container.id.clone(), exec_id: String::new() };
        if let Err(error) = self.delete(delete).await {
            warn!(container = container.id, %error, "a container could not be deleted; it goes with its VM");
            self.remove(&container.id);
        }
    }

    /// Returns when nothing is left to be served: as containerd says, or because there has been no container for so long
    /// that it must have forgotten us, as when it was killed between two calls.
    pub async fn finished(&self) {
        let forgotten = async {
            let mut idle = Duration::ZERO;
            while idle < FORGOTTEN {
                sleep(IDLE_STEP).await;
                let busy = !self.containers().is_empty() || !lock(&self.reserved).is_empty();
                idle = if busy { Duration::ZERO } else { idle + IDLE_STEP };
            }
        };
        tokio::select! {
            () = self.done.notified() => {}
            () = forgotten => info!("no container for {} s: the shim ends by itself", FORGOTTEN.as_secs()),
        }
    }

    /// Ends all containers, the VM, and what containerd has not heard of it.
    pub async fn stop(self: &Arc<Self>) {
        for container in self.containers() {
            self.end(&container).await;
        }
        if let Some(sandbox) = self.sandbox.get() {
            if self.ended.borrow().is_none() {
                let _ = timeout(LAST_EVENTS, self.lanes.empty()).await;
            }
            self.stopping.send_replace(true);
            let ended = async {
                sandbox.machine.kill().await;
                self.network.disconnect().await;
                // Before the wait for containerd's ear: it may take the bundle, which names the cgroups, away meanwhile.
                sandbox.cgroup.leave();
            };
            tokio::join!(ended, self.last_told());
        }
        self.last_told().await;
    }

    /// Waits until containerd has heard all that was published, or for as long as that is worth.
    async fn last_told(&self) {
        let hurried = async {
            let _ = self.hurried.subscribe().wait_for(|hurried| *hurried).await;
            sleep(HURRIED_WORDS).await;
        };
        tokio::select! {
            _ = timeout(LAST_WORDS, self.publisher.flushed()) => {}
            () = hurried => warn!("containerd waits for our end and does not listen: it is not told all"),
        }
    }

    /// Somebody waits for the end that was begun: a containerd that starts, takes us for a leak and hears no events yet.
    pub fn hurry(&self) {
        self.hurried.send_replace(true);
    }
}
