//! The rig itself, proved with runc: what fails with our runtime and not here is ours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use std::time::Duration;

use qemu_tests::containerd::{Containerd, Runtime, version};

fn with_runc(name: &str, test: impl FnOnce(&mut Containerd)) {
    let Some(version) = version(name) else { return };
    let mut containerd = Containerd::start(version, Runtime::Runc);
    test(&mut containerd);
    containerd.assert_nothing_left();
}

fn runs(containerd: &mut Containerd) {
    let exit = containerd.run(&[], "one", &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((exit.status, exit.stdout.as_str(), exit.stderr.as_str()), (3, "out\n", "err\n"));
    let events = containerd.events();
    containerd.start_container(&[], "two", &["sleep", "1000"]);
    assert_eq!(containerd.task("two").unwrap().0, "RUNNING");
    let exec = containerd.ctr(&["task", "exec", "--exec-id", "e", "two", "cat", "/proc/1/cmdline"]);
    assert_eq!(exec.good(), "sleep\x001000\x00");
    containerd.remove("two");
    let topics = events.topics("two");
    assert!(topics.contains(&"/tasks/exit".to_owned()), "{topics:?}");
    events.end(containerd);
}

#[test]
fn rig_runs_containers_of_runc_on_each_containerd() {
    for name in ["1.6", "1.7", "2"] {
        with_runc(name, runs);
    }
}

#[test]
fn rig_sees_what_is_left_behind() {
    let Some(version) = version("2") else { return };
    let containerd = Containerd::start(version, Runtime::Runc);
    let hierarchy = if Path::new("/sys/fs/cgroup/pids").exists() { "pids/" } else { "" };
    containerd.host.sh(&format!(
        "sleep 99 >/dev/null 2>&1 &
        mkdir /run/left && mount -t tmpfs left /run/left && touch $TMPDIR/left &&
        mkdir -p /sys/fs/cgroup/{hierarchy}{}/left &&
        {{ busybox nc -ll -p 999 >/dev/null 2>&1 & }}
        sleep 1",
        containerd.namespace
    ));
    let found = catch_unwind(AssertUnwindSafe(|| {
        containerd.assert_nothing_left_after(Duration::from_secs(1));
    }));
    let said = *found.unwrap_err().downcast::<String>().unwrap();
    for what in ["sleep 99", "mount /run/left", "file TMPDIR/left", "cgroup", "tcp listener"] {
        assert!(said.contains(what), "{what} is not in {said}");
    }
}
