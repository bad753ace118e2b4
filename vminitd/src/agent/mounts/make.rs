//! Makes planned mounts, in order.
//!
//! Promises: a mount lands where it was planned to, whatever symlinks are in the way; it is
//! attached as its last step, so that there is never half of one; when one fails, those before it
//! are gone again.
//! Never: runs on the agent's thread: all of it can block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::filesystem;
use super::options::{IdMap, Options};
use super::place::Ground;
use super::plan::{Planned, What};
use super::undo::{UnmountError, undo};
use crate::sys::fsmount::{
    ATTR_ATIME_FIELD, attach, clone_open_tree, clone_tree, map_ids, set_attributes,
};
use crate::sys::user_namespace;

/// Which step of which mount failed. What the host asked for, or a device that does not do it.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Its place could not be made or opened.
    #[error("make {place} for a mount")]
    Place {
        /// The place, below the bundle.
        place: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The filesystem did not take an option, or could not be mounted.
    #[error("mount {kind} {source_name:?} on {place}: {step}{complaint}")]
    Filesystem {
        /// Its type.
        kind: &'static str,
        /// Its source.
        source_name: String,
        /// Its place.
        place: PathBuf,
        /// The option, or what else failed.
        step: String,
        /// What the filesystem itself says, after `: `.
        complaint: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The tree could not be cloned or changed.
    #[error("bind {from} on {place}: {step}")]
    Bind {
        /// The tree.
        from: PathBuf,
        /// Its place.
        place: PathBuf,
        /// What failed.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl MountError {
    /// Adds what a filesystem or the kernel's log says of it.
    pub(super) fn add_complaint(&mut self, text: String) {
        if let Self::Filesystem { complaint, .. } = self
            && !text.is_empty()
        {
            complaint.push_str(": ");
            complaint.push_str(&text);
        }
    }
}

/// Makes the mounts in order. On failure none of them is left.
pub fn make(ground: Ground<'_>, planned: &[Planned]) -> Result<(), MountError> {
    for (index, mount) in planned.iter().enumerate() {
        if let Err(error) = make_one(ground, mount) {
            let undone = undo(ground, &places(&planned[..index]));
            if let Err(error @ UnmountError { .. }) = undone {
                warn!(%error, "a mount of a list that failed could not be undone");
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Where planned mounts are, for [`undo`].
pub fn places(planned: &[Planned]) -> Vec<PathBuf> {
    planned.iter().map(|mount| mount.place.clone()).collect()
}

/// Makes one. On failure it is not there.
pub fn make_one(ground: Ground<'_>, mount: &Planned) -> Result<(), MountError> {
    for directory in &mount.directories {
        ground
            .make_directory(directory)
            .map_err(|source| MountError::Place { place: directory.place.clone(), source })?;
    }
    let target = ground
        .open_place(&mount.place)
        .map_err(|source| MountError::Place { place: mount.place.clone(), source })?;
    match &mount.what {
        What::Bind { source } => bind(ground, source, mount, target.as_fd()),
        What::Filesystem { kind, source } => {
            filesystem::make(ground, kind, source, mount, target.as_fd())
        }
    }
}

fn bind(
    ground: Ground<'_>,
    from: &Path,
    mount: &Planned,
    target: BorrowedFd<'_>,
) -> Result<(), MountError> {
    let (options, place) = (&mount.options, mount.place.clone());
    let failed = |step: &'static str| {
        let place = place.clone();
        move |source| MountError::Bind { from: from.to_owned(), place, step, source }
    };
    let tree = match ground.open_inside(from) {
        Some(opened) => opened.and_then(|tree| clone_open_tree(tree.as_fd(), options.recursive)),
        None => clone_tree(from, options.recursive),
    };
    let tree = tree.map_err(failed("clone the tree"))?;
    // Before it is attached, so that it is never visible without them.
    set_options(&tree, options).map_err(failed("set its attributes"))?;
    if let Some(map) = &options.id_map {
        let mapped = mapping(map)
            .and_then(|namespace| map_ids(tree.as_fd(), namespace.as_fd(), options.recursive));
        mapped.map_err(failed("map its ids"))?;
    }
    attach(tree.as_fd(), target).map_err(failed("attach"))
}

/// The attributes of a bind. As with mount(8), they go for the one mount and not for those below
/// it, but where an option says so.
fn set_options(tree: &OwnedFd, options: &Options) -> io::Result<()> {
    if options.below != 0 {
        set_attributes(tree.as_fd(), options.below, 0, 0, true)?;
    }
    let atime = if options.atime { ATTR_ATIME_FIELD } else { 0 };
    let cleared = options.below & !options.attributes | atime;
    set_attributes(tree.as_fd(), options.attributes, cleared, 0, false)?;
    propagate(tree.as_fd(), options)
}

/// Sets how mounts on it spread to its peers.
pub(super) fn propagate(mount: BorrowedFd<'_>, options: &Options) -> io::Result<()> {
    if options.propagation == 0 {
        return Ok(());
    }
    let recursive = options.propagation & libc::MS_REC != 0;
    set_attributes(mount, 0, 0, options.propagation & !libc::MS_REC, recursive)
}

/// A user namespace with this mapping.
pub(super) fn mapping(map: &IdMap) -> io::Result<OwnedFd> {
    user_namespace::mapping(&IdMap::lines(&map.users), &IdMap::lines(&map.groups))
}

#[cfg(test)]
mod tests;
