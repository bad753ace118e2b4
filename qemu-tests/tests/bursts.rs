//! Execs that write a burst and exit at once: the hardest case for "all output before the exit".
//!
//! How it is proved: sizes are drawn evenly on a logarithmic scale from 1 byte to 8 MiB, four execs run at a time, and
//! each one's bytes and totals are compared; the harness's listing shows what they leave.

use qemu_tests::{ExecWish, Running, Wish, noise, vm_test};

/// Every size from here to 2^23 is as likely as its double.
const LARGEST_LOG2: f64 = 23.0;

/// A number that looks random, in [0, 1).
fn random(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

async fn burst(running: &Running<'_>, id: String, size: usize) {
    let args = ["misbehave", "burst", &size.to_string(), "1"];
    let exit = running.task.run_exec(&id, ExecWish::new(&args)).await;
    assert_eq!(exit.status, 0, "{id}");
    assert!(exit.stdout == noise(1, size), "{id}: {} of {size} bytes", exit.stdout.len());
    assert_eq!((exit.wait.stdout_bytes, exit.wait.stderr_bytes), (size as u64, 1), "{id}");
}

fn bursts(count: usize) {
    vm_test(async |vm| {
        let wish = Wish::sh("read end").with_stdin();
        let mut running = vm.create("c", wish).await.expect("create").start().await.expect("start");
        let mut state = 20_261_121;
        let mut size = || (random(&mut state) * LARGEST_LOG2).exp2() as usize;
        for round in 0..count.div_ceil(4) {
            let one = |n: usize, size| burst(&running, format!("e{round}-{n}"), size);
            tokio::join!(one(0, size()), one(1, size()), one(2, size()), one(3, size()));
        }
        drop(running.task.stdin.take());
        running.finish().await;
    });
}

#[test]
fn three_hundred_execs_that_burst_and_exit_lose_nothing() {
    bursts(300);
}

#[test]
#[ignore = "half an hour; `./dev soak` runs it"]
fn soak_ten_thousand_execs_that_burst_and_exit_lose_nothing() {
    bursts(10_000);
}
