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
mod layers;
mod logger;
mod process;
mod rootfs;
mod sandbox;
pub mod share;
mod shim;
mod size;
mod spec;
mod stdio;

pub use shim::{Settings, Shim};
