//! Linux: the hypervisor is QEMU.

use std::io;

use host_shim::locate::cache_dir;
use host_shim::qemu::{Qemu, Tools};
use host_shim::vmm::hypervisor::Waker;
use host_shim::vmm::life::{Owner, alarm, drive as drive_life};

use crate::Flags;

/// Drives the VM of the owner whom `serve` finds, to its end, on this thread: the children are tied to it.
pub fn drive(flags: Flags, serve: impl FnOnce(&Waker) -> io::Result<Owner>) -> io::Result<()> {
    let (waker, wait) = alarm();
    let owner = serve(&waker)?;
    let tools = Tools { qemu: flags.qemu, virtiofsd: flags.virtiofsd, cache: cache_dir() };
    drive_life(Qemu::new(tools, waker), owner, wait);
    Ok(())
}
