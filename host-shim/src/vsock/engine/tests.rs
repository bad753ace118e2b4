//! The engine between a modelled driver and real sockets: single rules by hand, then an honest guest that splits its
//! packets as it likes while the host does as it likes, then a guest that writes garbage into rings and memory.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};

use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::vsock::driver_model::{Driver, ENTRIES, MEMORY_BYTES};
use crate::vsock::limits::{
    CLOSE_TIMEOUT, DIAL_TIMEOUT, GUEST_CREDIT_BYTES, MAX_GUEST_DIALED, MAX_QUEUED_RESETS,
};
use crate::vsock::packet::{Fields, HOST_CID};

const CID: u64 = 3;
const LISTED: u32 = 9000;
const GUEST_BUFFER: u32 = 256 * 1024;

/// The engine, what surrounds it, and the time.
struct Bench {
    engine: Engine,
    driver: Driver,
    rings: [Ring; 2],
    poller: Rc<Epoll>,
    events: Receiver<VsockEvent>,
    now: Instant,
}

type Answer = Receiver<Result<OwnedFd, ConnectError>>;

impl Bench {
    fn new() -> Bench {
        let poller = Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        let (sender, events) = channel();
        let report = Box::new(move |event| drop(sender.send(event)));
        let engine = Engine::new(CID, [LISTED], poller.clone(), report);
        let driver = Driver::anonymous();
        let rings = driver.rings();
        Bench { engine, driver, rings, poller, events, now: Instant::now() }
    }

    /// With receive buffers of the size that Linux offers.
    fn with_buffers() -> Bench {
        let mut bench = Bench::new();
        for _ in 0..ENTRIES {
            assert!(bench.driver.offer(&[4096]));
        }
        bench
    }

    /// What the worker does in one pass of its loop.
    fn pass(&mut self) -> Result<[Round; 2], BrokenRing> {
        let outstanding: Vec<_> = self.rings.iter().map(Ring::outstanding).collect();
        let mut events = [EpollEvent::empty(); 64];
        let count = self.poller.wait(&mut events, EpollTimeout::ZERO).unwrap();
        for event in &events[..count] {
            self.engine.handle_host_event(ConnectionId(event.data()), event.events(), self.now);
        }
        self.engine.handle_time(self.now);
        let [rx, tx] = &mut self.rings;
        let read = self.engine.read_packets(&self.driver.memory, tx, self.now)?;
        let written = self.engine.write_packets(&self.driver.memory, rx, self.now)?;
        for ring in &mut self.rings {
            ring.wants_signal(&self.driver.memory)?;
        }
        let now: Vec<_> = self.rings.iter().map(Ring::outstanding).collect();
        assert_eq!(outstanding, now, "buffers that the guest will never see again");
        Ok([read, written])
    }

    /// Passes until nothing changes, as an idle worker sleeps then.
    fn run(&mut self) {
        for _ in 0..10 {
            self.pass().unwrap();
        }
    }

    fn connect(&mut self, port: u32) -> Answer {
        let (sender, answer) = channel();
        self.engine.connect(port, Reply::new(move |result| drop(sender.send(result))), self.now);
        answer
    }

    fn send(&mut self, op: u16, ports: Ports, payload: &[u8]) {
        assert!(self.driver.send(&header(op, ports, payload.len() as u32), payload));
        self.run();
        assert_eq!(self.driver.reclaim(), 1, "a packet that was read is given back");
    }

    /// What the guest has received since, by operation and payload; its buffers are offered again.
    fn got(&mut self) -> Vec<(Fields, Vec<u8>)> {
        self.run();
        let packets = self.driver.received();
        while self.driver.offer(&[4096]) {}
        packets
    }

    fn ops(&mut self) -> Vec<u16> {
        self.got().iter().map(|(header, _)| header.op).collect()
    }

    /// A connection that the guest dialled and the host holds.
    fn dialed(&mut self, guest_port: u32) -> (Ports, UnixStream) {
        let ports = Ports { guest: guest_port, host: LISTED };
        self.send(1, ports, &[]);
        let VsockEvent::GuestDialed { port: LISTED, stream, .. } = self.events.try_recv().unwrap()
        else {
            panic!("another event")
        };
        assert_eq!(self.ops(), [2]);
        (ports, nonblocking(stream))
    }
}

