//! Whether something is mounted on a path, see statx(2) (STATX_ATTR_MOUNT_ROOT: 5.8).

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::statx::{STATX_ATTR_MOUNT_ROOT, statx};

/// Whether the path itself is the root of a mount. A symlink is none. Asks no file server.
pub fn is_one(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let found = statx(&path, flags, libc::STATX_TYPE);
    found.is_ok_and(|found| found.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_mounted_and_a_directory_in_it_is_not() {
        assert!(is_one(Path::new("/proc")));
        assert!(!is_one(Path::new("/proc/self/fd")));
        assert!(!is_one(Path::new("/not/there")));
    }
}
