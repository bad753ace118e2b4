//! Mounts of the guest that belong to no container: the Mount service.
//!
//! ```text
//! service --specs--> target, plans (pure) --> ledger (pure): there, another, or to be made
//!                                              | saved in /run/vminitd before anything is mounted
//!                                              v
//!                                            work, on a thread that may block
//! ```
//!
//! Promises: the same mount asked for twice is one; a call that fails leaves what it found; what an
//! agent was making or taking away when it was killed is settled before the next call of this
//! service does anything.
//! Never: touches a mount that it has not made.

pub mod ledger;
pub mod service;
pub mod target;
mod work;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tracing::{info, warn};

use self::ledger::{Begin, Leave, Ledger, Spec};
use self::work::{Seen, Work};
use super::Agent;
use super::errors::RpcError;
use super::lock;
use super::mounts::devices;
use super::mounts::plan::Planned;
use super::task::record::Saved;
use crate::chain;

/// One mount of a request, checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What is asked for.
    pub spec: Spec,
    /// What that comes to.
    pub planned: Planned,
}

/// The mounts of this service.
pub struct HostMounts {
    /// Where the ledger is saved.
    directory: PathBuf,
    /// `None` until the first call: a guest without such mounts does not look for them.
    ledger: Mutex<Option<Ledger>>,
    /// Something of the ledger has been settled.
    settled: Notify,
}

impl HostMounts {
    /// Those whose ledger is, or will be, in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, ledger: Mutex::default(), settled: Notify::new() }
    }

    /// Makes mounts in their order. On failure those that this call has made are gone again.
    pub async fn mount_all(&self, agent: &Arc<Agent>, all: Vec<Wanted>) -> Result<(), RpcError> {
        self.load().await?;
        let mut made: Vec<PathBuf> = Vec::new();
        for wanted in all {
            let place = wanted.planned.place.clone();
            match self.mount(agent, wanted).await {
                Ok(true) => made.push(place),
                Ok(false) => {}
                Err(error) => {
                    for place in made.iter().rev() {
                        if let Err(error) = self.unmount(place).await {
                            warn!(%error, "a mount of a call that failed stays");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes one away. One that is in use stays.
    pub async fn unmount(&self, place: &Path) -> Result<(), RpcError> {
        self.load().await?;
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            match self.change(|ledger| ledger.leave(place))? {
                Leave::Unknown => return Err(RpcError::NotMounted(shown(place))),
                Leave::Busy => settled.await,
                Leave::Go { mount, made } => {
                    let work = Work { place: place.to_owned() };
                    let gone = blocking(move || work.unmount(mount, made)).await?;
                    let settle = |ledger: &mut Ledger| match &gone {
                        Ok(()) => ledger.forget(place),
                        Err(_) => ledger.stays(place),
                    };
                    let saved = self.change(settle);
                    self.settled.notify_waiters();
                    saved?;
                    return gone.map_err(|error| RpcError::failed(&error));
                }
            }
        }
    }

    /// Takes all away, the last first; those that are in use stay, and are named.
    pub async fn unmount_all(&self) -> Result<(), RpcError> {
        self.load().await?;
        let places = self.change(|ledger| ledger.places())?;
        let mut failed = Vec::new();
        for place in places.iter().rev() {
            match self.unmount(place).await {
                Ok(()) | Err(RpcError::NotMounted(_)) => {}
                Err(error) => failed.push(error.to_string()),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(RpcError::Failed(failed.join("; "))) }
    }

    /// Whether it was not there before.
    async fn mount(&self, agent: &Arc<Agent>, wanted: Wanted) -> Result<bool, RpcError> {
        let Wanted { spec, planned } = wanted;
        let place = planned.place.clone();
        let missing = loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let work = Work { place: place.clone() };
            let Seen { mount, missing } = blocking(move || work.look()).await?;
            match self.change(|ledger| ledger.begin(&spec, &place, mount, missing))? {
                Begin::There => return Ok(false),
                Begin::Another => {
                    return Err(RpcError::Exists { what: "mount on", id: shown(&place) });
                }
                Begin::Full => {
                    return Err(RpcError::Exhausted("the guest has too many mounts".to_owned()));
                }
                Begin::Busy => settled.await,
                Begin::Make => break missing,
            }
        };
        let made = self.make(agent, planned).await;
        if made.is_err() {
            let work = Work { place: place.clone() };
            blocking(move || work.remove(missing)).await?;
        }
        let settle = |ledger: &mut Ledger| match &made {
            Ok(mount) => ledger.made(&place, *mount),
            Err(_) => ledger.forget(&place),
        };
        let saved = self.change(settle);
        self.settled.notify_waiters();
        made?;
        saved?;
        info!(kind = spec.kind, source = spec.source, place = shown(&place), "mounted");
        Ok(true)
    }

    async fn make(&self, agent: &Arc<Agent>, planned: Planned) -> Result<u64, RpcError> {
        let mut all = [planned];
        devices::resolve(&mut all, agent.config.device_timeout)
            .await
            .map_err(|error| RpcError::failed(&error))?;
        let [planned] = all;
        blocking(move || Work { place: planned.place.clone() }.mount(&planned))
            .await?
            .map_err(|error| RpcError::failed(&error))
    }

    /// Reads what an agent before this one has left, once, and settles what it was at.
    async fn load(&self) -> Result<(), RpcError> {
        if lock(&self.ledger).is_some() {
            return Ok(());
        }
        let directory = self.directory.clone();
        let found = blocking(move || {
            let mut ledger = match Ledger::load(&directory) {
                Ok(ledger) => ledger,
                Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
                    return Ledger::default();
                }
                Err(error) => {
                    warn!(error = %chain(&error), "mounts of the host are forgotten");
                    return Ledger::default();
                }
            };
            for (place, before, made) in ledger.unsettled() {
                if let Err(error) = (Work { place: place.clone() }).undo(before, made) {
                    warn!(error = %chain(&error), "half a mount stays");
                }
                ledger.forget(&place);
            }
            ledger
        });
        let found = found.await?;
        // Two calls may have read it: the first one counts, it may have changed something by now.
        lock(&self.ledger).get_or_insert(found);
        Ok(())
    }

    /// Changes the ledger and saves it.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> Result<T, RpcError> {
        let mut held = lock(&self.ledger);
        let ledger = held.get_or_insert_default();
        let mut changed = ledger.clone();
        let result = change(&mut changed);
        if changed != *ledger {
            changed.keep(&self.directory).map_err(|error| RpcError::failed(&error))?;
            *ledger = changed;
        }
        Ok(result)
    }
}

fn shown(place: &Path) -> String {
    Path::new("/").join(place).display().to_string()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RpcError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RpcError::Failed(format!("defect in the agent: {error}")))
}
