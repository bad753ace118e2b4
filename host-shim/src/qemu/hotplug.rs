//! Disks that come and go while the guest runs, over QMP. A core without I/O.
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
//! Owns: which slot of the board has which disk. In: [`Hotplug::attach`], [`Hotplug::detach`], and what QEMU says; out:
//! actions, to be carried out in their order.
//! Promises: each attach and detach is answered once; whatever fails, QEMU is left as it was before; a slot and a serial
//! are given once.
//! Never: reads a clock (`now` is an argument), writes to QEMU, or looks at an image.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde_json::{Value, json};
use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::board::Board;
use crate::limits::UNPLUG_TIMEOUT;
use crate::vm::{HotplugSlots, Serial};

/// fd sets below this number are those of QEMU's command line.
const FIRST_FD_SET: usize = 1000;

/// The disks of one VM. `R` is the promise of an answer.
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
        serial: Serial,
        read_only: bool,
        host_device: bool,
        phase: Phase,
        /// The command that QEMU has yet to answer.
        command: Option<u64>,
        /// Who waits; nobody when a guest lets go later than was waited for.
        reply: Option<R>,
        /// Why what is being undone has failed.
        failure: Option<String>,
    },
}

/// What a disk waits for.
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
    /// With so many free slots, beside disks that are there from the start.
    pub fn new(board: &'static Board, slots: HotplugSlots, cold: Vec<Serial>) -> Self {
        Self { board, slots: (0..slots.get()).map(|_| Slot::Free).collect(), cold, sent: 0 }
    }

    /// Attaches a disk. It is answered when QEMU has it; the guest finds it a moment later.
    pub fn attach(&mut self, disk: NewDisk, reply: R) -> Vec<Action<R>> {
        let NewDisk { serial, read_only, host_device, file } = disk;
        let refused = |reply, code, text| vec![Action::Failed { reply, code, text }];
        if self.cold.contains(&serial) || self.index_of(&serial).is_some() {
            let text = format!("a disk {:?} is attached already", serial.as_str());
            return refused(reply, ErrorCode::Invalid, text);
        }
        let Some(index) = self.slots.iter().position(|slot| matches!(slot, Slot::Free)) else {
            let text = match self.slots.len() {
                0 => "this VM was started without slots for disks to attach".to_owned(),
                slots => format!("all {slots} slots for disks to attach are taken"),
            };
            return refused(reply, ErrorCode::State, text);
        };
        self.slots[index] = Slot::Taken {
            serial,
            read_only,
            host_device,
            phase: Phase::AddsFd,
            command: None,
            reply: Some(reply),
            failure: None,
        };
        let line = json!({"execute": "add-fd", "arguments": {"fdset-id": FIRST_FD_SET + index}});
        vec![self.send(index, line, Some(file))]
    }

    /// Takes a disk away. It is answered when the guest has let it go.
    pub fn detach(&mut self, serial: &Serial, reply: R, now: Instant) -> Vec<Action<R>> {
        let refused = |reply, code, text| vec![Action::Failed { reply, code, text }];
        if self.cold.contains(serial) {
            let text = format!("disk {:?} is there for the VM's whole life", serial.as_str());
            return refused(reply, ErrorCode::State, text);
        }
        let Some(index) = self.index_of(serial) else {
            let text = format!("no disk {:?} is attached", serial.as_str());
            return refused(reply, ErrorCode::Invalid, text);
        };
        let Slot::Taken { phase, reply: waits, .. } = &mut self.slots[index] else {
            return Vec::new();
        };
        if *phase != Phase::Attached {
            let text = format!("disk {:?} is being attached or detached", serial.as_str());
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
        let Slot::Taken { phase, command, read_only, host_device, serial, reply, failure } =
            &mut self.slots[index]
        else {
            return Vec::new();
        };
        *command = None;
        match (*phase, result) {
            (Phase::AddsFd, Ok(())) => {
                let line = add_node(index, *read_only, *host_device);
                self.go_on(index, Phase::AddsNode, line)
            }
            (Phase::AddsFd, Err(text)) => {
                *failure = Some(text);
                self.free(index)
            }
            (Phase::AddsNode, Ok(())) => {
                let line = add_device(self.board, index, serial);
                self.go_on(index, Phase::AddsDevice, line)
            }
            (Phase::AddsNode, Err(text)) => {
                *failure = Some(text);
                self.go_on(index, Phase::RemovesFd, remove_fd(index))
            }
            (Phase::AddsDevice, Ok(())) => {
                *phase = Phase::Attached;
                reply.take().map(Action::Done).into_iter().collect()
            }
            (Phase::AddsDevice, Err(text)) => {
                *failure = Some(text);
                self.go_on(index, Phase::RemovesNode, remove_node(index))
            }
            // The guest is asked; it will tell.
            (Phase::Unplugs { .. }, Ok(())) => Vec::new(),
            (Phase::Unplugs { .. }, Err(text)) => self.stays(index, text),
            // What cannot be removed is of no use to anybody; the rest shall still go.
            (Phase::RemovesNode, _) => self.go_on(index, Phase::RemovesFd, remove_fd(index)),
            (Phase::RemovesFd, _) => self.free(index),
            (Phase::Attached, _) => Vec::new(),
        }
    }

    /// QEMU says that a device is gone.
    pub fn deleted(&mut self, device: &str) -> Vec<Action<R>> {
        let Some(index) = self.index_by_name(device) else { return Vec::new() };
        match &self.slots[index] {
            Slot::Taken { phase: Phase::Attached | Phase::Unplugs { .. }, .. } => {
                self.go_on(index, Phase::RemovesNode, remove_node(index))
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
            .position(|slot| matches!(slot, Slot::Taken { serial: s, .. } if s == serial))
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
        let Slot::Taken { phase, reply, serial, .. } = &mut self.slots[index] else {
            return Vec::new();
        };
        *phase = Phase::Attached;
        let text = format!("detach disk {:?}: {text}", serial.as_str());
        let failed = |reply| Action::Failed { reply, code: ErrorCode::Failed, text };
        reply.take().map(failed).into_iter().collect()
    }

    fn free(&mut self, index: usize) -> Vec<Action<R>> {
        let Slot::Taken { reply, failure, serial, .. } =
            std::mem::replace(&mut self.slots[index], Slot::Free)
        else {
            return Vec::new();
        };
        let answer = |reply| match failure {
            None => Action::Done(reply),
            Some(text) => {
                let text = format!("attach disk {:?}: {text}", serial.as_str());
                Action::Failed { reply, code: ErrorCode::Failed, text }
            }
        };
        reply.map(answer).into_iter().collect()
    }
}

/// QEMU's name of what is in a slot: of the device and of the image behind it.
fn name(index: usize) -> String {
    format!("hot{index}")
}

fn add_node(index: usize, read_only: bool, host_device: bool) -> Value {
    let driver = if host_device { "host_device" } else { "file" };
    let file = format!("/dev/fdset/{}", FIRST_FD_SET + index);
    let arguments = json!({
        "driver": "raw", "node-name": name(index), "read-only": read_only, "auto-read-only": false,
        // As with the disks that are there from the start.
        "cache": {"no-flush": false},
        "file": {"driver": driver, "filename": file, "read-only": read_only, "auto-read-only": false},
    });
    json!({"execute": "blockdev-add", "arguments": arguments})
}

fn add_device(board: &Board, index: usize, serial: &Serial) -> Value {
    let (bus, address) = board.socket(index);
    let arguments = json!({
        "driver": "virtio-blk-pci", "id": name(index), "drive": name(index), "serial": serial.as_str(),
        "bus": bus, "addr": address, "disable-legacy": "on",
    });
    json!({"execute": "device_add", "arguments": arguments})
}

fn remove_node(index: usize) -> Value {
    json!({"execute": "blockdev-del", "arguments": {"node-name": name(index)}})
}

fn remove_fd(index: usize) -> Value {
    json!({"execute": "remove-fd", "arguments": {"fdset-id": FIRST_FD_SET + index}})
}

#[cfg(test)]
mod tests;
