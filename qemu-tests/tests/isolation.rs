//! What a container that wants out reaches, and what one that takes everything spoils; docs/security.md has the list.
//!
//! `attack all` tries every way that we know and tells of each whether it was refused. The containers have pid, mount and
//! cgroup namespaces of their own.

use std::collections::BTreeSet;

use host_shim::guest::unlimited;
use qemu_tests::{Exit, Task, Vm, Wish, vm_test};
use serde_json::json;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;
use vminitd_protocol::pb::google::protobuf::Empty;

/// The ways that were not refused.
fn reached(exit: &Exit) -> BTreeSet<String> {
    let text = exit.text();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(": ")).collect();
    assert!(
        lines.len() > 30,
        "it did not get far: {text}{}",
        String::from_utf8_lossy(&exit.stderr)
    );
    let reached = lines.iter().filter(|(_, outcome)| !outcome.starts_with("refused: "));
    reached.map(|(way, _)| (*way).to_owned()).collect()
}

/// The agent of the beginning still serves, also whoever comes anew.
async fn assert_untouched(vm: &Vm) {
    vm.reconnect().await;
    assert_eq!(vm.agents(), 1, "the agent was ended:\n{}", vm.console());
    assert_eq!(vm.run("after", Wish::new(&["true"])).await.status, 0);
}

#[test]
fn container_reaches_nothing_outside() {
    vm_test(async |vm| {
        let exit = vm.run("default", Wish::new(&["attack", "all"])).await;
        assert_eq!(reached(&exit), BTreeSet::new());
        let mut suid = Wish::new(&["attack", "all"]);
        suid.spec["process"]["noNewPrivileges"] = json!(false);
        assert_eq!(reached(&vm.run("suid", suid).await), BTreeSet::new());
        assert_untouched(vm).await;
    });
}

/// What a kernel has once for everybody, and its administrator may change. None of it is the agent, its ports, its
/// cgroup, its files, its processes; docs/security.md says what each means.
const GLOBAL: [&str; 11] = [
    "bpf-programs",
    "bpffs",
    "clock",
    "core-pattern",
    "devtmpfs",
    "kernel-log",
    "oom-score",
    "perf",
    "securityfs",
    "sysctl",
    "sysfs",
];

#[test]
fn container_with_all_capabilities_reaches_the_kernels_settings_but_not_the_agent() {
    vm_test(async |vm| {
        let exit = vm.run("all", Wish::new(&["attack", "all"]).with_all_capabilities()).await;
        assert_eq!(reached(&exit), GLOBAL.map(str::to_owned).into());
        assert_untouched(vm).await;
    });
}

#[test]
fn container_with_vsock_open_reaches_neither_the_agents_ports_nor_more_than_others() {
    vm_test(async |vm| {
        let mut wish = Wish::new(&["attack", "all"]).with_all_capabilities();
        wish.spec["annotations"] = json!({ "io.vminitd.vsock": "allow" });
        let mut expected: BTreeSet<String> = GLOBAL.map(str::to_owned).into();
        // It may make such rings, as its annotation says; nobody answers on the agent's ports.
        expected.insert("io-uring".to_owned());
        assert_eq!(reached(&vm.run("open", wish).await), expected);
        assert_untouched(vm).await;
    });
}

#[test]
fn core_pattern_of_a_container_runs_nothing_as_the_guests_root() {
    vm_test(async |vm| {
        let helper = "/run/bundles/core/rootfs/bin/attack";
        let script = format!(
            "mkdir /tmp/p; mount -t proc proc /tmp/p || exit 1
             echo '|{helper} core-helper /run/escaped' > /tmp/p/sys/kernel/core_pattern || exit 2
             ulimit -c unlimited; misbehave kill-self 6; echo crashed $?; sleep 1
             echo core > /tmp/p/sys/kernel/core_pattern"
        );
        let exit = vm.run("core", Wish::sh(&script).with_all_capabilities()).await;
        assert!(exit.text().contains("crashed"), "{exit:?}");
        let look = Wish::sh("ls /guest/run/escaped").with_guest_root();
        let found = vm.run("look", look).await;
        assert_eq!((found.status, found.text().as_str()), (1, ""));
        assert_untouched(vm).await;
    });
}

