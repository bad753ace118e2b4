//! A process's life and the order of exits, as functions without I/O; the drivers are in `task/`.

pub mod exit_order;
pub mod lifecycle;
