//! The whole device, thread and all, against a modelled VMM that speaks vhost-user and a modelled driver: what QEMU and
//! a real guest do in `tests/vsock_vm`, and what they never do.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use proptest::prelude::*;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::driver_model::{Driver, ENTRIES, MEMORY_BYTES};
use super::packet::{Fields, HOST_CID, Ports};
use super::scatter::Memory;
use super::*;

const LISTED: u32 = 9000;
/// For what happens in microseconds, on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(20);

/// Packets of 64 KiB: some stay in the backlog, and none exceeds the credit.
const MORE_THAN_A_SOCKET_HOLDS: usize = 10;

/// A VMM with a guest.
struct Vmm {
    frontend: Frontend,
    driver: Driver,
    file: File,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    device: Option<Device>,
    events: Receiver<VsockEvent>,
    cid: u64,
}

impl Vmm {
    /// Connected, features agreed on, memory shared; the driver is not up yet.
    fn connected(cid: u64) -> Vmm {
        let (ours, devices) = UnixStream::pair().unwrap();
        let (sender, events) = channel();
        let config = Config { guest_cid: cid, guest_dial_ports: vec![LISTED], ask_owner: false };
        let device = start(devices, config, move |event| drop(sender.send(event))).unwrap();

        let mut frontend = Frontend::from_stream(ours, 3);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert_ne!(features & 1 << 30, 0, "protocol features are offered");
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features).unwrap();

        let file = File::from(memfd_create(c"guest", MemFdCreateFlag::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES as u64).unwrap();
        let region =
            MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), MEMORY_BYTES)
                .unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        let memory = Memory::from_regions(vec![region]).unwrap();
        let event = || EventFd::new(nix::libc::EFD_NONBLOCK).unwrap();
        let vmm = Vmm {
            frontend,
            driver: Driver::new(memory),
            file,
            kicks: [event(), event()],
            calls: [event(), event()],
            device: Some(device),
            events,
            cid,
        };
        vmm.share_memory(MEMORY_BYTES as u64);
        vmm
    }

    /// With the driver up and receive buffers offered.
    fn running(cid: u64) -> Vmm {
        let mut vmm = Vmm::connected(cid);
        vmm.start_rings([0, 0]);
        vmm.offer();
        vmm
    }

    fn share_memory(&self, bytes: u64) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: self.base(),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    fn base(&self) -> u64 {
        self.driver.memory.iter().next().unwrap().as_ptr() as u64
    }

    fn start_rings(&mut self, bases: [u16; 2]) {
        for (ring, base) in bases.into_iter().enumerate() {
            self.frontend.set_vring_num(ring, ENTRIES).unwrap();
            self.frontend.set_vring_base(ring, base).unwrap();
            self.frontend.set_vring_addr(ring, &self.place(ring)).unwrap();
            self.frontend.set_vring_call(ring, &self.calls[ring]).unwrap();
            self.frontend.set_vring_kick(ring, &self.kicks[ring]).unwrap();
        }
        for ring in 0..2 {
            self.frontend.set_vring_enable(ring, true).unwrap();
        }
    }

    fn place(&self, ring: usize) -> VringConfigData {
        let guest = if ring == 0 { &self.driver.rx } else { &self.driver.tx };
        let [table, available, used] = guest.addresses().map(|address| address + self.base());
        VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: table,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        }
    }

    fn stop_rings(&mut self) -> [u16; 2] {
        [0, 1].map(|ring| {
            self.frontend.set_vring_enable(ring, false).unwrap();
            self.frontend.get_vring_base(ring).unwrap() as u16
        })
    }

    fn offer(&mut self) {
        while self.driver.offer(&[4096]) {}
        self.kicks[0].write(1).unwrap();
    }

    fn put(&mut self, op: u16, ports: Ports, payload: &[u8]) {
        let header = Fields {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            len: payload.len() as u32,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 1000,
            fwd_cnt: 0,
        };
        assert!(self.driver.send(&header, payload));
    }

    fn send(&mut self, op: u16, ports: Ports, payload: &[u8]) {
        self.put(op, ports, payload);
        self.kicks[1].write(1).unwrap();
        // Without looking at its interrupt, like a driver that polls.
        until("the packet is read", || self.driver.reclaim() == 1);
    }

    /// The next packets for the guest, after the interrupt that announces them.
    fn got(&mut self) -> Vec<(Fields, Vec<u8>)> {
        until("an interrupt", || self.calls[0].read().is_ok());
        let packets = self.driver.received();
        self.offer();
        packets
    }

    fn dial(&self, port: u32) -> Receiver<Result<OwnedFd, ConnectError>> {
        let (sender, answer) = channel();
        let handle = self.device.as_ref().unwrap().handle();
        handle.connect(port, move |result| drop(sender.send(result)));
        answer
    }

    fn dialed(&mut self, guest_port: u32) -> (Ports, UnixStream) {
        let ports = Ports { guest: guest_port, host: LISTED };
        self.send(1, ports, &[]);
        assert_eq!(self.got()[0].0.op, 2);
        match self.events.recv_timeout(PATIENCE).unwrap() {
            VsockEvent::GuestDialed { stream, .. } => {
                let stream = UnixStream::from(stream);
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                (ports, stream)
            }
            event @ VsockEvent::Gone { .. } => panic!("{event:?}"),
        }
    }

    fn gone(&self) -> GoneReason {
        match self.events.recv_timeout(PATIENCE).unwrap() {
            VsockEvent::Gone { reason } => reason,
            event @ VsockEvent::GuestDialed { .. } => panic!("{event:?}"),
        }
    }
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn read(mut stream: &UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn at_end(mut stream: &UnixStream) -> bool {
    stream.read(&mut [0]).unwrap() == 0
}

#[test]
fn reserved_addresses_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32] {
        let config = Config { guest_cid: cid, guest_dial_ports: Vec::new(), ask_owner: false };
        let refused = start(UnixStream::pair().unwrap().0, config, |_| {});
        assert!(matches!(refused, Err(VsockError::ReservedCid { .. })));
    }
}

