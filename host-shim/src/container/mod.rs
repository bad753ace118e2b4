//! Containers as a host makes them: specs, root filesystems, volumes.
//!
//! Promises: what the host gives read-only stays as it is; a container writes to a tmpfs or to an image above it.
//! Never: talks to a guest.

mod rootfs;
mod shares;
mod spec;
pub mod user_network;
mod volume;

pub use rootfs::{Rootfs, shared_rootfs};
pub use shares::{FILE_IN_SHARE, Placed, ShareError, Shares};
pub use spec::{DEFAULT_CAPABILITIES, ProcessWish, default_spec};
pub use volume::{TmpfsWish, TmpfsWishError, VolumeWish, VolumeWishError};
