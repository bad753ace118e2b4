//! User namespaces that nobody lives in: a mapping of ids for a mount, see user_namespaces(7).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A user namespace with these mappings, in the form of /proc/PID/uid_map and gid_map. EINVAL when
/// they overlap or do not parse.
///
/// The kernel makes one only for a process, so there is one for a moment. It shares nothing but the
/// table of descriptors, executes nothing of ours, and is gone when this returns; it would also go
/// with its parent.
pub fn mapping(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let dweller = Dweller::new()?;
    let file = |name: &str| format!("/proc/{}/{name}", dweller.pid);
    std::fs::write(file("uid_map"), users)?;
    std::fs::write(file("gid_map"), groups)?;
    Ok(File::open(file("ns/user"))?.into())
}

/// The process; dropped, it is killed and reaped.
struct Dweller {
    pid: i32,
    pidfd: OwnedFd,
}

impl Dweller {
    fn new() -> io::Result<Self> {
        let mut pidfd: RawFd = -1;
        let parent = std::process::id();
        // SAFETY: clone_args is plain data, for which all zero is valid.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        // No signal is sent at its end, so that nobody else reaps it.
        arguments.flags = (libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::CLONE_PIDFD) as u64;
        arguments.pidfd = (&raw mut pidfd) as u64;
        // SAFETY: no CLONE_VM and no stack are given, so the child runs on a copy of this memory.
        // This process may have threads, and locks of its allocator may be held in the copy for
        // ever; so the child does nothing but system calls. `pidfd` outlives the call.
        let pid = unsafe {
            libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
        };
        match pid {
            0 => sleep_until_killed(parent),
            -1 => Err(io::Error::last_os_error()),
            pid => Ok(Self {
                pid: pid as i32,
                // SAFETY: with CLONE_PIDFD the kernel has put a new descriptor there.
                pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            }),
        }
    }
}

/// The child's only code.
fn sleep_until_killed(parent: u32) -> ! {
    // SAFETY: system calls with integers and null pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() as u32 != parent {
            libc::_exit(0);
        }
        loop {
            libc::ppoll(std::ptr::null_mut(), 0, std::ptr::null(), std::ptr::null());
        }
    }
}

impl Drop for Dweller {
    fn drop(&mut self) {
        let null = std::ptr::null_mut::<libc::siginfo_t>();
        // SAFETY: a descriptor of ours, integers and null pointers. The child is ours to reap:
        // nobody else waits for one that sends no signal.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                null,
                0,
            );
            let id = self.pidfd.as_raw_fd() as libc::id_t;
            libc::waitid(libc::P_PIDFD, id, null, libc::WEXITED | libc::__WALL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root, which CI has.
    #[test]
    fn namespace_has_its_mappings_and_no_process() {
        let made = match mapping("0 1000 10\n", "0 2000 5\n5 3000 1\n") {
            Ok(made) => made,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: no user namespace: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let link = std::fs::read_link(format!("/proc/self/fd/{}", made.as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().starts_with("user:["), "{link:?}");
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert_ne!(link, own);
        let error = mapping("0 1000 10\n5 3000 10\n", "0 0 1\n").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "they overlap");
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(children, "");
    }
}