#[test]
fn reboot_by_a_container_ends_that_container_only() {
    vm_test(async |vm| {
        // LINUX_REBOOT_MAGIC1 and 2, see reboot(2): the guest's, whatever the host is.
        let (magic, again) = (0xfee1_dead_u32.to_string(), 672_274_793_u32.to_string());
        let words = ["attack", "call", "reboot", &magic, &again, "1126301404"];
        let exit = vm.run("default", Wish::new(&words)).await;
        assert_eq!((exit.status, exit.text().as_str()), (0, "EPERM\n"));
        // The kernel ends the first process of that pid namespace, with SIGINT for a power-off.
        let exit = vm.run("all", Wish::new(&words).with_all_capabilities()).await;
        assert_eq!(exit.status, 128 + libc::SIGINT as u32);
        assert_untouched(vm).await;
    });
}

/// Runs a hog until it has all, and leaves it holding it.
async fn hog<'vm>(vm: &'vm Vm, what: &str) -> (qemu_tests::Running<'vm>, u64) {
    let script = format!("attack hog {what} > /data/taken");
    let task: Task<'vm> = vm.create(what, Wish::sh(&script)).await.expect("create");
    let running = task.start().await.expect("start");
    // It has all when the figure stands in the file.
    let look = "until [ -s /data/taken ]; do sleep 0.1; done; cat /data/taken";
    let taken = match what {
        // Nobody can look any more.
        "processes" => {
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            u64::MAX
        }
        _ => {
            let text = running.task.run_exec("look", qemu_tests::ExecWish::sh(look)).await.text();
            text.trim().parse().expect("a number")
        }
    };
    (running, taken)
}

#[test]
fn container_that_uses_up_what_the_kernel_counts_by_user_keeps_the_agent_from_nothing() {
    vm_test(async |vm| {
        for (what, least) in [("inotify", 900), ("epoll", 150_000), ("processes", 1)] {
            let (_hog, taken) = hog(vm, what).await;
            assert!(taken >= least, "{what}: only {taken}");
            vm.reconnect().await;
            vm.guest().system().info(unlimited(), &Empty {}).await.expect("an answer");
            if what != "processes" {
                assert_eq!(vm.run("beside", Wish::new(&["true"])).await.status, 0, "{what}");
            }
            vm.delete_by_force(what).await;
        }
        assert_untouched(vm).await;
    });
}

#[test]
fn container_without_limit_that_eats_all_memory_dies_itself() {
    vm_test(async |vm| {
        let exit = vm.run("eats", Wish::new(&["misbehave", "eat-memory", "4096"])).await;
        assert_eq!(exit.status, 128 + libc::SIGKILL as u32);
        assert_untouched(vm).await;
        // One that the kernel must not kill eats on, at the cost of other containers; the host can still end it.
        let script = "echo -1000 > /proc/self/oom_score_adj; exec misbehave eat-memory 4096";
        let wish = Wish::sh(script).with_all_capabilities();
        vm.create("spared", wish).await.expect("create").start().await.expect("start");
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        vm.reconnect().await;
        vm.guest().system().info(unlimited(), &Empty {}).await.expect("an answer");
        vm.delete_by_force("spared").await;
        assert_untouched(vm).await;
    });
}

#[test]
fn bundle_with_a_name_that_leads_elsewhere_is_refused_and_leaves_nothing() {
    vm_test(async |vm| {
        let names = ["", ".", "..", "a/b", "/a", "../a", "a/../b", "a\n", "a\0b"];
        let create = async |id: &str, file: &str| {
            let files = [(file.to_owned(), b"{}".to_vec())].into();
            let request = CreateRequest { id: id.to_owned(), files };
            vm.guest().bundle().create(unlimited(), &request).await.map(|answer| answer.bundle)
        };
        for name in names {
            for (id, file) in [(name, "config.json"), ("good", name)] {
                let error = create(id, file).await.expect_err(name).to_string();
                assert!(error.contains("InvalidArgument"), "{name:?}: {error}");
            }
        }
        let error = create("good", "rootfs").await.expect_err("a directory of ours").to_string();
        assert!(error.contains("InvalidArgument"), "{error}");
        let left = vm.run("look", Wish::sh("ls /guest/run/bundles").with_guest_root()).await.text();
        assert_eq!(left, "look\n");
    });
}

