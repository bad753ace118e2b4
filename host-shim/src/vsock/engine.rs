//! What moves packets: between the guest's rings on one side and the host's sockets on the other, by the rules of
//! `connection`, in the order of `table`.
//! Owns: the connections and our ends of their socket pairs.
//! Promises: each call does a bounded amount of work and never waits; a packet that breaks a rule costs its own
//! connection at most; a guest that takes no packets is not read from once [`super::limits::MAX_QUEUED_RESETS`] answers wait for it.
//! Never: decides whether the rings may be used (`frontend` does).

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use virtio_queue::DescriptorChain;
use vm_memory::VolatileSlice;

use super::connection::{Connection, DialFailure, Order, Payload, State};
use super::host_socket::{HostSocket, Received, Taken};
use super::limits::{MAX_PAYLOAD_BYTES, ROUND_PACKETS, TURN_BYTES};
use super::packet::{self, Credit, HEADER_BYTES, Op, Packet, Ports, Refusal};
use super::ring::{BrokenRing, Ring};
use super::scatter::{BadChain, MAX_PIECES_PER_CALL, Memory, Scatter};
use super::table::{ConnectionId, Entry, Table};
use super::{ConnectError, Reply, VsockEvent};

/// How a round over one ring ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Nothing left to do; the guest's kick, or an event on this side, will tell of more.
    Idle,
    /// The round's budget is used up: there is more to do, after a look at other events.
    More,
    /// It waits for the other ring: the guest must take answers before more of its packets are read.
    Blocked,
}

/// The device's working parts.
pub struct Engine {
    guest_cid: u64,
    guest_dial_ports: HashSet<u32>,
    /// The guest's dials wait for [`Engine::greet`].
    asks_owner: bool,
    table: Table<Host>,
    /// Where the host's sockets are watched; their events come back through [`Engine::handle_host_event`].
    poller: Rc<Epoll>,
    events: Box<dyn FnMut(VsockEvent) + Send>,
}

/// The host's side of one connection.
struct Host {
    /// Made when the guest has accepted; closed when neither side needs it any more.
    socket: Option<HostSocket>,
    /// Who dialled, until he has his answer.
    reply: Option<Reply>,
}

/// A buffer of the guest with room for a header and `payload` bytes.
struct Buffer<'m> {
    head: u16,
    header: Scatter<'m>,
    room: Scatter<'m>,
}

impl Engine {
    pub fn new(
        guest_cid: u64,
        guest_dial_ports: impl IntoIterator<Item = u32>,
        poller: Rc<Epoll>,
        events: Box<dyn FnMut(VsockEvent) + Send>,
    ) -> Engine {
        let guest_dial_ports = guest_dial_ports.into_iter().collect();
        Engine {
            guest_cid,
            guest_dial_ports,
            asks_owner: false,
            table: Table::new(),
            poller,
            events,
        }
    }

    /// From now on the guest's dials are answered when the owner has accepted them.
    pub fn ask_owner(&mut self) {
        self.asks_owner = true;
    }

    /// The owner accepts what the guest has dialled. One that is over, or no such one, is left alone.
    pub fn greet(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.get(id) {
            entry.connection.greet();
            self.settle(id);
        }
    }

    /// The host dials `port`.
    pub fn connect(&mut self, port: u32, reply: Reply, now: Instant) {
        let host = Host { socket: None, reply: Some(reply) };
        match self.table.insert_dialed(port, host, |ports| Connection::dial(ports, now)) {
            Ok(id) => self.settle(id),
            Err((_, host)) => host.answer(Err(ConnectError::TooMany)),
        }
    }

    /// The host's end of `id` has changed.
    pub fn handle_host_event(&mut self, id: ConnectionId, what: EpollFlags, now: Instant) {
        let Some(Entry { connection, driver: Host { socket: Some(socket), .. }, .. }) =
            self.table.get(id)
        else {
            return;
        };
        if what.intersects(
            EpollFlags::EPOLLIN
                | EpollFlags::EPOLLRDHUP
                | EpollFlags::EPOLLHUP
                | EpollFlags::EPOLLERR,
        ) {
            socket.set_readable();
        }
        if what.contains(EpollFlags::EPOLLHUP) {
            socket.drop_backlog();
            connection.handle_host_gone(now);
        } else if what.contains(EpollFlags::EPOLLOUT) {
            socket.set_writable();
            match socket.flush() {
                Taken::Bytes(bytes) => connection.handle_taken(bytes),
                Taken::HostGone => connection.handle_host_gone(now),
            }
        }
        self.settle(id);
    }

