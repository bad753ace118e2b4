//! Disks and network interfaces that come and go while the guest runs, over QMP. A core without I/O.
//! (An interface has a descriptor and a netdev where a disk has an fd set and a block node.)
//!
//! ```text
//!        attach             add-fd            blockdev-add           device_add
//! Free ----------> AddsFd ----------> AddsNode -----------> AddsDevice --------> Attached
//!  ^                 | failed            | failed               | failed          |   ^
//!  |<----------------+                   v                      v          detach |   | refused, or too late
//!  +---------- RemovesFd <------------------------------ RemovesNode <--- Unplugs +---+
//!                                                          (DEVICE_DELETED: the guest let it go)
//! ```
//!
//! Owns: which slot of the board has what. In: [`Hotplug::attach`], [`Hotplug::detach`], and what QEMU says; out:
//! actions, to be carried out in their order.
//! Promises: each attach and detach is answered once; whatever fails, QEMU is left as it was before; a slot and a serial
//! are given once.
//! Never: reads a clock (`now` is an argument), writes to QEMU, or looks at an image.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde_json::{Value, json};
use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::args::hot_name as name;
use super::board::Board;
use crate::limits::UNPLUG_TIMEOUT;
use crate::vm::{HotplugSlots, MacAddress, Serial};

/// fd sets below this number are those of QEMU's command line.
const FIRST_FD_SET: usize = 1000;

/// The slots of one VM. `R` is the promise of an answer.
#[derive(Debug)]
pub struct Hotplug<R> {
    board: &'static Board,
    slots: Vec<Slot<R>>,
    /// Serials of the disks that were there from the start.
    cold: Vec<Serial>,
    /// How many commands were sent: names their answers.
    sent: u64,
}

/// What an owner wants to attach.
#[derive(Debug)]
pub struct NewDisk {
    /// Its name in the guest.
    pub serial: Serial,
    /// The guest cannot write it.
    pub read_only: bool,
    /// The image is a block device of the host's, not a file.
    pub host_device: bool,
    /// The image.
    pub file: OwnedFd,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action<R> {
    /// Tell QEMU.
    Send {
        /// A line.
        line: String,
        /// A descriptor that rides along.
        fd: Option<OwnedFd>,
    },
    /// The request is carried out.
    Done(R),
    /// The request is refused or has failed.
    Failed {
        /// Whose.
        reply: R,
        /// Whose fault.
        code: ErrorCode,
        /// Why.
        text: String,
    },
}

#[derive(Debug)]
enum Slot<R> {
    Free,
    Taken {
        what: What,
        phase: Phase,
        /// The command that QEMU has yet to answer.
        command: Option<u64>,
        /// Who waits; nobody when a guest lets go later than was waited for.
        reply: Option<R>,
        /// Why what is being undone has failed.
        failure: Option<String>,
    },
}

/// What is in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Disk { serial: Serial, read_only: bool, host_device: bool },
    Nic(MacAddress),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk { serial, .. } => write!(f, "disk {:?}", serial.as_str()),
            Self::Nic(mac) => write!(f, "interface {mac}"),
        }
    }
}

/// What a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AddsFd,
    AddsNode,
    AddsDevice,
    Attached,
    Unplugs { until: Instant },
    RemovesNode,
    RemovesFd,
}

impl<R> Hotplug<R> {
    /// With so many slots, beside disks that are there from the start. `nics` are there from the start too, but can be
    /// taken away: they have the last slots (see `args::removable_slot`).
    pub fn new(
        board: &'static Board,
        slots: HotplugSlots,
        cold: Vec<Serial>,
        nics: &[MacAddress],
    ) -> Self {
        let mut slots: Vec<Slot<R>> = (0..slots.get()).map(|_| Slot::Free).collect();
        for (slot, mac) in slots.iter_mut().rev().zip(nics) {
            let (what, phase) = (What::Nic(*mac), Phase::Attached);
            *slot = Slot::Taken { what, phase, command: None, reply: None, failure: None };
        }
        Self { board, slots, cold, sent: 0 }
    }

