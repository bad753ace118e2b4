//! Mounts by descriptor: the new mount API, see fsopen(2), fsmount(2), open_tree(2),
//! move_mount(2) (5.2) and mount_setattr(2) (5.12).
//!
//! A mount made this way is attached to a directory that is named by a descriptor, so no path is
//! resolved a second time; options go in one by one, so a hundred overlay layers fit.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::statfs::fstatfs;

use super::statx::{STATX_ATTR_MOUNT_ROOT, statx};

// include/uapi/linux/mount.h
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

/// include/uapi/linux/stat.h (6.8).
const STATX_MNT_ID_UNIQUE: libc::c_uint = 0x4000;

/// MOUNT_ATTR_RDONLY.
pub const ATTR_RDONLY: u64 = 0x1;
/// MOUNT_ATTR_NOSUID.
pub const ATTR_NOSUID: u64 = 0x2;
/// MOUNT_ATTR_NODEV.
pub const ATTR_NODEV: u64 = 0x4;
/// MOUNT_ATTR_NOEXEC.
pub const ATTR_NOEXEC: u64 = 0x8;
/// MOUNT_ATTR__ATIME: the field of the three below.
pub const ATTR_ATIME_FIELD: u64 = 0x70;
/// MOUNT_ATTR_RELATIME: the field's default.
pub const ATTR_RELATIME: u64 = 0x00;
/// MOUNT_ATTR_NOATIME.
pub const ATTR_NOATIME: u64 = 0x10;
/// MOUNT_ATTR_STRICTATIME.
pub const ATTR_STRICTATIME: u64 = 0x20;
/// MOUNT_ATTR_NODIRATIME.
pub const ATTR_NODIRATIME: u64 = 0x80;
/// MOUNT_ATTR_NOSYMFOLLOW (5.14).
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// MOUNT_ATTR_IDMAP (5.12).
const ATTR_IDMAP: u64 = 0x10_0000;

/// struct mount_attr, include/uapi/linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A filesystem that is being configured. fsopen(2).
#[derive(Debug)]
pub struct Configuring(OwnedFd);

impl Configuring {
    /// Of this type; ENODEV when the kernel has none.
    pub fn new(kind: &str) -> io::Result<Self> {
        let kind = text(kind)?;
        // SAFETY: a NUL-terminated string that outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
        owned(fd).map(Self)
    }

    /// A parameter with a value of at most 255 bytes. fsconfig(2) with FSCONFIG_SET_STRING.
    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(&text(key)?), Some(&text(value)?))
    }

    /// A parameter without a value. fsconfig(2) with FSCONFIG_SET_FLAG.
    pub fn set_flag(&self, key: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(&text(key)?), None)
    }

    /// Makes the filesystem and a mount of it with these `ATTR_*`, attached to nothing yet.
    /// fsconfig(2) with FSCONFIG_CMD_CREATE, fsmount(2).
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        let attributes = libc::c_uint::try_from(attributes).map_err(io::Error::other)?;
        // SAFETY: integers only.
        let fd = unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes)
        };
        owned(fd)
    }

    /// What the filesystem has to say about an error; empty when nothing. read(2) on the context.
    pub fn complaint(&self) -> String {
        let mut lines = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = nix::unistd::read(self.0.as_raw_fd(), &mut buffer) {
            let line = String::from_utf8_lossy(&buffer[..length]);
            // "e text": the level, a blank and the text.
            lines.push(line.trim_end().get(2..).unwrap_or_default().to_owned());
        }
        lines.join("; ")
    }

    fn config(
        &self,
        command: libc::c_uint,
        key: Option<&CStr>,
        value: Option<&CStr>,
    ) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: each pointer is null or a NUL-terminated string that outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            )
        };
        checked(result)
    }
}

/// A copy of the mount at `path` (with those below it, if `recursive`), attached to nothing yet.
/// open_tree(2) with OPEN_TREE_CLONE.
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    open_tree(libc::AT_FDCWD, &path, recursive, 0)
}

/// The same of what a descriptor (which may be one of O_PATH) is open on.
pub fn clone_open_tree(directory: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    open_tree(directory.as_raw_fd(), c"", recursive, libc::AT_EMPTY_PATH as libc::c_uint)
}

fn open_tree(
    directory: RawFd,
    path: &CStr,
    recursive: bool,
    flags: libc::c_uint,
) -> io::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE as libc::c_uint } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive | flags;
    // SAFETY: a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) };
    owned(fd)
}

/// Changes a mount's `ATTR_*` and, unless 0, its propagation (MS_SHARED and so on).
/// mount_setattr(2).
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    change(mount, &MountAttr { set, clear, propagation, userns_fd: 0 }, recursive)
}

/// Shows the files of a mount that is attached to nothing as the ids that a user namespace maps
/// theirs to. EINVAL where the filesystem does not do it. mount_setattr(2), MOUNT_ATTR_IDMAP.
///
/// The server of a FUSE filesystem (virtiofs) says whether it does it in its answer to the
/// kernel's first message, which is sent and not waited for by the mount; any request waits for
/// that answer. Without one here, whoever was faster would decide.
pub fn map_ids(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    // Its result says nothing of ids: a server may well not know this request.
    let _ = fstatfs(mount);
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
    change(mount, &MountAttr { set: ATTR_IDMAP, clear: 0, propagation: 0, userns_fd }, recursive)
}

fn change(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty string, and a struct of the size that is passed; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    checked(result)
}

/// Attaches a mount to a directory (or file). move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: empty strings and integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    checked(result)
}

/// Which mount a path (followed to its end) or descriptor leads to, by a number that is never given
/// again, and whether it is that mount's root. statx(2) with STATX_MNT_ID_UNIQUE (6.8; before that
/// by one that is given again).
pub fn mount_at(path: &Path) -> io::Result<(u64, bool)> {
    look(path, 0)
}

/// Whether a path itself is the root of a mount; a symlink is none. statx(2) (5.8).
pub fn is_mount_root(path: &Path) -> bool {
    look(path, libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|(_, is_root)| is_root)
}

fn look(path: &Path, flags: libc::c_int) -> io::Result<(u64, bool)> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    // Never what would trigger an automount, nor a question to a server of files.
    let flags = flags | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let mask = libc::STATX_MNT_ID | STATX_MNT_ID_UNIQUE;
    let found = statx(&path, flags, mask)?;
    Ok((found.stx_mnt_id, found.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0))
}

fn text(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    checked(result)?;
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_mounted_and_a_directory_in_it_or_a_link_to_it_is_not() {
        assert!(is_mount_root(Path::new("/proc")));
        assert!(!is_mount_root(Path::new("/proc/self/fd")));
        assert!(!is_mount_root(Path::new("/not/there")));
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(!is_mount_root(&link));
        assert_eq!(mount_at(&link).unwrap(), mount_at(Path::new("/proc")).unwrap());
    }
}
