//! Linux: a file per kernel object.

pub mod child;
pub mod fifo;
pub mod hidden_socket;
pub mod holes;
pub mod lone_file;
pub mod namespaces;

use std::io;
use std::os::fd::BorrowedFd;

/// Flags of recvmsg(2): fds are close-on-exec from the start.
pub const SCM_RECEIVE_FLAGS: i32 = libc::MSG_CMSG_CLOEXEC;

/// Flags of sendmsg(2): a closed peer is an error, no signal.
pub const SCM_SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;

/// Nothing to do here: [`SCM_RECEIVE_FLAGS`] has done it without a gap.
pub fn close_on_exec(_fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}
