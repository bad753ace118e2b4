//! A guest's driver for tests: sets up the two rings in memory of its own and works them as a guest would, or as none
//! should.
//! Promises: what it does right is right by the standard; every split of a packet over descriptors can be asked for.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::packet::{Fields, HEADER_BYTES};
use super::ring::Ring;
use super::scatter::Memory;

/// Entries of each ring.
pub const ENTRIES: u16 = 64;
/// Bytes of guest memory.
pub const MEMORY_BYTES: usize = 8 << 20;

/// Where each ring's parts lie, and its buffers: one slot per descriptor.
const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x2_0000;
const RX_SLOTS: u64 = 0x10_0000;
const TX_SLOTS: u64 = 0x20_0000;
const RX_SLOT_BYTES: u64 = 0x2000;
const TX_SLOT_BYTES: u64 = 0x1_0000 + 0x1000;
const TABLES: u64 = 0x8_0000;
const TABLE_BYTES: u64 = 0x400;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Memory and two rings, seen by the guest.
pub struct Driver {
    pub memory: Memory,
    pub rx: DriverRing,
    pub tx: DriverRing,
}

/// One ring, seen by the guest.
pub struct DriverRing {
    base: u64,
    slots: u64,
    slot_bytes: u64,
    next_avail: u16,
    next_used: u16,
    free: Vec<u16>,
    /// By head: the descriptors of the chain, as (address, length), and their numbers.
    chains: Vec<Option<Chain>>,
}

#[derive(Clone)]
struct Chain {
    parts: Vec<(u64, u32)>,
    numbers: Vec<u16>,
}

impl Driver {
    pub fn new(memory: Memory) -> Driver {
        Driver {
            memory,
            rx: DriverRing::new(RX_RING, RX_SLOTS, RX_SLOT_BYTES),
            tx: DriverRing::new(TX_RING, TX_SLOTS, TX_SLOT_BYTES),
        }
    }

    pub fn anonymous() -> Driver {
        Driver::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap())
    }

    /// The device's view of the rings, rx and tx.
    pub fn rings(&self) -> [Ring; 2] {
        [&self.rx, &self.tx].map(|guest| {
            let mut ring = Ring::new();
            assert!(ring.set_size(u32::from(ENTRIES)));
            let [table, available, used] = guest.addresses();
            assert!(ring.set_addresses(&self.memory, table, available, used));
            ring.set_ready(true);
            ring
        })
    }

    /// Offers a receive buffer in parts of these sizes; false if no descriptors are left.
    pub fn offer(&mut self, parts: &[u32]) -> bool {
        self.rx.add(&self.memory, parts, WRITE, false).is_some()
    }

    /// Sends `bytes` in parts of these sizes (the last takes what is left); false if no descriptors are left.
    pub fn send_raw(&mut self, bytes: &[u8], parts: &[u32], indirect: bool) -> bool {
        let mut sizes = Vec::new();
        let mut left = bytes.len() as u32;
        for part in parts {
            let some = left.min(*part);
            sizes.push(some);
            left -= some;
        }
        if left > 0 || sizes.is_empty() {
            sizes.push(left);
        }
        let Some(head) = self.tx.prepare(&self.memory, &sizes, 0, indirect) else { return false };
        let mut rest = bytes;
        for (address, len) in self.tx.chains[usize::from(head)].clone().unwrap().parts {
            let (now, later) = rest.split_at(len as usize);
            self.memory.write_slice(now, GuestAddress(address)).unwrap();
            rest = later;
        }
        self.tx.publish(&self.memory, head);
        true
    }

    /// Sends a packet in one descriptor for the header and one for the payload.
    pub fn send(&mut self, header: &Fields, payload: &[u8]) -> bool {
        let bytes = [header.encode().as_slice(), payload].concat();
        self.send_raw(&bytes, &[HEADER_BYTES as u32], false)
    }

    /// The packets that have come since the last call; their buffers are free again.
    pub fn received(&mut self) -> Vec<(Fields, Vec<u8>)> {
        let mut packets = Vec::new();
        while let Some((chain, written)) = self.rx.reclaim(&self.memory) {
            let mut bytes = Vec::new();
            for (address, len) in chain.parts {
                let some = (written as usize - bytes.len()).min(len as usize);
                let mut part = vec![0; some];
                self.memory.read_slice(&mut part, GuestAddress(address)).unwrap();
                bytes.extend(part);
            }
            assert_eq!(bytes.len(), written as usize, "more than the buffer holds");
            if let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() {
                let header = Fields::decode(header);
                assert_eq!(header.len as usize, payload.len());
                packets.push((header, payload.to_vec()));
            }
        }
        packets
    }

    /// Takes back the descriptors of packets that the device has read; their number.
    pub fn reclaim(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.reclaim(&self.memory)).count()
    }
}

