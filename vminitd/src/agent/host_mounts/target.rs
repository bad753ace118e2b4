//! Where a host may mount something in the guest.
//!
//! Promises: a place that passes is no part of what the guest itself lives on, and has none below
//! it; the same directory has one name.
//! Never: looks at the filesystem. That no symlink leads on from a place to another is seen to when
//! it is opened.

use std::path::{Component, Path, PathBuf};

use crate::limits::PATH_BYTES;
use crate::paths::{BUNDLES_DIR, STATE_DIR};

/// What is the guest's own: the kernel's filesystems, the agent's state, containers' bundles.
const OURS: [&str; 5] = ["/proc", "/sys", "/dev", STATE_DIR, BUNDLES_DIR];

/// Why nothing may be mounted there. Always what the host asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is relative, has `..`, or is longer than the kernel takes.
    #[error("target {0:?} is no absolute path without `..`")]
    Form(String),
    /// The guest lives on it.
    #[error("target {target:?} is the guest's own, or has {ours} below it")]
    Ours {
        /// The target.
        target: String,
        /// What would be covered or entered.
        ours: &'static str,
    },
}

/// The place of a target, relative to the guest's root.
pub fn place(target: &str) -> Result<PathBuf, TargetError> {
    let wrong = || TargetError::Form(target.to_owned());
    let path = Path::new(target);
    if !path.is_absolute() || target.len() > PATH_BYTES || target.contains('\0') {
        return Err(wrong());
    }
    let mut place = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
        }
    }
    let whole = Path::new("/").join(&place);
    let touches = |ours: &&str| whole.starts_with(ours) || Path::new(ours).starts_with(&whole);
    match OURS.into_iter().find(|ours| touches(ours)) {
        Some(ours) => Err(TargetError::Ours { target: target.to_owned(), ours }),
        None => Ok(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_directory_has_one_name() {
        for target in ["/mnt/a", "//mnt///a/", "/mnt/./a/."] {
            assert_eq!(place(target), Ok(PathBuf::from("mnt/a")));
        }
        assert_eq!(place("/run/share"), Ok(PathBuf::from("run/share")));
        assert_eq!(place("/run/vminitd-share"), Ok(PathBuf::from("run/vminitd-share")));
        assert!(place(&format!("/{}", "x".repeat(PATH_BYTES - 1))).is_ok());
    }

    #[test]
    fn what_the_guest_lives_on_is_refused() {
        for target in [
            "/",
            "/.",
            "/proc",
            "/proc/sys",
            "/sys/fs/cgroup",
            "/dev",
            "/dev/shm/x",
            "/run",
            "/run/vminitd",
            "/run/vminitd/containers/c1",
            "/run/bundles/c1/rootfs",
            "/run/bundles",
        ] {
            assert!(matches!(place(target), Err(TargetError::Ours { .. })), "{target}");
        }
        for target in ["", "mnt", "./mnt", "/mnt/../proc", "/..", "/a\0b"] {
            assert!(matches!(place(target), Err(TargetError::Form(_))), "{target}");
        }
        let long = format!("/{}", "x".repeat(PATH_BYTES));
        assert!(matches!(place(&long), Err(TargetError::Form(_))));
    }
}
