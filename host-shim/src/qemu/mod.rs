//! Linux: one VM in QEMU, driven from vminit-vmm's main thread.
//!
//! ```text
//!        start                 verdict                  QMP greeting
//! Idle ---------> Choosing ---------------> Booting ------------------> Running
//!                    |                         |                          |
//!                    |                         |  QEMU dead and its last words heard
//!                    +------- any end ---------+-----------> Ended <------+
//! ```
//!
//! A helper that is lost, stop and kill lead to QEMU's end, and by that to `Ended`.
//!
//! Owns: QEMU, the virtiofsd of each share, and the vsock device. Promises: all of them end with the first of: the
//! guest, any one of them, the owner, this process; the owner is told why; nothing is left in the filesystem.
//! Never: blocks on the guest or on its owner. It must run on the main thread, to which the kernel ties the children
//! ([`crate::sys::child`]).

pub mod accelerator;
pub mod args;
pub mod board;
mod hotplug;
mod machine;
pub mod process;
pub mod qmp;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

pub use machine::Qemu;

use crate::vmm::hypervisor::{Ask, Waker};
use crate::vsock::ConnectError;
use accelerator::Choice;

/// What a machine works with.
#[derive(Clone, Debug)]
pub struct Tools {
    /// QEMU; looked for when absent.
    pub qemu: Option<PathBuf>,
    /// virtiofsd; looked for when absent and a directory is shared.
    pub virtiofsd: Option<PathBuf>,
    /// Where verdicts on accelerators are kept.
    pub cache: Option<PathBuf>,
}

/// What happens to a machine. Facts, from many threads, in one queue.
#[derive(Debug)]
enum Happening {
    /// It is known what can execute the guest.
    Chosen(Choice),
    /// QEMU said something.
    Qmp(qmp::Message),
    /// QEMU will say no more.
    QmpClosed,
    /// QEMU is dead.
    QemuEnded,
    /// The daemon of the share with this index is dead.
    ShareEnded(usize),
    /// The vsock device has ended, for this reason.
    VsockEnded(String),
    /// The guest was dialled.
    Connected(Ask, Result<OwnedFd, ConnectError>),
    /// The guest dials.
    Dialed { port: u32, dial: u64, stream: OwnedFd },
}

/// Where happenings go.
#[derive(Clone, Debug)]
struct Post {
    sender: Sender<Happening>,
    waker: Waker,
}

impl Post {
    fn send(&self, happening: Happening) {
        // Nobody takes it any more: then it is of no use.
        let _ = self.sender.send(happening);
        self.waker.wake();
    }
}
