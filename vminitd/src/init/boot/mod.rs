//! The boot, from the kernel's exec to the moment when the agent can be started.
//!
//! [`root`] makes containers' `pivot_root` possible, [`mounts`] mounts what every Linux system
//! has, [`cgroup`] draws the line between us and the containers, [`listeners`] opens the doors,
//! [`settings`] does the rest.

pub mod cgroup;
pub mod listeners;
pub mod mounts;
pub mod root;
pub mod settings;
