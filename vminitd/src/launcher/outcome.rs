//! What a launcher tells init: one datagram on its result socket.

use serde::{Deserialize, Serialize};

/// How a launch went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// There is a process. Fd, if a terminal was wanted: the master of its pty.
    Launched {
        /// In the root pid namespace.
        pid: i32,
    },
    /// The job that makes no process is done.
    Done,
    /// There is nothing.
    Failed {
        /// The whole cause chain, `a: b: c`.
        reason: String,
    },
}
