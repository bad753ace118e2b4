//! Output through containerd's FIFOs: every byte, whoever is slow and whoever exits at once.

use std::io::Read;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use qemu_tests::containerd::{Containerd, with_containerd};
use qemu_tests::noise;

/// A burst of `megabytes` and an exit, read by somebody who dozes off `naps` times.
fn slow_reader_gets_all(containerd: &mut Containerd, megabytes: usize, naps: usize) {
    let length = (megabytes << 20).to_string();
    let mut run = containerd.run_command(&["--rm"], "b", &["misbehave", "burst", &length, "0"]);
    let mut child = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("nsenter");
    let mut stdout = child.stdout.take().expect("piped");
    let mut got = Vec::with_capacity(megabytes << 20);
    let mut buffer = vec![0; 256 << 10];
    let nap_every = (megabytes << 20) / naps;
    let mut next_nap = nap_every;
    loop {
        let read = stdout.read(&mut buffer).expect("a pipe");
        if read == 0 {
            break;
        }
        got.extend_from_slice(&buffer[..read]);
        if got.len() >= next_nap {
            next_nap += nap_every;
            sleep(Duration::from_millis(100));
        }
    }
    child.wait().expect("our child");
    let expected = noise(1, megabytes << 20);
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "other bytes than were written");
}

#[test]
fn slow_reader_gets_every_byte() {
    with_containerd("2", |containerd| slow_reader_gets_all(containerd, 8, 10));
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_slow_reader_gets_a_hundred_megabytes_on_each_containerd() {
    for name in ["1.6", "1.7", "2"] {
        with_containerd(name, |containerd| slow_reader_gets_all(containerd, 100, 50));
    }
}

/// Containers that write and exit at once, one after the other.
fn short_runs_lose_nothing(containerd: &mut Containerd, count: usize) {
    let expected = String::from_utf8(vec![b'x'; 70_000]).expect("letters");
    let script = "yes | head -c 140000 | tr -d '\\n' | tr y x; exit 4";
    for number in 0..count {
        let exit = containerd.run(&[], &format!("s{number}"), &["sh", "-c", script]);
        assert_eq!(exit.status, 4, "run {number}: {}", exit.stderr);
        assert_eq!(exit.stdout.len(), expected.len(), "run {number}");
        assert!(exit.stdout == expected, "run {number}");
    }
}

#[test]
fn short_runs_in_a_row_lose_no_byte() {
    with_containerd("2", |containerd| short_runs_lose_nothing(containerd, 6));
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_a_hundred_short_runs_lose_no_byte_on_each_containerd() {
    for name in ["1.6", "1.7", "2"] {
        with_containerd(name, |containerd| short_runs_lose_nothing(containerd, 100));
    }
}
