//! What a process runs, and as whom: an OCI process in the form in which the launcher takes it.
//!
//! Owns: the form of the file that the agent leaves in the exec's directory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::confinement::Capabilities;
use super::left::Left;
use crate::sys::process::Scheduling;

/// See the module. Numbers are the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecProgram {
    /// The program's name first.
    pub args: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// In the container.
    pub cwd: PathBuf,
    /// In the container's user namespace.
    pub uid: u32,
    /// Likewise.
    pub gid: u32,
    /// Likewise; further ones.
    pub groups: Vec<u32>,
    /// None: 022.
    pub umask: Option<u32>,
    /// RLIMIT_*, soft, hard.
    pub limits: Vec<(u32, u64, u64)>,
    /// See prctl(2).
    pub no_new_privileges: bool,
    /// None: 0.
    pub oom_score_adj: Option<i32>,
    /// Class and level as ioprio_set(2) takes them.
    pub io_priority: Option<u16>,
    /// See sched_setattr(2).
    pub scheduling: Option<Scheduling>,
    /// CPUs to run on until it is in the container's cgroup; none: any.
    pub cpus_before: Vec<usize>,
    /// CPUs to run on from then on; none: those of the cgroup.
    pub cpus: Vec<usize>,
    /// Of the process.
    pub capabilities: Capabilities,
}

impl Left for ExecProgram {
    const FILE: &'static str = "program";
}