    /// Ends what has waited too long.
    pub fn handle_time(&mut self, now: Instant) {
        while let Some(id) = self.table.next_due(now) {
            if let Some(entry) = self.table.get(id) {
                entry.connection.handle_time(now);
            }
            self.settle(id);
        }
    }

    /// Tries again to hand the host what it has not taken, though no event said that it would.
    pub fn retry_host(&mut self, now: Instant) {
        for id in self.table.ids() {
            self.handle_host_event(id, EpollFlags::EPOLLOUT, now);
        }
    }

    /// The device ends: whoever waits for the guest's answer is told so.
    pub fn dismiss_dialers(&mut self) {
        for id in self.table.ids() {
            drop(self.table.get(id).and_then(|entry| entry.driver.reply.take()));
        }
    }

    /// The guest's driver was reset or the VM has ended: every connection ends, after the host has what was sent.
    pub fn handle_guest_gone(&mut self) {
        for id in self.table.ids() {
            if let Some(entry) = self.table.get(id) {
                entry.connection.handle_guest_gone();
            }
            self.settle(id);
        }
        self.table.drop_resets();
    }

    /// When [`Engine::handle_time`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    /// Bytes that wait for the host to read, and connections that they belong to or that live otherwise.
    pub fn left(&mut self) -> (usize, u64) {
        let mut bytes = 0;
        for id in self.table.ids() {
            bytes += self.table.get(id).map_or(0, |entry| u64::from(entry.connection.backlog()));
        }
        (self.table.len(), bytes)
    }

    /// Whether the guest must take answers before more of its packets are read.
    pub fn is_blocked(&self) -> bool {
        self.table.resets_are_full()
    }

    /// Reports an event to the owner.
    pub fn report(&mut self, event: VsockEvent) {
        (self.events)(event);
    }

    /// Reads packets of the guest, from its tx ring.
    pub fn read_packets(
        &mut self,
        memory: &Memory,
        tx: &mut Ring,
        now: Instant,
    ) -> Result<Round, BrokenRing> {
        tx.mute(memory)?;
        for _ in 0..ROUND_PACKETS {
            if self.table.resets_are_full() {
                return Ok(Round::Blocked);
            }
            match tx.take(memory)? {
                Some(chain) => {
                    let head = chain.head_index();
                    self.read_packet(memory, chain, now);
                    tx.give_back(memory, head, 0)?;
                }
                None if tx.unmute(memory)? => tx.mute(memory)?,
                None => return Ok(Round::Idle),
            }
        }
        Ok(Round::More)
    }

    fn read_packet(&mut self, memory: &Memory, chain: DescriptorChain<&Memory>, now: Instant) {
        let Ok(mut bytes) = Scatter::readable(memory, chain) else {
            tracing::debug!("a packet of the guest lies outside of its memory");
            return;
        };
        let mut raw = [0; HEADER_BYTES];
        if !bytes.split_front(HEADER_BYTES).copy_to(&mut raw) {
            tracing::debug!("a packet of the guest is shorter than its header");
            return;
        }
        match Packet::parse(&raw, self.guest_cid, bytes.len(), MAX_PAYLOAD_BYTES) {
            Ok(packet) => self.handle_packet(&packet, bytes.split_front(packet.len as usize), now),
            Err(Refusal::Ignore) => {}
            Err(Refusal::Reset(ports)) => match self.table.find(ports) {
                Some(id) => {
                    if let Some(entry) = self.table.get(id) {
                        entry.connection.abort();
                    }
                    self.settle(id);
                }
                None => self.table.refuse(ports),
            },
        }
    }

