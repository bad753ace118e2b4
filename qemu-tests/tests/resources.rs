//! Resources at Create and by Update, and Stats: limits are read back from the kernel's files, by the container itself,
//! and the ones that a program can run into are run into.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use host_shim::guest::unlimited;
use host_shim::vm::{Disk, Serial};
use prost::Message;
use qemu_tests::{Options, PATIENCE_S, Vm, Wish, inspector, vm_test_with};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use vminitd_protocol::pb::containerd::task::v3::{StatsRequest, UpdateTaskRequest};
use vminitd_protocol::pb::google::protobuf::Any;
use vminitd_protocol::pb::io::containerd::cgroups::v2::Metrics;

const MIB: u64 = 1 << 20;

/// Prints its cgroup's files, a line each, at once and once more for each line of input; each time it has one process
/// more when it is done. It makes no other, so that their number tells.
const SHOW: &str = r#"
    show() {
        for file in memory.max memory.low memory.high memory.swap.max memory.oom.group cpu.weight cpu.max cpu.max.burst \
            cpu.idle cpuset.cpus cpuset.mems pids.max io.weight io.max hugetlb.2MB.max hugetlb.2MB.rsvd.max cgroup.max.depth
        do
            all=; while read -r l; do all="$all;$l"; done </sys/fs/cgroup/$file
            echo "$file=${all#;}"
        done
        echo --
        sleep 3600 >/dev/null 2>&1 &
    }
    show; while read line; do show; done"#;

/// Two CPUs and a disk.
fn options(directory: &tempfile::TempDir) -> Options {
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![b'd'; 8 * MIB as usize]).expect("a file");
    let serial = Serial::try_from("disk".to_owned()).expect("a serial");
    Options { cpus: 2, disks: vec![Disk { serial, path, read_only: false }], ..Options::default() }
}

fn with_resources(mut wish: Wish, resources: Value) -> Wish {
    wish.spec["linux"]["resources"] = resources;
    wish
}

async fn update(vm: &Vm, id: &str, resources: Value) -> Result<(), String> {
    let resources = Any { type_url: String::new(), value: resources.to_string().into_bytes() };
    let request =
        UpdateTaskRequest { id: id.to_owned(), resources: Some(resources), ..Default::default() };
    match vm.guest().task().update(unlimited(), &request).await {
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) => Err(status.message),
        Err(other) => panic!("{other}"),
    }
}

async fn stats(vm: &Vm, id: &str) -> Metrics {
    let request = StatsRequest { id: id.to_owned() };
    let any = vm
        .guest()
        .task()
        .stats(unlimited(), &request)
        .await
        .expect("stats")
        .stats
        .expect("figures");
    assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
    Metrics::decode(&*any.value).expect("metrics")
}

/// Returns when it has this many processes.
async fn processes(vm: &Vm, id: &str, count: u64) {
    let reached = async {
        while stats(vm, id).await.pids.expect("pids").current != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(PATIENCE_S), reached)
        .await
        .expect("so many processes");
}

