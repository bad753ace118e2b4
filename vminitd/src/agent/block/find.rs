//! Finds the devices that sources name, and waits for those that are yet to come.
//!
//! Promises: one scan when all are there; else one more with each batch of uevents, until the
//! deadline; an error says what was looked for and what is there.
//! Never: keeps anything between two calls, or blocks the agent's thread. A call that is dropped
//! leaves nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::scan::{self, Ambiguous, Disk, There};
use super::source::{Partition, Source};
use super::uevent::Uevent;
use crate::limits::{UEVENT_BYTES, UEVENT_ROOM};
use crate::paths::{DEV, SYS_BLOCK, SYS_CLASS_BLOCK};
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::uevent::{self, Received};

/// Why there is no device. The host's mistake, or a device that did not come in time.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// It did not come.
    #[error("no block device {wanted} after {waited_ms} ms; there is {there}")]
    Absent {
        /// The sources that nothing answers to.
        wanted: String,
        /// How long it was waited for.
        waited_ms: u128,
        /// What is there instead.
        there: String,
    },
    /// There are two.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// The guest cannot look for devices.
    #[error("look for block devices in {SYS_BLOCK}")]
    Scan(#[source] io::Error),
    /// The guest cannot hear of new ones.
    #[error("listen for new block devices")]
    Listen(#[source] io::Error),
}

/// The device that a source names: `/dev/vdX` or `/dev/vdXn`.
pub async fn find(source: &Source, patience: Duration) -> Result<PathBuf, FindError> {
    let mut found = find_all(std::slice::from_ref(source), patience).await?;
    Ok(found.pop().unwrap_or_default())
}

/// The devices that sources name, in their order. A hundred cost one scan, as one does.
pub async fn find_all(sources: &[Source], patience: Duration) -> Result<Vec<PathBuf>, FindError> {
    if sources.iter().all(is_plainly_there) {
        return Ok(sources.iter().filter_map(by_name).collect());
    }
    let begun = Instant::now();
    if let Ok(found) = look(sources).await? {
        return Ok(found);
    }
    // Listen first, look again then: what comes in between is seen by one of the two.
    let news = uevent::open(UEVENT_ROOM).and_then(AsyncOwnedFd::new).map_err(FindError::Listen)?;
    loop {
        let there = match look(sources).await? {
            Ok(found) => return Ok(found),
            Err(there) => there,
        };
        match timeout_at(begun + patience, disk_news(&news)).await {
            Ok(heard) => heard.map_err(FindError::Listen)?,
            Err(_) => return Err(absent(sources, &there, begun.elapsed())),
        }
    }
}

/// A device that is named as the kernel names it needs no scan.
fn is_plainly_there(source: &Source) -> bool {
    matches!(source, Source::Name(name) if Path::new(SYS_CLASS_BLOCK).join(name).exists())
}

fn by_name(source: &Source) -> Option<PathBuf> {
    match source {
        Source::Name(name) => Some(Path::new(DEV).join(name)),
        Source::Serial { .. } => None,
    }
}

/// One scan: all that were looked for, or all that is there.
async fn look(sources: &[Source]) -> Result<Result<Vec<PathBuf>, Vec<Disk>>, FindError> {
    let with_partitions = sources.iter().any(names_a_partition);
    let scan = move || scan::disks(Path::new(SYS_BLOCK), with_partitions);
    let disks = tokio::task::spawn_blocking(scan)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(FindError::Scan)?;
    let mut found = Vec::with_capacity(sources.len());
    for source in sources {
        found.extend(scan::lookup(source, &disks)?.map(|name| Path::new(DEV).join(name)));
    }
    Ok(if found.len() == sources.len() { Ok(found) } else { Err(disks) })
}

fn names_a_partition(source: &Source) -> bool {
    match source {
        Source::Name(name) => name.ends_with(|c: char| c.is_ascii_digit()),
        Source::Serial { partition, .. } => {
            matches!(partition, Some(Partition::Number(_) | Partition::Label(_)))
        }
    }
}

/// Waits until a disk may have come, and takes all the news that are there.
async fn disk_news(news: &AsyncOwnedFd) -> io::Result<()> {
    let mut buffer = [0; UEVENT_BYTES];
    let mut heard = false;
    loop {
        let mut ready = news.readable().await?;
        loop {
            match uevent::receive(news.get_ref(), &mut buffer) {
                Ok(Received::Lost) => heard = true,
                Ok(Received::Announcement(length)) => {
                    let event = Uevent::parse(&buffer[..length]);
                    heard |= event.is_some_and(|event| event.may_bring_a_disk());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if heard {
            return Ok(());
        }
        ready.clear_ready();
    }
}

fn absent(sources: &[Source], disks: &[Disk], waited: Duration) -> FindError {
    let missing = sources.iter().filter(|source| matches!(scan::lookup(source, disks), Ok(None)));
    let wanted: Vec<String> = missing.map(ToString::to_string).collect();
    FindError::Absent {
        wanted: wanted.join(", "),
        waited_ms: waited.as_millis(),
        there: There(disks).to_string(),
    }
}
