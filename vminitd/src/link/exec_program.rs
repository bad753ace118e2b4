//! What an exec runs, and as whom: an OCI process in the form in which the launcher takes it.
//!
//! Owns: the form of the file that the agent leaves in the exec's directory. A file and not a part
//! of the launch, since arguments and environment may be longer than a message.
//! Promises: a launcher that cannot read it launches nothing.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::confinement::Capabilities;
use crate::sys::process::Scheduling;

/// The file's name, in the exec's directory.
const FILE: &str = "program";

/// Why there is no such file; then nothing is launched.
#[derive(Debug, thiserror::Error)]
pub enum ExecProgramError {
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

impl ExecProgram {
    /// Where it is, in an exec's directory.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join(FILE)
    }

    /// Reads what was left at `path`.
    pub fn read(path: &Path) -> Result<ExecProgram, ExecProgramError> {
        match std::fs::read(path) {
            Ok(bytes) => codec::decode(&bytes)
                .map_err(|source| ExecProgramError::Codec { path: path.into(), source }),
            Err(source) => Err(ExecProgramError::Io { verb: "read", path: path.into(), source }),
        }
    }

    /// Leaves it in an exec's directory.
    pub fn save(&self, directory: &Path) -> Result<(), ExecProgramError> {
        let path = Self::path(directory);
        match codec::encode_file(self) {
            Ok(bytes) => std::fs::write(&path, bytes).map_err(|source| ExecProgramError::Io {
                verb: "write",
                path,
                source,
            }),
            Err(source) => Err(ExecProgramError::Codec { path, source }),
        }
    }
}