/// Major and minor number of the disk.
async fn disk(vm: &Vm) -> (u64, u64) {
    let exit =
        vm.run("numbers", Wish::sh(r#"awk '$4 == "vda" { print $1, $2 }' /proc/partitions"#)).await;
    let numbers: Vec<u64> =
        exit.text().split_whitespace().map(|word| word.parse().expect("a number")).collect();
    (numbers[0], numbers[1])
}

fn shown(text: &str) -> Vec<BTreeMap<&str, &str>> {
    let blocks = text.split_terminator("--\n");
    blocks.map(|block| block.lines().filter_map(|line| line.split_once('=')).collect()).collect()
}

#[track_caller]
fn check(files: &BTreeMap<&str, &str>, expected: &[(&str, &str)]) {
    for (file, value) in expected {
        assert_eq!(files.get(file), Some(value), "{file} in {files:?}");
    }
}

#[test]
fn resources_reach_their_files_at_create_and_by_update() {
    let directory = tempfile::tempdir().expect("a directory");
    vm_test_with(options(&directory), async |vm| {
        let (major, minor) = disk(vm).await;
        let device =
            |key: &str, value: u64| json!([{ "major": major, "minor": minor, key: value }]);
        let wish = with_resources(
            Wish::sh(SHOW).with_stdin(),
            json!({
                "memory": { "limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB },
                "cpu": { "shares": 512, "quota": 50000, "period": 100000, "burst": 10000, "cpus": "0", "mems": "0" },
                "pids": { "limit": 50 },
                "blockIO": {
                    "weight": 500,
                    "weightDevice": device("weight", 1000),
                    "throttleReadBpsDevice": device("rate", MIB),
                    "throttleWriteBpsDevice": device("rate", 2 * MIB),
                    "throttleReadIOPSDevice": device("rate", 100),
                    "throttleWriteIOPSDevice": device("rate", 200),
                },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 * MIB }],
                "unified": { "memory.high": (48 * MIB).to_string(), "memory.oom.group": "1", "cgroup.max.depth": "3" },
            }),
        );
        let task = vm.create("c", wish).await.expect("create");
        let mut running = task.start().await.expect("start");
        let mut stdin = running.task.stdin.take().expect("stdin");
        processes(vm, "c", 2).await;

        // Lower ones, also where one has to go before another.
        let lower = json!({
            "memory": { "limit": 32 * MIB, "reservation": 16 * MIB, "swap": 32 * MIB },
            "cpu": { "shares": 2048, "quota": 5000, "period": 10000, "burst": 1000, "cpus": "0-1" },
            "pids": { "limit": 40 },
            "blockIO": { "weight": 10, "throttleReadBpsDevice": device("rate", 0) },
            "unified": { "memory.high": "max" },
        });
        update(vm, "c", lower).await.expect("update");
        stdin.write_all(b"\n").await.expect("write");
        processes(vm, "c", 3).await;
        // What is not named, or is 0, stays as it is.
        let idle = json!({ "cpu": { "idle": 1, "quota": 0, "shares": 0 }, "memory": { "limit": 0 }, "pids": { "limit": 0 } });
        update(vm, "c", idle).await.expect("update");
        stdin.write_all(b"\n").await.expect("write");
        processes(vm, "c", 4).await;
        let free = json!({
            "memory": { "limit": -1, "swap": -1, "reservation": -1 },
            "cpu": { "idle": 0, "shares": 1024, "quota": -1, "burst": 0 },
            "pids": { "limit": -1 },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": -1 }],
        });
        update(vm, "c", free).await.expect("update");
        stdin.write_all(b"\n").await.expect("write");
        drop(stdin);
        let exit = running.finish().await;
        let text = exit.text();
        let shown = shown(&text);
        assert_eq!(shown.len(), 4, "{text}");
        let device = format!("{major}:{minor}");
        check(
            &shown[0],
            &[
                ("memory.max", "67108864"),
                ("memory.low", "33554432"),
                ("memory.high", "50331648"),
                ("memory.swap.max", "33554432"),
                ("memory.oom.group", "1"),
                ("cpu.weight", "59"),
                ("cpu.max", "50000 100000"),
                ("cpu.max.burst", "10000"),
                ("cpuset.cpus", "0"),
                ("cpuset.mems", "0"),
                ("pids.max", "50"),
                ("io.weight", &format!("default 4950;{device} 10000")),
                ("io.max", &format!("{device} rbps=1048576 wbps=2097152 riops=100 wiops=200")),
                ("hugetlb.2MB.max", "4194304"),
                ("hugetlb.2MB.rsvd.max", "4194304"),
                ("cgroup.max.depth", "3"),
            ],
        );
        check(
            &shown[2],
            &[
                ("memory.max", "33554432"),
                ("memory.low", "16777216"),
                ("memory.high", "max"),
                ("memory.swap.max", "0"),
                ("cpu.idle", "1"),
                ("cpu.max", "5000 10000"),
                ("cpu.max.burst", "1000"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "40"),
                ("io.weight", &format!("default 1;{device} 10000")),
                ("io.max", &format!("{device} rbps=max wbps=2097152 riops=100 wiops=200")),
                ("hugetlb.2MB.max", "4194304"),
            ],
        );
        check(
            &shown[3],
            &[
                ("memory.max", "max"),
                ("memory.low", "max"),
                ("memory.swap.max", "max"),
                ("cpu.idle", "0"),
                ("cpu.weight", "100"),
                ("cpu.max", "max 10000"),
                ("cpu.max.burst", "0"),
                ("pids.max", "max"),
                ("hugetlb.2MB.max", "max"),
            ],
        );
    });
}

#[test]
fn update_that_cannot_be_applied_names_the_field_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    vm_test_with(options(&directory), async |vm| {
        let limits = json!({ "memory": { "limit": 64 * MIB }, "cpu": { "quota": 50000, "cpus": "0" }, "pids": { "limit": 50 } });
        let mut running = vm
            .create("c", with_resources(Wish::sh(SHOW).with_stdin(), limits))
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        let mut stdin = running.task.stdin.take().expect("stdin");
        for (resources, text) in [
            (
                json!({ "memory": { "kernelTCP": 5 } }),
                "memory.kernelTCP has no equivalent in cgroup v2",
            ),
            (
                json!({ "memory": { "swappiness": 60 } }),
                "memory.swappiness has no equivalent in cgroup v2",
            ),
            (
                json!({ "memory": { "disableOOMKiller": true } }),
                "memory.disableOOMKiller has no equivalent",
            ),
            (json!({ "cpu": { "realtimeRuntime": 5 } }), "cpu.realtimeRuntime has no equivalent"),
            (json!({ "network": { "classID": 5 } }), "network.classID has no equivalent"),
            (
                json!({ "network": { "priorities": [{ "name": "lo", "priority": 1 }] } }),
                "network.priorities",
            ),
            (json!({ "rdma": { "mlx5_0": { "hcaHandles": 5 } } }), "rdma: write"),
            (json!({ "memory": { "swap": 5 } }), "memory.swap: 5 needs a memory.limit"),
            (json!({ "devices": [{ "allow": true, "access": "x" }] }), "devices[0].access"),
            // The kernel's refusals, behind what it has taken.
            (json!({ "cpu": { "cpus": "77" } }), "cpu.cpus: write \"77\" to cpuset.cpus"),
            (json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] }), "hugetlb.3MB.max"),
            (
                json!({ "unified": { "memory.nonsense": "1" } }),
                "unified: write \"1\\n\" to memory.nonsense",
            ),
            (
                json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 77, "minor": 7, "rate": 1 }] } }),
                "io.max",
            ),
        ] {
            let mut all = json!({
                "memory": { "limit": 32 * MIB, "reservation": MIB },
                "cpu": { "quota": 1000, "period": 5000, "shares": 7 },
                "pids": { "limit": 7 },
                "unified": { "memory.high": "9999360" },
            });
            for (section, fields) in resources.as_object().expect("sections") {
                match (all.get_mut(section).and_then(Value::as_object_mut), fields.as_object()) {
                    (Some(known), Some(fields)) => known.extend(fields.clone()),
                    _ => all[section] = fields.clone(),
                }
            }
            if resources["memory"]["swap"].is_number() {
                all["memory"].as_object_mut().expect("a section").remove("limit");
            }
            let error = update(vm, "c", all).await.expect_err(text);
            assert!(error.contains(text), "{error}");
            assert!(!error.contains("stay changed"), "{error}");
        }
        stdin.write_all(b"\n").await.expect("write");
        drop(stdin);
        let text = running.finish().await.text();
        let shown = shown(&text);
        assert_eq!(shown[0], shown[1]);

        let wish = with_resources(Wish::new(&["true"]), json!({ "memory": { "swappiness": 60 } }));
        let error =
            vm.create("no", wish).await.map(|task| task.id).expect_err("refused").to_string();
        assert!(
            error.contains("OCI runtime create failed: memory.swappiness has no equivalent"),
            "{error}"
        );
    });
}

