//! What dies: containerd hears of it once, at once, and nothing is left.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use qemu_tests::containerd::{Containerd, with_containerd};

/// How long an end may take to be told: something died, so nobody waits for a deadline. Generous for a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A container whose `program` is killed on the host.
fn ends_when_killed(containerd: &mut Containerd, id: &str, program: &str) {
    ends_when_one_is_killed(containerd, id, program, 1, 0);
}

/// The same for one of several processes.
fn ends_when_one_is_killed(
    containerd: &mut Containerd,
    id: &str,
    program: &str,
    count: usize,
    which: usize,
) {
    let events = containerd.events();
    containerd.start_container(&[], id, &["sleep", "1000"]);
    let processes = containerd.host.running(program);
    assert_eq!(processes.len(), count, "{program}s per VM: {processes:?}");
    containerd.host.kill(&processes[which], Signal::SIGKILL);
    let killed = Instant::now();
    let exit = "/tasks/exit".to_owned();
    containerd.host.wait_for("the exit event", || events.topics(id).contains(&exit).then_some(()));
    assert!(killed.elapsed() < AT_ONCE, "told after {:?}", killed.elapsed());
    // A task whose shim is gone is removed by containerd itself.
    if containerd.task(id).is_some() {
        containerd.wait_for_state(id, "STOPPED");
    }
    containerd.remove(id);
    let told = events.topics(id).into_iter().filter(|topic| *topic == exit).count();
    assert_eq!(told, 1, "{:#?}", events.lines());
    events.end(containerd);
}

#[test]
fn killed_vm_is_one_exit_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        ends_when_killed(containerd, "q", "qemu-system-x86_64");
        ends_when_killed(containerd, "v", "vminit-vmm");
    });
}

/// Two processes: the one that serves, and its parent, the first of its pid namespace's outside.
#[test]
fn killed_virtiofsd_is_one_exit_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        for (id, which) in [("f0", 0), ("f1", 1)] {
            ends_when_one_is_killed(containerd, id, "virtiofsd", 2, which);
        }
    });
}

/// The guest's own end, by its own word: a privileged container has it panic for want of memory.
#[test]
fn guest_that_panics_is_one_exit_with_its_reason_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        let events = containerd.events();
        let script = "echo 2 >/proc/sys/vm/panic_on_oom && tail /dev/zero";
        let options = ["--privileged", "--memory-limit", "67108864"];
        containerd.start_container(&options, "panics", &["sh", "-c", script]);
        containerd.wait_for_state("panics", "STOPPED");
        let exit = "/tasks/exit".to_owned();
        let topics = || events.topics("panics");
        containerd.host.wait_for("the exit event", || topics().contains(&exit).then_some(()));
        let exec = containerd.exec("panics", &["true"]);
        assert!(exec.stderr.contains("the VM has ended: panic (Out of memory"), "{exec:?}");
        let log = containerd.log();
        assert!(log.contains("console: ") && log.contains("Kernel panic - not syncing"), "{log}");
        containerd.remove("panics");
        assert_eq!(topics().into_iter().filter(|topic| *topic == exit).count(), 1);
        events.end(containerd);
    });
}

#[test]
fn killed_shim_is_one_exit_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        ends_when_killed(containerd, "s", "containerd-shim-vminitd-v1");
    });
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_whatever_is_killed_is_one_exit_on_the_older_containerds() {
    for name in ["1.6", "1.7"] {
        with_containerd(name, |containerd| {
            ends_when_killed(containerd, "q", "qemu-system-x86_64");
            ends_when_killed(containerd, "v", "vminit-vmm");
            ends_when_killed(containerd, "s", "containerd-shim-vminitd-v1");
        });
    }
}

/// A task that lives on while there is no containerd. (One that exits meanwhile is thrown away by 1.7 and later when they
/// start, runc's too: they take a shim without processes for a leak.)
fn outlives_containerd(containerd: &mut Containerd, signal: Signal) {
    containerd.start_container(&[], "lives", &["sleep", "1000"]);
    containerd.end_daemon(signal);
    std::thread::sleep(Duration::from_secs(1));
    containerd.start_daemon();
    assert_eq!(containerd.task("lives").expect("a task").0, "RUNNING");
    assert_eq!(containerd.exec("lives", &["echo", "still"]).good(), "still\n");
    let events = containerd.events();
    containerd.ctr(&["task", "kill", "--signal", "SIGTERM", "lives"]).good();
    // PID 1 of its namespace: sleep ignores what it does not handle.
    containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "lives"]).good();
    containerd.wait_for_state("lives", "STOPPED");
    let exit = "/tasks/exit".to_owned();
    containerd.host.wait_for("its exit", || events.topics("lives").contains(&exit).then_some(()));
    events.end(containerd);
    containerd.remove("lives");
}

#[test]
fn tasks_do_not_notice_that_containerd_is_killed() {
    with_containerd("2", |containerd| outlives_containerd(containerd, Signal::SIGKILL));
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_tasks_do_not_notice_that_containerd_is_restarted() {
    for name in ["1.6", "1.7", "2"] {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            with_containerd(name, |containerd| outlives_containerd(containerd, signal));
        }
    }
}
