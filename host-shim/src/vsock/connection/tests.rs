//! Proves the connection's promises: single steps by hand, then random lives against a guest and a host of a dozen
//! lines each, over a wire that delivers late; and random packets, which a guest may send as it likes.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;

const PORTS: Ports = Ports { guest: 5000, host: 1024 };

fn packet(op: Op, len: u32, credit: Credit) -> Packet {
    Packet { ports: PORTS, op, len, credit }
}

fn plenty() -> Credit {
    Credit { buf_alloc: 1 << 20, fwd_cnt: 0 }
}

fn orders(connection: &mut Connection) -> Vec<Order> {
    std::iter::from_fn(|| connection.poll_order()).collect()
}

fn packets(connection: &mut Connection) -> Vec<Op> {
    std::iter::from_fn(|| {
        connection.poll_packet().inspect(|_| {
            connection.credit_to_tell();
        })
    })
    .collect()
}

fn open(now: Instant) -> Connection {
    let mut connection = Connection::dial(PORTS, now);
    assert_eq!(packets(&mut connection), [Op::Request]);
    connection.handle_packet(&packet(Op::Response, 0, plenty()), now);
    assert_eq!(orders(&mut connection), [Order::Connected]);
    connection
}

fn shutdown(receive: bool, send: bool) -> Op {
    Op::Shutdown(Shutdown { receive, send })
}

#[test]
fn a_refused_dial_fails_and_leaves_nothing() {
    let now = Instant::now();
    let mut connection = Connection::dial(PORTS, now);
    packets(&mut connection);
    connection.handle_packet(&packet(Op::Reset, 0, Credit::default()), now);
    assert_eq!(orders(&mut connection), [Order::Failed(DialFailure::Refused), Order::Close]);
    assert!(packets(&mut connection).is_empty());
    assert!(connection.is_over());
}

#[test]
fn a_dial_without_answer_fails_at_its_deadline_and_resets() {
    let now = Instant::now();
    let mut connection = Connection::dial(PORTS, now);
    packets(&mut connection);
    connection.handle_time(now + DIAL_TIMEOUT - Duration::from_millis(1));
    assert!(orders(&mut connection).is_empty());
    connection.handle_time(now + DIAL_TIMEOUT);
    assert_eq!(orders(&mut connection), [Order::Failed(DialFailure::TimedOut), Order::Close]);
    assert!(connection.take_reset());
    assert!(connection.is_over());
}

#[test]
fn an_accepted_connection_answers_before_it_sends() {
    let mut connection = Connection::accept(&packet(Op::Request, 0, plenty()));
    assert_eq!(connection.guest_credit(), 0);
    assert_eq!(packets(&mut connection), [Op::Response]);
    assert_eq!(connection.guest_credit(), 1 << 20);
}

#[test]
fn the_guests_half_close_reaches_the_host_after_its_bytes_and_the_other_half_lives() {
    let now = Instant::now();
    let mut connection = open(now);
    assert_eq!(
        connection.handle_packet(&packet(Op::Data, 10, plenty()), now),
        Payload::Deliver(10)
    );
    connection.handle_packet(&packet(shutdown(false, true), 0, plenty()), now);
    assert!(orders(&mut connection).is_empty());
    connection.handle_taken(10);
    assert_eq!(orders(&mut connection), [Order::EndWriting]);
    assert!(connection.wants_host_bytes());
    connection.handle_sent(connection.guest_credit());
    connection.handle_host_done(now);
    assert_eq!(packets(&mut connection), [Op::Shutdown(Shutdown::BOTH)]);
    assert_eq!(orders(&mut connection), [Order::Close]);
    connection.handle_packet(&packet(Op::Reset, 0, plenty()), now);
    assert!(connection.is_over());
}

#[test]
fn the_hosts_half_close_reaches_the_guest_and_its_reply_arrives() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.handle_host_done(now);
    assert_eq!(packets(&mut connection), [shutdown(false, true)]);
    assert_eq!(connection.handle_packet(&packet(Op::Data, 7, plenty()), now), Payload::Deliver(7));
    connection.handle_packet(&packet(Op::Shutdown(Shutdown::BOTH), 0, plenty()), now);
    assert_eq!(packets(&mut connection), [Op::Reset]);
    assert!(orders(&mut connection).is_empty(), "the reply is not with the host yet");
    connection.handle_taken(7);
    assert_eq!(orders(&mut connection), [Order::Close]);
    assert!(connection.is_over());
}

