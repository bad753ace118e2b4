//! Tests with real containerds and ctr: `./dev test containerd` or part of a name.
//!
//! CI has 2.x in full, with modest counts, and of 1.6 and 1.7 run, exec and kill; the rest is `./dev soak`.
//!
//! | module | what it is about |
//! |---|---|
//! | `around` | what a task has of the host: mounts, names, hooks |
//! | `attach` | others who take part in a task |
//! | `client` | a shim driven by containerd's own client, in Go |
//! | `blows` | containerd killed between any two calls, the agent killed, a shim told to end under a live task |
//! | `cni` | interfaces of a task's network namespace |
//! | `failure` | what dies: shim, VM, containerd |
//! | `life` | run, exec, kill and what else ctr asks of a task |
//! | `look` | `vminitctl` on a VM that a shim owns; other snapshotters |
//! | `network` | networks of tasks |
//! | `protocol` | the start of a shim, in each generation of containerd |
//! | `refused` | VMs that do not come to be, hosts without room |
//! | `rig` | the rig itself, with runc: it works, and it sees what is left behind |
//! | `snapshotters` | root filesystems of other snapshotters than the usual |
//! | `stdio` | output: every byte |
//! | `trouble` | where shims are known to go wrong |

mod around;
mod attach;
mod blows;
mod client;
mod cni;
mod failure;
mod life;
mod look;
mod network;
mod protocol;
mod refused;
mod rig;
mod snapshotters;
mod stdio;
mod trouble;
