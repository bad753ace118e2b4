//! Linux: a file per kernel object.

pub mod child;
pub mod fifo;
pub mod hidden_socket;
pub mod holes;
pub mod lone_file;
pub mod namespaces;
pub mod tap;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Flags of recvmsg(2): fds are close-on-exec from the start.
pub const SCM_RECEIVE_FLAGS: i32 = libc::MSG_CMSG_CLOEXEC;

/// Flags of sendmsg(2): a closed peer is an error, no signal.
pub const SCM_SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;

/// Nothing to do here: [`SCM_RECEIVE_FLAGS`] has done it without a gap.
pub fn close_on_exec(_fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

/// Whether the system kills programs whose signature it does not like.
pub const SIGNATURES_ARE_CHECKED: bool = false;

/// Makes a terminal the controlling one: ioctl_tty(2), tty(4).
pub const TAKE_TERMINAL: libc::c_ulong = libc::TIOCSCTTY;

/// Since some moment: the time that the machine was awake, and that with its sleep (CLOCK_MONOTONIC and
/// CLOCK_BOOTTIME of clock_gettime(2)).
pub fn clocks() -> (Duration, Duration) {
    // Both clocks exist on every Linux that we run on; one that could not be read would stand.
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    let all = read(ClockId::CLOCK_BOOTTIME);
    (read(ClockId::CLOCK_MONOTONIC), all)
}

/// A process's name, for people; see proc_pid_comm(5).
pub fn process_name(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}
