//! What containerd and a shim say to each other. Never: knows of a VM.

pub mod address;
pub mod bootstrap;
pub mod delete;
pub mod flags;
pub mod info;
pub mod log;
pub mod publish;
pub mod service;
pub mod start;
