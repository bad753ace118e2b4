//! The root: moved, where the kernel's own cannot be pivoted away from.
//!
//! An initramfs is unpacked into the kernel's first mount, which has no parent and which
//! pivot_root(2) therefore refuses. A bind mount of it, moved over it, is an ordinary root.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};

/// Why the root could not be moved: the step, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("move the root: {step}")]
pub struct RootError {
    step: &'static str,
    #[source]
    errno: Errno,
}

/// In linux/magic.h; what an initramfs is when the kernel has no tmpfs, or `rootfstype=ramfs`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Any directory will do; this one is in every image, and empty.
const PLACE: &str = "/run";

/// Moves the root, if it is an initramfs. To be done before anything is mounted: what is mounted
/// below the old root does not come along.
pub fn make_pivotable() -> Result<(), RootError> {
    let failed = |step| move |errno| RootError { step, errno };
    let kind = statfs("/").map_err(failed("statfs"))?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        return Ok(());
    }
    // EEXIST is what we hope for; without the directory the bind fails and says so.
    let _ = std::fs::create_dir(PLACE);
    let none = None::<&str>;
    mount(Some("/"), PLACE, none, MsFlags::MS_BIND, none).map_err(failed("bind"))?;
    chdir(PLACE).map_err(failed("enter"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(failed("move"))?;
    chroot(".").map_err(failed("chroot"))?;
    chdir("/").map_err(failed("chdir"))
}
