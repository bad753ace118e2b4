//! macOS: what differs from Linux.

pub mod child;
pub mod fifo;
pub mod namespaces;

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

/// Holes in files.
pub mod holes {
    use std::fs::File;
    use std::io;

    /// The next piece of data from `at` on: its begin and its end, in bytes. All of a file is one.
    pub fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
        let end = file.metadata()?.len();
        Ok((at < end).then_some((at, end)))
    }
}