    /// Attaches a disk. It is answered when QEMU has it; the guest finds it a moment later.
    pub fn attach(&mut self, disk: NewDisk, reply: R) -> Vec<Action<R>> {
        let NewDisk { serial, read_only, host_device, file } = disk;
        if self.cold.contains(&serial) || self.index_of(&serial).is_some() {
            let text = format!("a disk {:?} is attached already", serial.as_str());
            return refused(reply, ErrorCode::Invalid, text);
        }
        self.take(What::Disk { serial, read_only, host_device }, file, reply)
    }

    /// Attaches an interface to a tap; answered likewise.
    pub fn attach_tap(&mut self, mac: MacAddress, tap: OwnedFd, reply: R) -> Vec<Action<R>> {
        let nic = What::Nic(mac);
        if self.slots.iter().any(|slot| matches!(slot, Slot::Taken { what, .. } if *what == nic)) {
            return refused(reply, ErrorCode::Invalid, format!("there is an {nic} already"));
        }
        self.take(nic, tap, reply)
    }

    fn take(&mut self, what: What, file: OwnedFd, reply: R) -> Vec<Action<R>> {
        let Some(index) = self.slots.iter().position(|slot| matches!(slot, Slot::Free)) else {
            let text = match self.slots.len() {
                0 => "this VM was started without slots for disks to attach".to_owned(),
                slots => format!("all {slots} slots for disks to attach are taken"),
            };
            return refused(reply, ErrorCode::State, text);
        };
        let line = add_fd(index, &what);
        let (phase, command, failure) = (Phase::AddsFd, None, None);
        self.slots[index] = Slot::Taken { what, phase, command, reply: Some(reply), failure };
        vec![self.send(index, line, Some(file))]
    }

    /// Takes a disk away. It is answered when the guest has let it go.
    pub fn detach(&mut self, serial: &Serial, reply: R, now: Instant) -> Vec<Action<R>> {
        if self.cold.contains(serial) {
            let text = format!("disk {:?} is there for the VM's whole life", serial.as_str());
            return refused(reply, ErrorCode::State, text);
        }
        let Some(index) = self.index_of(serial) else {
            let text = format!("no disk {:?} is attached", serial.as_str());
            return refused(reply, ErrorCode::Invalid, text);
        };
        self.unplug(index, reply, now)
    }

    /// Takes an interface away; answered likewise.
    pub fn detach_nic(&mut self, mac: MacAddress, reply: R, now: Instant) -> Vec<Action<R>> {
        let nic = What::Nic(mac);
        let is = |slot: &Slot<R>| matches!(slot, Slot::Taken { what, .. } if *what == nic);
        match self.slots.iter().position(is) {
            Some(index) => self.unplug(index, reply, now),
            None => refused(reply, ErrorCode::Invalid, format!("no {nic} can be taken away")),
        }
    }

    fn unplug(&mut self, index: usize, reply: R, now: Instant) -> Vec<Action<R>> {
        let Slot::Taken { what, phase, reply: waits, .. } = &mut self.slots[index] else {
            return Vec::new();
        };
        if *phase != Phase::Attached {
            let text = format!("{what} is being attached or detached");
            return refused(reply, ErrorCode::State, text);
        }
        *phase = Phase::Unplugs { until: now + UNPLUG_TIMEOUT };
        *waits = Some(reply);
        let line = json!({"execute": "device_del", "arguments": {"id": name(index)}});
        vec![self.send(index, line, None)]
    }

