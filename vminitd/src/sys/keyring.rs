//! Session keyrings, see keyctl(2), session-keyring(7).

use std::io;

/// KEYCTL_JOIN_SESSION_KEYRING in linux/keyctl.h.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Gives this process a new, empty, anonymous session keyring.
pub fn join_new_session() -> io::Result<()> {
    // SAFETY: a null name is allowed and asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
