//! cgroup v2: one leaf for init and agent, one subtree for the containers.
//!
//! Promises: no limit, freeze or kill of a container touches the leaf; the memory and the
//! processes that containers may take together leave [`RESERVED_MEMORY`] and [`RESERVED_PROCESSES`]
//! to us.

use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use tracing::{info, warn};

use crate::limits::{RESERVED_MEMORY, RESERVED_PROCESSES, SELF_CPU_WEIGHT, SELF_MEMORY_MIN};
use crate::paths;

/// Without cgroups there are no containers.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel refuses.
    #[error("mount cgroup2")]
    Mount(#[source] Errno),
    /// A cgroup of ours.
    #[error("make cgroup {0}")]
    Make(&'static str, #[source] io::Error),
    /// PID 1 or the agent could not be moved.
    #[error("enter cgroup {0}")]
    Enter(&'static str, #[source] io::Error),
}

/// The wanted options, then those that older kernels know. `favordynmods` saves each move of a
/// process the wait for an RCU grace period, 24 ms on one CPU.
const OPTIONS: &[&str] = &[
    "nsdelegate,memory_recursiveprot,favordynmods",
    "nsdelegate,memory_recursiveprot",
    "nsdelegate",
];

/// Makes both cgroups; PID 1, and so all that it forks, moves into ours, and the agent too.
pub fn set_up(agent: Option<i32>) -> Result<(), CgroupError> {
    make(paths::CGROUP_SELF)?;
    make(paths::CGROUP_CONTAINERS)?;
    for pid in [Some(0), agent].into_iter().flatten() {
        match std::fs::write(format!("{}/cgroup.procs", paths::CGROUP_SELF), pid.to_string()) {
            // The agent has just died; the next one is forked there.
            Err(error) if pid != 0 && error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved.map_err(|error| CgroupError::Enter(paths::CGROUP_SELF, error))?,
        }
    }
    enable_controllers(paths::CGROUP_ROOT);
    enable_controllers(paths::CGROUP_CONTAINERS);

    set(paths::CGROUP_SELF, "memory.min", &SELF_MEMORY_MIN.to_string());
    set(paths::CGROUP_SELF, "cpu.weight", &SELF_CPU_WEIGHT.to_string());
    match nix::sys::sysinfo::sysinfo() {
        Ok(system) => {
            let maximum = containers_memory(system.ram_total());
            set(paths::CGROUP_CONTAINERS, "memory.max", &maximum.to_string());
        }
        Err(errno) => warn!("the VM's memory is not known: {errno}"),
    }
    let processes = most_processes();
    set(paths::CGROUP_CONTAINERS, "pids.max", &containers_processes(processes).to_string());
    Ok(())
}

/// Mounts the hierarchy.
pub fn mount_hierarchy() -> Result<(), CgroupError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mut result = Err(Errno::EINVAL);
    for options in OPTIONS {
        result = mount(Some("cgroup2"), paths::CGROUP_ROOT, Some("cgroup2"), flags, Some(*options));
        // EINVAL: an option that this kernel does not know.
        if result != Err(Errno::EINVAL) {
            break;
        }
        info!("cgroup2 without the options {options:?}");
    }
    match result {
        // EBUSY: it is mounted already.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(CgroupError::Mount(errno)),
    }
}

fn make(path: &'static str) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::Make(path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Every controller that the kernel has, for the children of `path`. One by one where the whole
/// list is refused: a limit that needs a missing one fails when it is asked for, and names it.
fn enable_controllers(path: &str) {
    let available =
        std::fs::read_to_string(format!("{path}/cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> =
        available.split_ascii_whitespace().map(|name| format!("+{name}")).collect();
    let control = format!("{path}/cgroup.subtree_control");
    if std::fs::write(&control, wanted.join(" ")).is_err() {
        for controller in wanted {
            if let Err(error) = std::fs::write(&control, &controller) {
                warn!("enable cgroup controller {controller} in {path}: {error}");
            }
        }
    }
}

fn set(path: &str, file: &str, value: &str) {
    if let Err(error) = std::fs::write(format!("{path}/{file}"), value) {
        warn!("set {file} of {path} to {value}: {error}");
    }
}

/// How many processes and threads the kernel allows to all together.
fn most_processes() -> u64 {
    let read = |path| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    let limits = [paths::THREADS_MAX, paths::PID_MAX].into_iter().filter_map(read);
    limits.min().unwrap_or(u64::MAX)
}

/// All but the reserve.
fn containers_processes(total: u64) -> u64 {
    total.saturating_sub(RESERVED_PROCESSES).max(total / 2)
}

/// All but the reserve; in a VM that is hardly larger than that, half of it.
fn containers_memory(total: u64) -> u64 {
    total.saturating_sub(RESERVED_MEMORY).max(total / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn containers_get_all_but_the_reserve() {
        assert_eq!(containers_memory(512 * MIB), 448 * MIB);
        assert_eq!(containers_memory(96 * MIB), 48 * MIB);
        assert_eq!(containers_processes(4000), 4000 - RESERVED_PROCESSES);
        assert_eq!(containers_processes(600), 300);
    }
}
