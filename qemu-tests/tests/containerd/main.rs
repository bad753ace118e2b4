//! Tests with real containerds and ctr: `./dev test containerd` or part of a name.
//!
//! | module | what it is about |
//! |---|---|
//! | `rig` | the rig itself, with runc: it works, and it sees what is left behind |

mod rig;
