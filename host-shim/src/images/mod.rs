//! Disk images as root filesystems: what an image is, how several become one root, and how many become one disk.
//!
//! | module | what it is |
//! |---|---|
//! | [`kind`] | which filesystem a file holds, by its magic (pure) |
//! | [`wish`] | what a person says about an image (pure) |
//! | [`image`] | an image that was looked at |
//! | [`stack`] | images as disks of a VM and mounts of a container (pure) |
//! | [`gpt`] | partition tables: written, and read for checking (pure) |
//! | [`pack`] | many images as partitions of one disk |
//!
//! Promises: an image that is given read-only is opened for reading only. Never: starts anything.

pub mod gpt;
pub mod image;
pub mod kind;
pub mod pack;
pub mod stack;
pub mod wish;

/// What a kernel is told so that it boots from a root image on the VM's first disk.
pub const ROOT_IMAGE_CMDLINE: &str = "root=/dev/vda rootfstype=erofs ro init=/sbin/vminitd";

/// The serial of that disk.
pub const ROOT_IMAGE_SERIAL: &str = "root";
