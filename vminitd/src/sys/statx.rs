//! What a path is, see statx(2) (4.11).
//!
//! The system call itself and not the C library's function: the standard library names that one weakly, and after
//! link-time optimisation so do we. A static library's member is not linked for a weak name, which leaves a call to
//! address 0 in the shipped binary and in none that was built without that optimisation.

use std::ffi::CStr;
use std::io;

/// The path is the root of a mount (5.8), in linux/stat.h.
pub const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

/// Asks about a path that is absolute, or relative to the working directory.
pub fn statx(path: &CStr, flags: libc::c_int, mask: libc::c_uint) -> io::Result<libc::statx> {
    // SAFETY: statx is plain data, for which all zero is valid.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated string and a struct of ours, which both outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_statx, libc::AT_FDCWD, path.as_ptr(), flags, mask, &raw mut found)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
}