#[test]
fn the_configuration_is_the_guests_address() {
    let mut vmm = Vmm::connected(0x1234_5678);
    let mut read = |offset, size| {
        let flags = VhostUserConfigFlags::WRITABLE;
        vmm.frontend
            .get_config(offset, size, flags, &vec![0; size as usize])
            .map(|(_, bytes)| bytes)
    };
    assert_eq!(read(0, 8).unwrap(), 0x1234_5678u64.to_le_bytes());
    assert_eq!(read(1, 2).unwrap(), [0x56, 0x34]);
}

#[test]
fn a_guest_without_a_driver_cannot_be_dialed() {
    let vmm = Vmm::connected(3);
    assert!(matches!(vmm.dial(1).recv_timeout(PATIENCE).unwrap(), Err(ConnectError::NoGuest)));
}

#[test]
fn bytes_flow_both_ways_with_an_interrupt_for_each() {
    let mut vmm = Vmm::running(3);
    let answer = vmm.dial(1024);
    let request = vmm.got()[0].0;
    let ports = Ports { guest: 1024, host: request.src_port };
    vmm.send(2, ports, &[]);
    let mut stream = UnixStream::from(answer.recv_timeout(PATIENCE).unwrap().unwrap());
    vmm.send(5, ports, b"ping");
    assert_eq!(read(&stream, 4), b"ping");
    stream.write_all(b"pong").unwrap();
    assert_eq!(vmm.got()[0].1, b"pong");
}

#[test]
fn a_paused_vm_keeps_its_connections_and_a_reset_one_does_not() {
    let mut vmm = Vmm::running(3);
    let (ports, stream) = vmm.dialed(1);
    let bases = vmm.stop_rings();
    (&stream).write_all(b"meanwhile").unwrap();
    vmm.start_rings(bases);
    assert_eq!(vmm.got()[0].1, b"meanwhile");
    vmm.send(5, ports, b"after");
    assert_eq!(read(&stream, 5), b"after");

    vmm.stop_rings();
    vmm.driver.memory.write_slice(&vec![0; 0x10_0000], GuestAddress(0)).unwrap();
    vmm.driver = Driver::new(vmm.driver.memory.clone());
    vmm.start_rings([0, 0]);
    assert!(at_end(&stream));
    vmm.offer();
    let (ports, stream) = vmm.dialed(1);
    vmm.send(5, ports, b"new life");
    assert_eq!(read(&stream, 8), b"new life");
}

#[test]
fn packets_without_a_kick_are_read_before_the_rings_stop() {
    let mut vmm = Vmm::running(3);
    let (ports, stream) = vmm.dialed(1);
    for _ in 0..20 {
        vmm.put(5, ports, b"last words");
    }
    vmm.stop_rings();
    drop(vmm.frontend);
    assert_eq!(read(&stream, 200), b"last words".repeat(20));
    assert!(at_end(&stream));
}

#[test]
fn the_device_stays_until_the_host_has_the_last_bytes() {
    let mut vmm = Vmm::running(3);
    let (ports, stream) = vmm.dialed(1);
    for _ in 0..MORE_THAN_A_SOCKET_HOLDS {
        vmm.send(5, ports, &[1; 65536]);
        vmm.driver.received();
    }
    let sent = MORE_THAN_A_SOCKET_HOLDS * 65536;
    let Vmm { frontend, events, device, .. } = vmm;
    drop(frontend);
    assert!(events.recv_timeout(Duration::from_millis(300)).is_err(), "it has bytes left");
    let mut got = Vec::new();
    let mut stream = stream;
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent);
    let last = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(last, VsockEvent::Gone { reason: GoneReason::FrontendClosed }));
    drop(device);
}

