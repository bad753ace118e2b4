//! One vsock connection as a state machine: no socket, no guest memory, no clock of its own.
//!
//! ```text
//!    we dial                 the guest dials
//!       |                          |
//!   Dialing --RESPONSE--> Open <---+
//!       |                  |
//!       |   RST, time      | both directions have ended
//!       v                  v
//!     Ended <--RST,-- Closing        (from Open: the guest's RST or its SHUTDOWN of both, or a
//!               time                  packet that breaks the rules, lead to Ended at once)
//! ```
//!
//! Beside the guest's side runs the host's: each direction ends on its own.
//!
//! ```text
//!   to the host:   Open --guest's SHUTDOWN(send), RST--> GuestDone --all handed over--> Done
//!                  any but Done --host reads no more--> HostGone
//!   to the guest:  Open --host's EOF--> HostDone
//!                  Open --guest's SHUTDOWN(receive), RST--> GuestGone
//! ```
//!
//! Bytes are counted here and moved elsewhere. The driver calls, in any order, `handle_*` for what happened; after
//! each of them it asks `poll_order` until nothing comes, then looks at [`Connection::has_packet`],
//! [`Connection::guest_credit`], [`Connection::deadline`] and [`Connection::is_over`]. Packets for the guest come
//! from `poll_packet`, when there is room for one.
//!
//! Promises: what is in [`Connection::backlog`] never exceeds [`GUEST_CREDIT_BYTES`]; bytes that the guest
//! sent before it ended are handed over before the host sees the end; nothing is sent beyond the guest's credit.

use std::time::Instant;

use super::limits::{CLOSE_TIMEOUT, CREDIT_UPDATE_BYTES, DIAL_TIMEOUT, GUEST_CREDIT_BYTES};
use super::packet::{Credit, Op, Packet, Ports, Shutdown};

/// The guest's side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// We owe or have sent a REQUEST: waits for the guest's RESPONSE or RST.
    Dialing {
        /// When the wait ends.
        deadline: Instant,
    },
    /// Both sides know of each other, and at least one direction still carries bytes.
    Open,
    /// Neither direction carries bytes any more; we owe or have sent SHUTDOWN of both: waits for the guest's RST.
    Closing {
        /// When the wait ends.
        deadline: Instant,
    },
    /// The guest ended it or was told so by a RST. The ports are free again; what it sent before may still be on its
    /// way to the host.
    Ended,
}

/// The direction from guest to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToHost {
    /// The guest may send.
    Open,
    /// The guest sends no more; the host has yet to take some of it.
    GuestDone,
    /// The guest sends no more and the host has all of it.
    Done,
    /// The host reads no more: what comes is dropped.
    HostGone,
}

/// The direction from host to guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToGuest {
    /// The host may send.
    Open,
    /// The host sends no more; the guest has all of it in its receive buffers.
    HostDone,
    /// The guest reads no more: the host may not send.
    GuestGone,
}

/// What the driver has to do with the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Give the dialler its end; the guest has accepted.
    Connected,
    /// Tell the dialler that it will not be.
    Failed(DialFailure),
    /// Tell the host that no more bytes come: it has them all.
    EndWriting,
    /// Let the host's writes fail: nobody will read them.
    EndReading,
    /// Close our end: it has nothing more to do.
    Close,
}

/// Why a dial came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// The guest said no.
    Refused,
    /// The guest said nothing.
    TimedOut,
    /// The guest's driver was reset meanwhile.
    GuestGone,
}

/// What is to become of a packet's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// It has none, or is against the rules.
    None,
    /// Hand these bytes to the host (and report them with [`Connection::handle_taken`] as it takes them).
    Deliver(u32),
    /// Drop it: the host reads no more.
    Drop,
}

