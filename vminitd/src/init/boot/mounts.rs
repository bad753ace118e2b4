//! The filesystems that every Linux system has.
//!
//! Promises: what the kernel or an image has mounted already is harmless; a read-only root needs
//! no more than the directories named here.

use std::io;
use std::os::unix::fs::symlink;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use tracing::warn;

use crate::paths;

/// A filesystem that the VM is no use without is missing.
#[derive(Debug, thiserror::Error)]
#[error("mount {kind} on {place}")]
pub struct MountError {
    kind: &'static str,
    place: &'static str,
    #[source]
    errno: Errno,
}

struct Mount {
    kind: &'static str,
    place: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// Whether the boot ends without it.
    needed: bool,
}

const NO_SUID_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const NO_SUID_DEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const NO_SUID_DEV_EXEC: MsFlags = NO_SUID_DEV.union(MsFlags::MS_NOEXEC);

#[rustfmt::skip]
const FIRST: &[Mount] = &[
    Mount { kind: "proc", place: "/proc", flags: NO_SUID_DEV_EXEC, options: "", needed: true },
    Mount { kind: "sysfs", place: "/sys", flags: NO_SUID_DEV_EXEC, options: "", needed: true },
    Mount { kind: "devtmpfs", place: "/dev", flags: NO_SUID_EXEC, options: "mode=0755", needed: true },
];

#[rustfmt::skip]
const REST: &[Mount] = &[
    Mount { kind: "devpts", place: "/dev/pts", flags: NO_SUID_EXEC, options: "newinstance,ptmxmode=0666,mode=0620,gid=5", needed: false },
    Mount { kind: "tmpfs", place: "/dev/shm", flags: NO_SUID_DEV, options: "mode=1777", needed: false },
    Mount { kind: "mqueue", place: "/dev/mqueue", flags: NO_SUID_DEV_EXEC, options: "", needed: false },
    Mount { kind: "tmpfs", place: "/tmp", flags: NO_SUID_DEV, options: "mode=1777", needed: false },
    Mount { kind: "tmpfs", place: "/run", flags: NO_SUID_DEV, options: "mode=0755", needed: true },
    // Of its own, so that whoever fills another one keeps no exit from being recorded. Its pages are
    // paid for by the agent, out of what containers cannot take.
    Mount { kind: "tmpfs", place: paths::STATE_DIR, flags: NO_SUID_DEV_EXEC, options: "mode=0755", needed: true },
    // A container's root may lie here: setuid programs and devices are its own affair.
    Mount { kind: "tmpfs", place: paths::BUNDLES_DIR, flags: MsFlags::empty(), options: "mode=0711", needed: true },
];

/// What programs expect beside the devices.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Directories below [`paths::STATE_DIR`].
const DIRECTORIES: &[&str] = &[paths::LIBCONTAINER_DIR, paths::CONTAINERS_DIR];

/// Mounts what the log needs.
pub fn mount_first() -> Result<(), MountError> {
    mount_table(FIRST)
}

/// Mounts the others.
pub fn mount_rest() -> Result<(), MountError> {
    mount_table(REST)
}

/// Makes what has to be in them.
pub fn furnish() {
    link_standard_descriptors();
    for directory in DIRECTORIES {
        match std::fs::create_dir(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => warn!("make {directory}: {error}"),
        }
    }
}

fn mount_table(table: &[Mount]) -> Result<(), MountError> {
    for Mount { kind, place, flags, options, needed } in table {
        // A directory that is there is what we want, one that cannot be made shows in the mount.
        let _ = std::fs::create_dir(place);
        match mount(Some(*kind), *place, Some(*kind), *flags, Some(*options)) {
            // EBUSY: the same filesystem is mounted there already.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(errno) if *needed => return Err(MountError { kind, place, errno }),
            Err(errno) => warn!("mount {kind} on {place}: {errno}"),
        }
    }
    Ok(())
}

fn link_standard_descriptors() {
    for (target, link) in LINKS {
        match symlink(target, link) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => warn!("link {link}: {error}"),
        }
    }
}
