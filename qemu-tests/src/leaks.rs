//! What the guest holds, before and after.
//!
//! The program `inspect` runs as a container that shares the guest's pid namespace and sees its root, and prints a
//! line per zombie, mount, cgroup, fd of init and agent, and file under /run. Its own container is there both times,
//! so two listings of a guest that leaks nothing are equal.

use std::collections::BTreeMap;

use crate::{Vm, Wish};

/// A listing: how often each line occurs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing(BTreeMap<String, i64>);

impl Listing {
    /// Takes one.
    pub async fn of(vm: &Vm) -> Self {
        let exit = vm.run("inspect", inspector(&["inspect", "list", "/guest"])).await;
        assert_eq!(exit.status, 0, "inspect failed: {}", String::from_utf8_lossy(&exit.stderr));
        let mut lines = BTreeMap::new();
        for line in String::from_utf8_lossy(&exit.stdout).lines() {
            *lines.entry(line.to_owned()).or_default() += 1;
        }
        Self(lines)
    }

    /// What is there now and was not at `before`, a line each, with how many more (or fewer) there are.
    pub fn grown_since(&self, before: &Self) -> Vec<String> {
        let mut lines: Vec<&String> = self.0.keys().chain(before.0.keys()).collect();
        lines.sort();
        lines.dedup();
        let count = |listing: &Self, line| listing.0.get(line).copied().unwrap_or(0);
        lines
            .into_iter()
            .map(|line| (count(self, line) - count(before, line), line))
            .filter(|(grown, _)| *grown > 0)
            .map(|(grown, line)| format!("{grown:+} {line}"))
            .collect()
    }
}

/// A container that sees the guest from inside: its pid namespace, its root on /guest, and root's capabilities.
pub fn inspector(args: &[&str]) -> Wish {
    Wish::new(args).in_guest_pid_namespace().with_guest_root()
}