#[test]
fn a_host_that_is_gone_is_told_to_the_guest_and_its_bytes_are_dropped() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.handle_packet(&packet(Op::Data, 7, plenty()), now);
    connection.handle_host_gone(now);
    assert_eq!(connection.backlog(), 0);
    assert_eq!(packets(&mut connection), [shutdown(true, false)]);
    assert_eq!(connection.handle_packet(&packet(Op::Data, 7, plenty()), now), Payload::Drop);
    assert_eq!(connection.credit_to_tell().fwd_cnt, 14, "what is dropped has left the buffer");
    connection.handle_host_done(now);
    assert_eq!(packets(&mut connection), [Op::Shutdown(Shutdown::BOTH)]);
    assert_eq!(orders(&mut connection), [Order::Close]);
}

#[test]
fn a_guest_that_never_resets_is_forgotten_at_the_deadline() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.handle_host_gone(now);
    connection.handle_host_done(now);
    assert_eq!(connection.deadline(), Some(now + CLOSE_TIMEOUT));
    orders(&mut connection);
    connection.handle_time(now + CLOSE_TIMEOUT);
    assert!(connection.take_reset());
    assert!(connection.is_over());
}

#[test]
fn data_up_to_the_credit_is_taken_and_a_byte_more_resets() {
    let now = Instant::now();
    let mut connection = open(now);
    for _ in 0..GUEST_CREDIT_BYTES / 65536 {
        assert_eq!(
            connection.handle_packet(&packet(Op::Data, 65536, plenty()), now),
            Payload::Deliver(65536)
        );
    }
    assert_eq!(connection.backlog(), GUEST_CREDIT_BYTES);
    assert_eq!(connection.handle_packet(&packet(Op::Data, 1, plenty()), now), Payload::None);
    assert_eq!(packets(&mut connection), [Op::Reset]);
    assert_eq!(connection.backlog(), GUEST_CREDIT_BYTES, "what was in order is still delivered");
}

#[test]
fn the_guest_hears_of_room_in_its_buffer_when_it_matters() {
    let now = Instant::now();
    let mut connection = open(now);
    for _ in 0..2 {
        connection.handle_packet(&packet(Op::Data, CREDIT_UPDATE_BYTES / 2, plenty()), now);
    }
    connection.handle_taken(CREDIT_UPDATE_BYTES - 1);
    assert!(!connection.has_packet());
    connection.handle_taken(1);
    assert_eq!(packets(&mut connection), [Op::CreditUpdate]);
    connection.handle_packet(&packet(Op::CreditRequest, 0, plenty()), now);
    assert_eq!(packets(&mut connection), [Op::CreditUpdate]);
}

#[test]
fn credit_is_asked_for_once_per_stall() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.handle_sent(1 << 20);
    connection.handle_starved();
    assert_eq!(packets(&mut connection), [Op::CreditRequest]);
    connection.handle_packet(&packet(Op::CreditUpdate, 0, plenty()), now);
    connection.handle_starved();
    assert!(packets(&mut connection).is_empty());
    connection.handle_packet(
        &packet(Op::CreditUpdate, 0, Credit { buf_alloc: 1 << 20, fwd_cnt: 1 }),
        now,
    );
    assert_eq!(connection.guest_credit(), 1);
    connection.handle_sent(1);
    connection.handle_starved();
    assert_eq!(packets(&mut connection), [Op::CreditRequest]);
}

#[test]
fn a_lying_credit_gives_nothing() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.handle_sent(100);
    connection
        .handle_packet(&packet(Op::CreditUpdate, 0, Credit { buf_alloc: 1000, fwd_cnt: 101 }), now);
    assert_eq!(connection.guest_credit(), 0);
    connection
        .handle_packet(&packet(Op::CreditUpdate, 0, Credit { buf_alloc: 10, fwd_cnt: 0 }), now);
    assert_eq!(connection.guest_credit(), 0);
}

