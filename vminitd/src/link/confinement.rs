//! What a container's processes may do: the capabilities and the system call filter that the
//! launcher puts on a process right before its program runs.
//!
//! Owns: the form of the file that the agent leaves beside a container's record and that the
//! launcher of its init and of each exec reads. It is there before the launch is asked for and
//! stays as long as the container, so an agent that was killed meanwhile loses no filter.
//! Promises: a launcher that cannot read it launches nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use crate::paths::CONFINEMENT;

/// Why there is no such file; then nothing is launched.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// A defect of ours.
    #[error("{path}")]
    Codec {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// No room, or it is not there.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Of the container's init, and of an exec that names none of its own.
    pub capabilities: Capabilities,
    /// Of every process of the container.
    pub filter: Option<Filter>,
}

impl Confinement {
    /// What was left in the directory of a container's record, or of an exec's.
    pub fn read(directory: &Path) -> Result<Confinement, ConfinementError> {
        let path = directory.join(CONFINEMENT);
        match std::fs::read(&path) {
            Ok(bytes) => {
                codec::decode(&bytes).map_err(|source| ConfinementError::Codec { path, source })
            }
            Err(source) => Err(ConfinementError::Io { verb: "read", path, source }),
        }
    }

    /// Leaves it there.
    pub fn save(&self, directory: &Path) -> Result<(), ConfinementError> {
        let path = directory.join(CONFINEMENT);
        match codec::encode(self) {
            Ok(bytes) => std::fs::write(&path, bytes).map_err(|source| ConfinementError::Io {
                verb: "write",
                path,
                source,
            }),
            Err(source) => Err(ConfinementError::Codec { path, source }),
        }
    }
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