    fn handle_packet(&mut self, packet: &Packet, bytes: Scatter<'_>, now: Instant) {
        let id = match (self.table.find(packet.ports), packet.op) {
            (Some(id), Op::Request) if self.has_closed(id) => {
                // The guest has forgotten the old connection already and uses its ports again.
                if let Some(entry) = self.table.get(id) {
                    entry.connection.handle_guest_gone();
                }
                self.settle(id);
                return self.accept(packet);
            }
            (Some(id), _) => id,
            (None, Op::Request) => return self.accept(packet),
            (None, Op::Reset) => return,
            (None, _) => return self.table.refuse(packet.ports),
        };
        let Some(Entry { connection, driver, .. }) = self.table.get(id) else { return };
        if let Payload::Deliver(_) = connection.handle_packet(packet, now) {
            match driver.socket.as_mut().map(|socket| socket.give(bytes)) {
                Some(Taken::Bytes(taken)) => connection.handle_taken(taken),
                Some(Taken::HostGone) | None => connection.handle_host_gone(now),
            }
        }
        self.settle(id);
    }

    fn has_closed(&mut self, id: ConnectionId) -> bool {
        self.table
            .get(id)
            .is_some_and(|entry| matches!(entry.connection.state(), State::Closing { .. }))
    }

    /// The guest dials.
    fn accept(&mut self, request: &Packet) {
        let port = request.ports.host;
        if !self.guest_dial_ports.contains(&port) || !self.table.has_room_for_guest() {
            return self.table.refuse(request.ports);
        }
        match HostSocket::pair() {
            Ok((socket, stream)) => {
                let host = Host { socket: Some(socket), reply: None };
                let connection = match self.asks_owner {
                    true => Connection::offer(request),
                    false => Connection::accept(request),
                };
                let id = self.table.insert_accepted(connection, host);
                if self.watch(id).is_err() {
                    if let Some(entry) = self.table.get(id) {
                        entry.connection.abort();
                    }
                    return self.settle(id);
                }
                self.settle(id);
                self.report(VsockEvent::GuestDialed {
                    port,
                    guest_port: request.ports.guest,
                    dial: id.0,
                    stream,
                });
            }
            Err(error) => {
                tracing::warn!(port, %error, "no socket pair for a connection that the guest dials");
                self.table.refuse(request.ports);
            }
        }
    }

    /// Writes packets to the guest, into the buffers of its rx ring.
    pub fn write_packets(
        &mut self,
        memory: &Memory,
        rx: &mut Ring,
        now: Instant,
    ) -> Result<Round, BrokenRing> {
        if !self.table.has_work() {
            return Ok(Round::Idle);
        }
        rx.mute(memory)?;
        let mut budget = ROUND_PACKETS;
        while budget > 0 {
            budget -= 1;
            let written = if let Some(ports) = self.table.next_reset() {
                let written = self.write_reset(memory, rx, ports)?;
                if written == 0 {
                    self.table.return_reset(ports);
                }
                written
            } else if let Some(id) = self.table.next_turn() {
                match self.serve(memory, rx, id, now)? {
                    Served::Packets(packets) => packets.max(1),
                    Served::NoBuffer => {
                        self.table.return_turn(id);
                        0
                    }
                }
            } else {
                return Ok(Round::Idle);
            };
            budget = budget.saturating_sub(written.saturating_sub(1));
            if written == 0 {
                if !rx.unmute(memory)? {
                    return Ok(Round::Idle);
                }
                rx.mute(memory)?;
            }
        }
        Ok(Round::More)
    }

    fn write_reset(&self, memory: &Memory, rx: &mut Ring, ports: Ports) -> Result<u32, BrokenRing> {
        let Some(buffer) = next_buffer(memory, rx, 0)? else { return Ok(0) };
        let header = packet::encode(self.guest_cid, ports, Op::Reset, 0, Credit::default());
        buffer.header.copy_from(&header);
        rx.give_back(memory, buffer.head, HEADER_BYTES as u32)?;
        Ok(1)
    }

