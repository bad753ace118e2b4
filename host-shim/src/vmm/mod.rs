//! The control socket between a VM's owner and its vminit-vmm, both ends of it, on any system.
//!
//! ```text
//!   owner (shim, vminitctl)                  vminit-vmm
//!   client::Vmm --- frame --- socket --- frame --- server ---> Order ---> life --- orders ---> a hypervisor
//!        ^                                            ^                    |                       |
//!        +----------- Notice (replies, events) -------+------ Outbox <-----+ <------ facts --------+
//! ```
//!
//! `life` and the hypervisor below it are on the main thread; `server` has threads of its own.
//!
//! Owns: framing, request numbers, passing of descriptors, how long a connection is kept, and what becomes of all this
//! when either side dies or is slow. So it is one code for QEMU, Virtualization.framework and what else runs a VM.
//! Never: knows what that is ([`hypervisor::Hypervisor`] is all that it sees).

pub mod client;
mod connection;
pub mod frame;
pub mod hypervisor;
pub mod life;
mod origin;
pub mod paths;
pub mod server;
pub mod sleep;

pub use connection::{GuestReader, GuestStream, GuestWriter, Released};

/// The version of vmm.proto's meaning that this code speaks.
pub const PROTOCOL: u32 = 1;

/// Why a VM is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest restarted, by its own will or in a panic: the console tells.
    Reboot,
    /// The guest told the machine that it panicked.
    Panic,
    /// Its owner asked for it.
    Killed,
    /// What ran the guest, or served it a directory, ended by itself.
    Crashed,
    /// vminit-vmm itself ended without a word.
    VmmDied,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power-off",
            Self::Reboot => "reboot",
            Self::Panic => "panic",
            Self::Killed => "killed",
            Self::Crashed => "crashed",
            Self::VmmDied => "vminit-vmm died",
        })
    }
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Why.
    pub reason: ExitReason,
    /// What else is known, for people; may be empty.
    pub detail: String,
}

impl std::fmt::Display for Exited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.detail.as_str() {
            "" => write!(f, "{}", self.reason),
            detail => write!(f, "{} ({detail})", self.reason),
        }
    }
}
