//! One virtqueue: takes the guest's buffers, gives them back, and keeps notifications to those that are needed.
//! Owns: the queue's indices. Promises: each buffer is given back once; an index, address or size that is not true
//! breaks the ring, which is then left alone until the driver sets it up anew.
//! Never: touches a ring that the VMM has not enabled (its caller's duty, `frontend`).

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::limits::MAX_QUEUE_ENTRIES;
use super::scatter::Memory;

/// The guest broke the ring's rules: it cannot be used until it is set up anew.
#[derive(Debug, thiserror::Error)]
#[error("virtqueue is broken: {0}")]
pub struct BrokenRing(Error);

/// What identifies a ring's position: equal before and after a pause, not after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    next_avail: u16,
    next_used: u16,
    size: u16,
    addresses: [u64; 3],
}

/// A virtqueue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    /// Set when buffers were given back that the driver may want to hear of; cleared by [`Ring::wants_signal`].
    gave_back: bool,
}

impl Ring {
    /// A ring that is not set up.
    pub fn new() -> Ring {
        // The size is a constant power of two below the crate's limit: the only ways to fail.
        let queue = Queue::new(MAX_QUEUE_ENTRIES).expect("the ring's size limit is a power of two");
        Ring { queue, gave_back: false }
    }

    /// The next buffer of the guest.
    pub fn take<'m>(
        &mut self,
        memory: &'m Memory,
    ) -> Result<Option<DescriptorChain<&'m Memory>>, BrokenRing> {
        self.queue.iter(memory).map(|mut buffers| buffers.next()).map_err(BrokenRing)
    }

    /// Puts the last `count` buffers back, as if they had not been taken.
    pub fn put_back(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Gives a buffer back to the guest, `written` bytes of it written.
    pub fn give_back(
        &mut self,
        memory: &Memory,
        head: u16,
        written: u32,
    ) -> Result<(), BrokenRing> {
        self.gave_back = true;
        self.queue.add_used(memory, head, written).map_err(BrokenRing)
    }

    /// Asks the guest for no kicks.
    pub fn mute(&mut self, memory: &Memory) -> Result<(), BrokenRing> {
        self.queue.disable_notification(memory).map_err(BrokenRing)
    }

    /// Asks the guest for a kick when it adds buffers; true if it has meanwhile, and no kick will come for those.
    pub fn unmute(&mut self, memory: &Memory) -> Result<bool, BrokenRing> {
        self.queue.enable_notification(memory).map_err(BrokenRing)
    }

    /// Whether the guest wants to be interrupted for the buffers that it got back.
    pub fn wants_signal(&mut self, memory: &Memory) -> Result<bool, BrokenRing> {
        if !std::mem::take(&mut self.gave_back) {
            return Ok(false);
        }
        self.queue.needs_notification(memory).map_err(BrokenRing)
    }

    /// Sets the number of entries; false if it is not one that a split ring may have.
    pub fn set_size(&mut self, entries: u32) -> bool {
        u16::try_from(entries).is_ok_and(|entries| self.queue.try_set_size(entries).is_ok())
    }

    /// Sets where the ring lies; false if misaligned or not within memory.
    pub fn set_addresses(
        &mut self,
        memory: &Memory,
        table: u64,
        available: u64,
        used: u64,
    ) -> bool {
        let was_ready = self.queue.ready();
        self.queue.set_ready(true);
        let fits = self.queue.try_set_desc_table_address(GuestAddress(table)).is_ok()
            && self.queue.try_set_avail_ring_address(GuestAddress(available)).is_ok()
            && self.queue.try_set_used_ring_address(GuestAddress(used)).is_ok()
            && self.queue.is_valid(memory);
        self.queue.set_ready(was_ready);
        if !fits {
            return false;
        }
        // vhost-user tells where to go on reading, not where to go on writing: that is in the ring itself.
        match self.queue.used_idx(memory, std::sync::atomic::Ordering::Acquire) {
            Ok(index) => {
                self.queue.set_next_used(index.0);
                true
            }
            Err(_) => false,
        }
    }

    /// Sets the index of the next buffer to take.
    pub fn set_base(&mut self, base: u16) {
        self.queue.set_next_avail(base);
    }

    /// The index of the next buffer to take.
    pub fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Turns the EVENT_IDX feature on or off.
    pub fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    /// Lets the ring be used, or not.
    pub fn set_ready(&mut self, ready: bool) {
        self.queue.set_ready(ready);
        self.gave_back = false;
    }

    /// Whether it was set up and lies within memory: using it cannot fail then for its place.
    pub fn is_usable(&self, memory: &Memory) -> bool {
        self.queue.ready() && self.queue.is_valid(memory)
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        Position {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            size: self.queue.size(),
            addresses: [self.queue.desc_table(), self.queue.avail_ring(), self.queue.used_ring()],
        }
    }

    /// Buffers taken and not given back, for a ring that was set up at zero; in any case a number that taking raises and
    /// giving back lowers.
    #[cfg(test)]
    pub fn outstanding(&self) -> u16 {
        self.queue.next_avail().wrapping_sub(self.queue.next_used())
    }

    /// Entries that it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }
}
