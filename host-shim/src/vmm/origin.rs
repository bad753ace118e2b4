//! What is said of a VM that is started and never runs: all that was ever found to matter for that.
//!
//! Virtualization.framework was seen to leave a VM `starting` for ever when it was called from a thread other than the
//! main one; that was long taken for a question of who the process's parent is. So an error names all three.

use std::time::Duration;

use crate::sys::process_name;

/// The whole error. `state` is the hypervisor's own word.
pub fn never_ran(state: &str, after: Duration) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name").to_owned();
    let parent = nix::unistd::getppid().as_raw();
    let pid = std::process::id();
    describe(state, after, &thread, (pid, parent), process_name(parent).as_deref())
}

fn describe(
    state: &str,
    after: Duration,
    thread: &str,
    (pid, parent): (u32, i32),
    parent_name: Option<&str>,
) -> String {
    let by = match (parent, parent_name) {
        (1, _) => "process 1: whoever started it has ended".to_owned(),
        (parent, Some(name)) => format!("process {parent} ({name})"),
        (parent, None) => format!("process {parent}"),
    };
    let seconds = after.as_secs();
    format!(
        "the VM was started {seconds} s ago and neither runs nor answers; state: {state}; driven from thread {thread} of process {pid}, a child of {by}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_never_runs_is_told_with_state_thread_and_parentage() {
        let told = |parent| {
            describe("starting", Duration::from_secs(60), "main", (7, parent), Some("containerd"))
        };
        assert_eq!(
            told(6),
            "the VM was started 60 s ago and neither runs nor answers; state: starting; driven from thread main of process 7, a child of process 6 (containerd)"
        );
        assert!(told(1).ends_with("a child of process 1: whoever started it has ended"));
        let ours = never_ran("starting", Duration::ZERO);
        let name = process_name(nix::unistd::getppid().as_raw()).expect("a parent with a name");
        assert!(ours.contains(&format!("({name})")), "{ours}");
    }
}
