//! Takes mounts away.
//!
//! Promises: what was written to a filesystem is on its device before its unmount returns; a mount
//! that is in use is named with who uses it; places without a mount are fine, so that anything can
//! be undone twice.
//! Never: runs on the agent's thread: all of it can block.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use tracing::{debug, warn};

use super::place::{Ground, path_of};
use crate::limits::BUSY_TOLD;
use crate::paths::PROC;
use crate::sys::beneath::open_beneath;
use crate::sys::fsmount::mount_at;

/// A mount could not be taken away.
#[derive(Debug, thiserror::Error)]
#[error("unmount {path}{users}")]
pub struct UnmountError {
    /// Where it is.
    pub path: PathBuf,
    /// `, used by ...`; empty when nobody was found.
    pub users: Users,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// Who uses a mount.
#[derive(Debug, Default)]
pub struct Users {
    /// Processes: number and name.
    processes: Vec<(i32, String)>,
    /// Mounts on top of it.
    mounts: Vec<PathBuf>,
}

/// Takes the mounts at these places away, last first, and everything mounted on top of them. One
/// that is in use goes out of sight, and away when that ends.
pub fn undo(ground: Ground<'_>, places: &[PathBuf]) -> Result<(), UnmountError> {
    let mut failed = None;
    for place in places.iter().rev() {
        let Some(spot) = Spot::find(ground, place) else { continue };
        if let Err(error) = spot.clear() {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Takes the topmost mount at a place away, if there is one. One that is in use stays.
pub fn unmount(ground: Ground<'_>, place: &Path) -> Result<(), UnmountError> {
    Spot::find(ground, place).map_or(Ok(()), |spot| spot.unmount().map(drop))
}

/// A place that is there, in a directory that was found without following a symlink.
struct Spot {
    /// As the caller says it.
    name: PathBuf,
    /// As the kernel is told.
    path: PathBuf,
    _parent: OwnedFd,
}

impl Spot {
    /// `None`: it is not there, so nothing is mounted on it.
    fn find(ground: Ground<'_>, place: &Path) -> Option<Self> {
        let name = ground.root().join(place);
        let root = ground.open_root().ok()?;
        let parent = match place.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => {
                open_beneath(root.as_fd(), parent, OFlag::O_PATH | OFlag::O_DIRECTORY).ok()?
            }
            None => root,
        };
        let path = path_of(&parent).join(place.file_name()?);
        path.symlink_metadata().is_ok().then_some(Self { name, path, _parent: parent })
    }

    /// All mounts here.
    fn clear(&self) -> Result<(), UnmountError> {
        loop {
            match self.unmount() {
                // There may be another below the one that went.
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    // What is on top of it, or a file that somebody still has open. It goes when
                    // that is closed; a process of the container cannot have it, they are gone.
                    let chain = crate::chain(&error);
                    if error.users.processes.is_empty() {
                        debug!(error = %chain, "unmount lazily");
                    } else {
                        warn!(error = %chain, "unmount lazily");
                    }
                    let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
                    match umount2(&self.path, flags) {
                        // Somebody else has just taken it: a Delete while the VM is shut down.
                        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                        Err(errno) => return Err(self.failed(errno)),
                    }
                }
            }
        }
    }

    /// The topmost mount here; whether there was one.
    fn unmount(&self) -> Result<bool, UnmountError> {
        sync(&self.path, &self.name);
        match umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(true),
            // EINVAL: not (or no longer) a mount point.
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.failed(errno)),
        }
    }

    fn failed(&self, errno: Errno) -> UnmountError {
        let users = if errno == Errno::EBUSY { users(&self.path) } else { Users::default() };
        UnmountError { path: self.name.clone(), users, source: errno.into() }
    }
}

/// Writes a filesystem back, if it is one; unmounting does that too, but only for the last mount
/// of it, and says nothing when it fails.
fn sync(path: &Path, name: &Path) {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let Ok(root) = File::options().read(true).custom_flags(flags).open(path) else { return };
    if let Err(errno) = nix::unistd::syncfs(root.as_raw_fd()) {
        warn!(path = %name.display(), error = %errno, "a filesystem was not written back");
    }
}

/// Looks for who has the mount at a path: by what processes have open, and by what is mounted on
/// it. Found are those of which the kernel tells.
fn users(path: &Path) -> Users {
    let mut users = Users::default();
    let Ok((mount, _)) = mount_at(path) else { return users };
    for entry in std::fs::read_dir(PROC).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if users.processes.len() < BUSY_TOLD && has_open(&entry.path(), mount) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            users.processes.push((pid, name.trim_end().to_owned()));
        }
    }
    if let Ok(path) = std::fs::canonicalize(path) {
        users.mounts = mounts_below(&path);
        users.mounts.truncate(BUSY_TOLD);
    }
    users
}

fn has_open(process: &Path, mount: u64) -> bool {
    let is_on = |path: &Path| mount_at(path).is_ok_and(|(id, _)| id == mount);
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    ["cwd", "root", "exe"].iter().any(|link| is_on(&process.join(link)))
        || descriptors.into_iter().any(|entry| is_on(&entry.path()))
}

/// What is mounted below a path, from /proc/PID/mountinfo, see proc_pid_mountinfo(5).
fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string(format!("{PROC}/thread-self/mountinfo"));
    let table = table.unwrap_or_default();
    let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(plain);
    places.map(PathBuf::from).filter(|place| place != path && place.starts_with(path)).collect()
}

/// The kernel writes blanks and backslashes as `\ooo`.
fn plain(place: &str) -> String {
    let mut parts = place.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[3..]);
            }
            None => bytes.extend(part.as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl std::fmt::Display for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let processes = self.processes.iter().map(|(pid, name)| format!("process {pid} ({name})"));
        let mounts = self.mounts.iter().map(|place| format!("the mount {}", place.display()));
        let all: Vec<String> = processes.chain(mounts).collect();
        if all.is_empty() { Ok(()) } else { write!(f, ", used by {}", all.join(", ")) }
    }
}
