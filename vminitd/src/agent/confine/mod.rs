//! What a container's processes may do, out of its config: [`capabilities`] and the system call
//! filter ([`seccomp`], compiled once per profile by [`cache`]).
//!
//! libcontainer would do both: it compiles the filter anew for each container (43 ms for containerd's
//! default) and none for an exec, leaves a process every capability of a set that the config does
//! not name, and mistakes the two values of a masked comparison for each other. So both are taken out of the config that it sees,
//! and the launcher puts them on the process instead, right before its program runs
//! (`launcher/confined.rs`).
//!
//! Owns: what is in the file with both beside a container's record (`link/confinement.rs`).

pub mod cache;
pub mod capabilities;
mod names;
pub mod seccomp;
