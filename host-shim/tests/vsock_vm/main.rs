//! The vsock device against a real guest: QEMU runs in emulation, the device in this process, `vsock-peer` is PID 1.
//!
//! How it proves its point: every byte sent has a place in a checksum that the other side computes; what must not
//! happen is awaited for as long as what must happen takes. A VM per test, so that a wedged one fails alone.
//! Needs what `./dev test` sets: VMINITD_DIST (or VMINITD_KERNEL), VMINITD_TEST_GUEST, and QEMU.
#![cfg(target_os = "linux")]

mod noise;
mod vm;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use host_shim::vsock::limits::GUEST_CREDIT_BYTES;
use host_shim::vsock::{ConnectError, GoneReason};
use noise::{Hash, Noise};
use vm::{DIAL_PORT, RESULT_PORT, Vm, end_writing, exchange};

const MIB: usize = 1024 * 1024;

/// Port of `vsock-peer` with that behaviour.
const ECHO: u32 = 1;
const SINK: u32 = 2;
const SOURCE: u32 = 3;
const TALK_FIRST: u32 = 4;
const HOLD: u32 = 5;
const CLOSE: u32 = 6;
const DRAIN: u32 = 7;
const POUR: u32 = 8;
const CLOSED: u32 = 77;

/// A refusal is an answer, not a timeout: it takes as long as a round trip.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn echoes_of_4_mib_on_64_connections_at_once_come_back_whole() {
    let vm = Vm::boot();
    thread::scope(|scope| {
        for seed in 0..64 {
            let stream = vm.connect(ECHO);
            scope.spawn(move || echo(&stream, seed, 4 * MIB));
        }
    });
}

#[test]
fn bytes_256_mib_to_the_guest_arrive_in_order() {
    let vm = Vm::boot();
    let stream = vm.connect(SINK);
    let mut noise = Noise::new(5);
    let mut hash = Hash::default();
    let mut chunk = vec![0; MIB];
    let begin = Instant::now();
    for _ in 0..256 {
        noise.fill(&mut chunk);
        hash.update(&chunk);
        (&stream).write_all(&chunk).unwrap();
    }
    assert_eq!(exchange(stream, b""), hash.finish());
    report("to the guest", 256, begin);
}

#[test]
fn bytes_256_mib_from_the_guest_arrive_in_order() {
    let vm = Vm::boot();
    let stream = vm.connect(SOURCE);
    let begin = Instant::now();
    writeln!(&stream, "6 {}", 256 * MIB).unwrap();
    let mut noise = Noise::new(6);
    let (mut got, mut expected) = (vec![0; MIB], vec![0; MIB]);
    for _ in 0..256 {
        (&stream).read_exact(&mut got).unwrap();
        noise.fill(&mut expected);
        assert!(got == expected);
    }
    assert_eq!((&stream).read(&mut got).unwrap(), 0, "the end follows");
    report("from the guest", 256, begin);
}

#[test]
fn the_hosts_half_close_is_the_guests_end_and_the_reply_arrives() {
    let vm = Vm::boot();
    for bytes in [0, 1, 3 * MIB + 5] {
        let stream = vm.connect(SINK);
        let sent = Noise::new(7).bytes(bytes);
        let mut hash = Hash::default();
        hash.update(&sent);
        assert_eq!(exchange(stream, &sent), hash.finish());
    }
}

#[test]
fn the_guests_half_close_is_the_hosts_end_and_the_host_may_still_send() {
    let vm = Vm::boot();
    for bytes in [0, 1, 3 * MIB + 5] {
        let stream = vm.connect(TALK_FIRST);
        let mut hello = String::new();
        (&stream).read_to_string(&mut hello).unwrap();
        assert_eq!(hello, "hello");
        let sent = Noise::new(8).bytes(bytes);
        let mut hash = Hash::default();
        hash.update(&sent);
        (&stream).write_all(&sent).unwrap();
        end_writing(&stream);
        assert_eq!(exchange(vm.dialed(RESULT_PORT), b""), hash.finish());
    }
}

