//! The rig for containerd: real daemons of several versions, each on a host of its own within this one, with an image
//! that was made here.
//!
//! ```text
//! Containerd --- owns ---> Host: mount, pid and network namespace, whose init reaps
//!     | ctr ...              /run        a tmpfs: containerd's state and sockets, shims' bundles, /run/netns
//!     v                      its pids    everything that anything in there has started, whoever is its parent now
//!   nsenter ------------->   its end     kills all of it
//! ```
//!
//! Promises: nothing of a containerd that the machine's owner runs is touched or seen; whatever a test leaves running,
//! mounted, listening or lying about fails it, and is gone afterwards. What could not be fetched is skipped aloud.
//! Never: needs a registry.

mod alone;
mod daemon;
mod host;
mod image;
mod version;

pub use alone::{LoneShim, bootstrap_params, call_shim, config, field};
pub use daemon::{
    Containerd, Events, IMAGE, Runtime, SetUp, with_containerd, with_containerd_set_up,
};
pub use host::{Host, Outcome, Process};
pub use image::image;
pub use version::{Version, version};
