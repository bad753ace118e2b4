//! How a container is made, where that needs nothing unusual: put as the kernel takes it.
//!
//! Owns: the form of the file that the agent leaves beside a container's record.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::exec_program::ExecProgram;
use super::left::Left;

/// See the module. Numbers are the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The directory that becomes the root.
    pub rootfs: PathBuf,
    /// The root cannot be written to.
    pub read_only: bool,
    /// MS_SLAVE or MS_PRIVATE: what mounts of the guest's are to those in the container.
    pub propagation: u64,
    /// CLONE_NEW*: what it gets of its own.
    pub new_namespaces: i32,
    /// CLONE_NEW* each, and where that is: what it shares.
    pub joined: Vec<(i32, PathBuf)>,
    /// Of its own uts namespace.
    pub host_name: Option<String>,
    /// Likewise.
    pub domain_name: Option<String>,
    /// In this order. One of them is a tmpfs on /dev.
    pub mounts: Vec<Mount>,
    /// Made below /dev.
    pub devices: Vec<Device>,
    /// What it cannot read, if it is there.
    pub masked: Vec<PathBuf>,
    /// What it cannot write, if it is there.
    pub read_only_paths: Vec<PathBuf>,
    /// The execution domain, see personality(2).
    pub personality: Option<u32>,
    /// Its init. The capabilities are in the container's confinement.
    pub program: ExecProgram,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub what: What,
    /// Where, in the container.
    pub place: PathBuf,
    /// `ATTR_*` that it gets.
    pub set: u64,
    /// `ATTR_*` that a bind loses before.
    pub clear: u64,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A new filesystem.
    Filesystem {
        /// Its type.
        kind: String,
        /// What it is made of; for most only a name.
        source: String,
        /// Its options.
        options: Vec<(String, Option<String>)>,
    },
    /// A directory or file of the guest.
    Bind {
        /// Which.
        source: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where, below /dev.
    pub place: PathBuf,
    /// Type and permissions, as mknod(2) takes them.
    pub mode: u32,
    /// Its number.
    pub number: u64,
    /// None: root.
    pub uid: Option<u32>,
    /// None: root's.
    pub gid: Option<u32>,
}

impl Left for Plan {
    const FILE: &'static str = "plan";
}
