//! The boot: first what the agent needs to serve, and when it serves, [`rest`].
//!
//! [`root`] makes containers' `pivot_root` possible, [`mounts`] mounts what every Linux system
//! has, [`cgroup`] draws the line between us and the containers, [`listeners`] opens the doors,
//! [`settings`] does the rest.

pub mod cgroup;
pub mod listeners;
pub mod mounts;
pub mod rest;
pub mod root;
pub mod settings;
