//! What Virtualization.framework is to be told, and what is made of its answers.
//!
//! What is to be configured is decided in [`plan`], and what is said of a failure in [`failure`]; both are compiled and
//! tested on every system. What applies a plan is in vminit-vmm (`src/bin/vminit-vmm/vz/`), which alone links the
//! framework, and decides nothing. So a Mac is needed only to see that the framework takes what is planned.

pub mod failure;
pub mod plan;