#[test]
fn limits_bite_and_stats_say_what_was_used() {
    let directory = tempfile::tempdir().expect("a directory");
    vm_test_with(options(&directory), async |vm| {
        let (major, minor) = disk(vm).await;

        // No more processes than that, also when the limit comes later and is lower than what there is.
        let script =
            "for i in 1 2 3 4 5; do sleep 3600 & done; read line; sleep 3600 & echo unlimited";
        let wish =
            with_resources(Wish::sh(script).with_stdin(), json!({ "pids": { "limit": 20 } }));
        let mut running =
            vm.create("pids", wish).await.expect("create").start().await.expect("start");
        while stats(vm, "pids").await.pids.expect("pids").current < 6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(stats(vm, "pids").await.pids.expect("pids").limit, 20);
        update(vm, "pids", json!({ "pids": { "limit": 2 } })).await.expect("update");
        let mut stdin = running.task.stdin.take().expect("stdin");
        stdin.write_all(b"\n").await.expect("write");
        let exit = running.finish().await;
        assert!(!exit.text().contains("unlimited") && exit.status != 0, "{exit:?}");

        // One CPU of two, and half of that: the kernel counts the times that it had to wait.
        let script = "grep Cpus_allowed_list /proc/self/status; i=0; while [ $i -lt 4000 ]; do i=$((i+1)); done; read line";
        let limits = json!({ "cpu": { "cpus": "1", "quota": 10000, "period": 20000 } });
        let mut running = vm
            .create("cpu", with_resources(Wish::sh(script).with_stdin(), limits))
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        // The time is counted when a wait is over, so a little after the wait itself.
        let cpu = loop {
            let cpu = stats(vm, "cpu").await.cpu.expect("cpu");
            if cpu.throttled_usec > 0 {
                break cpu;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(
            cpu.usage_usec > 0 && cpu.nr_throttled > 0 && cpu.nr_periods >= cpu.nr_throttled,
            "{cpu:?}"
        );
        assert!(cpu.user_usec + cpu.system_usec > 0, "{cpu:?}");
        assert!(cpu.psi.expect("pressure").some.expect("some").total > 0);
        drop(running.task.stdin.take());
        let text = running.finish().await.text();
        assert!(text.ends_with(":\t1\n"), "{text}");

        // 1 MiB at 512 KiB/s takes two seconds, whatever the machine.
        let read = format!(
            "mknod /dev/disk b {major} {minor}; dd if=/dev/disk of=/dev/null bs=64k count=16 iflag=direct; read line; true"
        );
        let limits = json!({
            "devices": [{ "allow": true, "type": "b", "access": "r" }],
            "blockIO": { "throttleReadBpsDevice": [{ "major": major, "minor": minor, "rate": MIB / 2 }] },
        });
        let started = Instant::now();
        let mut running = vm
            .create("io", with_resources(Wish::sh(&read).with_stdin(), limits))
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        let rbytes = async || {
            let io = stats(vm, "io").await.io.expect("io");
            io.usage
                .iter()
                .find(|e| (e.major, e.minor) == (major, minor))
                .map_or((0, 0), |e| (e.rbytes, e.rios))
        };
        while rbytes().await.0 < MIB {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(rbytes().await.1 > 0);
        drop(running.task.stdin.take());
        assert_eq!(running.finish().await.status, 0);
        assert!(started.elapsed() > Duration::from_millis(1500), "{:?}", started.elapsed());

        // Memory, with what was killed for it.
        let script = "misbehave eat-memory 64; misbehave eat-memory 8 <&0";
        let limits = json!({
            "memory": { "limit": 24 * MIB, "swap": 32 * MIB },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 2 * MIB }],
        });
        let mut running = vm
            .create("memory", with_resources(Wish::sh(script).with_stdin(), limits))
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        while stats(vm, "memory").await.memory_events.expect("events").oom_kill == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while stats(vm, "memory").await.memory.expect("memory").anon < 8 * MIB {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let metrics = stats(vm, "memory").await;
        let (memory, events) =
            (metrics.memory.expect("memory"), metrics.memory_events.expect("events"));
        assert!(memory.usage >= memory.anon && memory.usage <= memory.max_usage, "{memory:?}");
        assert_eq!((memory.usage_limit, memory.swap_limit), (24 * MIB, 8 * MIB));
        assert!(memory.max_usage > 20 * MIB && memory.pgfault > 0, "{memory:?}");
        assert!(memory.psi.is_some() && metrics.io.expect("io").psi.is_some());
        assert_eq!((events.oom_kill, events.oom), (1, 1), "{events:?}");
        assert!(events.max > 0);
        let huge = metrics.hugetlb.iter().find(|huge| huge.pagesize == "2MB").expect("2MB pages");
        assert_eq!((huge.current, huge.max), (0, 2 * MIB));
        assert!(metrics.rdma.is_some());
        running.task.kill_all(9).await.expect("kill");
        running.exit().await;

        // Somebody took the cgroup away.
        let gone =
            "until rmdir /guest/sys/fs/cgroup/containers/memory 2>/dev/null; do sleep 0.01; done";
        assert_eq!(vm.run("remover", inspector(&["sh", "-c", gone])).await.status, 0);
        let request = StatsRequest { id: "memory".to_owned() };
        let error = vm.guest().task().stats(unlimited(), &request).await.expect_err("no cgroup");
        assert!(error.to_string().contains("cgroup does not exist: not found"), "{error}");
        let error =
            update(vm, "memory", json!({ "pids": { "limit": 5 } })).await.expect_err("no cgroup");
        assert_eq!(error, "cgroup does not exist: not found");
        running.task.delete().await.expect("delete");
    });
}
