//! Paths of the host that a container is to have: each becomes a share of the VM, and a bind mount in config.json.
//!
//! Promises: a path is shared once however often it is used (unless once read-only and once not); a missing one is an
//! error that names it, before there is a VM; nothing beside what was named can be reached through a share.
//! Never: opens what it shares.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::vm::{Share, Tag};

/// The name that a single file has in its share.
pub const FILE_IN_SHARE: &str = "file";

/// The shares of a VM.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    list: Vec<Share>,
}

/// A path of the host, as a guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The share, by its place in the list.
    pub share: usize,
    /// What is in the share: one file, called [`FILE_IN_SHARE`], or the directory's content.
    pub is_file: bool,
}

/// Why a path cannot be shared. The caller's fault; it is shown.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It is not there, or not ours to look at.
    #[error("{path:?} of the host")]
    Missing {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What virtiofs cannot share.
    #[error("{path:?} of the host is a {what}; files and directories can be shared")]
    Kind {
        /// As given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

impl Shares {
    /// Adds a path of the host.
    pub fn add(&mut self, path: &Path, read_only: bool) -> Result<Placed, ShareError> {
        let missing = |source| ShareError::Missing { path: path.to_owned(), source };
        let real = path.canonicalize().map_err(missing)?;
        let kind = real.metadata().map_err(missing)?.file_type();
        let what = match kind {
            kind if kind.is_dir() || kind.is_file() => None,
            kind if kind.is_socket() => Some("socket"),
            kind if kind.is_fifo() => Some("named pipe"),
            _ => Some("device"),
        };
        if let Some(what) = what {
            return Err(ShareError::Kind { path: path.to_owned(), what });
        }
        if kind.is_dir() {
            // Later nobody could say which of the paths it was.
            std::fs::read_dir(&real).map_err(missing)?;
        }
        let same = |share: &Share| share.path == real && share.read_only == read_only;
        let share = self.list.iter().position(same).unwrap_or_else(|| {
            let tag = format!("volume{}", self.list.len()).parse().expect("letters and digits");
            self.list.push(Share { tag, path: real.clone(), read_only });
            self.list.len() - 1
        });
        Ok(Placed { share, is_file: kind.is_file() })
    }

    /// The shares, for a VM's description.
    pub fn list(&self) -> &[Share] {
        &self.list
    }

    /// Their tags, and whether they are read-only.
    pub fn tags(&self) -> impl Iterator<Item = (Tag, bool)> {
        self.list.iter().map(|share| (share.tag.clone(), share.read_only))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shared_once_unless_it_is_written_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("f"), "").unwrap();
        let mut shares = Shares::default();
        assert_eq!(shares.add(path, true).unwrap(), Placed { share: 0, is_file: false });
        assert_eq!(shares.add(&path.join("."), true).unwrap().share, 0);
        assert_eq!(shares.add(path, false).unwrap().share, 1);
        assert_eq!(shares.add(&path.join("f"), true).unwrap(), Placed { share: 2, is_file: true });
        let tags: Vec<_> =
            shares.tags().map(|(tag, read_only)| (tag.to_string(), read_only)).collect();
        let expected = [("volume0", true), ("volume1", false), ("volume2", true)];
        assert_eq!(tags, expected.map(|(tag, read_only)| (tag.to_owned(), read_only)));
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        let mut shares = Shares::default();
        let error = shares.add(Path::new("/no/such"), true).unwrap_err();
        assert_eq!(error.to_string(), "\"/no/such\" of the host");
        let error = shares.add(Path::new("/dev/null"), true).unwrap_err().to_string();
        assert_eq!(
            error,
            "\"/dev/null\" of the host is a device; files and directories can be shared"
        );
        assert!(shares.list().is_empty());
    }
}
