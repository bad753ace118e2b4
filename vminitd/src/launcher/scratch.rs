//! A launcher's own directory, for what libcontainer would leave behind elsewhere.
//!
//! An exec makes a socket in the container's state directory and never removes it, and insists on
//! a state file that says `running`, which only libcontainer's own start writes. So an exec gets a
//! copy of that directory. The socket on which a pty's master arrives lies here too.
//!
//! Owns: nothing for long: the launcher's last act removes it, or init does ([`remove`]) where the
//! launcher could not.

use std::io;
use std::path::{Path, PathBuf};

use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;

use crate::link::message::Job;
use crate::paths;

/// Why there is no such directory.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// No room, most likely.
    #[error("make directory {0}")]
    Make(PathBuf, #[source] io::Error),
    /// The container has no state.
    #[error(transparent)]
    State(#[from] LibcontainerError),
    /// It was never created, or its state is of no use.
    #[error("the container's state names no process")]
    NoProcess,
    /// The copy.
    #[error("copy the container's state")]
    Copy(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The directory of this launcher.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Whether a job needs one.
    pub fn is_needed(job: &Job) -> bool {
        job.terminal() || matches!(job, Job::Exec { .. })
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

    /// Copies a running container's state, so that this is a root directory for libcontainer that
    /// holds this one container. Returns the pid of its init.
    pub fn copy_state(&self, container: &str) -> Result<i32, ScratchError> {
        let original = Path::new(paths::LIBCONTAINER_DIR).join(container);
        let mut state = Container::load(original)?;
        if state.status() == ContainerStatus::Created {
            // The agent starts containers itself, and knows best.
            state.set_status(ContainerStatus::Running);
        }
        let copy = self.0.join(container);
        std::fs::create_dir(&copy).map_err(|error| ScratchError::Make(copy.clone(), error))?;
        state.state.save(&copy).map_err(|error| ScratchError::Copy(error.into()))?;
        state.pid().map(|pid| pid.as_raw()).ok_or(ScratchError::NoProcess)
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
