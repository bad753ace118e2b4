//! The user namespace of the container that an exec joins.
//!
//! libcontainer's exec joins every namespace but this one: the process would be the guest's root,
//! held by nothing but its capabilities. So the launcher joins it before libcontainer looks, keeps
//! the guest's uid 0 as its own until libcontainer sets the process's, and has in that namespace
//! what it needs to join the others.
//!
//! Never: joins what it is in already, which setns(2) refuses.

use std::fs::{File, metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};

/// Joins that of a process. user_namespaces(7).
pub fn join(pid: i32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
    if namespace.metadata()?.ino() == metadata("/proc/self/ns/user")?.ino() {
        return Ok(());
    }
    setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    Ok(())
}