    /// One connection's turn: what it owes the guest, then the host's bytes.
    fn serve(
        &mut self,
        memory: &Memory,
        rx: &mut Ring,
        id: ConnectionId,
        now: Instant,
    ) -> Result<Served, BrokenRing> {
        let guest_cid = self.guest_cid;
        let Some(entry) = self.table.get(id) else { return Ok(Served::Packets(0)) };
        let mut packets = 0;
        while entry.connection.has_packet() {
            let Some(buffer) = next_buffer(memory, rx, 0)? else { return Ok(Served::NoBuffer) };
            // There is one: it was asked for above.
            let Some(op) = entry.connection.poll_packet() else { break };
            let credit = entry.connection.credit_to_tell();
            let header = packet::encode(guest_cid, entry.connection.ports(), op, 0, credit);
            buffer.header.copy_from(&header);
            rx.give_back(memory, buffer.head, HEADER_BYTES as u32)?;
            packets += 1;
        }
        let served = match entry.write_data(guest_cid, memory, rx, now)? {
            Served::Packets(data) => Served::Packets(packets + data),
            Served::NoBuffer => Served::NoBuffer,
        };
        self.settle(id);
        Ok(served)
    }

    /// Carries out what `id` wants done with the host's end, and brings the table up to date. Called after everything
    /// that may have changed a connection.
    fn settle(&mut self, id: ConnectionId) {
        while let Some(order) = self.table.get(id).and_then(|entry| entry.connection.poll_order()) {
            self.obey(id, order);
        }
        let wants_turn = self.table.get(id).is_some_and(Entry::wants_turn);
        drop(self.table.settle(id, wants_turn));
    }

    fn obey(&mut self, id: ConnectionId, order: Order) {
        if order == Order::Connected {
            return self.hand_out(id);
        }
        let Some(Entry { connection, driver: host, .. }) = self.table.get(id) else { return };
        let port = connection.ports().guest;
        match (order, &mut host.socket) {
            (Order::Failed(why), _) => {
                if let Some(reply) = host.reply.take() {
                    reply.give(Err(match why {
                        DialFailure::Refused => ConnectError::Refused { port },
                        DialFailure::TimedOut => ConnectError::Timeout { port },
                        DialFailure::GuestGone => ConnectError::NoGuest,
                    }));
                }
            }
            (Order::EndWriting, Some(socket)) => socket.end_writing(),
            (Order::EndReading, Some(socket)) => socket.end_reading(),
            (Order::Close, socket) => {
                if let Some(socket) = socket.take() {
                    // This also ends the watch: there is no other descriptor of it.
                    socket.close();
                }
            }
            (Order::EndWriting | Order::EndReading | Order::Connected, _) => {}
        }
    }

    /// Gives the dialler his end of a connection that the guest has accepted.
    fn hand_out(&mut self, id: ConnectionId) {
        let made = self.make_pair(id);
        let Some(Entry { connection, driver: host, .. }) = self.table.get(id) else { return };
        if made.is_err() {
            connection.abort();
        }
        if let Some(reply) = host.reply.take() {
            reply.give(made.map_err(ConnectError::Resources));
        }
    }

    fn make_pair(&mut self, id: ConnectionId) -> io::Result<OwnedFd> {
        let (socket, stream) = HostSocket::pair()?;
        if let Some(entry) = self.table.get(id) {
            entry.driver.socket = Some(socket);
        }
        self.watch(id)?;
        Ok(stream)
    }

    /// Edge-triggered: no call per packet; what an event said is remembered in the socket until a call is refused.
    fn watch(&mut self, id: ConnectionId) -> io::Result<()> {
        let Some(Entry { driver: Host { socket: Some(socket), .. }, .. }) = self.table.get(id)
        else {
            return Ok(());
        };
        let what = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        Ok(self.poller.add(socket.as_fd(), EpollEvent::new(what, id.0))?)
    }
}

/// What a turn gave the guest.
enum Served {
    Packets(u32),
    NoBuffer,
}

impl Host {
    fn answer(self, result: Result<OwnedFd, ConnectError>) {
        if let Some(reply) = self.reply {
            reply.give(result);
        }
    }
}

impl Entry<Host> {
    fn wants_turn(&mut self) -> bool {
        let readable = self.driver.socket.as_ref().is_some_and(HostSocket::is_readable);
        if readable && self.connection.wants_host_bytes() {
            if self.connection.guest_credit() > 0 {
                return true;
            }
            self.connection.handle_starved();
        }
        self.connection.has_packet()
    }