#[test]
fn a_closed_port_of_the_guest_is_refused_at_once() {
    let vm = Vm::boot();
    for _ in 0..100 {
        let begin = Instant::now();
        let refused = vm.try_connect(CLOSED);
        assert!(matches!(refused, Err(ConnectError::Refused { port: CLOSED })), "{refused:?}");
        assert!(begin.elapsed() < AT_ONCE);
    }
    assert_eq!(exchange(vm.connect(ECHO), b"alive"), "alive");
}

#[test]
fn the_guest_may_dial_listed_ports_and_is_refused_at_once_elsewhere() {
    let vm = Vm::boot();
    let begin = Instant::now();
    assert_eq!(vm.command("dial 1024 x"), format!("errno {}", nix::libc::ECONNRESET));
    assert!(begin.elapsed() < AT_ONCE);
    thread::scope(|scope| {
        scope.spawn(|| {
            let stream = vm.dialed(DIAL_PORT);
            let mut text = String::new();
            (&stream).read_to_string(&mut text).unwrap();
            assert_eq!(text, "question");
            (&stream).write_all(b"answer").unwrap();
        });
        assert_eq!(vm.command(&format!("dial {DIAL_PORT} question")), "answer");
    });
}

#[test]
fn connections_1000_at_once_live_side_by_side() {
    let vm = Vm::boot();
    let streams: Vec<UnixStream> = (0..1000).map(|_| vm.connect(ECHO)).collect();
    for (seed, stream) in streams.iter().enumerate() {
        (&*stream).write_all(&Noise::new(seed as u64).bytes(1000)).unwrap();
    }
    for (seed, stream) in streams.iter().enumerate().rev() {
        let mut got = vec![0; 1000];
        (&*stream).read_exact(&mut got).unwrap();
        assert!(got == Noise::new(seed as u64).bytes(1000));
    }
    drop(streams);
    nothing_is_left(&vm);
}

#[test]
fn connect_storms_from_both_sides_leave_nothing_behind() {
    let vm = Vm::boot();
    // 2000 dials, 200 at a time: accepted and closed at once, refused, or answered.
    for _ in 0..10 {
        let (sender, answers) = channel();
        for number in 0..200 {
            let port = [ECHO, CLOSE, CLOSED][number % 3];
            let sender = sender.clone();
            vm.handle().connect(port, move |result| drop(sender.send((port, result))));
        }
        drop(sender);
        for (port, result) in answers {
            match result {
                Ok(_) => assert_ne!(port, CLOSED),
                Err(error) => {
                    assert!(
                        port == CLOSED && matches!(error, ConnectError::Refused { .. }),
                        "{port}: {error:?}"
                    );
                }
            }
        }
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..500 {
                let mut stream = vm.dialed(DIAL_PORT);
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&byte).unwrap();
            }
        });
        assert_eq!(vm.command(&format!("storm {DIAL_PORT} 500")), "500");
    });
    nothing_is_left(&vm);
}

#[test]
fn a_guest_program_that_does_not_read_holds_up_its_connection_only() {
    let vm = Vm::boot();
    let stuck = vm.connect(HOLD);
    let taken = fill(&stuck);
    assert!(taken < 8 * MIB, "{taken} bytes were taken for nobody");
    echo(&vm.connect(ECHO), 9, 4 * MIB);
    assert_eq!(fill(&stuck), 0, "it is still full");
}

#[test]
fn a_host_that_does_not_read_holds_up_its_connection_only() {
    let vm = Vm::boot();
    let stuck = vm.connect(SOURCE);
    writeln!(&stuck, "10 {}", 64 * MIB).unwrap();
    echo(&vm.connect(ECHO), 11, 4 * MIB);
    // It goes on where it stopped.
    let mut got = vec![0; 64 * MIB];
    (&stuck).read_exact(&mut got).unwrap();
    assert!(got == Noise::new(10).bytes(64 * MIB));
}

