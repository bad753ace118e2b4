//! /var, where the supervisor's log is and where extras may be put.
//!
//! In an initramfs it is like any other directory. In a root on a disk it is read-only and empty: then
//! a tmpfs is mounted on it, when somebody first wants to write there and not at boot.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{AccessFlags, access};

use crate::paths::VAR;

/// Sees to it that files can be made there. Blocks.
pub fn make_writable() -> io::Result<()> {
    match access(Path::new(VAR), AccessFlags::W_OK) {
        Err(Errno::EROFS) if is_empty()? => {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            Ok(mount(Some("tmpfs"), VAR, Some("tmpfs"), flags, Some("mode=0755"))?)
        }
        Err(Errno::ENOENT) => std::fs::create_dir(VAR),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What an image has put there stays to be seen.
fn is_empty() -> io::Result<bool> {
    Ok(std::fs::read_dir(VAR)?.next().is_none())
}
