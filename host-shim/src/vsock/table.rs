//! The connections of one device: found by id or by ports, served in turn, woken at their deadlines.
//! Owns: ids and the host's ephemeral ports, the queue of turns, the queue of refusals that belong to no connection.
//! Promises: a connection is in the queue of turns once at most; whoever has had a turn waits until all others that
//! were waiting had theirs; counts stay below the limits.
//! Never: looks into what the caller keeps with a connection.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use super::connection::Connection;
use super::limits::{MAX_CONNECTIONS, MAX_GUEST_DIALED, MAX_QUEUED_RESETS};
use super::packet::Ports;

/// The host's ports for connections that it dials; far from those that anybody listens on.
const EPHEMERAL_PORTS: std::ops::Range<u32> = 0x4000_0000..0x8000_0000;

/// Names a connection for its whole life and after; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The table has no room for another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A connection and what its driver keeps with it.
#[derive(Debug)]
pub struct Entry<D> {
    /// The protocol's state.
    pub connection: Connection,
    /// What the driver keeps: sockets and the like.
    pub driver: D,
    by_guest: bool,
    queued: bool,
    deadline: Option<Instant>,
}

/// The connections.
#[derive(Debug)]
pub struct Table<D> {
    entries: HashMap<ConnectionId, Entry<D>>,
    /// Connections whose guest side has not ended.
    by_ports: HashMap<Ports, ConnectionId>,
    turns: VecDeque<ConnectionId>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    resets: VecDeque<Ports>,
    by_guest: usize,
    next_id: u64,
    next_port: u32,
}

impl<D> Table<D> {
    /// An empty table.
    pub fn new() -> Table<D> {
        Table {
            entries: HashMap::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            deadlines: BTreeSet::new(),
            resets: VecDeque::new(),
            by_guest: 0,
            next_id: 0,
            next_port: EPHEMERAL_PORTS.start,
        }
    }

    /// Adds a connection that the host dials to `guest_port`, made by `dial` from its ports.
    pub fn insert_dialed(
        &mut self,
        guest_port: u32,
        driver: D,
        dial: impl FnOnce(Ports) -> Connection,
    ) -> Result<ConnectionId, (Full, D)> {
        if self.entries.len() >= MAX_CONNECTIONS {
            return Err((Full, driver));
        }
        // Ends: there are more ports than there can be connections.
        let ports = loop {
            let ports = Ports { guest: guest_port, host: self.next_port };
            self.next_port += 1;
            if !EPHEMERAL_PORTS.contains(&self.next_port) {
                self.next_port = EPHEMERAL_PORTS.start;
            }
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        Ok(self.insert(dial(ports), driver, false))
    }

    /// Whether there is room for another connection that the guest dials.
    pub fn has_room_for_guest(&self) -> bool {
        self.entries.len() < MAX_CONNECTIONS && self.by_guest < MAX_GUEST_DIALED
    }

    /// Adds a connection that the guest dialled; its ports must be free, and room was asked for.
    pub fn insert_accepted(&mut self, connection: Connection, driver: D) -> ConnectionId {
        debug_assert!(
            self.has_room_for_guest() && !self.by_ports.contains_key(&connection.ports())
        );
        self.insert(connection, driver, true)
    }

    fn insert(&mut self, connection: Connection, driver: D, by_guest: bool) -> ConnectionId {
        self.next_id += 1;
        let id = ConnectionId(self.next_id);
        self.by_ports.insert(connection.ports(), id);
        self.by_guest += usize::from(by_guest);
        self.entries
            .insert(id, Entry { connection, driver, by_guest, queued: false, deadline: None });
        id
    }

    /// The connection that the guest means by these ports.
    pub fn find(&self, ports: Ports) -> Option<ConnectionId> {
        self.by_ports.get(&ports).copied()
    }

    /// A connection, unless it is over.
    pub fn get(&mut self, id: ConnectionId) -> Option<&mut Entry<D>> {
        self.entries.get_mut(&id)
    }

    /// Brings the table's books up to date after `id` changed: frees its ports, notes its deadline, takes the RST that
    /// an ended connection owes, and gives it a turn if it `wants` one. Returns it if it is over.
    pub fn settle(&mut self, id: ConnectionId, wants_turn: bool) -> Option<D> {
        let entry = self.entries.get_mut(&id)?;
        let ports = entry.connection.ports();
        if entry.connection.has_ended() {
            if self.by_ports.get(&ports) == Some(&id) {
                self.by_ports.remove(&ports);
            }
            // The guest's own packets are not read while the queue is full; a RST that is dropped here answers nobody:
            // it would only have told a guest that takes no packets that we gave up on it.
            if entry.connection.take_reset() && self.resets.len() < MAX_QUEUED_RESETS {
                self.resets.push_back(ports);
            }
        }
        let deadline = entry.connection.deadline();
        if deadline != entry.deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, id));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, id));
            }
            entry.deadline = deadline;
        }
        if entry.connection.is_over() {
            self.by_guest -= usize::from(entry.by_guest);
            let driver = self.entries.remove(&id).map(|entry| entry.driver);
            self.sweep_turns();
            return driver;
        }
        if wants_turn && !entry.queued {
            entry.queued = true;
            self.turns.push_back(id);
        }
        None
    }

    /// Takes connections that are over out of the queue, now and then: while the guest offers no buffers the queue is
    /// not served, and a guest that dials and resets all the time would make it grow.
    fn sweep_turns(&mut self) {
        if self.turns.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.turns.retain(|id| entries.contains_key(id));
        }
    }

    /// Whose turn it is to send to the guest; it leaves the queue, and `settle` puts it at the end if it wants to.
    pub fn next_turn(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.turns.pop_front() {
            // One that is over may still be in the queue.
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.queued = false;
                return Some(id);
            }
        }
        None
    }

    /// Gives the connection whose turn came to nothing the next turn, too.
    pub fn return_turn(&mut self, id: ConnectionId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && !entry.queued
        {
            entry.queued = true;
            self.turns.push_front(id);
        }
    }

    /// Whether anything waits to be sent to the guest.
    pub fn has_work(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Whether the guest must take its refusals before it is given more of them.
    pub fn resets_are_full(&self) -> bool {
        self.resets.len() >= MAX_QUEUED_RESETS
    }

    /// Notes that a packet for a connection that does not exist is to be answered by a RST.
    pub fn refuse(&mut self, ports: Ports) {
        self.resets.push_back(ports);
    }

    /// The next RST to send.
    pub fn next_reset(&mut self) -> Option<Ports> {
        self.resets.pop_front()
    }

    /// Puts a RST back that could not be sent.
    pub fn return_reset(&mut self, ports: Ports) {
        self.resets.push_front(ports);
    }

    /// Forgets the refusals: the guest that they were for is gone.
    pub fn drop_resets(&mut self) {
        self.resets.clear();
    }

    /// The first deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A connection whose deadline has come. The caller tells it the time and settles it.
    pub fn next_due(&mut self, now: Instant) -> Option<ConnectionId> {
        let &(deadline, id) = self.deadlines.first()?;
        (deadline <= now).then_some(id)
    }

    /// All connections there are.
    pub fn ids(&self) -> Vec<ConnectionId> {
        self.entries.keys().copied().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
impl<D> Table<D> {
    /// Entries in the queue of turns, also of connections that are over.
    pub(super) fn turns_queued(&self) -> usize {
        self.turns.len()
    }
}

impl<D> Default for Table<D> {
    fn default() -> Self {
        Table::new()
    }
}