impl DriverRing {
    fn new(base: u64, slots: u64, slot_bytes: u64) -> DriverRing {
        DriverRing {
            base,
            slots,
            slot_bytes,
            next_avail: 0,
            next_used: 0,
            free: (0..ENTRIES).rev().collect(),
            chains: vec![None; usize::from(ENTRIES)],
        }
    }

    /// Descriptor table, available ring, used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.base + 0x1000, self.base + 0x2000]
    }

    fn add(&mut self, memory: &Memory, parts: &[u32], flags: u16, indirect: bool) -> Option<u16> {
        let head = self.prepare(memory, parts, flags, indirect)?;
        self.publish(memory, head);
        Some(head)
    }

    /// Writes the descriptors of a chain; the parts lie in the slot of the chain's head, one behind the other.
    fn prepare(
        &mut self,
        memory: &Memory,
        sizes: &[u32],
        flags: u16,
        indirect: bool,
    ) -> Option<u16> {
        let needed = if indirect { 1 } else { sizes.len() };
        if self.free.len() < needed || sizes.len() * 16 > TABLE_BYTES as usize {
            return None;
        }
        let numbers = self.free.split_off(self.free.len() - needed);
        let head = numbers[0];
        let mut address = self.slots + u64::from(head) * self.slot_bytes;
        let mut parts = Vec::new();
        for (place, len) in sizes.iter().enumerate() {
            assert!(
                address + u64::from(*len) <= self.slots + (u64::from(head) + 1) * self.slot_bytes
            );
            let last = place + 1 == sizes.len();
            let next = match () {
                () if last => 0,
                () if indirect => place as u16 + 1,
                () => numbers[place + 1],
            };
            let flags = flags | if last { 0 } else { NEXT };
            let descriptor = Descriptor::new(address, *len, flags, next);
            if indirect {
                let table = TABLES + u64::from(head) * TABLE_BYTES;
                memory.write_obj(descriptor, GuestAddress(table + place as u64 * 16)).unwrap();
            } else {
                self.write_descriptor(memory, numbers[place], descriptor);
            }
            parts.push((address, *len));
            address += u64::from(*len);
        }
        if indirect {
            let table = TABLES + u64::from(head) * TABLE_BYTES;
            self.write_descriptor(
                memory,
                head,
                Descriptor::new(table, sizes.len() as u32 * 16, INDIRECT, 0),
            );
        }
        self.chains[usize::from(head)] = Some(Chain { parts, numbers });
        Some(head)
    }

    pub fn write_descriptor(&self, memory: &Memory, number: u16, descriptor: Descriptor) {
        memory.write_obj(descriptor, GuestAddress(self.base + u64::from(number) * 16)).unwrap();
    }

    /// Puts any number on the available ring, also one that is no chain.
    pub fn publish(&mut self, memory: &Memory, head: u16) {
        let available = self.addresses()[1];
        let place = available + 4 + u64::from(self.next_avail % ENTRIES) * 2;
        memory.write_obj(head, GuestAddress(place)).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.write_avail_index(memory, self.next_avail);
    }

    pub fn write_avail_index(&self, memory: &Memory, index: u16) {
        memory.store(index, GuestAddress(self.addresses()[1] + 2), Ordering::Release).unwrap();
    }

    /// With EVENT_IDX: asks for no interrupt until that many more buffers have come back.
    pub fn defer_interrupt(&self, memory: &Memory, buffers: u16) {
        let event = self.next_used.wrapping_add(buffers - 1);
        memory.store(event, GuestAddress(self.used_event()), Ordering::SeqCst).unwrap();
    }

    fn used_event(&self) -> u64 {
        self.addresses()[1] + 4 + u64::from(ENTRIES) * 2
    }

    /// The device's index in the used ring.
    pub fn used_index(&self, memory: &Memory) -> u16 {
        memory.load(GuestAddress(self.addresses()[2] + 2), Ordering::Acquire).unwrap()
    }

    /// Takes the next chain from the used ring, with the number of bytes written to it.
    fn reclaim(&mut self, memory: &Memory) -> Option<(Chain, u32)> {
        if self.used_index(memory) == self.next_used {
            // With EVENT_IDX: the next one is to be announced by an interrupt, unless it is there already.
            memory
                .store(self.next_used, GuestAddress(self.used_event()), Ordering::SeqCst)
                .unwrap();
            fence(Ordering::SeqCst);
            if self.used_index(memory) == self.next_used {
                return None;
            }
        }
        let used = self.addresses()[2];
        let place = used + 4 + u64::from(self.next_used % ENTRIES) * 8;
        let head: u32 = memory.read_obj(GuestAddress(place)).unwrap();
        let written: u32 = memory.read_obj(GuestAddress(place + 4)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        let chain = self.chains[head as usize].take().expect("given back twice, or never offered");
        self.free.extend(&chain.numbers);
        Some((chain, written))
    }
}