    /// QEMU has answered the command with this number: that it is done, or why not.
    pub fn answered(&mut self, command: u64, result: Result<(), String>) -> Vec<Action<R>> {
        let mine =
            |slot: &Slot<R>| matches!(slot, Slot::Taken { command: Some(c), .. } if *c == command);
        let Some(index) = self.slots.iter().position(mine) else { return Vec::new() };
        let Slot::Taken { what, phase, command, reply, failure } = &mut self.slots[index] else {
            return Vec::new();
        };
        *command = None;
        match (*phase, result) {
            (Phase::AddsFd, Ok(())) => {
                let line = add_node(index, what);
                self.go_on(index, Phase::AddsNode, line)
            }
            (Phase::AddsFd, Err(text)) => {
                *failure = Some(text);
                self.free(index)
            }
            (Phase::AddsNode, Ok(())) => {
                let line = add_device(self.board, index, what);
                self.go_on(index, Phase::AddsDevice, line)
            }
            (Phase::AddsNode, Err(text)) => {
                *failure = Some(text);
                let line = remove_fd(index, what);
                self.go_on(index, Phase::RemovesFd, line)
            }
            (Phase::AddsDevice, Ok(())) => {
                *phase = Phase::Attached;
                reply.take().map(Action::Done).into_iter().collect()
            }
            (Phase::AddsDevice, Err(text)) => {
                *failure = Some(text);
                let line = remove_node(index, what);
                self.go_on(index, Phase::RemovesNode, line)
            }
            // The guest is asked; it will tell.
            (Phase::Unplugs { .. }, Ok(())) => Vec::new(),
            (Phase::Unplugs { .. }, Err(text)) => self.stays(index, text),
            // What cannot be removed is of no use to anybody; the rest shall still go.
            // A netdev took its descriptor along.
            (Phase::RemovesNode, _) if matches!(what, What::Nic(_)) => self.free(index),
            (Phase::RemovesNode, _) => {
                let line = remove_fd(index, what);
                self.go_on(index, Phase::RemovesFd, line)
            }
            (Phase::RemovesFd, _) => self.free(index),
            (Phase::Attached, _) => Vec::new(),
        }
    }

    /// QEMU says that a device is gone.
    pub fn deleted(&mut self, device: &str) -> Vec<Action<R>> {
        let Some(index) = self.index_by_name(device) else { return Vec::new() };
        match &self.slots[index] {
            Slot::Taken { what, phase: Phase::Attached | Phase::Unplugs { .. }, .. } => {
                let line = remove_node(index, what);
                self.go_on(index, Phase::RemovesNode, line)
            }
            Slot::Taken { .. } | Slot::Free => Vec::new(),
        }
    }

    /// QEMU says that the guest keeps a device.
    pub fn kept(&mut self, device: &str) -> Vec<Action<R>> {
        match self.index_by_name(device) {
            Some(index) if self.unplugs_until(index).is_some() => {
                self.stays(index, "the guest refused to let it go".to_owned())
            }
            _ => Vec::new(),
        }
    }

    /// When [`Hotplug::late`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        (0..self.slots.len()).filter_map(|index| self.unplugs_until(index)).min()
    }

    /// Gives up on guests that did not let go in time. One that does later is believed.
    pub fn late(&mut self, now: Instant) -> Vec<Action<R>> {
        let mut actions = Vec::new();
        for index in 0..self.slots.len() {
            if self.unplugs_until(index).is_some_and(|until| until <= now) {
                let text = format!("the guest did not let it go in {} s", UNPLUG_TIMEOUT.as_secs());
                actions.extend(self.stays(index, text));
            }
        }
        actions
    }

    fn unplugs_until(&self, index: usize) -> Option<Instant> {
        match &self.slots[index] {
            Slot::Taken { phase: Phase::Unplugs { until }, .. } => Some(*until),
            Slot::Taken { .. } | Slot::Free => None,
        }
    }

    fn index_of(&self, serial: &Serial) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| matches!(slot, Slot::Taken { what: What::Disk { serial: s, .. }, .. } if s == serial))
    }

    fn index_by_name(&self, device: &str) -> Option<usize> {
        (0..self.slots.len()).find(|index| name(*index) == device)
    }

    fn go_on(&mut self, index: usize, next: Phase, line: Value) -> Vec<Action<R>> {
        if let Slot::Taken { phase, .. } = &mut self.slots[index] {
            *phase = next;
        }
        vec![self.send(index, line, None)]
    }

    fn send(&mut self, index: usize, mut line: Value, fd: Option<OwnedFd>) -> Action<R> {
        self.sent += 1;
        if let Slot::Taken { command, .. } = &mut self.slots[index] {
            *command = Some(self.sent);
        }
        line["id"] = self.sent.into();
        Action::Send { line: format!("{line}\n"), fd }
    }

    /// A detach that failed.
    fn stays(&mut self, index: usize, text: String) -> Vec<Action<R>> {
        let Slot::Taken { what, phase, reply, .. } = &mut self.slots[index] else {
            return Vec::new();
        };
        *phase = Phase::Attached;
        let text = format!("detach {what}: {text}");
        let failed = |reply| Action::Failed { reply, code: ErrorCode::Failed, text };
        reply.take().map(failed).into_iter().collect()
    }

    fn free(&mut self, index: usize) -> Vec<Action<R>> {
        let Slot::Taken { what, reply, failure, .. } =
            std::mem::replace(&mut self.slots[index], Slot::Free)
        else {
            return Vec::new();
        };
        let answer = |reply| match failure {
            None => Action::Done(reply),
            Some(text) => {
                let text = format!("attach {what}: {text}");
                Action::Failed { reply, code: ErrorCode::Failed, text }
            }
        };
        reply.map(answer).into_iter().collect()
    }
}

