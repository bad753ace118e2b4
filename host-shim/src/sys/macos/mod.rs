//! macOS: what differs from Linux.

pub mod child;
pub mod fifo;
pub mod namespaces;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::time::{ClockId, clock_gettime};

/// Flags of recvmsg(2): there is none that makes fds close-on-exec.
pub const SCM_RECEIVE_FLAGS: i32 = 0;

/// Flags of sendmsg(2): the process ignores SIGPIPE instead.
pub const SCM_SEND_FLAGS: i32 = 0;

/// Marks a received fd: fcntl(2).
pub fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// Whether the system kills programs whose signature it does not like: amfid does.
pub const SIGNATURES_ARE_CHECKED: bool = true;

/// Makes a terminal the controlling one: ioctl_tty(2), tty(4).
pub const TAKE_TERMINAL: libc::c_ulong = libc::TIOCSCTTY as libc::c_ulong;

/// Since some moment: the time that the machine was awake, and that with its sleep (CLOCK_UPTIME_RAW and
/// CLOCK_MONOTONIC_RAW of clock_gettime(3)).
pub fn clocks() -> (Duration, Duration) {
    // Both clocks exist since macOS 10.12; one that could not be read would stand.
    let read =
        |clock| clock_gettime(ClockId::from_raw(clock)).map_or(Duration::ZERO, Duration::from);
    let all = read(libc::CLOCK_MONOTONIC_RAW);
    (read(libc::CLOCK_UPTIME_RAW), all)
}

/// A process's name, for people: proc_name of libproc.
pub fn process_name(pid: i32) -> Option<String> {
    let mut name = [0u8; 64];
    // SAFETY: the buffer is as long as is said, and lives through the call.
    let length = unsafe { libc::proc_name(pid, name.as_mut_ptr().cast(), name.len() as u32) };
    let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(name.get(..length)?).into_owned())
}

/// Makes writing to a socket whose peer is gone an error, no signal, whoever writes: SO_NOSIGPIPE of setsockopt(2).
pub fn no_sigpipe(fd: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    let size = std::mem::size_of_val(&on) as libc::socklen_t;
    // What is no socket needs it not, and the process ignores the signal anyway.
    // SAFETY: the pointer is to a value of the size that is said, which lives through the call.
    unsafe {
        let value = std::ptr::from_ref(&on).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NOSIGPIPE, value, size)
    };
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
