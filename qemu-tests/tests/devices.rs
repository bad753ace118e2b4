//! Which devices a container may open, from inside: it makes the node (which every container may) and tries.
//!
//! The disk is a real one, the container is root with CAP_MKNOD, and no mount forbids devices: only the rules do.

use std::time::Duration;

use host_shim::guest::unlimited;
use host_shim::vm::{Disk, Serial};
use qemu_tests::{Blow, ExecWish, Options, Wish, vm_test_with};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use vminitd_protocol::pb::containerd::task::v3::{PidsRequest, UpdateTaskRequest};
use vminitd_protocol::pb::google::protobuf::Any;

/// `node NAME KIND MAJOR MINOR` makes a node; `try NAME` prints what opening it for each direction says.
const TOOLS: &str = r#"
    node() { mknod /dev/$1 $2 $3 $4 && echo "$1 made"; }
    try() {
        if e=$(dd if=/dev/$1 of=/dev/null bs=512 count=1 2>&1); then echo "$1 read"; else echo "$1 read: ${e##*: }"; fi
        if e=$(dd if=/dev/zero of=/dev/$1 bs=512 count=1 conv=notrunc 2>&1); then echo "$1 write"; else echo "$1 write: ${e##*: }"; fi
    }
    disk() { awk '$4 == "vda" { print $1, $2 }' /proc/partitions; }
"#;

const DENIED: &str = "Operation not permitted";

fn script(body: &str) -> Wish {
    Wish::sh(&format!("{TOOLS}\n{body}"))
}

/// A VM with a writable disk.
fn options(directory: &tempfile::TempDir) -> Options {
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![b'd'; 1 << 20]).expect("a file");
    let serial = Serial::try_from("disk".to_owned()).expect("a serial");
    Options { disks: vec![Disk { serial, path, read_only: false }], ..Options::default() }
}

fn with_rules(mut wish: Wish, rules: Value) -> Wish {
    wish.spec["linux"]["resources"] = json!({ "devices": rules });
    wish
}

#[test]
fn container_opens_only_devices_that_it_was_allowed() {
    let directory = tempfile::tempdir().expect("a directory");
    vm_test_with(options(&directory), async |vm| {
        // Without rules, and with those that hosts begin with: only what every container has.
        let look = "node vda b $(disk); node mem c 1 1; node kmsg2 c 1 11; node console2 c 5 1
            for device in vda mem kmsg2 console2 null zero full urandom tty; do try $device; done";
        let none = script(look);
        let denied = with_rules(script(look), json!([{ "allow": false, "access": "rwm" }]));
        for (id, wish) in [("none", none), ("denied", denied)] {
            let text = vm.run(id, wish).await.text();
            for device in ["vda", "mem", "kmsg2", "console2"] {
                assert!(text.contains(&format!("{device} made\n")), "{id}: {text}");
                assert!(text.contains(&format!("{device} read: {DENIED}\n")), "{id}: {text}");
                assert!(text.contains(&format!("{device} write: {DENIED}\n")), "{id}: {text}");
            }
            for device in ["null", "zero", "urandom"] {
                assert!(text.contains(&format!("{device} read\n")), "{id}: {text}");
                assert!(text.contains(&format!("{device} write\n")), "{id}: {text}");
            }
            // These have errors of their own.
            assert!(text.contains("full write: No space left on device\n"), "{id}: {text}");
            assert!(text.contains("tty read: No such device or address\n"), "{id}: {text}");
        }

        // In their order, by direction, by number.
        let disk = vm.run("numbers", script("disk")).await.text();
        let numbers: Vec<u32> =
            disk.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [major, minor] = numbers[..] else { panic!("no disk in {disk:?}") };
        let rules = json!([
            { "allow": true, "access": "rwm" },
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": major, "minor": -1, "access": "rw" },
            { "allow": false, "type": "b", "major": major, "minor": minor, "access": "w" },
        ]);
        let text = vm
            .run(
                "some",
                with_rules(script("node vda b $(disk); node mem c 1 1; try vda; try mem"), rules),
            )
            .await
            .text();
        assert!(text.contains("vda read\n"), "{text}");
        assert!(text.contains(&format!("vda write: {DENIED}\n")), "{text}");
        assert!(text.contains(&format!("mem read: {DENIED}\n")), "{text}");
        assert_eq!(std::fs::read(directory.path().join("disk")).expect("the disk")[..4], *b"dddd");

        // All of them, as for a privileged container.
        let all = with_rules(
            script("node vda b $(disk); try vda"),
            json!([{ "allow": true, "access": "rwm" }]),
        );
        assert_eq!(vm.run("all", all).await.text(), "vda made\nvda read\nvda write\n");

        let bad = with_rules(Wish::new(&["true"]), json!([{ "allow": true, "access": "rwx" }]));
        let error = vm
            .create("bad", bad)
            .await
            .map(|task| task.id)
            .expect_err("no such access")
            .to_string();
        assert!(error.contains("has more than r, w and m"), "{error}");
    });
}

#[test]
fn update_replaces_the_device_rules_of_what_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    vm_test_with(options(&directory), async |vm| {
        // Ten processes more each time, so that their number tells how far it is.
        let wish = script(
            "step() { for i in 1 2 3 4 5 6 7 8 9 10; do sleep 3600 >/dev/null 2>&1 & done; read line; }
             node vda b $(disk); try vda; step; try vda; step; try vda",
        );
        let mut running =
            vm.create("c", wish.with_stdin()).await.expect("create").start().await.expect("start");
        let mut stdin = running.task.stdin.take().expect("stdin");
        let update = async |resources: Value| {
            let resources =
                Any { type_url: String::new(), value: resources.to_string().into_bytes() };
            let request = UpdateTaskRequest {
                id: "c".to_owned(),
                resources: Some(resources),
                ..Default::default()
            };
            vm.guest().task().update(unlimited(), &request).await.expect("update");
        };
        let pids = PidsRequest { id: "c".to_owned() };
        let processes = async |count| {
            while vm.guest().task().pids(unlimited(), &pids).await.expect("pids").processes.len()
                < count
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Another resource leaves the rules alone.
        update(json!({ "pids": { "limit": 100 } })).await;
        processes(11).await;
        update(json!({ "devices": [{ "allow": true, "type": "b", "access": "r" }] })).await;
        stdin.write_all(b"\n").await.expect("write");
        processes(21).await;
        update(json!({ "devices": [{ "allow": false }] })).await;
        // The rules are the cgroup's: they bind what is started later, and stay when the agent dies.
        let denied = format!("vda read: {DENIED}\nvda write: {DENIED}\n");
        let exec = |body: &str| ExecWish::sh(&format!("{TOOLS}\n{body}"));
        assert_eq!(running.task.run_exec("before", exec("try vda")).await.text(), denied);
        Blow::Kill.strike(vm).await;
        assert_eq!(running.task.run_exec("after", exec("try vda")).await.text(), denied);
        stdin.write_all(b"\n").await.expect("write");
        drop(stdin);
        assert_eq!(running.task.wait().await.expect("wait").exit_status, 0);
        let (text, _) = running.task.delete().await.expect("delete");
        let text = String::from_utf8_lossy(&text);
        assert_eq!(text, format!("vda made\n{denied}vda read\nvda write: {DENIED}\n{denied}"));
    });
}