fn nonblocking(stream: OwnedFd) -> UnixStream {
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true).unwrap();
    stream
}

fn header(op: u16, ports: Ports, len: u32) -> Fields {
    Fields {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        len,
        kind: 1,
        op,
        flags: 0,
        buf_alloc: GUEST_BUFFER,
        fwd_cnt: 0,
    }
}

fn read_all(mut stream: &UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let end = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    };
    (bytes, end)
}

#[test]
fn a_dial_is_answered_and_bytes_flow_both_ways() {
    let mut bench = Bench::with_buffers();
    let answer = bench.connect(1024);
    let packets = bench.got();
    assert_eq!(packets.len(), 1);
    let request = &packets[0].0;
    assert_eq!((request.op, request.dst_port, request.buf_alloc), (1, 1024, GUEST_CREDIT_BYTES));
    let ports = Ports { guest: 1024, host: request.src_port };
    bench.send(2, ports, &[]);
    let stream = nonblocking(answer.try_recv().unwrap().unwrap());
    bench.send(5, ports, b"from the guest");
    assert_eq!(read_all(&stream), (b"from the guest".to_vec(), false));
    (&stream).write_all(b"from the host").unwrap();
    let packets = bench.got();
    assert_eq!(packets.len(), 1);
    assert_eq!(
        (packets[0].0.op, packets[0].0.fwd_cnt, packets[0].1.as_slice()),
        (5, 14, b"from the host".as_slice())
    );
}

#[test]
fn a_refused_dial_answers_at_once() {
    let mut bench = Bench::with_buffers();
    let answer = bench.connect(77);
    let request = bench.got()[0].0;
    bench.send(3, Ports { guest: 77, host: request.src_port }, &[]);
    assert!(matches!(answer.try_recv().unwrap(), Err(ConnectError::Refused { port: 77 })));
    assert_eq!(bench.engine.left().0, 0);
}

#[test]
fn a_dial_that_nobody_answers_ends_in_time() {
    let mut bench = Bench::with_buffers();
    let answer = bench.connect(77);
    assert_eq!(bench.ops(), [1]);
    bench.now += DIAL_TIMEOUT;
    assert_eq!(bench.ops(), [3]);
    assert!(matches!(answer.try_recv().unwrap(), Err(ConnectError::Timeout { port: 77 })));
    assert_eq!(bench.engine.left().0, 0);
}

#[test]
fn ports_that_are_not_listed_are_refused() {
    let mut bench = Bench::with_buffers();
    bench.send(1, Ports { guest: 1, host: LISTED + 1 }, &[]);
    assert_eq!(bench.ops(), [3]);
    assert!(bench.events.try_recv().is_err());
}

#[test]
fn packets_of_no_connection_are_reset_but_resets_are_not() {
    let mut bench = Bench::with_buffers();
    let nobody = Ports { guest: 1, host: LISTED };
    for op in [2, 4, 5, 6, 7, 8] {
        bench.send(op, nobody, &[]);
        assert_eq!(bench.ops(), [3], "operation {op}");
    }
    bench.send(3, nobody, &[]);
    assert!(bench.got().is_empty());
}

#[test]
fn the_guests_dials_are_limited_and_the_limit_is_allowed() {
    let mut bench = Bench::with_buffers();
    let mut streams = Vec::new();
    for port in 0..MAX_GUEST_DIALED as u32 {
        streams.push(bench.dialed(port));
    }
    bench.send(1, Ports { guest: 5000, host: LISTED }, &[]);
    assert_eq!(bench.ops(), [3]);
    // The host may still dial.
    drop(bench.connect(1));
    assert_eq!(bench.ops(), [1]);
    drop(streams);
}

#[test]
fn a_request_on_an_old_connections_ports_takes_its_place_when_that_one_is_closing() {
    let mut bench = Bench::with_buffers();
    let (ports, old) = bench.dialed(1);
    drop(old);
    // Reading no more is told first, then the end of the bytes, with which both have ended.
    assert!(bench.got().iter().all(|(header, _)| header.op == 4));
    let (_, new) = bench.dialed(1);
    bench.send(5, ports, b"new");
    assert_eq!(read_all(&new).0, b"new");
    bench.now += CLOSE_TIMEOUT;
    bench.run();
    bench.send(5, ports, b"er");
    assert_eq!(read_all(&new), (b"er".to_vec(), false));
}

