//! Containers as a host makes them: specs and root filesystems.
//!
//! Promises: the host's directories stay as they are; a container writes to a tmpfs above them.
//! Never: talks to a guest.

mod rootfs;
mod spec;

pub use rootfs::shared_rootfs;
pub use spec::{DEFAULT_CAPABILITIES, ProcessWish, default_spec};