#[test]
fn a_broken_ring_ends_the_connections_until_the_driver_begins_anew() {
    let mut vmm = Vmm::running(3);
    let (_, stream) = vmm.dialed(1);
    vmm.driver.tx.write_avail_index(&vmm.driver.memory, 50_000);
    vmm.kicks[1].write(1).unwrap();
    assert!(at_end(&stream));
    assert!(matches!(vmm.dial(1).recv_timeout(PATIENCE).unwrap(), Err(ConnectError::NoGuest)));

    vmm.stop_rings();
    vmm.driver.memory.write_slice(&vec![0; 0x10_0000], GuestAddress(0)).unwrap();
    vmm.driver = Driver::new(vmm.driver.memory.clone());
    vmm.start_rings([0, 0]);
    vmm.offer();
    let (ports, stream) = vmm.dialed(1);
    vmm.send(5, ports, b"new life");
    assert_eq!(read(&stream, 8), b"new life");
}

#[test]
fn memory_that_shrinks_below_the_rings_stops_them() {
    let mut vmm = Vmm::running(3);
    let (ports, stream) = vmm.dialed(1);
    vmm.share_memory(0x1_1000);
    assert!(matches!(vmm.dial(1).recv_timeout(PATIENCE).unwrap(), Err(ConnectError::NoGuest)));
    vmm.share_memory(MEMORY_BYTES as u64);
    vmm.send(5, ports, b"back");
    assert_eq!(read(&stream, 4), b"back");
}

#[test]
fn the_guest_is_interrupted_only_when_it_wants_to_be() {
    let mut vmm = Vmm::running(3);
    let (ports, mut stream) = vmm.dialed(1);
    vmm.driver.received();
    let begin = vmm.driver.rx.used_index(&vmm.driver.memory);
    vmm.driver.rx.defer_interrupt(&vmm.driver.memory, 3);
    for number in 1..=3 {
        assert!(vmm.calls[0].read().is_err(), "after {} packets", number - 1);
        stream.write_all(b"x").unwrap();
        until("the packet comes", || {
            vmm.driver.rx.used_index(&vmm.driver.memory) == begin + number
        });
    }
    until("an interrupt", || vmm.calls[0].read().is_ok());
    // Without news there is none, whatever else happens.
    vmm.send(6, ports, &[]);
    assert!(vmm.calls[0].read().is_err());
}

#[test]
fn a_disabled_ring_is_left_alone() {
    let mut vmm = Vmm::running(3);
    let (ports, stream) = vmm.dialed(1);
    vmm.frontend.set_vring_enable(1, false).unwrap();
    vmm.put(5, ports, b"later");
    vmm.kicks[1].write(1).unwrap();
    assert!(matches!(vmm.dial(1).recv_timeout(PATIENCE).unwrap(), Err(ConnectError::NoGuest)));
    assert_eq!(vmm.driver.reclaim(), 0);
    vmm.frontend.set_vring_enable(1, true).unwrap();
    assert_eq!(read(&stream, 5), b"later");
}

#[test]
fn a_device_that_waits_uses_no_processor() {
    // The thread is found by its name, so the address must be no other test's.
    let mut vmm = Vmm::running(77_001);
    let (ports, full) = vmm.dialed(1);
    // The host does not read.
    for _ in 0..MORE_THAN_A_SOCKET_HOLDS {
        vmm.send(5, ports, &[1; 65536]);
        vmm.driver.received();
    }
    // The guest gives no more credit.
    let (_, starved) = vmm.dialed(2);
    (&starved).write_all(&[2; 5000]).unwrap();
    // The guest offers no buffers, and is owed answers until nothing more is read of it.
    until("the ring is blocked", || {
        vmm.driver.reclaim();
        for guest in 0..u32::from(ENTRIES) / 2 {
            let nobody = Ports { guest, host: 1 };
            let header = Fields::decode(&packet::encode(
                3,
                nobody,
                packet::Op::Data,
                0,
                packet::Credit::default(),
            ));
            let header = Fields { src_cid: vmm.cid, dst_cid: HOST_CID, ..header };
            if !vmm.driver.send(&header, &[]) {
                return true;
            }
        }
        vmm.kicks[1].write(1).unwrap();
        thread::sleep(Duration::from_millis(5));
        false
    });
    thread::sleep(Duration::from_millis(50));
    let before = processor_time("vsock-77001");
    thread::sleep(Duration::from_millis(500));
    let used = processor_time("vsock-77001") - before;
    assert!(used <= Duration::from_millis(20), "{used:?} in 500 ms");
    drop((full, starved));
}