#[test]
fn a_guest_that_offers_no_buffers_is_not_read_from_without_end() {
    let mut bench = Bench::new();
    let mut sent = 0;
    while bench.driver.send(&header(5, Ports { guest: sent, host: 1 }, 0), &[]) {
        sent += 1;
        bench.pass().unwrap();
        bench.driver.reclaim();
        assert!(sent < 2 * MAX_QUEUED_RESETS as u32 + u32::from(ENTRIES), "it takes them all");
    }
    assert_eq!(bench.pass().unwrap()[0], Round::Blocked);
    // It goes on when there are buffers, and each is answered.
    let mut answered = 0;
    while answered < sent {
        while bench.driver.offer(&[4096]) {}
        bench.pass().unwrap();
        let packets = bench.driver.received();
        assert!(!packets.is_empty(), "{answered} of {sent}");
        answered += packets.len() as u32;
    }
}

#[test]
fn a_host_that_does_not_read_costs_its_credit_and_no_more() {
    let mut bench = Bench::with_buffers();
    let (ports, stuck) = bench.dialed(1);
    let chunk = vec![7; 0x1_0000];
    let mut sent = 0;
    loop {
        bench.send(5, ports, &chunk);
        sent += chunk.len();
        let (_, backlog) = bench.engine.left();
        assert!(backlog <= u64::from(GUEST_CREDIT_BYTES));
        if bench.ops().contains(&3) {
            break;
        }
    }
    // What was within the credit is not lost with the reset.
    let mut got = 0;
    loop {
        bench.run();
        let (bytes, end) = read_all(&stuck);
        got += bytes.len();
        if end {
            break;
        }
    }
    assert_eq!(got, sent - chunk.len());
    assert_eq!(bench.engine.left(), (0, 0));
}

#[test]
fn turns_are_fair() {
    let mut bench = Bench::with_buffers();
    let streams: Vec<_> = (0..4).map(|port| bench.dialed(port)).collect();
    for (_, stream) in &streams {
        let _ = (&*stream).write(&vec![1; 200_000]);
    }
    // Four buffers at a time: each of the four connections gets its share of the first two turns' worth of bytes.
    let mut bytes: HashMap<u32, usize> = HashMap::new();
    let mut total = 0;
    while total < 4 * 2 * TURN_BYTES as usize {
        for (header, payload) in bench.got() {
            *bytes.entry(header.dst_port).or_default() += payload.len();
            total += payload.len();
        }
    }
    for port in 0..4 {
        assert!(bytes[&port] >= TURN_BYTES as usize, "{bytes:?}");
    }
}

#[test]
fn a_receive_buffer_that_will_not_do_is_given_back_and_the_next_is_used() {
    let mut bench = Bench::new();
    for parts in [&[10u32][..], &[43], &[44], &[20, 10], &[3, 20, 21, 5]] {
        assert!(bench.driver.offer(parts));
    }
    let (answer, small) = (bench.connect(1), bench.connect(2));
    bench.run();
    let packets = bench.driver.received();
    assert_eq!(
        packets.iter().map(|(header, _)| (header.op, header.dst_port)).collect::<Vec<_>>(),
        [(1, 1), (1, 2)]
    );
    drop((answer, small));
}

#[test]
fn a_guest_without_credit_is_asked_for_it_and_its_bytes_come_then() {
    let mut bench = Bench::with_buffers();
    let ports = Ports { guest: 1, host: LISTED };
    let poor = |op, fwd_cnt| Fields { buf_alloc: 10, fwd_cnt, ..header(op, ports, 0) };
    assert!(bench.driver.send(&poor(1, 0), &[]));
    bench.run();
    let Ok(VsockEvent::GuestDialed { stream, .. }) = bench.events.try_recv() else {
        panic!("not dialled")
    };
    let mut stream = UnixStream::from(stream);
    stream.write_all(b"more than ten bytes").unwrap();
    let packets = bench.got();
    assert_eq!(packets.iter().map(|(header, _)| header.op).collect::<Vec<_>>(), [2, 5, 7]);
    assert_eq!(packets[1].1, b"more than ");
    assert!(bench.got().is_empty(), "asked once");
    assert!(bench.driver.send(&poor(6, 10), &[]));
    let packets = bench.got();
    assert_eq!(packets[0].1, b"ten bytes");
}

