//! Where the agent finds and leaves things. The real places are `paths.rs`'s; tests have their own.

use std::path::{Path, PathBuf};

use super::id::ContainerId;
use crate::paths;

/// The directories that the agent works in.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// Bundles, by container id.
    pub bundles: PathBuf,
    /// What the agent records, by container id.
    pub containers: PathBuf,
    /// libcontainer's state, by container id.
    pub libcontainer: PathBuf,
    /// cgroups, by container id.
    pub cgroups: PathBuf,
}

impl Dirs {
    /// The guest's.
    pub fn of_guest() -> Self {
        Self {
            bundles: paths::BUNDLES_DIR.into(),
            containers: paths::CONTAINERS_DIR.into(),
            libcontainer: paths::LIBCONTAINER_DIR.into(),
            cgroups: paths::CGROUP_CONTAINERS.into(),
        }
    }

    /// The bundle that `Bundle.Create` makes for this container.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.bundles.join(id.as_str())
    }

    /// What is recorded of this container.
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers.join(id.as_str())
    }

    /// libcontainer's state of this container.
    pub fn libcontainer(&self, id: &ContainerId) -> PathBuf {
        self.libcontainer.join(id.as_str())
    }

    /// This container's cgroup.
    pub fn cgroup(&self, id: &ContainerId) -> PathBuf {
        self.cgroups.join(id.as_str())
    }

    /// Whether a bundle is the one that `Bundle.Create` made for this container, so that its end is
    /// ours too. Another container's is not, whoever names it.
    pub fn owns_bundle(&self, id: &ContainerId, bundle: &Path) -> bool {
        bundle == self.bundle(id)
    }
}
