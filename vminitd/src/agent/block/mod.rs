//! Block devices: how a mount's source becomes a device of this VM.
//!
//! ```text
//! "serial:data:2" --source--> Source --find--> scan of /sys/block ----- there: /dev/vdb2
//!                                               |                 ^
//!                                        not there: listen, scan again with each uevent
//! ```
//!
//! Owns: the forms of a source, the waiting for a device that is yet to come, and devices whose
//! content is checked as it is read ([`verity`]).
//! Promises: nothing is opened, listened to or waited for until a source names a device that is not
//! there; nothing is polled.
//! Never: reads what is on a device, but a verity superblock; partition tables are the kernel's to
//! read.

pub mod find;
pub mod kernel_log;
pub mod scan;
pub mod source;
pub mod superblock;
pub mod uevent;
pub mod verity;
