//! A launcher's own directory, for the socket on which the master of a container's pty arrives.
//!
//! Owns: nothing for long: the launcher's last act removes it, or init does ([`remove`]) where the
//! launcher could not.

use std::io;
use std::path::{Path, PathBuf};

use crate::link::message::Job;
use crate::paths;

/// Why there is no such directory.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// No room, most likely.
    #[error("make directory {0}")]
    Make(PathBuf, #[source] io::Error),
}

/// The directory of this launcher.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Whether a job needs one.
    pub fn is_needed(job: &Job) -> bool {
        matches!(job, Job::Create { terminal: true, .. })
    }

    /// Makes it.
    pub fn make() -> Result<Scratch, ScratchError> {
        let path = path(std::process::id());
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Scratch(path)),
            Err(error) => Err(ScratchError::Make(path, error)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Removes the directory of a launcher, if it left one.
pub fn remove(launcher: u32) {
    let path = path(launcher);
    match std::fs::remove_dir_all(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("remove {}: {error}", path.display()),
    }
}

fn path(launcher: u32) -> PathBuf {
    Path::new(paths::STATE_DIR).join(format!("launch-{launcher}"))
}