/// One connection. See the module for the calling order.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    state: State,
    to_host: ToHost,
    to_guest: ToGuest,

    /// Bytes accepted from the guest since the beginning, modulo 2^32.
    received: u32,
    /// Bytes of those that the host took, or that were dropped because it is gone.
    taken: u32,
    /// The value of `taken` that the guest was told last.
    told_taken: u32,

    /// Bytes sent to the guest since the beginning, modulo 2^32.
    sent: u32,
    /// What the guest said of its buffer last.
    guest: Credit,

    /// REQUEST or RESPONSE, until it is polled.
    owes_greeting: Option<Op>,
    /// The guest asked for our credit.
    owes_credit: bool,
    /// The greeting waits until the host has accepted.
    withheld: bool,
    /// Credit is gone and bytes wait: ask for it, once per stall.
    owes_credit_request: bool,
    /// A request was sent since the guest last gave credit.
    asked_for_credit: bool,
    /// What we have told the guest by SHUTDOWN.
    told_shutdown: Shutdown,
    /// What the guest has told us by SHUTDOWN.
    guest_shutdown: Shutdown,
    /// RST; the only packet once the state is `Ended`.
    owes_reset: bool,

    /// The result of a dial until it is polled.
    dial_result: Option<Order>,
    /// Orders given already.
    ended_writing: bool,
    ended_reading: bool,
    closed: bool,
}

impl Connection {
    /// A connection that the host dials.
    pub fn dial(ports: Ports, now: Instant) -> Connection {
        Connection::new(ports, State::Dialing { deadline: now + DIAL_TIMEOUT }, Op::Request)
    }

    /// A connection that the guest dialled with `request` and that the host accepts.
    pub fn accept(request: &Packet) -> Connection {
        let mut connection = Connection::new(request.ports, State::Open, Op::Response);
        connection.guest = request.credit;
        connection
    }

    /// The same, but nothing is said to the guest before [`Connection::greet`]; a host that leaves before refuses.
    pub fn offer(request: &Packet) -> Connection {
        Connection { withheld: true, ..Connection::accept(request) }
    }

    /// The host accepts.
    pub fn greet(&mut self) {
        self.withheld = false;
    }

    fn new(ports: Ports, state: State, greeting: Op) -> Connection {
        Connection {
            ports,
            state,
            to_host: ToHost::Open,
            to_guest: ToGuest::Open,
            received: 0,
            taken: 0,
            told_taken: 0,
            sent: 0,
            guest: Credit::default(),
            owes_greeting: Some(greeting),
            withheld: false,
            owes_credit: false,
            owes_credit_request: false,
            asked_for_credit: false,
            told_shutdown: Shutdown::default(),
            guest_shutdown: Shutdown::default(),
            owes_reset: false,
            dial_result: None,
            ended_writing: false,
            ended_reading: false,
            closed: false,
        }
    }

    /// The guest sent `packet`, which is for this connection.
    pub fn handle_packet(&mut self, packet: &Packet, now: Instant) -> Payload {
        if !matches!(packet.op, Op::Reset) {
            self.note_credit(packet.credit);
        }
        match (self.state, packet.op) {
            (State::Dialing { .. }, Op::Response) => {
                self.state = State::Open;
                self.owes_greeting = None;
                self.dial_result = Some(Order::Connected);
            }
            (State::Dialing { .. }, Op::Reset) => self.fail_dial(DialFailure::Refused),
            (
                State::Dialing { .. },
                Op::Request | Op::Shutdown(_) | Op::Data | Op::CreditUpdate | Op::CreditRequest,
            ) => {
                self.fail_dial(DialFailure::Refused);
                self.owes_reset = true;
            }

            (State::Open | State::Closing { .. }, Op::Reset) => self.end_guest_side(),
            (State::Open | State::Closing { .. }, Op::Shutdown(which)) => {
                self.note_shutdown(which, now)
            }
            (State::Open | State::Closing { .. }, Op::CreditUpdate) => {}
            (State::Open, Op::CreditRequest) => self.owes_credit = true,
            (State::Open, Op::Data) => return self.note_data(packet.len),
            (State::Open, Op::Request | Op::Response) => self.abort(),

            // It was sent before our SHUTDOWN arrived.
            (State::Closing { .. }, Op::Data | Op::CreditRequest) => return Payload::Drop,
            (State::Closing { .. }, Op::Request | Op::Response) => self.abort(),

            // The driver routes no packet to an ended connection.
            (
                State::Ended,
                Op::Request
                | Op::Response
                | Op::Reset
                | Op::Shutdown(_)
                | Op::Data
                | Op::CreditUpdate
                | Op::CreditRequest,
            ) => {}
        }
        Payload::None
    }

    /// The host took `bytes` of the backlog.
    pub fn handle_taken(&mut self, bytes: u32) {
        self.taken = self.taken.wrapping_add(bytes.min(self.backlog()));
    }

    /// The host sends no more, and all that it sent was passed on with [`Connection::handle_sent`].
    pub fn handle_host_done(&mut self, now: Instant) {
        if self.to_guest == ToGuest::Open {
            self.to_guest = ToGuest::HostDone;
        }
        self.close_when_both_ended(now);
    }

