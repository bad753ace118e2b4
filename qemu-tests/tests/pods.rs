//! Several containers in one VM that share namespaces, as the containers of a pod do.
//!
//! A pause container holds the namespaces; the others join them by the paths of its files in /proc.

use qemu_tests::{ExecWish, Running, Vm, Wish, vm_test};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// A spec whose namespaces of these kinds are another process's.
fn joining(mut wish: Wish, pid: u32, kinds: &[&str]) -> Wish {
    let namespaces = wish.spec["linux"]["namespaces"].as_array_mut().expect("some");
    for namespace in namespaces {
        let kind = namespace["type"].as_str().expect("a type").to_owned();
        if kinds.contains(&kind.as_str()) {
            let file = match kind.as_str() {
                "network" => "net",
                "mount" => "mnt",
                other => other,
            };
            namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
        }
    }
    wish
}

async fn start<'vm>(vm: &'vm Vm, id: &str, wish: Wish) -> Running<'vm> {
    vm.create(id, wish).await.expect("create").start().await.expect("start")
}

#[test]
fn containers_of_a_pod_share_what_they_join_and_nothing_else() {
    vm_test(async |vm| {
        let mut pause = start(vm, "pause", Wish::sh("read end").with_stdin()).await;
        let kinds = ["network", "ipc", "uts"];
        let script = "for n in net ipc uts mnt pid cgroup; do readlink /proc/self/ns/$n; done; hostname; ip link | grep -c LOOPBACK,UP";
        let own = pause.task.run_exec("look", ExecWish::sh(script)).await.text();
        let other =
            vm.run("member", joining(Wish::sh(script), pause.task.pid, &kinds)).await.text();
        let (own, other): (Vec<&str>, Vec<&str>) = (own.lines().collect(), other.lines().collect());
        assert_eq!(own.len(), 8, "{own:?}");
        assert_eq!(own[..3], other[..3], "net, ipc, uts");
        for at in 3..6 {
            assert_ne!(own[at], other[at], "mnt, pid, cgroup");
        }
        assert_eq!(own[7], "1", "loopback is up");
        assert_eq!(other[7], "1", "in the namespace that was joined too");
        drop(pause.task.stdin.take());
        pause.finish().await;
    });
}

#[test]
fn shared_pid_namespace_ends_a_container_with_its_init_and_no_other() {
    vm_test(async |vm| {
        let mut pause = start(vm, "pause", Wish::sh("read end").with_stdin()).await;
        let member = joining(
            Wish::sh("sleep 3600 & echo $$; read end; exit 5").with_stdin(),
            pause.task.pid,
            &["pid"],
        );
        let mut member = start(vm, "member", member).await;
        // It sees the pause container as pid 1, and itself as another.
        let seen = member
            .task
            .run_exec("look", ExecWish::sh("cat /proc/1/cmdline | tr '\\0' ' '; echo; echo $$"))
            .await
            .text();
        assert!(seen.starts_with("sh -c read end"), "{seen}");
        let mut exec = member
            .task
            .exec("e", ExecWish::new(&["misbehave", "ignore-term"]))
            .await
            .expect("exec")
            .start()
            .await
            .expect("start");
        drop(member.task.stdin.take());
        assert_eq!(member.exit().await.exit_status, 5);
        // What the member's init left is gone, the exec too, and its exit came first.
        assert_eq!(exec.exit().await.exit_status, 137);
        let text = member.finish().await.text();
        assert_ne!(text.trim(), "1", "not pid 1 of the namespace");
        let others =
            pause.task.run_exec("look", ExecWish::sh("ps | grep -c 'slee[p] 3600'")).await.text();
        assert_eq!(others.trim(), "0");
        // The end of the namespace's own init ends whoever is in it.
        let last = vm
            .create("last", joining(Wish::new(&["sleep", "3600"]), pause.task.pid, &["pid"]))
            .await
            .expect("create");
        let mut last = last.start().await.expect("start");
        drop(pause.task.stdin.take());
        pause.finish().await;
        assert_eq!(last.exit().await.exit_status, 137);
        last.finish().await;
    });
}

#[test]
fn user_namespace_maps_root_to_somebody() {
    vm_test(async |vm| {
        let mut wish =
            Wish::sh("id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; read end")
                .with_stdin();
        let linux = wish.spec["linux"].as_object_mut().expect("linux");
        linux["namespaces"].as_array_mut().expect("some").push(json!({ "type": "user" }));
        let map: Value = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        linux.insert("uidMappings".to_owned(), map.clone());
        linux.insert("gidMappings".to_owned(), map);
        let mut running = start(vm, "mapped", wish).await;
        // From outside it is somebody.
        let look = Wish::sh(&format!("grep -E '^(Uid|Gid)' /proc/{}/status", running.task.pid))
            .in_guest_pid_namespace();
        let outside = vm.run("outside", look).await.text();
        assert!(
            outside.contains("Uid:\t100000\t100000") && outside.contains("Gid:\t100000\t100000"),
            "{outside}"
        );
        // And so is what joins it.
        let mut exec =
            ExecWish::sh("id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; cat");
        exec.stdin = true;
        let mut exec =
            running.task.exec("e", exec).await.expect("exec").start().await.expect("start");
        let look =
            Wish::sh(&format!("grep ^Uid /proc/{}/status", exec.pid)).in_guest_pid_namespace();
        let outside = vm.run("outside-exec", look).await.text();
        assert!(outside.contains("Uid:\t100000\t100000"), "{outside}");
        exec.exec.stdin.take().expect("asked for").shutdown().await.expect("end");
        let exec = exec.finish().await.text();
        let lines: Vec<&str> = exec.lines().collect();
        assert_eq!(lines[0], "0");
        assert_eq!(lines[1], lines[2], "the same user namespace");
        drop(running.task.stdin.take());
        let text = running.finish().await.text();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines, ["0", "0 100000 65536", "0 100000 65536"], "{text}");
    });
}