/// What the thread of that name has used, in the kernel and outside.
fn processor_time(name: &str) -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        if head.ends_with(&format!("({name}")) {
            let ticks: u64 =
                tail.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
            return Duration::from_millis(ticks * 10);
        }
    }
    panic!("no thread {name}");
}

#[test]
fn a_device_is_dropped_in_the_middle_of_a_request() {
    let (mut ours, devices) = UnixStream::pair().unwrap();
    let config = Config { guest_cid: 3, guest_dial_ports: Vec::new(), ask_owner: false };
    let device = start(devices, config, |_| {}).unwrap();
    // Half of a request's header: the thread waits for the rest.
    ours.write_all(&[1, 0, 0, 0, 1, 0]).unwrap();
    thread::sleep(Duration::from_millis(50));
    drop(device);
}

#[test]
fn dialers_are_answered_when_the_device_ends() {
    let mut vmm = Vmm::running(3);
    let waiting = vmm.dial(1);
    assert_eq!(vmm.got()[0].0.op, 1);
    let handle = vmm.device.as_ref().unwrap().handle();
    drop(vmm.device.take());
    assert!(matches!(waiting.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::DeviceGone)));
    assert!(matches!(vmm.gone(), GoneReason::Stopped));
    let (sender, answer) = channel();
    handle.connect(1, move |result| drop(sender.send(result)));
    assert!(matches!(answer.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::DeviceGone)));
}

#[test]
fn dialers_are_answered_when_the_vmm_ends() {
    let mut vmm = Vmm::running(3);
    let waiting = vmm.dial(1);
    assert_eq!(vmm.got()[0].0.op, 1);
    drop(vmm.frontend);
    assert!(matches!(waiting.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::DeviceGone)));
}

#[test]
fn a_dial_that_is_not_answered_fails_in_its_time() {
    let mut vmm = Vmm::running(3);
    let begin = Instant::now();
    let waiting = vmm.dial(1);
    assert_eq!(vmm.got()[0].0.op, 1);
    let answer = waiting.recv_timeout(limits::DIAL_TIMEOUT + PATIENCE).unwrap();
    assert!(matches!(answer, Err(ConnectError::Timeout { port: 1 })));
    assert!(begin.elapsed() >= limits::DIAL_TIMEOUT);
    assert_eq!(vmm.got()[0].0.op, 3);
}

#[test]
fn the_device_stays_for_a_host_that_reads_slowly_and_not_for_one_that_does_not() {
    let mut vmm = Vmm::running(3);
    let ((fast, slow), (other, dead)) = (vmm.dialed(1), vmm.dialed(2));
    for ports in [fast, other] {
        for _ in 0..MORE_THAN_A_SOCKET_HOLDS {
            vmm.send(5, ports, &[1; 65536]);
            vmm.driver.received();
        }
    }
    let Vmm { frontend, events, device, .. } = vmm;
    drop(frontend);
    let begin = Instant::now();
    // Slow: a bit, and the rest when it would have been given up on without that.
    let mut got = 300_000;
    thread::sleep(limits::DRAIN_TIMEOUT * 2 / 3);
    assert_eq!(read(&slow, got).len(), got);
    thread::sleep(limits::DRAIN_TIMEOUT * 2 / 3);
    while let Ok(count @ 1..) = (&slow).read(&mut [0; 65536]) {
        got += count;
    }
    assert_eq!(got, MORE_THAN_A_SOCKET_HOLDS * 65536);
    assert!(matches!(
        events.recv_timeout(limits::DRAIN_TIMEOUT + PATIENCE).unwrap(),
        VsockEvent::Gone { .. }
    ));
    assert!(begin.elapsed() > limits::DRAIN_TIMEOUT * 3 / 2, "the slow one's reading counts");
    drop((dead, device));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_vmm_may_send_anything(
        requests in proptest::collection::vec(
            (0u32..45, prop_oneof![Just(1u32), Just(9), any::<u32>()], proptest::collection::vec(any::<u8>(), 0..80)), 1..8,
        ),
    ) {
        let (mut ours, devices) = UnixStream::pair().unwrap();
        let (sender, events) = channel();
        let config = Config { guest_cid: 3, guest_dial_ports: Vec::new(), ask_owner: false };
        let device = start(devices, config, move |event| drop(sender.send(event))).unwrap();
        for (code, flags, body) in requests {
            let mut request = Vec::new();
            request.extend(code.to_le_bytes());
            request.extend(flags.to_le_bytes());
            request.extend((body.len() as u32).to_le_bytes());
            request.extend(body);
            if ours.write_all(&request).is_err() {
                break;
            }
        }
        drop(ours);
        // It ends by itself, and says so: a panic would not.
        let last = events.recv_timeout(PATIENCE);
        prop_assert!(matches!(last, Ok(VsockEvent::Gone { .. })), "{:?}", last);
        drop(device);
    }
}
