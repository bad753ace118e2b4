//! What every hypervisor is to vminit-vmm: orders in, facts out.
//!
//! Owns: the words of that boundary. Promises: all that is said to an owner is said by [`super::life`] from these facts,
//! so that what holds with one hypervisor (QEMU, Virtualization.framework, a program like vfkit) holds with all.
//! Never: knows an owner, a request's number or a message.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::Exited;
use super::server::Files;
use crate::vm::{Description, Disk, MacAddress, Serial};

/// Names an order that is answered later, by a [`Fact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask(pub u64);

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Whose fault.
    pub code: ErrorCode,
    /// For people.
    pub text: String,
}

impl Refusal {
    /// A refusal with these words.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// What has no VM can do nothing.
    pub fn no_vm() -> Self {
        Self::new(ErrorCode::State, "there is no VM yet; start one first")
    }
}

/// One VM and what runs it. All calls come from one thread, the process's main one, and none may block on the guest.
pub trait Hypervisor {
    /// What must live as long as a connection to the guest does; dropped when the owner has released it.
    type Kept;

    /// Begins to make and run the VM; called once. A refusal is the end.
    fn start(&mut self, vm: Box<Description>, files: Files, now: Instant) -> Result<(), Refusal>;

    /// Dials the guest. Answer: [`Fact::Connected`] or [`Fact::Refused`].
    fn connect(&mut self, port: u32, ask: Ask);

    /// Takes what the guest has dialled.
    fn accept(&mut self, dial: u64) -> Result<(), Refusal>;

    /// Gives the guest one more disk. Answer: [`Fact::Done`] or [`Fact::Refused`].
    fn attach_disk(&mut self, disk: Disk, file: OwnedFd, ask: Ask);

    /// Takes it away again. Answer: [`Fact::Done`] or [`Fact::Refused`].
    fn detach_disk(&mut self, serial: &Serial, ask: Ask, now: Instant);

    /// Gives the guest one more interface, connected to a tap. Answer: [`Fact::Done`] or [`Fact::Refused`].
    fn attach_tap(&mut self, _mac: MacAddress, _tap: OwnedFd, _ask: Ask) -> Result<(), Refusal> {
        Err(Refusal::new(ErrorCode::Invalid, "no interface can be given to a running VM here"))
    }

    /// Takes one away again. Answer: [`Fact::Done`] or [`Fact::Refused`].
    fn detach_nic(&mut self, _mac: MacAddress, _ask: Ask, _now: Instant) -> Result<(), Refusal> {
        Err(Refusal::new(ErrorCode::Invalid, "no interface can be taken from a running VM here"))
    }

    /// Writes the VM's state to a new file. Answer: [`Fact::Done`] or [`Fact::Refused`].
    fn save(&mut self, path: &Path, ask: Ask);

    /// Asks the guest to power off.
    fn power_button(&mut self) -> Result<(), Refusal>;

    /// Ends the VM, with what its disks hold written back. Its end is a fact.
    fn stop(&mut self, now: Instant);

    /// Ends the VM now. Its end is a fact.
    fn kill(&mut self);

    /// The machine has slept: what depends on time or on a peer's patience is looked after.
    fn woke(&mut self);

    /// What it says of the VM, in its own words; for an error about a VM that does not come up.
    fn state(&self) -> String;

    /// What has happened, one thing at a time; `None`: no more for now. Called after each wake-up and each order.
    fn poll(&mut self, now: Instant) -> Option<Fact<Self::Kept>>;

    /// When `poll` is to be called though nobody has woken the thread.
    fn deadline(&self) -> Option<Instant>;

    /// After the VM's end: whether connections, of which the owner has this many, may hold bytes for it.
    fn lingers(&self, connections: usize) -> bool;
}

/// What has happened to a VM.
#[derive(Debug)]
pub enum Fact<K> {
    /// It runs.
    Running {
        /// For people: `kvm`, `tcg`, `vz`.
        accelerator: String,
        /// Why it is not the fastest, or less than was wished; empty when it is neither.
        reason: String,
        /// The process that runs the guest; 0 when it is this one.
        pid: u32,
    },
    /// The guest took a connection.
    Connected {
        /// The order.
        ask: Ask,
        /// The owner's end.
        stream: OwnedFd,
        /// Lives until it is released.
        kept: K,
    },
    /// The guest dials an allowed port.
    Dialed {
        /// The host's port.
        port: u32,
        /// For [`Hypervisor::accept`].
        dial: u64,
        /// The owner's end.
        stream: OwnedFd,
        /// Lives until it is released.
        kept: K,
    },
    /// An order was carried out.
    Done {
        /// The order.
        ask: Ask,
    },
    /// An order was not.
    Refused {
        /// The order.
        ask: Ask,
        /// Why.
        refusal: Refusal,
    },
    /// Time has passed that the guest knows nothing of.
    Slept,
    /// The VM is gone. The last fact.
    Ended(Exited),
}

/// Wakes the thread that drives the VM; from any thread, any number of times.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// `wake` must not block, and what it wakes must look again though it was awake.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(wake))
    }

    /// Wakes it.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}