/// One step of a random life.
#[derive(Debug, Clone)]
enum Step {
    GuestSends(u32),
    GuestReads(u32),
    GuestShutsSend,
    GuestShutsReceive,
    GuestCloses,
    GuestResets,
    HostWrites(u32),
    HostReads(u32),
    HostShutsWrite,
    HostCloses,
    ToGuest,
    FromGuest,
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u32..70_000).prop_map(Step::GuestSends),
        6 => (1u32..70_000).prop_map(Step::GuestReads),
        1 => Just(Step::GuestShutsSend),
        1 => Just(Step::GuestShutsReceive),
        1 => Just(Step::GuestCloses),
        1 => Just(Step::GuestResets),
        6 => (1u32..70_000).prop_map(Step::HostWrites),
        6 => (1u32..70_000).prop_map(Step::HostReads),
        1 => Just(Step::HostShutsWrite),
        1 => Just(Step::HostCloses),
        9 => Just(Step::ToGuest),
        9 => Just(Step::FromGuest),
        1 => (1u64..3_000).prop_map(Step::Time),
    ]
}

/// A guest and a host with the smallest behaviour that obeys the protocol, and what lies between them and us.
struct World {
    connection: Connection,
    now: Instant,

    guest_known: bool,
    guest_buffer: u32,
    guest_unread: u32,
    guest_got: u32,
    guest_read: u32,
    guest_sent: u32,
    guest_peer: Credit,
    guest_shut: Shutdown,
    peer_shut: Shutdown,
    guest_gone: bool,
    /// Everything that was put on the wire before the guest ended that direction.
    owed_to_host: u32,
    wire_to_guest: VecDeque<(Op, u32, Credit)>,
    wire_from_guest: VecDeque<(Op, u32)>,

    host_unsent: u32,
    host_wrote: u32,
    host_done: bool,
    host_gone: bool,
    host_taken: u32,
    host_open: bool,
    host_write_ended: bool,
    dial_failed: bool,
}

impl World {
    fn new(guest_buffer: u32) -> World {
        let now = Instant::now();
        World {
            connection: Connection::dial(PORTS, now),
            now,
            guest_known: false,
            guest_buffer,
            guest_unread: 0,
            guest_got: 0,
            guest_read: 0,
            guest_sent: 0,
            guest_peer: Credit::default(),
            guest_shut: Shutdown::default(),
            peer_shut: Shutdown::default(),
            guest_gone: false,
            owed_to_host: 0,
            wire_to_guest: VecDeque::new(),
            wire_from_guest: VecDeque::new(),
            host_unsent: 0,
            host_wrote: 0,
            host_done: false,
            host_gone: false,
            host_taken: 0,
            host_open: false,
            host_write_ended: false,
            dial_failed: false,
        }
    }

    fn guest_may_send(&self) -> u32 {
        if !self.guest_known || self.guest_gone || self.guest_shut.send || self.peer_shut.receive {
            return 0;
        }
        self.guest_peer.buf_alloc - (self.guest_sent - self.guest_peer.fwd_cnt)
    }

    fn guest_shuts(&mut self, which: Shutdown) {
        if self.guest_known && !self.guest_gone && self.guest_shut.union(which) != self.guest_shut {
            self.guest_shut = self.guest_shut.union(which);
            self.wire_from_guest.push_back((Op::Shutdown(self.guest_shut), 0));
        }
    }

    fn guest_ends(&mut self, reset: bool) {
        if !self.guest_gone {
            self.guest_gone = true;
            if reset {
                self.wire_from_guest.push_back((Op::Reset, 0));
            }
        }
    }

