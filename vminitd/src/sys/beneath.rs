//! Opening files without leaving a directory, see openat2(2) (5.6).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

/// Opens an entry of `directory` itself: neither a symlink nor a mount point is crossed (ELOOP,
/// EXDEV). openat2(2) with RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, RESOLVE_BENEATH.
pub fn open_entry(directory: BorrowedFd<'_>, name: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_BENEATH;
    open(directory, name, flags, resolve)
}

/// Opens what is below `directory`; no symlink is followed, mounts are crossed. openat2(2) with
/// RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    open(directory, path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH)
}

fn open(
    directory: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> io::Result<OwnedFd> {
    let mut how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    if flags.contains(OFlag::O_CREAT) {
        how = how.mode(Mode::from_bits_retain(0o600));
    }
    let fd = openat2(directory.as_raw_fd(), path, how)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
