//! Whether this process may make namespaces: unshare(2), user_namespaces(7).

use std::io;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, geteuid};

/// Tries it in a child: as root mount, pid and network namespaces, else the same within a user namespace. There is no
/// other way to know: sysctls, security modules and seccomp filters all have a say.
pub fn may_unshare() -> io::Result<bool> {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
    if !geteuid().is_root() {
        flags |= libc::CLONE_NEWUSER;
    }
    // SAFETY: the child makes two system calls and is gone: it neither allocates nor locks.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: plain numbers; what is unshared is the child's own.
            let failed = unsafe { libc::unshare(flags) } != 0;
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(failed)) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Err(nix::Error::EINTR) => {}
                Ok(status) => return Ok(matches!(status, WaitStatus::Exited(_, 0))),
                Err(errno) => return Err(errno.into()),
            }
        },
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn asking_changes_nothing_for_the_asker() {
        let namespaces = || std::fs::read_link("/proc/self/ns/mnt").unwrap();
        let before = namespaces();
        super::may_unshare().unwrap();
        assert_eq!(namespaces(), before);
    }
}