    /// The guest's kernel gets a packet.
    fn guest_gets(&mut self, op: Op, len: u32, credit: Credit) {
        if self.guest_gone {
            return;
        }
        if op != Op::Reset {
            self.guest_peer = credit;
        }
        match op {
            Op::Request => {
                self.guest_known = true;
                self.wire_from_guest.push_back((Op::Response, 0));
            }
            Op::Data => {
                assert!(!self.peer_shut.send, "data after the end");
                self.guest_got += len;
                self.guest_unread += len;
                assert!(self.guest_unread <= self.guest_buffer, "beyond the guest's credit");
            }
            Op::CreditRequest => self.wire_from_guest.push_back((Op::CreditUpdate, 0)),
            Op::CreditUpdate => {}
            Op::Shutdown(which) => {
                self.peer_shut = self.peer_shut.union(which);
                if which.send && !self.guest_shut.receive {
                    assert_eq!(self.guest_got, self.host_wrote, "the end came before the bytes");
                }
                if self.peer_shut == Shutdown::BOTH {
                    self.guest_ends(true);
                }
            }
            Op::Reset => self.guest_ends(false),
            Op::Response => panic!("nobody dialled us"),
        }
    }

    /// What the driver does after each event.
    fn settle(&mut self) {
        while let Some(order) = self.connection.poll_order() {
            match order {
                Order::Connected => self.host_open = true,
                Order::Failed(_) => self.dial_failed = true,
                Order::EndWriting => self.host_write_ended = true,
                Order::EndReading => {}
                Order::Close => {
                    self.host_open = false;
                    self.host_write_ended = true;
                }
            }
            if self.host_write_ended && !self.host_gone && !self.dial_failed {
                assert_eq!(self.host_taken, self.owed_to_host, "the host saw the end too early");
            }
        }
        assert!(self.connection.backlog() <= GUEST_CREDIT_BYTES);
        if self.connection.has_ended() && self.connection.take_reset() {
            self.wire_to_guest.push_back((Op::Reset, 0, Credit::default()));
        }
    }

