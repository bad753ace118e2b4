//! Whether this process may make namespaces: unshare(2), user_namespaces(7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, geteuid};

use crate::sys::numbered::check;

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

/// Lets `command` run in a network namespace: the one that is given, or a new one: setns(2).
pub fn in_network(command: &mut Command, network: Option<OwnedFd>) {
    let enter = move || match &network {
        // SAFETY: the fd is owned by this closure, so it is open; what changes is the child's own.
        Some(network) => check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) }),
        // SAFETY: plain numbers; what is unshared is the child's own.
        None => check(unsafe { libc::unshare(libc::CLONE_NEWNET) }),
    };
    // SAFETY: between fork and exec the closure makes one system call: it neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn a_command_is_in_the_network_namespace_that_was_made_or_given() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let network = |given: Option<std::fs::File>| {
            let mut command = Command::new("readlink");
            command.arg("/proc/self/ns/net");
            super::in_network(&mut command, given.map(Into::into));
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        assert_ne!(network(None).trim(), ours);
        let given = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert_eq!(network(Some(given)).trim(), ours);
    }

    #[test]
    fn asking_changes_nothing_for_the_asker() {
        let namespaces = || std::fs::read_link("/proc/self/ns/mnt").unwrap();
        let before = namespaces();
        super::may_unshare().unwrap();
        assert_eq!(namespaces(), before);
    }
}
