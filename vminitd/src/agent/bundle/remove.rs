//! Removes a bundle and everything a container left in it.
//!
//! Promises: never crosses a mount (a rootfs can be a directory of the host's); stands any depth
//! and any name that a container can make.
//! Never: runs on the agent's thread.
//!
//! The obvious recursion needs stack and descriptors per level, and a container can nest
//! directories until both are gone: the agent would crash, start again, and crash at the same
//! place. So directories are moved up to the top as they are found, and nothing is ever deeper
//! than one level.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tracing::warn;

use super::{DOOMED, UNFINISHED};
use crate::sys::beneath::open_entry;

/// Something could not be removed: a mount that is still there, most likely.
#[derive(Debug, thiserror::Error)]
#[error("remove {path}")]
pub struct RemoveError {
    /// The tree.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// Removes the bundle at `path`, out of sight first, so that its id is free at once. One that is
/// not there is fine.
pub fn remove_bundle(path: &Path) -> Result<(), RemoveError> {
    let failed = |source| RemoveError { path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    };
    let mut doomed = std::ffi::OsString::from(DOOMED);
    doomed.push(name);
    let doomed = parent.join(doomed);
    // One of the same id that could not be removed then, perhaps it can now.
    remove_tree(&doomed)?;
    match std::fs::rename(path, &doomed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        done => done.map_err(failed)?,
    }
    remove_tree(&doomed)
}

/// Removes what an agent that died was making or removing.
pub fn remove_leftovers(bundles: &Path) {
    for entry in std::fs::read_dir(bundles).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if (name.starts_with(UNFINISHED) || name.starts_with(DOOMED))
            && let Err(error) = remove_tree(&entry.path())
        {
            warn!(error = %crate::chain(&error), "a bundle's remains stay");
        }
    }
}

/// Removes a directory with all it holds. One that is not there is fine.
pub fn remove_tree(path: &Path) -> Result<(), RemoveError> {
    match try_remove_tree(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| RemoveError { path: path.to_owned(), source }),
    }
}

fn try_remove_tree(path: &Path) -> io::Result<()> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let top = OwnedFd::from(File::options().read(true).custom_flags(flags).open(path)?);
    let mut moved = 0u64;
    loop {
        let entries = entries(&top)?;
        if entries.is_empty() {
            break;
        }
        for name in entries {
            if let Some(directory) = remove_file_or_open(&top, &name)? {
                flatten(&top, &directory, &mut moved)?;
                unlinkat(Some(top.as_raw_fd()), &*name, UnlinkatFlags::RemoveDir)?;
            }
        }
    }
    std::fs::remove_dir(path)
}

/// Empties a directory: files go, directories move up to the top.
fn flatten(top: &OwnedFd, directory: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    for name in entries(directory)? {
        if remove_file_or_open(directory, &name)?.is_none() {
            continue;
        }
        loop {
            *moved += 1;
            let free = CString::new(format!("moved:{moved}"))?;
            match renameat(Some(directory.as_raw_fd()), &*name, Some(top.as_raw_fd()), &*free) {
                Ok(()) => break,
                // Whoever made the tree has used that name.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// Removes a file of any kind; opens a directory, unless something is mounted on it.
fn remove_file_or_open(directory: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    match unlinkat(Some(directory.as_raw_fd()), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(None),
        // Linux says EISDIR, POSIX would have EPERM.
        Err(Errno::EISDIR | Errno::EPERM) => {
            let name = Path::new(OsStr::from_bytes(name.to_bytes()));
            open_entry(directory.as_fd(), name, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(Some)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let directory = open_entry(directory.as_fd(), Path::new("."), flags)?;
    let mut names = Vec::new();
    for entry in Dir::from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tree_of_any_depth_goes_and_what_symlinks_point_at_stays() {
        // A tmpfs, as in the guest.
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let (tree, outside) = (root.path().join("tree"), root.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        fs::create_dir_all(tree.join("moved:1/moved:2")).unwrap();
        fs::write(tree.join("moved:3"), "x").unwrap();
        // Deeper than any path may be long, and than a recursion would stand.
        let mut directory = OwnedFd::from(File::open(tree.join("a/b")).unwrap());
        for _ in 0..20_000 {
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::sys::stat::mkdirat(Some(directory.as_raw_fd()), "d", mode).unwrap();
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            directory = open_entry(directory.as_fd(), Path::new("d"), flags).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"x");
        remove_tree(&tree).unwrap();
    }

    /// In a mount namespace of one thread's own. Needs root, which CI has.
    #[test]
    fn mount_inside_is_not_entered() {
        let run = || {
            use nix::mount::{MntFlags, MsFlags, mount, umount2};
            let root = tempfile::tempdir().unwrap();
            if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS) {
                eprintln!("skipped: no mount namespace: {errno}");
                return;
            }
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).unwrap();
            let (tree, host) = (root.path().join("bundle"), root.path().join("host"));
            fs::create_dir_all(tree.join("rootfs")).unwrap();
            fs::create_dir(&host).unwrap();
            fs::write(host.join("precious"), "x").unwrap();
            let bind = MsFlags::MS_BIND;
            mount(Some(&host), &tree.join("rootfs"), none, bind, none).unwrap();
            let error = remove_bundle(&tree).unwrap_err();
            assert_eq!(error.source.raw_os_error(), Some(libc::EXDEV), "{error:?}");
            assert_eq!(fs::read(host.join("precious")).unwrap(), b"x");
            let doomed = root.path().join(format!("{DOOMED}bundle"));
            umount2(&doomed.join("rootfs"), MntFlags::empty()).unwrap();
            remove_leftovers(root.path());
            assert!(!doomed.exists());
        };
        std::thread::spawn(run).join().unwrap();
    }
}
