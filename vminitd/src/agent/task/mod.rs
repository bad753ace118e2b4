//! containerd's Task API: an RPC a file.
//!
//! [`service`] routes calls to `create`, `start` and so on, under both of the API's versions; [`streams_service`] is
//! ours beside it.
//! [`container`] and [`process`] are what they work on, found in [`table`]; [`record`] is what of
//! them outlives the agent, [`restore`] rebuilds them from it; [`cleanup`] removes what a container
//! leaves, for Delete, for a Create that failed, and for one whose agent died.

pub mod attach;
pub mod cleanup;
pub mod close_io;
pub mod connect;
pub mod container;
pub mod create;
pub mod delete;
pub mod exec;
pub mod io;
pub mod kept;
pub mod kill;
pub mod loggers;
pub mod oom;
pub mod pause;
pub mod pids;
pub mod process;
pub mod record;
pub mod resize_pty;
pub mod restore;
pub mod series;
pub mod service;
pub mod shutdown;
pub mod start;
pub mod start_exec;
pub mod state;
pub mod stats;
pub mod streams_service;
pub mod table;
pub mod update;
pub mod wait;