/// Prepares the guest from a container that sees its root; the guest's /run/victim is what must stay as it is.
async fn prepare(vm: &Vm, script: &str) {
    let script =
        format!("set -e; mkdir -p /guest/run/victim; echo mine > /guest/run/victim/file; {script}");
    let exit = vm.run("prepare", Wish::sh(&script).with_guest_root()).await;
    assert_eq!(exit.status, 0, "{}", String::from_utf8_lossy(&exit.stderr));
}

/// Checks that, and removes it.
async fn assert_victim_is_as_it_was(vm: &Vm) {
    let script = "cd /guest/run/victim; ls; cat file; grep -c victim /proc/1/mountinfo; rm -r /guest/run/victim";
    let look = Wish::sh(script).with_guest_root().in_guest_pid_namespace();
    assert_eq!(vm.run("look", look).await.text(), "file\nmine\n0\n");
}

const ROOT: &str = "/guest/run/bundles/evil/rootfs";

#[test]
fn links_in_a_root_filesystem_lead_nowhere_else() {
    vm_test(async |vm| {
        // Everything that is mounted on or made is a link out, absolute and relative.
        let bundle =
            Wish::sh("cat /data/f /etc/hosts; ls /dev/null /proc/self/status; ls /run/victim");
        let mut wish = bundle.with_file("f", b"bound\n").with_file("hosts", b"hosts\n");
        wish.mounts = Some(vec![]);
        let mounts = wish.spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| mount["destination"] != "/run");
        for (destination, source) in [("/data/f", "f"), ("/etc/hosts", "hosts")] {
            mounts.push(json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind", "ro"] }));
        }
        mounts.push(
            json!({ "destination": "/up/down", "type": "tmpfs", "source": "tmpfs", "options": [] }),
        );
        let path = vm.make_bundle("evil", &wish).await.expect("bundle");
        let script = format!(
            "mkdir -p {ROOT}/bin {ROOT}/proc {ROOT}/sys {ROOT}/tmp; cp /bin/busybox {ROOT}/bin/
             for a in sh cat ls; do ln -s busybox {ROOT}/bin/$a; done
             cd {ROOT}; ln -s /run/victim dev; ln -s /run/victim data; ln -s ../../../../../../run/victim etc; ln -s ../../../../../run/victim up"
        );
        prepare(vm, &script).await;
        // Links are followed inside of the root; whether that works out or fails is not the point.
        match vm.create_in("evil", &path, wish.clone()).await {
            Err(error) => println!("refused: {error}"),
            Ok(task) => {
                let exit = task.start().await.expect("start").finish().await;
                assert!(exit.text().contains("bound\nhosts\n"), "{exit:?}");
            }
        }
        assert_victim_is_as_it_was(vm).await;
    });
}

#[test]
fn proc_that_is_a_link_fails_the_create() {
    vm_test(async |vm| {
        let mut wish = Wish::new(&["true"]);
        wish.mounts = Some(vec![]);
        let path = vm.make_bundle("evil", &wish).await.expect("bundle");
        let script = format!(
            "mkdir -p {ROOT}/bin {ROOT}/sys {ROOT}/dev {ROOT}/run {ROOT}/tmp; cp /bin/busybox {ROOT}/bin/true; ln -s /run/victim {ROOT}/proc"
        );
        prepare(vm, &script).await;
        let error =
            vm.create_in("evil", &path, wish).await.map(|task| task.id).expect_err("a link");
        assert!(error.to_string().contains("OCI runtime create failed"), "{error}");
        assert_victim_is_as_it_was(vm).await;
    });
}

#[test]
fn root_filesystem_that_is_a_link_out_of_its_bundle_is_refused() {
    vm_test(async |vm| {
        for mounted in [false, true] {
            let mut wish = Wish::sh("echo in > /file; ls /");
            if !mounted {
                wish.mounts = Some(vec![]);
            }
            let path = vm.make_bundle("evil", &wish).await.expect("bundle");
            prepare(vm, &format!("rmdir {ROOT}; ln -s /run/victim {ROOT}")).await;
            let error =
                vm.create_in("evil", &path, wish).await.map(|task| task.id).expect_err("a link");
            println!("{mounted}: {error}");
            assert_victim_is_as_it_was(vm).await;
        }
    });
}
