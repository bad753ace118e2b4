//! Filesystems and the disks below them, see ioctl_fs(2) (FIFREEZE), syncfs(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOWR('X', 119, int)` of linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Writes back what the filesystem of this file holds and lets nobody write until it is thawed.
/// EBUSY: it is frozen already; EOPNOTSUPP: it cannot be. FIFREEZE.
pub fn freeze(file: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(file, FIFREEZE)
}

/// Ends that. EINVAL: it is not frozen. FITHAW.
pub fn thaw(file: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(file, FITHAW)
}

/// Writes back what the filesystem of this file holds. syncfs(2).
pub fn sync_filesystem(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: syncfs takes a descriptor, which is open for the call.
    let result = unsafe { libc::syncfs(file.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ioctl(file: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both requests take an int by value, which the kernel ignores.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
