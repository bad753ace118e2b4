//! Tasks and the VM that they run in.
//!
//! ```text
//! Create --> Sandbox (the VM, once) --> shared root, disks --> stdio --> guest: Bundle.Create, Task.Create
//! Start, Exec, Kill, ...            --> guest
//! guest's events --> a lane per container: exits wait for their output --> Publisher
//! the VM's end   --> exits for all that ran
//! ```
//!
//! Owns: all that a task has on the host. Never: knows how containerd calls.

mod around;
mod calls;
mod cgroup;
mod create;
mod events;
pub mod failure;
pub mod hooks;
#[cfg(target_os = "linux")]
mod interfaces;
#[cfg(target_os = "linux")]
mod layers;
mod logger;
pub mod netns;
mod network;
mod options;
// Where tests run, its own are among them.
#[cfg(any(not(target_os = "linux"), test))]
#[cfg_attr(target_os = "linux", allow(dead_code))]
pub mod plain_share;
mod process;
mod rootfs;
mod sandbox;
#[cfg(target_os = "linux")]
pub mod share;
mod shim;
mod size;
mod spec;
mod stdio;
mod tap;

#[cfg(target_os = "linux")]
pub use interfaces::give_back;
#[cfg(not(target_os = "linux"))]
pub use plain_share as share;
pub use shim::{Settings, Shim};
