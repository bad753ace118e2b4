//! macOS: what differs from Linux.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Flags of recvmsg(2): there is none that makes fds close-on-exec.
pub const SCM_RECEIVE_FLAGS: i32 = 0;

/// Flags of sendmsg(2): the process ignores SIGPIPE instead.
pub const SCM_SEND_FLAGS: i32 = 0;

/// Marks a received fd: fcntl(2).
pub fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}
