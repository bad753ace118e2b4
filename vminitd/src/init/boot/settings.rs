//! What else a fresh system needs. Nothing here is worth ending the boot for: what fails is
//! logged.

use std::os::fd::AsFd;

use nix::sys::resource::setrlimit;
use nix::sys::stat::{Mode, umask};
use tracing::warn;

use crate::limits::SELF_RLIMITS;
use crate::paths;
use crate::sys::{descriptors, environment, loopback};

/// Standard input from nowhere, output and error to the console: what the kernel opened belongs
/// to a console file that the real /dev has hidden.
pub fn reopen_stdio() {
    let console = std::fs::File::options().write(true).open(paths::CONSOLE);
    let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") else {
        return;
    };
    // A VM may have no console.
    let console = console.as_ref().unwrap_or(&null);
    for (file, number) in [(&null, 0), (console, 1), (console, 2)] {
        if let Err(error) = descriptors::install(file.as_fd(), number) {
            warn!("open standard descriptor {number}: {error}");
        }
    }
}

/// Lets user space write to the kernel's log as often as it likes; the default is ten lines in
/// five seconds, and the rest is lost.
pub fn lift_log_limit() {
    if let Err(error) = std::fs::write(paths::PRINTK_DEVKMSG, "on\n") {
        warn!("set {}: {error}", paths::PRINTK_DEVKMSG);
    }
}

/// Makes the kernel's RCU grace periods short for this VM's life. Mounting cgroup2 with
/// `favordynmods` alone waits for one, 27 of the 31 ms from our entry to serving; a container's
/// life has some more.
pub fn expedite_rcu() {
    if let Err(error) = std::fs::write(paths::RCU_EXPEDITED, "1\n") {
        warn!("set {}: {error}", paths::RCU_EXPEDITED);
    }
}

/// What the kernel counts per user and not per container, so that root in a container could use
/// up what the agent needs; the memory behind it is the container's and has a limit. And what it
/// tells to everybody.
const SHARED: &[(&str, &str)] = &[
    // The agent logs there.
    ("/proc/sys/kernel/dmesg_restrict", "1\n"),
    ("/proc/sys/fs/epoll/max_user_watches", "1000000000\n"),
    ("/proc/sys/fs/inotify/max_user_instances", "1000000000\n"),
    ("/proc/sys/fs/inotify/max_user_watches", "1000000000\n"),
];

/// Keeps containers from what all users share.
pub fn part_users() {
    for (path, value) in SHARED {
        if let Err(error) = std::fs::write(path, value) {
            warn!("set {path}: {error}");
        }
    }
}

/// Environment, umask and limits of PID 1 and the agent.
pub fn own_process() {
    environment::replace(paths::ENVIRONMENT);
    umask(Mode::from_bits_truncate(0o022));
    for (resource, soft, hard) in SELF_RLIMITS {
        if let Err(errno) = setrlimit(*resource, *soft, *hard) {
            warn!("set limit {resource:?}: {errno}");
        }
    }
}

/// Name, loopback interface, and ctrl-alt-del as a signal instead of an instant reboot.
pub fn system(hostname: &str) {
    if let Err(errno) = nix::unistd::sethostname(hostname) {
        warn!("set the host name {hostname:?}: {errno}");
    }
    if let Err(error) = loopback::up() {
        warn!("bring the loopback interface up: {error}");
    }
    if let Err(errno) = nix::sys::reboot::set_cad_enabled(false) {
        warn!("take over ctrl-alt-del: {errno}");
    }
}
