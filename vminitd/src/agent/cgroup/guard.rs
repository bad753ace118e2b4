//! Puts device programs on cgroups.
//!
//! Owns: the program that was loaded last. Most containers of a host have the same rules, and the
//! kernel takes longer to check a program than to attach it.
//! Promises: a cgroup has one program of ours, before anything runs in it and until it is removed,
//! whatever becomes of the agent: the cgroup itself holds it.
//! Never: decides who may use what (`devices` does).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::LinuxDeviceCgroup;

use super::devices::{self, RuleError};
use crate::agent::lock;
use crate::sys::bpf::{self, Instruction};

/// Why a cgroup's devices are not guarded; then nothing is launched in it.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A rule of the host's.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The kernel's answer to the program.
    #[error("load the program of the device rules")]
    Load(#[source] io::Error),
    /// The kernel's answer to where it belongs.
    #[error("attach the device rules to {path}")]
    Attach {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What loads programs.
#[derive(Debug, Default)]
pub struct Guard(Mutex<Option<(Vec<Instruction>, Program)>>);

/// A program that the kernel has taken.
#[derive(Clone, Debug)]
pub struct Program(Arc<OwnedFd>);

impl Guard {
    /// The program for these rules.
    pub fn program(&self, rules: &[LinuxDeviceCgroup]) -> Result<Program, GuardError> {
        let instructions = devices::program(rules)?;
        let last = lock(&self.0).clone();
        if let Some((_, program)) = last.filter(|(known, _)| *known == instructions) {
            return Ok(program);
        }
        let loaded = bpf::load_device_program(&instructions).map_err(GuardError::Load)?;
        let program = Program(Arc::new(loaded));
        *lock(&self.0) = Some((instructions, program.clone()));
        Ok(program)
    }
}

impl Program {
    /// Makes it the cgroup's, in place of the one before.
    pub fn attach(&self, cgroup: &Path) -> Result<(), GuardError> {
        File::open(cgroup)
            .and_then(|directory| bpf::attach_device_program(directory.as_fd(), self.0.as_fd()))
            .map_err(|source| GuardError::Attach { path: cgroup.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where this machine lets us: the kernel itself checks the longest program there may be.
    #[test]
    fn kernel_takes_the_program_of_any_rules() {
        let guard = Guard::default();
        let rule = r#"{"allow":false,"type":"c","major":7,"minor":8,"access":"rw"}"#;
        let rule: LinuxDeviceCgroup = serde_json::from_str(rule).unwrap();
        for count in [0, 1, crate::limits::DEVICE_RULES] {
            match guard.program(&vec![rule.clone(); count]) {
                Err(GuardError::Load(error))
                    if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) =>
                {
                    eprintln!("skipped: bpf(2) says {error}");
                    return;
                }
                loaded => drop(loaded.unwrap()),
            }
        }
        let again = guard.program(&[]).unwrap();
        assert!(Arc::ptr_eq(&again.0, &guard.program(&[]).unwrap().0), "loaded once");
    }
}
