//! Linux: one VM in QEMU, driven from vminit-vmm's main thread.
//!
//! ```text
//!        Start                 verdict                  QMP greeting
//! Idle ---------> Choosing ---------------> Booting ------------------> Running
//!                    |                         |                          |
//!                    |                         |  QEMU dead and its last words heard
//!                    +------- any end ---------+-----------> Told <-------+
//!
//! any state --- the owner is gone ---> Over
//! ```
//!
//! A helper that is lost, Stop and Kill lead to QEMU's end, and by that to `Told`.
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

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};

pub use machine::run;

use crate::vmm::server::{Order, Outbox, Writer};
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
pub enum Happening {
    /// The owner wants something.
    Order(Order),
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
}

/// Where happenings come from and go to.
#[derive(Debug)]
pub struct Wires {
    /// The queue's end.
    pub happenings: Receiver<Happening>,
    /// Where to send more.
    pub happen: Sender<Happening>,
    /// The owner.
    pub outbox: Outbox,
    /// What brings it the news.
    pub writer: Writer,
}
