//! Where shims are known to go wrong, a test each; output that is lost and exits out of order are `stdio`'s and
//! `failure`'s.

use std::io::{Read, Write};
use std::process::Stdio;

use qemu_tests::containerd::{Containerd, Process, with_containerd};

const SHIM: &str = "containerd-shim-vminitd-v1";

#[test]
fn exec_into_a_stopped_container_is_refused_at_once() {
    with_containerd("2", |containerd| {
        containerd.start_container(&[], "x", &["sleep", "1000"]);
        containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "x"]).good();
        containerd.wait_for_state("x", "STOPPED");
        let refused = containerd.exec("x", &["true"]);
        // `timeout` would say 124.
        assert_eq!(refused.status, 1, "{refused:?}");
        containerd.remove("x");
    });
}

#[test]
fn run_in_the_background_lets_go_of_who_ran_it_and_input_ends() {
    with_containerd("2", |containerd| {
        // Whoever reads ctr's output is through when ctr is, not when the container is.
        let mut run = containerd.run_command(&["--detach"], "b", &["sleep", "1000"]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nsenter");
        let (mut out, mut err) = (String::new(), String::new());
        run.stdout.take().expect("piped").read_to_string(&mut out).expect("a pipe");
        run.stderr.take().expect("piped").read_to_string(&mut err).expect("a pipe");
        assert!(run.wait().expect("our child").success(), "{out}{err}");
        assert_eq!(containerd.task("b").expect("a task").0, "RUNNING");
        containerd.remove("b");

        let mut cat = containerd.run_command(&["--rm"], "c", &["cat"]);
        let cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut cat = cat.spawn().expect("nsenter");
        cat.stdin.take().expect("piped").write_all(b"to its end").expect("a pipe");
        let output = cat.wait_with_output().expect("our child");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"to its end");
    });
}

/// What the shim holds after each of two halves of `count` execs.
fn execs_leave_no_memory(containerd: &mut Containerd, count: usize) {
    containerd.start_container(&[], "e", &["sleep", "1000"]);
    let shim = || -> Process { containerd.host.running(SHIM).pop().expect("a shim") };
    let half = || {
        for _ in 0..count / 2 {
            assert_eq!(containerd.exec("e", &["echo", "x"]).good(), "x\n");
        }
        let zombies = containerd.host.processes().into_iter().filter(|process| process.zombie);
        assert_eq!(zombies.map(|process| process.command).collect::<Vec<_>>(), [""; 0]);
        shim().resident
    };
    let (first, second) = (half(), half());
    // An exec that was kept would cost its FIFOs' buffers and two tasks: 70 KiB.
    let allowed = (count as u64 / 2) * (10 << 10);
    assert!(second < first + allowed, "{count} execs: from {first} to {second} bytes");
    containerd.remove("e");
}

#[test]
fn execs_leave_neither_memory_nor_zombies() {
    with_containerd("2", |containerd| execs_leave_no_memory(containerd, 60));
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_hundreds_of_execs_leave_neither_memory_nor_zombies() {
    with_containerd("2", |containerd| execs_leave_no_memory(containerd, 400));
}