#[test]
fn a_dial_is_answered_when_the_owner_accepts_and_refused_when_it_leaves() {
    let mut bench = Bench::with_buffers();
    bench.engine.ask_owner();
    let dial = |bench: &mut Bench, guest| {
        bench.send(1, Ports { guest, host: LISTED }, &[]);
        match bench.events.try_recv() {
            Ok(VsockEvent::GuestDialed { dial, stream, .. }) => (dial, UnixStream::from(stream)),
            other => panic!("not dialled: {other:?}"),
        }
    };
    let (id, mut stream) = dial(&mut bench, 1);
    // What the owner says before it accepts waits for that, too.
    stream.write_all(b"early").unwrap();
    assert!(bench.got().is_empty());
    bench.engine.greet(ConnectionId(id));
    bench.engine.greet(ConnectionId(id + 1000));
    assert_eq!(bench.ops(), [2, 5]);

    let (_, stream) = dial(&mut bench, 2);
    drop(stream);
    assert_eq!(bench.ops(), [3]);
    // A guest that gives up meanwhile leaves nothing.
    let (id, _stream) = dial(&mut bench, 3);
    bench.send(3, Ports { guest: 3, host: LISTED }, &[]);
    bench.engine.greet(ConnectionId(id));
    assert!(bench.got().is_empty());
}

#[test]
fn a_guest_that_dials_and_resets_all_the_time_leaves_nothing() {
    // No buffers: the answer to each dial stays in the queue, behind that to the first.
    let mut bench = Bench::new();
    let first = Ports { guest: u32::MAX, host: LISTED };
    bench.send(1, first, &[]);
    assert!(bench.events.try_recv().is_ok());
    for guest in 0..3 * MAX_GUEST_DIALED as u32 {
        for op in [1, 3] {
            assert!(bench.driver.send(&header(op, Ports { guest, host: LISTED }, 0), &[]));
            bench.pass().unwrap();
            assert_eq!(bench.driver.reclaim(), 1);
        }
        assert!(bench.events.try_recv().is_ok(), "dial {guest} is one too many");
        assert!(bench.engine.table.turns_queued() < 100);
    }
    assert_eq!(bench.engine.left().0, 1);
}

#[test]
fn rings_that_lie_break_and_do_not_wedge() {
    let mut bench = Bench::with_buffers();
    bench.driver.tx.write_avail_index(&bench.driver.memory, ENTRIES + 1);
    assert!(bench.pass().is_err());

    let mut bench = Bench::with_buffers();
    bench.driver.tx.publish(&bench.driver.memory, ENTRIES);
    assert!(bench.pass().is_err(), "a head beyond the table cannot be given back");
}

#[test]
fn a_ring_without_news_asks_for_no_interrupt() {
    let mut bench = Bench::with_buffers();
    let [rx, _] = &mut bench.rings;
    assert!(!rx.wants_signal(&bench.driver.memory).unwrap());
    drop(bench.connect(1));
    let [rx, _] = &mut bench.rings;
    bench.engine.write_packets(&bench.driver.memory, rx, bench.now).unwrap();
    assert!(rx.wants_signal(&bench.driver.memory).unwrap());
    assert!(!rx.wants_signal(&bench.driver.memory).unwrap());
}

#[test]
fn chains_that_loop_end() {
    let mut bench = Bench::with_buffers();
    let next = 1;
    bench.driver.tx.write_descriptor(
        &bench.driver.memory,
        0,
        Descriptor::new(0x3000, 100, next, 0),
    );
    bench.driver.tx.publish(&bench.driver.memory, 0);
    bench.pass().unwrap();
    let indirect = 4;
    // A table of 65535 entries that lies over itself.
    bench.driver.tx.write_descriptor(
        &bench.driver.memory,
        1,
        Descriptor::new(0x3000, 65535 * 16, indirect, 0),
    );
    bench.driver.tx.publish(&bench.driver.memory, 1);
    bench.pass().unwrap();
    assert!(bench.got().is_empty());
}

