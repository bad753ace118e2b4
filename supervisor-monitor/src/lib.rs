//! When to start, restart, stop and give up on one process: a policy without a clock and without I/O.
//! Owns: the state of that process as the policy sees it, and the times of its latest restarts.
//! Promises: at most one process at a time; the restart limit holds in every window, however late timers fire;
//! the same events at the same times give the same actions; nothing is allocated after [`Monitor::new`].
//! Never: reads a clock (`no_std`: it has none), sleeps, spawns, signals or logs. Its driver does, and decides nothing.
//!
//! Two rules run on it, with nothing but other parameters: [`Policy::AGENT`] and [`Policy::SUPERVISOR`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod monitor;
mod policy;

pub use monitor::{Action, Actions, Event, Monitor, Refusal, State, Status};
pub use policy::{GaveUp, Limit, Policy, Reset};
