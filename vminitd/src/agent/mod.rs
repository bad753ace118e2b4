//! The agent: serves the host over vsock. Crash-only.
#![allow(missing_docs)]

pub mod bundle;
pub mod cgroup;
pub mod dirs;
pub mod errors;
pub mod events;
pub mod id;
pub mod init_client;
pub mod mounts;
pub mod process;
pub mod profile;
pub mod server;
pub mod spec;
pub mod stdio;

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::Config;

/// The agent's life.
pub fn run(_config: Config) -> ExitCode {
    ExitCode::FAILURE
}

/// Locks for a short section without await or system call that can block. A section that panicked
/// has left nothing half done that a lock would guard: each of ours is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
