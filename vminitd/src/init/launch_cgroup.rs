//! A cgroup for each launcher, so that all that it has started can be killed at once.
//!
//! A launcher is born in it, and its hooks and the processes that libcontainer clones stay in it
//! until they move into the container's own. They are few and used again, because making one takes
//! the kernel longer than a fork.
//!
//! Owns: the cgroups below [`paths::CGROUP_SELF`] that it made.
//! Promises: a cgroup that is handed out is empty.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::paths;

/// Those that no launcher is in.
#[derive(Debug, Default)]
pub struct Pool {
    free: Vec<LaunchCgroup>,
    made: u32,
}

/// One of them.
#[derive(Debug)]
pub struct LaunchCgroup {
    path: PathBuf,
    directory: File,
    events: File,
}

impl Pool {
    /// An empty cgroup; none when the kernel refuses, and then the launcher shares ours.
    pub fn take(&mut self) -> Option<LaunchCgroup> {
        if let Some(index) = self.free.iter().position(LaunchCgroup::is_empty) {
            return Some(self.free.swap_remove(index));
        }
        let path = Path::new(paths::CGROUP_SELF).join(format!("launch-{}", self.made));
        self.made += 1;
        match LaunchCgroup::make(path) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                warn!("make a launcher's cgroup: {error}");
                None
            }
        }
    }

    /// Takes back one whose launcher is gone. What a hook has left running there keeps it for
    /// itself until it ends: the next launcher's end must not be its end.
    pub fn give_back(&mut self, cgroup: LaunchCgroup) {
        self.free.push(cgroup);
    }
}

impl LaunchCgroup {
    fn make(path: PathBuf) -> io::Result<LaunchCgroup> {
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let directory = File::open(&path)?;
        let events = File::open(path.join("cgroup.events"))?;
        Ok(LaunchCgroup { path, directory, events })
    }

    /// Kills all that is in it.
    pub fn kill(&self) {
        if let Err(error) = std::fs::write(self.path.join("cgroup.kill"), "1") {
            warn!("kill a launcher's cgroup: {error}");
        }
    }

    /// Whether no process is in it.
    pub fn is_empty(&self) -> bool {
        let mut text = [0; 64];
        match self.events.read_at(&mut text, 0) {
            Ok(length) => text[..length].starts_with(b"populated 0"),
            Err(_) => false,
        }
    }
}

impl AsFd for LaunchCgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}
