//! Containers and their processes, as the shim knows them. What they do, the guest knows.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_shim::vm::Serial;
use tokio::sync::watch;
use vminitd_protocol::pb::containerd::types::Mount;

use super::hooks::Hooks;
use super::stdio::{Stdio, Wish};
use crate::protocol::delete::Exit;

/// A container's init, or an exec.
pub struct Process {
    /// Empty for the init.
    pub exec: String,
    /// As containerd has said it.
    pub wish: Wish,
    /// Connected; replaced when a Create has to be tried again.
    stdio: Mutex<Arc<Stdio>>,
    pid: AtomicU32,
    started: AtomicBool,
    /// Its exit was published, or is about to be.
    told: AtomicBool,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// A process that was not made yet.
    pub fn new(exec: String, wish: Wish, stdio: Stdio) -> Self {
        Self {
            exec,
            wish,
            stdio: Mutex::new(Arc::new(stdio)),
            pid: AtomicU32::new(0),
            started: AtomicBool::new(false),
            told: AtomicBool::new(false),
            exit: watch::Sender::new(None),
        }
    }

    /// Its stdio.
    pub fn stdio(&self) -> Arc<Stdio> {
        lock(&self.stdio).clone()
    }

    /// Other streams in place of those that went with an agent.
    pub fn set_stdio(&self, stdio: Stdio) {
        *lock(&self.stdio) = Arc::new(stdio);
    }

    /// In the guest; 0 before it was made.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Notes it.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Whether Start was answered.
    pub fn started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Notes it.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Notes it; the first word counts.
    pub fn set_exit(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let new = known.is_none();
            *known = known.or(Some(exit));
            new
        });
    }

    /// Waits for it.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let known = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        // The sender is ours, so the wait cannot fail.
        known.unwrap_or_default()
    }

    /// Whether its exit was published.
    pub fn exit_is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// True for the first who asks: it publishes the exit.
    pub fn tell_exit(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

/// A container.
pub struct Container {
    /// Its id, here and in the guest.
    pub id: String,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// As containerd sent it.
    pub rootfs: Vec<Mount>,
    /// Its own process.
    pub init: Arc<Process>,
    /// Disks that were attached for it, and go with it.
    pub disks: Vec<Serial>,
    /// Programs of the host that its config wants run.
    pub hooks: Option<Hooks>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
}

impl Container {
    /// A container that was not made yet.
    pub fn new(
        id: String,
        bundle: PathBuf,
        rootfs: Vec<Mount>,
        init: Process,
        disks: Vec<Serial>,
        hooks: Option<Hooks>,
    ) -> Self {
        let init = Arc::new(init);
        Self { id, bundle, rootfs, init, disks, hooks, execs: Mutex::default() }
    }

    /// The process of that name.
    pub fn process(&self, exec: &str) -> Option<Arc<Process>> {
        match exec {
            "" => Some(self.init.clone()),
            exec => lock(&self.execs).get(exec).cloned(),
        }
    }

    /// Adds an exec; false when there is one of that name.
    pub fn add(&self, exec: Arc<Process>) -> bool {
        let mut execs = lock(&self.execs);
        if execs.contains_key(&exec.exec) {
            return false;
        }
        execs.insert(exec.exec.clone(), exec);
        true
    }

    /// Forgets an exec.
    pub fn remove(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }

    /// All execs.
    pub fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().cloned().collect()
    }
}

/// What is locked is never left half-changed, so a panic of another is no reason to stop.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
