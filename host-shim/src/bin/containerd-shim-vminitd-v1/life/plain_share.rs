//! The shared root where a system has no bind mounts: a directory with what containers have of the host's files.
//!
//! ```text
//! <bundle>/share              served to the guest
//!   <container>/<n>           a file that it binds, by the mount's number: a hard link, or a copy that is read-only
//! ```
//!
//! Owns: that directory. Promises: a file that is bound to be written is the host's own; one that is bound read-only
//! cannot be changed by the guest, whatever it does: what it has is a copy, of the file as it was.
//! Never: serves a directory of the host's (only a mount could put it here), or a root filesystem of directories.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vminitd_protocol::pb::containerd::types::Mount;

/// Where the guest has the shared root.
pub const GUEST_SHARE: &str = "/run/host";

/// Its name for virtiofs.
pub const TAG: &str = "host";

/// Something of the host's cannot be had in the guest.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A root filesystem of directories.
    #[error(
        "a root filesystem of type {kind} would be mounted on the host, which this system cannot: \
         use the erofs snapshotter, whose layers are disks (ctr run --snapshotter erofs)"
    )]
    Rootfs {
        /// The type of the first mount.
        kind: String,
    },
    /// A directory that is to be bound.
    #[error(
        "{path:?} is a directory: this system has no bind mounts, so only files of the host can be bound"
    )]
    Directory {
        /// It.
        path: PathBuf,
    },
    /// A place for it cannot be made.
    #[error("make {path:?}")]
    Place {
        /// The place.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What is to be bound is not there.
    #[error("{path:?} of the host")]
    Missing {
        /// It.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file on another filesystem than the bundle.
    #[error(
        "link {path:?} into the bundle; a file that is bound to be written must be on the same volume"
    )]
    Link {
        /// It.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Nothing to do: nothing is mounted.
pub fn own_namespace() -> io::Result<()> {
    Ok(())
}

/// The shared root.
#[derive(Debug)]
pub struct ShareRoot {
    path: PathBuf,
}

impl ShareRoot {
    /// Makes it at `path`.
    pub fn make(path: PathBuf) -> Result<Self, MountError> {
        make_directory(&path)?;
        Ok(Self { path })
    }

    /// The directory to be served.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses: see [`MountError::Rootfs`].
    pub fn rootfs(&self, _container: &str, mounts: &[Mount]) -> Result<String, MountError> {
        let kind = mounts.first().map(|mount| mount.r#type.clone()).unwrap_or_default();
        Err(MountError::Rootfs { kind })
    }

    /// None: there is no root filesystem here.
    pub fn placeless(&self, _container: &str, _files: &[&'static str]) -> Vec<&'static str> {
        Vec::new()
    }

    /// Has a file of the host here; returns where the guest has it.
    pub fn bind(
        &self,
        container: &str,
        name: &str,
        source: &Path,
        read_only: bool,
    ) -> Result<String, MountError> {
        let missing = |error| MountError::Missing { path: source.to_owned(), source: error };
        // By its real name: a link to a symbolic link would be one.
        let source = source.canonicalize().map_err(missing)?;
        if source.metadata().map_err(missing)?.is_dir() {
            return Err(MountError::Directory { path: source });
        }
        make_directory(&self.path.join(container))?;
        let place = self.path.join(container).join(name);
        if read_only {
            let copied = std::fs::copy(&source, &place).map(drop);
            copied.map_err(|source| MountError::Place { path: place, source })?;
        } else {
            let linked = std::fs::hard_link(&source, &place);
            linked.map_err(|error| MountError::Link { path: source, source: error })?;
        }
        Ok(format!("{GUEST_SHARE}/{container}/{name}"))
    }

    /// Takes away what a container had.
    pub fn remove(&self, container: &str) {
        // The guest may have made files here; it can have made no link that this would follow.
        let _ = std::fs::remove_dir_all(self.path.join(container));
    }
}

fn make_directory(path: &Path) -> Result<(), MountError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| MountError::Place { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_to_be_written_is_the_hosts_own_and_a_read_only_one_is_out_of_the_guests_reach() {
        let host = tempfile::tempdir().unwrap();
        let (file, alias) = (host.path().join("hosts"), host.path().join("alias"));
        fs::write(&file, "one\n").unwrap();
        std::os::unix::fs::symlink(&file, &alias).unwrap();
        let root = ShareRoot::make(host.path().join("bundle/share")).unwrap();
        assert_eq!(root.bind("c1", "0", &alias, false).unwrap(), "/run/host/c1/0");
        assert_eq!(root.bind("c1", "1", &file, true).unwrap(), "/run/host/c1/1");
        // As a guest would.
        fs::write(root.path().join("c1/0"), "two\n").unwrap();
        fs::write(root.path().join("c1/1"), "evil\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
        root.remove("c1");
        assert!(!root.path().join("c1").exists());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
    }

    #[test]
    fn what_only_a_mount_could_do_is_refused_with_the_way_out() {
        let host = tempfile::tempdir().unwrap();
        let root = ShareRoot::make(host.path().join("share")).unwrap();
        let text = root.bind("c1", "0", host.path(), false).unwrap_err().to_string();
        assert!(text.contains("only files"), "{text}");
        let overlay = Mount { r#type: "overlay".to_owned(), ..Default::default() };
        let text = root.rootfs("c1", &[overlay]).unwrap_err().to_string();
        assert!(text.contains("overlay") && text.contains("--snapshotter erofs"), "{text}");
        let text = root.bind("c1", "0", &host.path().join("none"), true).unwrap_err().to_string();
        assert!(text.contains("none\" of the host"), "{text}");
    }
}