    /// The host reads no more; the backlog is to be dropped.
    pub fn handle_host_gone(&mut self, now: Instant) {
        self.taken = self.received;
        if self.withheld {
            return self.abort();
        }
        match self.to_host {
            ToHost::Open => self.to_host = ToHost::HostGone,
            ToHost::GuestDone => self.to_host = ToHost::Done,
            ToHost::Done | ToHost::HostGone => {}
        }
        self.close_when_both_ended(now);
    }

    /// The host has bytes for the guest, which gives no credit for them.
    pub fn handle_starved(&mut self) {
        let greeted = self.state == State::Open && self.owes_greeting.is_none();
        if greeted && !self.asked_for_credit && self.guest_credit() == 0 {
            self.owes_credit_request = true;
        }
    }

    /// A data packet with `bytes` of payload was given to the guest.
    pub fn handle_sent(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.guest_credit());
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// `now` may be past the deadline.
    pub fn handle_time(&mut self, now: Instant) {
        match self.state {
            State::Dialing { deadline } if now >= deadline => {
                self.fail_dial(DialFailure::TimedOut);
                self.owes_reset = true;
            }
            State::Closing { deadline } if now >= deadline => self.abort(),
            State::Dialing { .. } | State::Closing { .. } | State::Open | State::Ended => {}
        }
    }

    /// The guest's driver was reset, or the VM has ended: nobody is there to be told.
    pub fn handle_guest_gone(&mut self) {
        match self.state {
            State::Dialing { .. } => self.fail_dial(DialFailure::GuestGone),
            State::Open | State::Closing { .. } => self.end_guest_side(),
            State::Ended => {}
        }
        self.owes_reset = false;
    }

    /// The host cannot go on with it, or the guest has broken the rules: it is over, and the guest gets a RST.
    pub fn abort(&mut self) {
        match self.state {
            State::Dialing { .. } => self.fail_dial(DialFailure::Refused),
            State::Open | State::Closing { .. } => self.end_guest_side(),
            State::Ended => return,
        }
        self.owes_reset = true;
    }

    /// The next thing to do with the host's end.
    pub fn poll_order(&mut self) -> Option<Order> {
        if let Some(result) = self.dial_result.take() {
            return Some(result);
        }
        if self.to_host == ToHost::GuestDone && self.backlog() == 0 {
            self.to_host = ToHost::Done;
        }
        if self.closed {
            return None;
        }
        let nothing_to_write = matches!(self.to_host, ToHost::Done | ToHost::HostGone);
        let nothing_to_read = matches!(self.to_guest, ToGuest::HostDone | ToGuest::GuestGone);
        if nothing_to_write && nothing_to_read {
            self.closed = true;
            return Some(Order::Close);
        }
        if self.to_host == ToHost::Done && !self.ended_writing {
            self.ended_writing = true;
            return Some(Order::EndWriting);
        }
        if self.to_guest == ToGuest::GuestGone && !self.ended_reading {
            self.ended_reading = true;
            return Some(Order::EndReading);
        }
        None
    }

    /// Whether [`Connection::poll_packet`] has one.
    pub fn has_packet(&self) -> bool {
        self.next_packet().is_some()
    }

    /// The next packet without payload for the guest, which must be sent.
    pub fn poll_packet(&mut self) -> Option<Op> {
        let op = self.next_packet()?;
        match op {
            Op::Request | Op::Response => self.owes_greeting = None,
            Op::CreditRequest => {
                self.owes_credit_request = false;
                self.asked_for_credit = true;
            }
            Op::Shutdown(which) => self.told_shutdown = which,
            Op::Reset => self.owes_reset = false,
            Op::CreditUpdate | Op::Data => {}
        }
        Some(op)
    }

    /// What the header of the next packet says of our buffer. Calling it counts as telling the guest.
    pub fn credit_to_tell(&mut self) -> Credit {
        self.told_taken = self.taken;
        self.owes_credit = false;
        Credit { buf_alloc: GUEST_CREDIT_BYTES, fwd_cnt: self.taken }
    }

