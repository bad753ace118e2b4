//! What a container's processes may do: the capabilities and the system call filter that the
//! launcher puts on a process right before its program runs.
//!
//! Owns: the form of the file that the agent leaves beside a container's record and that the
//! launcher of its init and of each exec reads. It is there before the launch is asked for and
//! stays as long as the container, so an agent that was killed meanwhile loses no filter.

use serde::{Deserialize, Serialize};

use super::left::Left;
use crate::paths::CONFINEMENT;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Of the container's init, and of an exec that names none of its own.
    pub capabilities: Capabilities,
    /// Of every process of the container.
    pub filter: Option<Filter>,
}

impl Left for Confinement {
    const FILE: &'static str = CONFINEMENT;
}

/// The five sets of capabilities(7), a bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What can never be had again once it is not in here.
    pub bounding: u64,
    /// What counts.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What a program with file capabilities may keep.
    pub inheritable: u64,
    /// What a program without file capabilities keeps.
    pub ambient: u64,
}

/// A compiled filter, see seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
    /// The classic BPF program: struct sock_filter, 8 bytes each, in this machine's byte order.
    pub program: Vec<u8>,
}
