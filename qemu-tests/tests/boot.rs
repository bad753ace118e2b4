//! From the kernel to serving, and the ways to end.

use std::time::Duration;

use host_shim::machine::console_tail;
use qemu_tests::{Options, Vm, Wish, inspector, vm_test, vm_test_on_each_medium, vm_test_with};
use tokio::time::timeout;

#[test]
fn guest_says_its_version_and_kernel() {
    vm_test(async |vm| {
        let info = vm.guest().info().await.expect("info");
        assert!(!info.version.is_empty());
        assert!(info.kernel_version.starts_with("6.12"), "{}", info.kernel_version);
    });
}

#[test]
fn boot_stamps_are_on_the_console_in_order() {
    vm_test(async |vm| {
        // The last one comes a moment after the first caller was answered.
        let last = async {
            while !vm.console().lines().any(|line| line.trim_end().ends_with("phase=first-accept"))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(60), last).await.expect("the last stamp");
        let console = vm.console();
        let stamps: Vec<(&str, u64)> = console
            .lines()
            .filter_map(|line| {
                line.split_once("VMINITD_READY uptime_us=")?.1.trim().split_once(" phase=")
            })
            .map(|(time, phase)| (phase, time.parse().expect("microseconds")))
            .collect();
        let phases: Vec<&str> = stamps.iter().map(|stamp| stamp.0).collect();
        let expected = ["pid1-entry", "system-init", "vsock-listen", "serve", "first-accept"];
        assert_eq!(phases, expected, "{console}");
        assert!(stamps.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{stamps:?}");
    });
}

#[test]
fn early_mounts_have_the_usual_flags() {
    vm_test(async |vm| {
        let text = vm.run("mounts", inspector(&["cat", "/proc/1/mountinfo"])).await.text();
        for (target, kind, flags) in [
            ("/proc", "proc", "nosuid,nodev,noexec"),
            ("/sys", "sysfs", "nosuid,nodev,noexec"),
            ("/dev", "devtmpfs", "nosuid"),
            ("/dev/pts", "devpts", "nosuid,noexec"),
            ("/dev/shm", "tmpfs", "nosuid,nodev"),
            ("/dev/mqueue", "mqueue", "nosuid,nodev,noexec"),
            ("/run", "tmpfs", "nosuid,nodev"),
            // A root filesystem may lie here: programs in it keep their set-user-id bits.
            ("/run/bundles", "tmpfs", "rw"),
            ("/tmp", "tmpfs", "nosuid,nodev"),
            ("/sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec"),
        ] {
            let line = text.lines().find(|line| line.split(' ').nth(4) == Some(target));
            let line = line.unwrap_or_else(|| panic!("{target} is not mounted:\n{text}"));
            assert!(line.contains(&format!(" - {kind} ")), "{line}");
            for flag in flags.split(',') {
                assert!(
                    line.split(' ').nth(5).is_some_and(|f| f.split(',').any(|f| f == flag)),
                    "{flag}: {line}"
                );
            }
        }
    });
}

/// The first call of this guest is this Create; what serving did not need must be there for it.
#[test]
fn first_container_finds_what_is_set_up_after_serving() {
    let options = Options { look_for_leaks: false, ..Options::default() };
    vm_test_on_each_medium(options, async |vm| {
        let script = "cd /guest
            for pid in proc/[0-9]*; do
                [ $(cat $pid/comm) = vminitd-agent ] && cat $pid/cgroup
            done
            cat proc/1/cgroup proc/sys/kernel/printk_devkmsg proc/sys/kernel/dmesg_restrict
            [ $(cat sys/fs/cgroup/containers/memory.max) != max ] && cat sys/fs/cgroup/vminitd/cpu.weight
            ls -d run/vminitd/containers; readlink dev/fd";
        let exit = vm.run("first", Wish::sh(script).with_guest_root()).await;
        let expected = "0::/../../vminitd\n0::/../../vminitd\non\n1\n10000\nrun/vminitd/containers\n/proc/self/fd\n";
        assert_eq!(exit.text(), expected);
    });
}

#[test]
fn unknown_configuration_is_logged_and_ignored() {
    let options = Options {
        append: "vminitd.no_such_key=1 stray -- --no-such-flag=2".to_owned(),
        ..Options::default()
    };
    vm_test_with(options, async |vm| {
        let console = vm.console();
        assert!(console.contains("no_such_key"), "{console}");
        assert!(console.contains("no-such-flag"), "{console}");
    });
}

#[test]
fn ports_can_be_set() {
    let mut options = Options {
        append: "vminitd.stream_port=1025 -- -vsock-rpc-port=1024".to_owned(),
        ..Options::default()
    };
    options.memory = "192M";
    vm_test_with(options, async |vm| assert_eq!(vm.run("a", Wish::new(&["true"])).await.status, 0));
}

#[test]
fn guest_that_cannot_boot_says_why_and_powers_off() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let console = directory.path().join("console.log");
        // The same port twice: the second listener cannot be made.
        let append = "vminitd.rpc_port=1024 vminitd.stream_port=1024".to_owned();
        let machine = Vm::spawn(&Options { append, ..Options::default() }, &console).await;
        let exited =
            timeout(Duration::from_secs(120), machine.exited()).await.expect("it ends by itself");
        let tail = console_tail(&console, 40).join("\n");
        assert!(tail.contains("vminitd: fatal: "), "{exited}\n{tail}");
        assert!(tail.contains("1024"), "{tail}");
    });
}

#[test]
fn shutdown_without_containers_powers_off() {
    let options = Options { look_for_leaks: false, ..Options::default() };
    vm_test_with(options, async |vm| {
        let request = vminitd_protocol::pb::containerd::task::v3::ShutdownRequest::default();
        let _ = vm.guest().task().shutdown(host_shim::guest::unlimited(), &request).await;
        let exited =
            timeout(Duration::from_secs(60), vm.machine().exited()).await.expect("it powers off");
        assert_eq!(exited.reason.to_string(), "power-off", "{exited}");
    });
}

#[test]
fn power_off_ends_containers_that_ignore_term() {
    let options = Options { look_for_leaks: false, ..Options::default() };
    vm_test_with(options, async |vm| {
        let wish = Wish::new(&["misbehave", "ignore-term"]);
        let _running =
            vm.create("stubborn", wish).await.expect("create").start().await.expect("start");
        assert_eq!(vm.power_off().await.reason.to_string(), "power-off");
    });
}

#[test]
fn read_only_erofs_root_runs_containers_and_powers_off() {
    let options = Options { erofs_root: true, ..Options::default() };
    vm_test_with(options, async |vm| {
        let mut wish =
            Wish::sh("grep -c erofs /guest/proc/1/mounts; ls /guest/sbin").with_guest_root();
        wish.spec["hostname"] = "c".into();
        let exit = vm.run("c", wish).await;
        assert_eq!((exit.status, exit.text().as_str()), (0, "1\nvminitd\n"));
    });
}
