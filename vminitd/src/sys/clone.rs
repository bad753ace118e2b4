//! Making processes, see clone(2), clone3 (5.3; into a cgroup 5.7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::{CloneFlags, unshare};

/// Which of the two processes the caller is in.
#[derive(Debug)]
pub enum Forked {
    /// The new process. It has the caller's memory and descriptors, copied.
    Child,
    /// The caller.
    Parent {
        /// The new process's id.
        pid: i32,
        /// The new process, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// A fork of a process without threads, born in `cgroup` if one is given, with every signal
/// handler reset to the default (ignored signals stay ignored).
///
/// The system call by hand, because no libc function starts a process in a cgroup; moving it there
/// afterwards would leave a moment in which it is outside, and costs the kernel more.
///
/// # Panics
/// Never; but where the caller has threads, this fails with EBUSY instead of making a process
/// whose allocator may be locked for ever.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    fork_into(cgroup, 0)
}

/// The same, in new namespaces: CLONE_NEW*.
pub fn fork_into(cgroup: Option<BorrowedFd<'_>>, namespaces: i32) -> io::Result<Forked> {
    if has_threads() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, for which all zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let namespaces = u64::from(namespaces.cast_unsigned());
    arguments.flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND | namespaces;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no stack are given, so the child runs on a copy of this memory, as
    // after fork(2). There is one thread (checked above), so no lock of the C library or of the
    // allocator is held by somebody who does not exist in the child. What the C library caches for
    // the thread is its id, which only raise(3) and robust mutexes use. `pidfd` outlives the call.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
    };
    match pid {
        0 => Ok(Forked::Child),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Forked::Parent {
            pid: pid as i32,
            // SAFETY: with CLONE_PIDFD the kernel has put a new descriptor there.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// A fork that lives on as a program of its own: it may start threads. fork(2), of the C library,
/// which makes the child's own bookkeeping (its thread's id above all) right; [`fork`]'s is not.
///
/// # Errors
/// As [`fork`]'s; also when there is no descriptor for the child, which is then killed.
pub fn fork_whole() -> io::Result<Forked> {
    if has_threads() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: there is one thread (checked above), so nothing in the child's copy of the memory is
    // held by somebody who does not exist there.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        // Nobody has reaped it, so the number is its own.
        pid => match super::pidfd::open(pid.unsigned_abs()) {
            Ok(pidfd) => Ok(Forked::Parent { pid, pidfd }),
            Err(error) => {
                // SAFETY: takes integers.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                Err(error)
            }
        },
    }
}

/// In linux/sched.h (5.5); libc's constant is of a type too small for it.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// In linux/sched.h (5.7); likewise.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Whether there is a thread beside this one: then the kernel refuses to part it from its group, and
/// else that is no work. unshare(2).
fn has_threads() -> bool {
    unshare(CloneFlags::CLONE_THREAD).is_err()
}

/// Ends this process at once: nothing is flushed, dropped or unwound. _exit(2).
pub fn exit_now(status: i32) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(status) }
}