    /// What the driver does when the guest has room for packets.
    fn send(&mut self) {
        while let Some(op) = self.connection.poll_packet() {
            let credit = self.connection.credit_to_tell();
            self.wire_to_guest.push_back((op, 0, credit));
        }
        if !self.host_open || !self.connection.wants_host_bytes() {
            self.host_unsent = 0;
            return;
        }
        let bytes = self.host_unsent.min(self.connection.guest_credit());
        if bytes > 0 {
            self.connection.handle_sent(bytes);
            self.host_unsent -= bytes;
            let credit = self.connection.credit_to_tell();
            self.wire_to_guest.push_back((Op::Data, bytes, credit));
        } else if self.host_unsent > 0 {
            self.connection.handle_starved();
        }
        if self.host_unsent == 0 && self.host_done {
            self.connection.handle_host_done(self.now);
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::GuestSends(bytes) => {
                let bytes = bytes.min(self.guest_may_send()).min(65536);
                if bytes > 0 {
                    self.guest_sent += bytes;
                    self.owed_to_host += bytes;
                    self.wire_from_guest.push_back((Op::Data, bytes));
                }
            }
            Step::GuestReads(bytes) => {
                let bytes = bytes.min(self.guest_unread);
                if bytes > 0 {
                    self.guest_unread -= bytes;
                    self.guest_read += bytes;
                    if !self.guest_gone {
                        self.wire_from_guest.push_back((Op::CreditUpdate, 0));
                    }
                }
            }
            Step::GuestShutsSend => self.guest_shuts(Shutdown { receive: false, send: true }),
            Step::GuestShutsReceive => self.guest_shuts(Shutdown { receive: true, send: false }),
            Step::GuestCloses => self.guest_shuts(Shutdown::BOTH),
            Step::GuestResets => {
                if self.guest_known {
                    self.guest_ends(true);
                }
            }
            Step::HostWrites(bytes) => {
                if self.host_open && !self.host_done && self.connection.wants_host_bytes() {
                    self.host_unsent += bytes;
                    self.host_wrote += bytes;
                }
            }
            Step::HostReads(bytes) => {
                if self.host_open && !self.host_gone {
                    let bytes = bytes.min(self.connection.backlog());
                    self.connection.handle_taken(bytes);
                    self.host_taken += bytes;
                }
            }
            Step::HostShutsWrite => self.host_done = self.host_done || self.host_open,
            Step::HostCloses => {
                if self.host_open && !self.host_gone {
                    self.host_done = true;
                    self.host_gone = true;
                    self.connection.handle_host_gone(self.now);
                }
            }
            Step::ToGuest => {
                if let Some((op, len, credit)) = self.wire_to_guest.pop_front() {
                    self.guest_gets(op, len, credit);
                }
            }
            Step::FromGuest => {
                if let Some((op, len)) = self.wire_from_guest.pop_front()
                    && !self.connection.has_ended()
                {
                    let credit = Credit { buf_alloc: self.guest_buffer, fwd_cnt: self.guest_read };
                    let payload = self.connection.handle_packet(&packet(op, len, credit), self.now);
                    if op == Op::Data && payload == Payload::Deliver(len) && self.host_gone {
                        panic!("bytes for a host that is gone");
                    }
                } else {
                    // As the driver would: nothing, since a RST was sent when it ended.
                }
            }
            Step::Time(ms) => {
                self.now += Duration::from_millis(ms);
                self.connection.handle_time(self.now);
            }
        }
        self.settle();
        self.send();
        self.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_life_ends_with_every_byte_where_it_belongs(
        buffer in 1u32..200_000,
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new(buffer);
        for step in &steps {
            // Time passes only for the waits; a dial must not fail for the test's own slowness.
            world.run(step);
        }
        // Then both sides close, read what is left, and the wire delivers.
        let ending = [Step::HostShutsWrite, Step::ToGuest, Step::FromGuest, Step::GuestReads(u32::MAX), Step::HostReads(u32::MAX)];
        let mut rounds = 0;
        while world.host_unsent > 0 || !world.wire_to_guest.is_empty() || !world.wire_from_guest.is_empty() {
            for step in &ending {
                world.run(step);
            }
            rounds += 1;
            prop_assert!(rounds < 400_000, "no progress");
            if world.connection.has_ended() {
                break;
            }
        }
        for _ in 0..200 {
            for step in ending.iter().chain(&[Step::GuestCloses]) {
                world.run(step);
            }
        }
        world.run(&Step::HostReads(u32::MAX));
        world.run(&Step::Time(20_000));
        prop_assert!(world.connection.is_over(), "{:?}", world.connection);
        if !world.host_gone && !world.dial_failed {
            prop_assert_eq!(world.host_taken, world.owed_to_host);
        }
    }

    #[test]
    fn a_guest_may_send_anything(
        accepted in any::<bool>(),
        script in proptest::collection::vec((0u8..9, any::<u32>(), any::<u32>(), any::<u32>(), 0u8..8), 0..200),
    ) {
        let mut now = Instant::now();
        let mut connection = if accepted {
            Connection::accept(&packet(Op::Request, 0, plenty()))
        } else {
            Connection::dial(PORTS, now)
        };
        for (what, a, buf_alloc, fwd_cnt, host) in script {
            let op = match what {
                0 => Op::Request,
                1 => Op::Response,
                2 => Op::Reset,
                3 => Op::Shutdown(Shutdown { receive: a & 1 != 0, send: a & 2 != 0 }),
                4 | 5 => Op::Data,
                6 => Op::CreditUpdate,
                7 => Op::CreditRequest,
                _ => { now += Duration::from_millis(u64::from(a % 5000)); connection.handle_time(now); continue }
            };
            let len = if op == Op::Data { a % 65537 } else { 0 };
            connection.handle_packet(&packet(op, len, Credit { buf_alloc, fwd_cnt }), now);
            match host {
                0 => connection.handle_host_done(now),
                1 => connection.handle_host_gone(now),
                2 => connection.handle_taken(a % 100_000),
                3 => connection.handle_sent(connection.guest_credit().min(65536)),
                4 => connection.handle_starved(),
                _ => {}
            }
            while connection.poll_order().is_some() {}
            let sent = packets(&mut connection).len();
            prop_assert!(sent <= 4, "one event owes a handful of packets at most, not {}", sent);
            prop_assert!(connection.backlog() <= GUEST_CREDIT_BYTES);
        }
        connection.handle_guest_gone();
        connection.handle_taken(u32::MAX);
        while connection.poll_order().is_some() {}
        prop_assert!(connection.is_over());
    }
}
