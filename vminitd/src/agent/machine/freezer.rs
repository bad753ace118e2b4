//! Freezes filesystems, so that a host can take a picture of disks that makes sense, and sees to it
//! that they thaw.
//!
//! Owns: a descriptor on each frozen filesystem, of which init has a copy: whatever becomes of the
//! mount (its container may end) and of this agent, it can be thawed.
//! Promises: init has the copies before anything is frozen; frozen filesystems thaw when the host
//! says so, some time after the last Freeze, when the VM ends, and when another agent starts; a
//! Freeze that fails leaves nothing frozen.
//! Never: writes to a filesystem of a disk, so that it never waits for a thaw itself.
//!
//! What is frozen: every writable filesystem on a block device that is mounted in the guest or in a
//! container. Mounts on top of them (overlay, bind) need nothing of their own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::agent::errors::RpcError;
use crate::agent::handover::Handover;
use crate::agent::{Agent, lock};
use crate::chain;
use crate::sys::block;

/// Under which key init keeps the descriptors.
const KEPT: &str = "frozen";

/// What is frozen.
#[derive(Debug, Default)]
pub struct Freezer {
    /// Freezing or thawing is under way.
    at_work: tokio::sync::Mutex<()>,
    frozen: Mutex<Vec<Frozen>>,
    /// Thaws by itself; replaced by each Freeze.
    thaws: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Debug)]
struct Frozen {
    /// Where it is mounted, as the guest sees it.
    place: String,
    device: (u32, u32),
    directory: Arc<OwnedFd>,
}

/// Freezes what can be frozen; returns where all that is frozen is mounted.
pub async fn freeze_all(agent: &Arc<Agent>) -> Result<Vec<String>, RpcError> {
    let _at_work = agent.freezer.at_work.lock().await;
    let pids: Vec<u32> = agent.tasks.all().iter().map(|container| container.init.pid()).collect();
    let found = blocking(move || find(&pids)).await?;
    let before = lock(&agent.freezer.frozen).clone();
    let is_new = |new: &Frozen| before.iter().all(|old| old.device != new.device);
    let new: Vec<Frozen> = found.into_iter().filter(is_new).collect();
    if !new.is_empty() {
        let names = new.iter().map(|frozen| frozen.place.clone()).collect();
        let fds: Vec<_> = new.iter().map(|frozen| frozen.directory.as_fd()).collect();
        let kept = agent.init.keep(KEPT.to_owned(), names, &fds).await;
        kept.map_err(|error| RpcError::failed(&error))?;
        lock(&agent.freezer.frozen).extend(new.iter().cloned());
        if let Err(error) = blocking(move || freeze(&new)).await? {
            thaw(agent).await;
            return Err(RpcError::Failed(error));
        }
    }
    let again = agent.clone();
    let thaws = tokio::spawn(async move {
        tokio::time::sleep(again.config.thaw_after).await;
        let _at_work = again.freezer.at_work.lock().await;
        warn!("the host has not thawed what it froze");
        // Not to be ended by itself.
        drop(lock(&again.freezer.thaws).take());
        thaw(&again).await;
    });
    if let Some(earlier) = lock(&agent.freezer.thaws).replace(thaws) {
        earlier.abort();
    }
    let places: Vec<String> =
        lock(&agent.freezer.frozen).iter().map(|frozen| frozen.place.clone()).collect();
    info!(?places, "frozen");
    Ok(places)
}

/// Thaws everything. Nothing frozen is fine.
pub async fn thaw_all(agent: &Arc<Agent>) {
    if lock(&agent.freezer.frozen).is_empty() {
        return;
    }
    let _at_work = agent.freezer.at_work.lock().await;
    if let Some(timer) = lock(&agent.freezer.thaws).take() {
        timer.abort();
    }
    thaw(agent).await;
}

/// Where something is frozen.
pub fn places(agent: &Agent) -> Vec<String> {
    lock(&agent.freezer.frozen).iter().map(|frozen| frozen.place.clone()).collect()
}

/// Thaws what an agent before this one has frozen.
pub fn take_over(agent: &Arc<Agent>, handover: &mut Handover) {
    let Some(kept) = handover.kept.remove(KEPT) else { return };
    let agent = agent.clone();
    tokio::spawn(async move {
        let _at_work = agent.freezer.at_work.lock().await;
        let frozen = kept.into_iter().map(|(place, directory)| Frozen {
            place,
            device: (0, 0),
            directory: Arc::new(directory),
        });
        lock(&agent.freezer.frozen).extend(frozen);
        thaw(&agent).await;
    });
}

