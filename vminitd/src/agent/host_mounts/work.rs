//! What the Mount service does to the system, on a thread that may block.
//!
//! Promises: only the mount that it is told of is taken away; a directory that was made for a mount
//! goes with it, if it is empty.
//! Never: decides.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::agent::mounts::make::{MountError, make_one};
use crate::agent::mounts::place::Ground;
use crate::agent::mounts::plan::Planned;
use crate::agent::mounts::undo::{UnmountError, unmount};
use crate::sys::beneath::open_beneath;
use crate::sys::fsmount::mount_at;

/// A place, relative to the guest's root.
pub struct Work {
    /// The place.
    pub place: PathBuf,
}

/// What is at a place.
pub struct Seen {
    /// The mount that it is on, or the root of; 0 when it is not there.
    pub mount: u64,
    /// How many of its last directories are not there.
    pub missing: usize,
}

impl Work {
    /// Looks at the place.
    pub fn look(&self) -> Seen {
        let Ok(root) = File::open("/") else { return Seen { mount: 0, missing: 0 } };
        let there = |place: &Path| {
            place.as_os_str().is_empty() || open_beneath(root.as_fd(), place, OFlag::O_PATH).is_ok()
        };
        let missing = self.place.ancestors().take_while(|place| !there(place)).count();
        let mount = mount_at(&self.path()).map_or(0, |(mount, _)| mount);
        Seen { mount, missing }
    }

    /// Makes the mount; returns which it is.
    pub fn mount(&self, planned: &Planned) -> Result<u64, MountError> {
        make_one(Ground::Guest, planned)?;
        mount_at(&self.path())
            .map(|(mount, _)| mount)
            .map_err(|source| MountError::Place { place: self.path(), source })
    }

    /// Takes this mount away, if it is still there, and directories that were made for it.
    pub fn unmount(&self, mount: u64, made: usize) -> Result<(), UnmountError> {
        if mount_at(&self.path()).is_ok_and(|seen| seen == (mount, true)) {
            unmount(Ground::Guest, &self.place)?;
        }
        self.remove(made);
        Ok(())
    }

    /// Takes away what an agent that was killed may have mounted where `before` was.
    pub fn undo(&self, before: u64, made: usize) -> Result<(), UnmountError> {
        match mount_at(&self.path()) {
            Ok((mount, true)) if mount != before => self.unmount(mount, made),
            _ => {
                self.remove(made);
                Ok(())
            }
        }
    }

    /// Takes away directories that were made for it.
    pub fn remove(&self, made: usize) {
        for place in self.place.ancestors().take(made) {
            // Something else may have come to lie in it.
            if std::fs::remove_dir(Path::new("/").join(place)).is_err() {
                break;
            }
        }
    }

    fn path(&self) -> PathBuf {
        Path::new("/").join(&self.place)
    }
}