    /// Moves bytes from the host's socket into as many buffers as the guest's credit and a turn allow, with one call.
    fn write_data(
        &mut self,
        guest_cid: u64,
        memory: &Memory,
        rx: &mut Ring,
        now: Instant,
    ) -> Result<Served, BrokenRing> {
        let limit = self.connection.guest_credit().min(TURN_BYTES) as usize;
        let Some(socket) = self.driver.socket.as_mut().filter(|socket| socket.is_readable()) else {
            return Ok(Served::Packets(0));
        };
        if limit == 0 {
            return Ok(Served::Packets(0));
        }
        let (buffers, pieces) = gather(memory, rx, limit)?;
        if buffers.is_empty() {
            return Ok(Served::NoBuffer);
        }
        let mut left = match socket.receive(&pieces) {
            Received::Bytes(bytes) => bytes,
            Received::Nothing => 0,
            Received::End => {
                self.connection.handle_host_done(now);
                0
            }
        };
        let mut packets = 0;
        for buffer in &buffers {
            let len = left.min(buffer.room.len());
            if len == 0 {
                break;
            }
            left -= len;
            packets += 1;
            self.connection.handle_sent(len as u32);
            let credit = self.connection.credit_to_tell();
            let header =
                packet::encode(guest_cid, self.connection.ports(), Op::Data, len as u32, credit);
            buffer.header.copy_from(&header);
            rx.give_back(memory, buffer.head, (HEADER_BYTES + len) as u32)?;
        }
        rx.put_back((buffers.len() - packets) as u16);
        Ok(Served::Packets(packets as u32))
    }
}

/// Takes buffers for up to `limit` bytes.
fn gather<'m>(
    memory: &'m Memory,
    rx: &mut Ring,
    limit: usize,
) -> Result<(Vec<Buffer<'m>>, Vec<VolatileSlice<'m>>), BrokenRing> {
    let mut buffers: Vec<Buffer<'m>> = Vec::new();
    let mut pieces = Vec::new();
    let mut room = 0;
    while room < limit && pieces.len() < MAX_PIECES_PER_CALL {
        let buffer = if buffers.is_empty() {
            next_buffer(memory, rx, 1)?
        } else {
            // A buffer that will not do ends the gathering, and is given back when it comes first: those before
            // it may have to be put back, and it must not be given back twice then.
            match rx.take(memory)?.map(|chain| Buffer::new(memory, chain, 1)) {
                Some((_, Ok(buffer))) => Some(buffer),
                Some((_, Err(BadChain))) => {
                    rx.put_back(1);
                    None
                }
                None => None,
            }
        };
        let Some(mut buffer) = buffer else { break };
        buffer.room = buffer.room.split_front((limit - room).min(MAX_PAYLOAD_BYTES as usize));
        room += buffer.room.len();
        pieces.extend_from_slice(buffer.room.pieces());
        buffers.push(buffer);
    }
    Ok((buffers, pieces))
}

/// The next buffer with room for a header and at least `payload` bytes; others are given back empty.
fn next_buffer<'m>(
    memory: &'m Memory,
    rx: &mut Ring,
    payload: usize,
) -> Result<Option<Buffer<'m>>, BrokenRing> {
    for _ in 0..rx.size() {
        let Some(chain) = rx.take(memory)? else { return Ok(None) };
        match Buffer::new(memory, chain, payload) {
            (_, Ok(buffer)) => return Ok(Some(buffer)),
            (head, Err(BadChain)) => {
                tracing::debug!(
                    "a receive buffer of the guest is too small or outside of its memory"
                );
                rx.give_back(memory, head, 0)?;
            }
        }
    }
    Ok(None)
}

impl<'m> Buffer<'m> {
    fn new(
        memory: &'m Memory,
        chain: DescriptorChain<&'m Memory>,
        payload: usize,
    ) -> (u16, Result<Buffer<'m>, BadChain>) {
        let head = chain.head_index();
        let buffer = Scatter::writable(memory, chain).and_then(|mut room| {
            if room.len() < HEADER_BYTES + payload {
                return Err(BadChain);
            }
            let header = room.split_front(HEADER_BYTES);
            Ok(Buffer { head, header, room })
        });
        (head, buffer)
    }
}

#[cfg(test)]
mod tests;