fn refused<R>(reply: R, code: ErrorCode, text: String) -> Vec<Action<R>> {
    vec![Action::Failed { reply, code, text }]
}

fn add_fd(index: usize, what: &What) -> Value {
    match what {
        What::Disk { .. } => {
            json!({"execute": "add-fd", "arguments": {"fdset-id": FIRST_FD_SET + index}})
        }
        What::Nic(_) => json!({"execute": "getfd", "arguments": {"fdname": name(index)}}),
    }
}

fn add_node(index: usize, what: &What) -> Value {
    let What::Disk { read_only, host_device, .. } = what else {
        let arguments = json!({"type": "tap", "id": name(index), "fd": name(index)});
        return json!({"execute": "netdev_add", "arguments": arguments});
    };
    let driver = if *host_device { "host_device" } else { "file" };
    let file = format!("/dev/fdset/{}", FIRST_FD_SET + index);
    let arguments = json!({
        "driver": "raw", "node-name": name(index), "read-only": read_only, "auto-read-only": false,
        // As with the disks that are there from the start.
        "cache": {"no-flush": false},
        "file": {"driver": driver, "filename": file, "read-only": read_only, "auto-read-only": false},
    });
    json!({"execute": "blockdev-add", "arguments": arguments})
}

fn add_device(board: &Board, index: usize, what: &What) -> Value {
    let mut arguments = match what {
        What::Disk { serial, .. } => {
            json!({"driver": "virtio-blk-pci", "drive": name(index), "serial": serial.as_str()})
        }
        What::Nic(mac) => {
            json!({"driver": "virtio-net-pci", "netdev": name(index), "mac": mac.to_string(), "romfile": ""})
        }
    };
    let (bus, address) = board.socket(index);
    let place = json!({"id": name(index), "bus": bus, "addr": address, "disable-legacy": "on",
    });
    for (key, value) in place.as_object().into_iter().flatten() {
        arguments[key] = value.clone();
    }
    json!({"execute": "device_add", "arguments": arguments})
}

fn remove_node(index: usize, what: &What) -> Value {
    match what {
        What::Disk { .. } => {
            json!({"execute": "blockdev-del", "arguments": {"node-name": name(index)}})
        }
        What::Nic(_) => json!({"execute": "netdev_del", "arguments": {"id": name(index)}}),
    }
}

fn remove_fd(index: usize, what: &What) -> Value {
    match what {
        What::Disk { .. } => {
            json!({"execute": "remove-fd", "arguments": {"fdset-id": FIRST_FD_SET + index}})
        }
        What::Nic(_) => json!({"execute": "closefd", "arguments": {"fdname": name(index)}}),
    }
}

#[cfg(test)]
mod tests;
