//! What a failed launch has left outside its cgroup: processes that libcontainer had cloned and
//! already moved into the container's.
//!
//! When their launcher dies they become PID 1's children. Of those, the agent, the launchers and
//! the launched processes are known; orphans of containers come to PID 1 only from those that
//! share its pid namespace. So a stranger among the children is a stray if it still runs our own
//! executable (it has not come to exec) or lives in another pid namespace.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use crate::paths;

/// PID 1's children that are not known and should not be there.
pub fn find(is_known: impl Fn(i32) -> bool) -> Vec<i32> {
    let children = std::fs::read_to_string("/proc/self/task/1/children").unwrap_or_default();
    children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| !is_known(*pid) && is_ours(*pid))
        .collect()
}

fn is_ours(pid: i32) -> bool {
    let differs = |name: &str| {
        let own = std::fs::metadata(format!("/proc/self/{name}"));
        let its = std::fs::metadata(format!("/proc/{pid}/{name}"));
        matches!((own, its), (Ok(own), Ok(its)) if identity(&own) != identity(&its))
    };
    let runs_our_executable = matches!(
        (std::fs::metadata(paths::OWN_EXECUTABLE), std::fs::metadata(format!("/proc/{pid}/exe"))),
        (Ok(own), Ok(its)) if identity(&own) == identity(&its)
    );
    runs_our_executable || differs("ns/pid")
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
