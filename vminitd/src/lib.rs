//! vminitd: PID 1 of a micro-VM, and the container agent in it. One binary, three roles:
//!
//! * [`init`]: PID 1. Boots, forks, reaps, keeps file descriptors, powers off. One thread.
//! * [`agent`]: serves the host over vsock. Crash-only; init starts it again.
//! * [`launcher`]: a fork of init that runs libcontainer once and exits.
//!
//! And for a person on any host: [`check_kernel`].
//!
//! Between them: [`link`], the socketpair of init and agent. Below them: [`sys`], the only module
//! with `unsafe`, a file per kernel object. What all must agree on: [`config`], [`limits`],
//! [`paths`], [`log`], [`chain()`], and the order of an end: [`shutdown`].
#![deny(unsafe_code)]

pub mod agent;
pub mod chain;
pub mod check_kernel;
pub mod config;
pub mod init;
pub mod launcher;
pub mod limits;
pub mod link;
pub mod log;
pub mod paths;
pub mod shutdown;
pub mod sys;

pub use chain::chain;
