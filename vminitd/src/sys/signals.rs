//! Signals: which are blocked, what they do, and reading them from a descriptor, see
//! sigprocmask(2), sigaction(2), signalfd(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Blocks every signal that can be blocked.
pub fn block_all() {
    set_mask(true);
}

/// Lets every signal through.
pub fn unblock_all() {
    set_mask(false);
}

/// A non-blocking, close-on-exec signalfd for the signals.
pub fn descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises; both live on this stack.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next pending signal's number, if any.
pub fn next(signalfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: signalfd_siginfo is plain data, for which all zero is valid.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` is as long as the length says and outlives the call.
    let read = unsafe { libc::read(signalfd.as_raw_fd(), (&raw mut info).cast(), length) };
    if read == length as isize {
        return Ok(Some(info.ssi_signo as i32));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

/// Gives SIGPIPE its default action back, which Rust's runtime takes from it. For PID 1 that is
/// harmless (the kernel shields it), and forks of it must not start with an ignored signal.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Ignores SIGPIPE: a splice into a socket whose peer is gone raises it, and has no flag against
/// that. Rust's runtime does the same before main; this says that it is relied upon.
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Makes SIGPIPE harmless for this process only: writing to a closed pipe is an error, and an exec
/// gives the signal its default action back, which it would not do to an ignored one.
pub fn catch_sigpipe() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler is a function of the right type, which does nothing and so is
    // async-signal-safe.
    unsafe { libc::signal(libc::SIGPIPE, handler as libc::sighandler_t) };
}

fn set_mask(full: bool) {
    // SAFETY: sigset_t is plain data that sigfillset or sigemptyset initialises; the call cannot
    // fail with a valid `how`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        if full {
            libc::sigfillset(&raw mut set);
        } else {
            libc::sigemptyset(&raw mut set);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}