#[test]
fn a_guest_that_is_gone_leaves_what_it_sent_to_the_host() {
    let mut bench = Bench::with_buffers();
    let (ports, stream) = bench.dialed(1);
    bench.send(5, ports, &[9; 50_000]);
    let pending = bench.connect(5);
    bench.engine.handle_guest_gone();
    assert!(matches!(pending.try_recv().unwrap(), Err(ConnectError::NoGuest)));
    bench.run();
    assert_eq!(read_all(&stream), (vec![9; 50_000], true));
    assert_eq!(bench.engine.left(), (0, 0));
    assert!(bench.got().is_empty(), "nobody is there to be told");
}

/// One step of an honest guest's and its host's life.
#[derive(Debug, Clone)]
enum Step {
    /// The guest sends so many bytes in parts of these sizes.
    GuestSends(usize, Vec<u32>, bool),
    GuestOffers(Vec<u32>),
    GuestReads(usize),
    GuestShuts,
    HostWrites(usize),
    HostReads(usize),
    HostShuts,
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    let parts = || proptest::collection::vec(prop_oneof![1u32..50, 1u32..5000], 0..6);
    prop_oneof![
        4 => (1usize..60_000, parts(), any::<bool>()).prop_map(|(bytes, parts, indirect)| Step::GuestSends(bytes, parts, indirect)),
        4 => proptest::collection::vec(1u32..2000, 1..4).prop_map(Step::GuestOffers),
        3 => (1usize..100_000).prop_map(Step::GuestReads),
        1 => Just(Step::GuestShuts),
        4 => (1usize..60_000).prop_map(Step::HostWrites),
        4 => (1usize..60_000).prop_map(Step::HostReads),
        1 => Just(Step::HostShuts),
        6 => Just(Step::Pass),
    ]
}

/// The bytes that a direction carries: their value follows from their place.
fn stream_bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|place| (place ^ place >> 8 ^ place >> 16) as u8).collect()
}

/// An honest guest with one connection.
struct Honest {
    bench: Bench,
    ports: Ports,
    stream: UnixStream,
    guest_sent: usize,
    guest_done: bool,
    credit: Credit,
    unread: usize,
    got: usize,
    read: usize,
    got_end: bool,
    host_wrote: usize,
    host_done: bool,
    host_read: usize,
    host_end: bool,
}

impl Honest {
    fn new() -> Honest {
        let mut bench = Bench::new();
        assert!(bench.driver.offer(&[HEADER_BYTES as u32]));
        let ports = Ports { guest: 1, host: LISTED };
        bench.send(1, ports, &[]);
        let Ok(VsockEvent::GuestDialed { stream, .. }) = bench.events.try_recv() else {
            panic!("not dialled")
        };
        let packets = bench.driver.received();
        let credit = Credit { buf_alloc: packets[0].0.buf_alloc, fwd_cnt: packets[0].0.fwd_cnt };
        Honest {
            bench,
            ports,
            stream: nonblocking(stream),
            guest_sent: 0,
            guest_done: false,
            credit,
            unread: 0,
            got: 0,
            read: 0,
            got_end: false,
            host_wrote: 0,
            host_done: false,
            host_read: 0,
            host_end: false,
        }
    }

    fn send(&mut self, op: u16, flags: u32, payload: &[u8], parts: &[u32], indirect: bool) -> bool {
        let mut header = header(op, self.ports, payload.len() as u32);
        header.flags = flags;
        header.fwd_cnt = self.read as u32;
        let bytes = [header.encode().as_slice(), payload].concat();
        self.bench.driver.send_raw(&bytes, parts, indirect)
    }