    /// Takes the RST that an ended connection owes: it is then the caller's to send.
    pub fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.owes_reset)
    }

    /// Its name.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The guest's side of it.
    pub fn state(&self) -> State {
        self.state
    }

    /// Bytes accepted from the guest that the host has not taken yet.
    pub fn backlog(&self) -> u32 {
        self.received.wrapping_sub(self.taken)
    }

    /// Bytes that may be sent to the guest now.
    pub fn guest_credit(&self) -> u32 {
        if self.state != State::Open
            || self.to_guest != ToGuest::Open
            || self.owes_greeting.is_some()
        {
            return 0;
        }
        let on_their_way = self.sent.wrapping_sub(self.guest.fwd_cnt);
        self.guest.buf_alloc.saturating_sub(on_their_way)
    }

    /// Whether the host's bytes and its end are still of interest: reading them waits for credit at most.
    pub fn wants_host_bytes(&self) -> bool {
        self.state == State::Open && self.to_guest == ToGuest::Open
    }

    /// When [`Connection::handle_time`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Dialing { deadline } | State::Closing { deadline } => Some(deadline),
            State::Open | State::Ended => None,
        }
    }

    /// Whether the ports are free again.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether there is nothing left to do for either side.
    pub fn is_over(&self) -> bool {
        self.has_ended() && self.closed && !self.owes_reset && self.dial_result.is_none()
    }

    fn next_packet(&self) -> Option<Op> {
        if self.owes_reset {
            return Some(Op::Reset);
        }
        if self.state == State::Ended {
            return None;
        }
        if let Some(greeting) = self.owes_greeting {
            return (!self.withheld).then_some(greeting);
        }
        let unannounced = self.taken.wrapping_sub(self.told_taken);
        let may_send = self.state == State::Open && self.to_host == ToHost::Open;
        if self.owes_credit || (may_send && unannounced >= CREDIT_UPDATE_BYTES) {
            return Some(Op::CreditUpdate);
        }
        if self.owes_credit_request && self.state == State::Open {
            return Some(Op::CreditRequest);
        }
        let closing = matches!(self.state, State::Closing { .. });
        let due = self.told_shutdown.union(Shutdown {
            receive: closing || self.to_host == ToHost::HostGone,
            send: closing || self.to_guest == ToGuest::HostDone,
        });
        (due != self.told_shutdown).then_some(Op::Shutdown(due))
    }

    fn note_credit(&mut self, credit: Credit) {
        self.guest = credit;
        if self.guest_credit() > 0 {
            self.asked_for_credit = false;
            self.owes_credit_request = false;
        }
    }

    fn note_data(&mut self, len: u32) -> Payload {
        match self.to_host {
            ToHost::Open if len > GUEST_CREDIT_BYTES - self.backlog() => {
                self.abort();
                Payload::None
            }
            ToHost::Open => {
                self.received = self.received.wrapping_add(len);
                Payload::Deliver(len)
            }
            ToHost::HostGone => {
                self.received = self.received.wrapping_add(len);
                self.taken = self.received;
                Payload::Drop
            }
            ToHost::GuestDone | ToHost::Done => {
                self.abort();
                Payload::None
            }
        }
    }

    fn note_shutdown(&mut self, which: Shutdown, now: Instant) {
        self.guest_shutdown = self.guest_shutdown.union(which);
        if self.guest_shutdown == Shutdown::BOTH {
            // The RST is what the guest waits for before it forgets the connection. It is sent at once: all that the
            // guest sent is here already.
            self.abort();
            return;
        }
        if self.guest_shutdown.send && self.to_host == ToHost::Open {
            self.to_host = ToHost::GuestDone;
        }
        if self.guest_shutdown.receive && self.to_guest == ToGuest::Open {
            self.to_guest = ToGuest::GuestGone;
        }
        self.close_when_both_ended(now);
    }

    fn close_when_both_ended(&mut self, now: Instant) {
        if self.state == State::Open
            && self.to_host != ToHost::Open
            && self.to_guest != ToGuest::Open
        {
            self.state = State::Closing { deadline: now + CLOSE_TIMEOUT };
        }
    }

    fn end_guest_side(&mut self) {
        self.state = State::Ended;
        self.owes_greeting = None;
        if self.to_host == ToHost::Open {
            self.to_host = ToHost::GuestDone;
        }
        if self.to_guest == ToGuest::Open {
            self.to_guest = ToGuest::GuestGone;
        }
    }

    fn fail_dial(&mut self, why: DialFailure) {
        self.end_guest_side();
        self.dial_result = Some(Order::Failed(why));
    }
}

#[cfg(test)]
mod tests;