async fn thaw(agent: &Arc<Agent>) {
    let frozen = std::mem::take(&mut *lock(&agent.freezer.frozen));
    let thawed = blocking(move || {
        for Frozen { place, directory, .. } in frozen {
            match block::thaw(directory.as_fd()) {
                Ok(()) => info!(place, "thawed"),
                // It was not frozen (yet), or somebody else has thawed it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => warn!(place, %error, "not thawed"),
            }
        }
    });
    if let Err(error) = thawed.await {
        warn!(%error, "not thawed");
    }
    if let Err(error) = agent.init.release(KEPT.to_owned()).await {
        warn!(error = %chain(&error), "init keeps what was frozen");
    }
}

fn freeze(all: &[Frozen]) -> Result<(), String> {
    for Frozen { place, directory, .. } in all {
        match block::freeze(directory.as_fd()) {
            Ok(()) => {}
            // By somebody else; or a filesystem that has no such thing, and is never half written.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(format!("freeze {place}: {error}")),
        }
    }
    Ok(())
}

/// Writable filesystems on block devices, each once, opened.
fn find(containers: &[u32]) -> Vec<Frozen> {
    let mut found: BTreeMap<(u32, u32), Frozen> = BTreeMap::new();
    let views = std::iter::once(("/proc/self/mountinfo".to_owned(), String::new())).chain(
        containers
            .iter()
            .filter(|pid| **pid != 0)
            .map(|pid| (format!("/proc/{pid}/mountinfo"), format!("/proc/{pid}/root"))),
    );
    for (table, root) in views {
        // A container that has just ended has none.
        let table = std::fs::read_to_string(table).unwrap_or_default();
        for Mounted { device, place } in table.lines().filter_map(writable_on_a_disk) {
            if found.contains_key(&device) {
                continue;
            }
            // Another mount may lie on top, or a container may have put a link there.
            if let Ok(directory) = open(&format!("{root}{place}"), device) {
                let directory = Arc::new(directory);
                found.insert(device, Frozen { place, device, directory });
            }
        }
    }
    found.into_values().collect()
}

fn open(path: &str, device: (u32, u32)) -> io::Result<OwnedFd> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOATIME;
    let directory = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    let number = directory.metadata()?.dev();
    match (libc::major(number), libc::minor(number)) == device {
        true => Ok(directory.into()),
        false => Err(io::Error::other("another filesystem lies there")),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    device: (u32, u32),
    place: String,
}

/// A line of mountinfo, see proc_pid_mountinfo(5). Virtual filesystems have devices of major number 0.
fn writable_on_a_disk(line: &str) -> Option<Mounted> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (major.parse().ok().filter(|major| *major != 0)?, minor.parse().ok()?);
    let place = fields.nth(1)?.to_owned();
    let writable = filesystem.rsplit(' ').next()?.split(',').any(|option| option == "rw");
    // A place with blanks or worse is written in octal there, and not found; the guest makes none.
    writable.then_some(Mounted { device, place })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RpcError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RpcError::failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_filesystems_of_disks_are_found_in_mountinfo() {
        let line = "36 35 254:16 / /run/bundles/a/rootfs rw,noatime shared:1 - ext4 /dev/vdb rw,errors=continue";
        let place = "/run/bundles/a/rootfs".to_owned();
        assert_eq!(writable_on_a_disk(line), Some(Mounted { device: (254, 16), place }));
        // A read-only view of a writable filesystem: it can be written elsewhere.
        let view = "37 35 254:16 /x /view ro - ext4 /dev/vdb rw";
        assert_eq!(writable_on_a_disk(view).unwrap().place, "/view");
        for line in [
            "36 35 254:0 / / ro,relatime - erofs /dev/vda ro",
            "22 35 0:21 / /run rw,nosuid - tmpfs tmpfs rw,size=1k",
            "nonsense",
            "1 2 x:y / / rw - ext4 /dev/vda rw",
            "1 2 254:0 / - ext4",
        ] {
            assert_eq!(writable_on_a_disk(line), None, "{line}");
        }
    }

    #[test]
    fn another_filesystem_at_the_place_is_not_taken() {
        assert!(open("/proc", (254, 16)).is_err());
    }
}