    fn collect(&mut self) {
        for (header, payload) in self.bench.driver.received() {
            self.credit = Credit { buf_alloc: header.buf_alloc, fwd_cnt: header.fwd_cnt };
            match header.op {
                4 => self.got_end |= header.flags & 2 != 0,
                5 => {
                    assert!(!self.got_end);
                    assert!(
                        payload == stream_bytes(self.got, payload.len()),
                        "at byte {}",
                        self.got
                    );
                    self.got += payload.len();
                    self.unread += payload.len();
                    assert!(self.unread <= GUEST_BUFFER as usize, "beyond our credit");
                }
                6 | 7 => {}
                // Both have ended: the device closes.
                op => panic!("operation {op}"),
            }
        }
        self.bench.driver.reclaim();
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::GuestSends(bytes, parts, indirect) if !self.guest_done => {
                let used = self.guest_sent - self.credit.fwd_cnt as usize;
                let bytes = (*bytes).min(self.credit.buf_alloc as usize - used);
                let payload = stream_bytes(self.guest_sent, bytes);
                if bytes > 0 && self.send(5, 0, &payload, parts, *indirect) {
                    self.guest_sent += bytes;
                }
            }
            Step::GuestOffers(parts) => {
                self.bench.driver.offer(parts);
            }
            Step::GuestReads(bytes) => {
                let bytes = (*bytes).min(self.unread);
                self.unread -= bytes;
                self.read += bytes;
                if !self.got_end || !self.guest_done {
                    self.send(6, 0, &[], &[], false);
                }
            }
            Step::GuestShuts if !self.guest_done => {
                self.guest_done = self.send(4, 2, &[], &[], false)
            }
            Step::HostWrites(bytes) if !self.host_done => {
                match (&self.stream).write(&stream_bytes(self.host_wrote, *bytes)) {
                    Ok(written) => self.host_wrote += written,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            Step::HostReads(bytes) => {
                let mut chunk = vec![0; *bytes];
                match (&self.stream).read(&mut chunk) {
                    Ok(0) => {
                        assert!(
                            self.guest_done && self.host_read == self.guest_sent,
                            "the end came early"
                        );
                        self.host_end = true;
                    }
                    Ok(read) => {
                        assert!(
                            chunk[..read] == stream_bytes(self.host_read, read),
                            "at byte {}",
                            self.host_read
                        );
                        self.host_read += read;
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            Step::HostShuts if !self.host_done => {
                self.stream.shutdown(std::net::Shutdown::Write).unwrap();
                self.host_done = true;
            }
            Step::Pass => {
                self.bench.pass().unwrap();
            }
            Step::GuestSends(..) | Step::GuestShuts | Step::HostWrites(_) | Step::HostShuts => {}
        }
        self.collect();
    }
}

/// What a guest may write where.
#[derive(Debug, Clone)]
enum Garbage {
    Descriptor { tx: bool, number: u16, address: u64, len: u32, flags: u16, next: u16 },
    Publish { tx: bool, head: u16 },
    Header { slot: u16, header: [u8; HEADER_BYTES] },
    AvailIndex { tx: bool, index: u16 },
    Bytes { address: u64, bytes: Vec<u8> },
    Host { what: u8 },
    Time { ms: u64 },
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let address = prop_oneof![
        4 => 0x3000u64..0x9000,
        2 => 0x1_0000u64..0x2_4000,
        1 => MEMORY_BYTES as u64 - 100..MEMORY_BYTES as u64 + 100,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![3 => 0u32..200, 2 => 0u32..70_000, 1 => any::<u32>()];
    let number = 0u16..8;
    let headers = (
        0u32..3,
        0u32..3,
        0u16..9,
        0u16..3,
        0u32..4,
        prop_oneof![0u32..200, any::<u32>()],
        any::<(u32, u32)>(),
    );
    let header = headers.prop_map(|(guest, host, op, kind, flags, len, (buf_alloc, fwd_cnt))| {
        let host = [LISTED, LISTED + 1, 0x4000_0000][host as usize];
        let kind = u16::from(kind > 0);
        Fields {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
        .encode()
    });
    prop_oneof![
        6 => (any::<bool>(), number.clone(), address.clone(), len, 0u16..8, 0u16..9).prop_map(
            |(tx, number, address, len, flags, next)| Garbage::Descriptor { tx, number, address, len, flags, next }
        ),
        8 => (any::<bool>(), number.clone()).prop_map(|(tx, head)| Garbage::Publish { tx, head }),
        6 => (number, header).prop_map(|(slot, header)| Garbage::Header { slot, header }),
        1 => (any::<bool>(), any::<u16>()).prop_map(|(tx, index)| Garbage::AvailIndex { tx, index }),
        1 => (address, proptest::collection::vec(any::<u8>(), 0..64)).prop_map(|(address, bytes)| Garbage::Bytes { address, bytes }),
        4 => (0u8..6).prop_map(|what| Garbage::Host { what }),
        1 => (0u64..12_000).prop_map(|ms| Garbage::Time { ms }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_guest_and_any_host_get_each_others_bytes(steps in proptest::collection::vec(step(), 0..150)) {
        let mut world = Honest::new();
        for step in &steps {
            world.run(step);
        }
        // What is on its way arrives when both go on.
        let ending = [
            Step::GuestOffers(vec![2000]), Step::Pass, Step::GuestReads(usize::MAX), Step::HostReads(60_000), Step::Pass,
        ];
        for _ in 0..3000 {
            ending.iter().for_each(|step| world.run(step));
            if world.host_read == world.guest_sent && world.got == world.host_wrote {
                break;
            }
        }
        prop_assert_eq!(world.host_read, world.guest_sent);
        prop_assert_eq!(world.got, world.host_wrote);
        for _ in 0..5 {
            ending.iter().for_each(|step| world.run(step));
        }
        prop_assert_eq!(world.host_end, world.guest_done);
        prop_assert_eq!(world.got_end, world.host_done);
    }

    #[test]
    fn a_guest_may_write_anything_anywhere(script in proptest::collection::vec(garbage(), 0..200)) {
        let mut bench = Bench::new();
        let mut streams = Vec::new();
        let mut answers: Vec<Answer> = Vec::new();
        for step in script {
            let Bench { driver: Driver { memory, rx, tx }, .. } = &mut bench;
            match step {
                Garbage::Descriptor { tx: of_tx, number, address, len, flags, next } => {
                    let ring = if of_tx { tx } else { rx };
                    ring.write_descriptor(memory, number, Descriptor::new(address, len, flags, next));
                }
                Garbage::Publish { tx: of_tx, head } => if of_tx { tx } else { rx }.publish(memory, head),
                Garbage::Header { slot, header } => {
                    // Where descriptors are likely to point, and a descriptor that does.
                    let address = 0x3000 + u64::from(slot) * 0x400;
                    memory.write_slice(&header, GuestAddress(address)).unwrap();
                    tx.write_descriptor(memory, slot, Descriptor::new(address, 0x400, 0, 0));
                    tx.publish(memory, slot);
                }
                Garbage::AvailIndex { tx: of_tx, index } => if of_tx { tx } else { rx }.write_avail_index(memory, index),
                Garbage::Bytes { address, bytes } => drop(memory.write_slice(&bytes, GuestAddress(address))),
                Garbage::Host { what } => match what {
                    0 if answers.len() < 20 => answers.push(bench.connect(1)),
                    1 => streams.iter().for_each(|mut stream: &UnixStream| drop(stream.write(&[1; 5000]))),
                    2 => streams.iter().for_each(|mut stream: &UnixStream| drop(stream.read(&mut [0; 5000]))),
                    3 => drop(streams.pop()),
                    4 => streams.iter().for_each(|stream: &UnixStream| drop(stream.shutdown(std::net::Shutdown::Write))),
                    _ => {}
                },
                Garbage::Time { ms } => bench.now += std::time::Duration::from_millis(ms),
            }
            if bench.pass().is_err() {
                // As the worker does; then the driver would have to begin anew.
                bench.engine.handle_guest_gone();
                bench.rings = bench.driver.rings();
            }
            for event in bench.events.try_iter() {
                if let VsockEvent::GuestDialed { stream, .. } = event {
                    streams.push(nonblocking(stream));
                }
            }
            let (_, backlog) = bench.engine.left();
            let most = streams.len() + answers.len();
            prop_assert!(backlog <= most as u64 * u64::from(GUEST_CREDIT_BYTES));
        }
        // It still serves a driver that begins anew.
        bench.engine.handle_guest_gone();
        bench.driver = Driver::anonymous();
        bench.rings = bench.driver.rings();
        drop(streams);
        bench.run();
        while bench.driver.offer(&[4096]) {}
        let (ports, stream) = bench.dialed(1);
        bench.send(5, ports, b"alive");
        prop_assert_eq!(read_all(&stream).0, b"alive");
    }
}
