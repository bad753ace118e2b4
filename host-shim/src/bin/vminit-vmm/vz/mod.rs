//! macOS: the hypervisor is Virtualization.framework, which this program alone links: what is in the library is linked
//! by the others too.
//!
//! Owns: all objects of the framework. Never: decides what is configured ([`host_shim::vz::plan`]) or what an owner is
//! told ([`host_shim::vmm::life`]).

mod configuration;
mod delegate;
mod mac;
mod machine;
mod main_loop;
mod power;
mod text;

use std::io;

use host_shim::vmm::hypervisor::Waker;
use host_shim::vmm::life::{Owner, drive as drive_life};
use objc2::MainThreadMarker;

use crate::Flags;
use machine::Vz;
use power::on_wake;

/// Drives the VM of the owner whom `serve` finds, to its end, on this thread: the main one, in `main`. Nothing of
/// Objective-C was touched before.
pub fn drive(_flags: Flags, serve: impl FnOnce(&Waker) -> io::Result<Owner>) -> io::Result<()> {
    let main = MainThreadMarker::new()
        .ok_or_else(|| io::Error::other("a VM can be driven from the main thread only"))?;
    let (waker, wait) = main_loop::alarm(main);
    let owner = serve(&waker)?;
    let wake = waker.clone();
    // Without it, a wake-up is noticed when something else wakes us.
    if let Err(error) = on_wake(move || wake.wake()) {
        eprintln!("vminit-vmm: {error}");
    }
    drive_life(Vz::new(main), owner, wait);
    Ok(())
}