#[test]
fn a_host_end_that_vanishes_ends_the_guests_connection() {
    let vm = Vm::boot();
    let before = vm.command("files");
    // With bytes for it on their way, with bytes from it on their way, and with none.
    for _ in 0..10 {
        let reading = vm.connect(SOURCE);
        writeln!(&reading, "1 {}", 64 * MIB).unwrap();
        (&reading).read_exact(&mut [0; 1000]).unwrap();
        let writing = vm.connect(SINK);
        (&writing).write_all(&vec![1; MIB]).unwrap();
        let idle = vm.connect(ECHO);
        drop((reading, writing, idle));
    }
    let deadline = Instant::now() + vm::PATIENCE;
    while vm.command("files") != before {
        assert!(Instant::now() < deadline, "the guest keeps connections of a host that is gone");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_end_that_closes_ends_the_hosts_connection() {
    let vm = Vm::boot();
    let stream = vm.connect(CLOSE);
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
    let error = loop {
        if let Err(error) = (&stream).write(b"x") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_paused_vm_goes_on_with_its_connections() {
    let vm = Vm::boot();
    let stream = vm.connect(ECHO);
    for round in 0..5 {
        echo_some(&stream, round, 100_000);
        vm.qmp("stop");
        (&stream).write_all(&Noise::new(99).bytes(10_000)).unwrap();
        assert!(matches!(vm.try_connect(ECHO), Err(ConnectError::NoGuest)));
        vm.qmp("cont");
        let mut got = vec![0; 10_000];
        (&stream).read_exact(&mut got).unwrap();
        assert!(got == Noise::new(99).bytes(10_000));
    }
    echo(&stream, 12, MIB);
}

#[test]
fn a_rebooted_guest_ends_old_connections_and_takes_new_ones() {
    let vm = Vm::boot_with(&[]);
    for _ in 0..2 {
        let old = vm.connect(ECHO);
        echo_some(&old, 13, 1000);
        vm.command("reboot");
        vm.await_ready();
        assert_eq!((&old).read(&mut [0]).unwrap(), 0, "the connection of the guest's former life");
        echo(&vm.connect(ECHO), 14, MIB);
    }
}

#[test]
fn a_driver_that_goes_and_comes_back_ends_old_connections_and_takes_new_ones() {
    let vm = Vm::boot();
    for _ in 0..3 {
        let old = vm.connect(ECHO);
        echo_some(&old, 15, 1000);
        vm.command("rebind");
        vm.await_ready();
        assert_eq!((&old).read(&mut [0]).unwrap(), 0, "the connection of the driver's former life");
        echo(&vm.connect(ECHO), 16, MIB);
    }
}

#[test]
fn bytes_sent_before_power_off_reach_a_host_that_reads_later() {
    let mut vm = Vm::boot();
    // What fits into our socket and our backlog: the guest believes all of it to be with the host.
    let bytes = GUEST_CREDIT_BYTES as usize;
    let command = format!("send {DIAL_PORT} {bytes}");
    assert_eq!(vm.command(&command), "sent");
    let stream = vm.dialed(DIAL_PORT);
    vm.command("off");
    vm.ended();
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got).unwrap();
    assert!(got == Noise::new(1).bytes(bytes), "{} of {bytes} bytes", got.len());
    assert!(matches!(vm.gone(), GoneReason::FrontendClosed));
}

#[test]
fn a_killed_vm_ends_the_device_and_its_connections() {
    let mut vm = Vm::boot();
    let stream = vm.connect(ECHO);
    vm.kill();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
    assert!(matches!(vm.gone(), GoneReason::FrontendClosed));
    assert!(matches!(vm.try_connect(ECHO), Err(ConnectError::DeviceGone)));
}

#[test]
fn a_dropped_device_ends_its_connections_and_the_vm_lives() {
    let mut vm = Vm::boot();
    let stream = vm.connect(ECHO);
    let handle = vm.handle();
    drop(vm.device.take());
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
    assert!(matches!(vm.gone(), GoneReason::Stopped));
    let (sender, answer) = channel();
    handle.connect(ECHO, move |result| drop(sender.send(result)));
    assert!(matches!(answer.recv().unwrap(), Err(ConnectError::DeviceGone)));
}

#[test]
fn speed_is_measured_beside_a_plain_socket_pair() {
    let vm = Vm::boot();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let echoing = thread::spawn(move || {
        let mut byte = [0];
        while (&theirs).read(&mut byte).unwrap() > 0 {
            (&theirs).write_all(&byte).unwrap();
        }
    });
    let raw = round_trip(&ours);
    drop(ours);
    echoing.join().unwrap();
    let ours = round_trip(&vm.connect(ECHO));
    println!("round trip: {ours:?}, of a plain socket pair {raw:?}");
    // Far from what it takes, and less than any wait for a timer: a lost wake-up would show.
    assert!(ours < Duration::from_millis(20), "{ours:?}");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let pouring = thread::spawn(move || (&theirs).write_all(&vec![0; 256 * MIB]).unwrap());
    let raw = read_rate(&ours);
    pouring.join().unwrap();
    let from = vm.connect(POUR);
    writeln!(&from, "{}", 256 * MIB).unwrap();
    let from = read_rate(&from);
    let to = vm.connect(DRAIN);
    let begin = Instant::now();
    for _ in 0..256 {
        (&to).write_all(&vec![0; MIB]).unwrap();
    }
    assert_eq!(exchange(to, b""), ".");
    let to = 256.0 / begin.elapsed().as_secs_f64();
    println!(
        "MiB/s: from the guest {from:.0}, to it {to:.0}, through a plain socket pair {raw:.0}"
    );
}

/// The median time of a byte there and back.
fn round_trip(mut stream: &UnixStream) -> Duration {
    let mut times: Vec<Duration> = (0..2000)
        .map(|_| {
            let begin = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// MiB per second, of 256.
fn read_rate(mut stream: &UnixStream) -> f64 {
    let begin = Instant::now();
    let mut chunk = vec![0; MIB];
    for _ in 0..256 {
        stream.read_exact(&mut chunk).unwrap();
    }
    256.0 / begin.elapsed().as_secs_f64()
}

/// Sends noise and the end, gets it back, and the end.
fn echo(stream: &UnixStream, seed: u64, bytes: usize) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut out: &UnixStream = stream;
            out.write_all(&Noise::new(seed).bytes(bytes)).unwrap();
            end_writing(stream);
        });
        let mut got = Vec::with_capacity(bytes);
        let mut from: &UnixStream = stream;
        from.read_to_end(&mut got).unwrap();
        assert!(got == Noise::new(seed).bytes(bytes), "{} of {bytes} bytes", got.len());
    });
}

/// The same, and the connection stays open.
fn echo_some(mut stream: &UnixStream, seed: u64, bytes: usize) {
    let sent = Noise::new(seed).bytes(bytes);
    stream.write_all(&sent).unwrap();
    let mut got = vec![0; bytes];
    stream.read_exact(&mut got).unwrap();
    assert!(got == sent);
}

/// Writes until nothing is taken for a second; the number of bytes taken.
fn fill(mut stream: &UnixStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let chunk = vec![0; 64 * 1024];
    let mut taken = 0;
    loop {
        match stream.write(&chunk) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The guest has the descriptors that it began with: no connection was lost half-way.
fn nothing_is_left(vm: &Vm) {
    let deadline = Instant::now() + vm::PATIENCE;
    // Standard streams, nine listeners, this command's connection and the directory that it reads.
    while vm.command("files") != (3 + 9 + 2).to_string() {
        assert!(Instant::now() < deadline, "the guest has {} descriptors", vm.command("files"));
        thread::sleep(Duration::from_millis(50));
    }
}

fn report(what: &str, mib: u32, begin: Instant) {
    println!("{what}: {:.0} MiB/s", f64::from(mib) / begin.elapsed().as_secs_f64());
}
