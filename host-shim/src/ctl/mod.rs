//! VMs that somebody on this host runs: where they are found, and how another program reaches the guest in one.
//!
//! ```text
//! ${XDG_RUNTIME_DIR:-/run}/vminitd/          0700
//!   .lock                                    held while this directory is looked through or changed
//!   <name>/                                  0700, one per VM, removed with it
//!     lock                                   held (flock) as long as the VM's process lives; its pid is in it
//!     ctl.sock                               0600, speaks ctl.proto
//!     console.log                            what the guest has printed, unless it is wanted elsewhere
//!
//! vminitctl exec --- Connect{port} ---> ctl.sock of vminitctl run ---> vminit-vmm ---> guest
//!       ^                                     |
//!       +---- one end of the connection <-----+     (SCM_RIGHTS; from then on without a hop)
//! ```
//!
//! Promises: a directory whose process died, however, is found out by its lock and removed; two VMs never have one
//! name at the same time. Never: knows what a client says to the guest.

mod client;
mod directory;
mod places;
mod server;

pub use client::{Control, ControlError, Description};
pub use directory::{Claim, DirectoryError, Found, claim, find, running};
pub use places::{LookupError, Place, Selector, all, lookup};
pub use server::{About, Attach, Participation, serve};

use vminitd_protocol::pb::vminitd::ctl::v1 as pb;

use crate::vmm::frame::Framed;

impl Framed for pb::Request {
    fn fds(&self) -> u32 {
        self.fds
    }

    fn set_fds(&mut self, count: u32) {
        self.fds = count;
    }
}

impl Framed for pb::Answer {
    fn fds(&self) -> u32 {
        self.fds
    }

    fn set_fds(&mut self, count: u32) {
        self.fds = count;
    }
}

#[cfg(test)]
mod tests;
