//! The end of the VM.
//!
//! Promises: every step is bounded in time; the last one is reboot(2), whatever became of those
//! before.
//! Never: returns; exits, which the kernel would answer with a panic.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::warn;

use crate::paths;
use crate::sys::clone::{self, Forked};
use crate::sys::{pidfd, wait};

/// How long everything may take to die after SIGKILL.
const LAST_DEATHS: Duration = Duration::from_secs(5);
/// How long unwritten data may take to reach its disk.
pub const LAST_SYNC: Duration = Duration::from_secs(10);
/// How often the end of a child is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// Kills all that runs, unmounts what holds data, writes it out, and ends the VM.
pub fn end(reboot: bool) -> ! {
    // Frozen processes die of this too, unlike of the signal below.
    if let Err(error) = std::fs::write(format!("{}/cgroup.kill", paths::CGROUP_CONTAINERS), "1") {
        warn!("kill the containers: {error}");
    }
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // ESRCH: nobody else is there.
        Ok(()) | Err(Errno::ESRCH) => reap_all(),
        Err(error) => warn!("kill all processes: {error}"),
    }
    within(LAST_SYNC, unmount_all);
    sync_within(LAST_SYNC);
    now(reboot)
}

/// Writes out what the kernel holds back, but waits no longer than this: a dead disk or a dead
/// file server must not keep the VM.
pub fn sync_within(limit: Duration) {
    within(limit, nix::unistd::sync);
}

/// Ends the VM as it is.
pub fn now(restart: bool) -> ! {
    let mode = if restart { RebootMode::RB_AUTOBOOT } else { RebootMode::RB_POWER_OFF };
    let _ = reboot(mode);
    // Not reached, unless this kernel cannot even do that: then its panic is the way out.
    clone::exit_now(1)
}

fn reap_all() {
    let start = Instant::now();
    loop {
        match wait::peek() {
            Ok(Some(pid)) => drop(wait::reap(pid)),
            // No child is left, or none has ended yet.
            Ok(None) if !has_children() => return,
            Ok(None) | Err(_) if start.elapsed() > LAST_DEATHS => {
                warn!("some processes do not die");
                return;
            }
            Ok(None) | Err(_) => std::thread::sleep(LOOK),
        }
    }
}

fn has_children() -> bool {
    std::fs::read_to_string("/proc/self/task/1/children").is_ok_and(|children| !children.is_empty())
}

/// Unmounts, the latest mount first, what is not a view of the kernel's memory.
fn unmount_all() {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in table.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(_), Some(place), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if place == "/" || IN_MEMORY.contains(&kind) {
            continue;
        }
        let place = unescape(place);
        if let Err(error) = umount2(place.as_str(), MntFlags::empty()) {
            warn!("unmount {place}: {error}");
            // Detached it is written out by sync, and by its device's end.
            let _ = umount2(place.as_str(), MntFlags::MNT_DETACH);
        }
    }
}

/// Filesystems without data that anybody could miss.
const IN_MEMORY: &[&str] = &[
    "bpf",
    "cgroup2",
    "debugfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "proc",
    "rootfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// /proc/self/mounts writes blanks, tabs, newlines and backslashes in octal, see fstab(5).
fn unescape(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code.into());
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

/// Does it in a child, so that one that hangs is left behind.
fn within(limit: Duration, act: impl FnOnce()) {
    match clone::fork(None) {
        Ok(Forked::Child) => {
            act();
            clone::exit_now(0)
        }
        Ok(Forked::Parent { pid, pidfd: child }) => {
            let start = Instant::now();
            while !matches!(wait::reap(pid), Ok(Some(_)) | Err(_)) {
                if start.elapsed() > limit {
                    warn!("gave up on a filesystem that does not answer");
                    let _ = pidfd::send_signal(child.as_fd(), Signal::SIGKILL as i32);
                    return;
                }
                std::thread::sleep(LOOK);
            }
        }
        // No memory for a child: then it may as well hang.
        Err(_) => act(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_back_as_they_are() {
        assert_eq!(unescape(r"/a\040b\134c\0x"), "/a b\\c\\0x");
    }
}
