//! Output and input that stay in the guest: files, named pipes, programs.

use qemu_tests::{Blow, Vm, Wish, noise, sha256, vm_test};

const MIB: usize = 1 << 20;

/// What a script says that sees the guest's root on /guest.
async fn in_guest(vm: &Vm, id: &str, script: &str) -> String {
    let exit = vm.run(id, Wish::sh(script).with_guest_root()).await;
    assert_eq!(exit.status, 0, "{script}: {}", String::from_utf8_lossy(&exit.stderr));
    exit.text()
}

fn to(mut wish: Wish, stdout: &str, stderr: &str) -> Wish {
    (wish.stdout_uri, wish.stderr_uri) = (Some(stdout.to_owned()), Some(stderr.to_owned()));
    wish
}

#[test]
fn files_and_named_pipes_go_on_and_end_when_the_agent_was_killed() {
    vm_test(async |vm| {
        in_guest(vm, "make", "mkfifo /guest/run/up /guest/run/down; echo old >/guest/run/log")
            .await;
        let reader = Wish::sh("exec sha256sum </guest/run/down").with_guest_root();
        let reader =
            vm.create("reader", reader).await.expect("create").start().await.expect("start");
        let writer = Wish::sh("misbehave burst 3000000 0 >/guest/run/up").with_guest_root();
        let writer =
            vm.create("writer", writer).await.expect("create").start().await.expect("start");
        // From one named pipe into the other, with a pause in the middle, and a word for a file.
        let script = "dd bs=1000 count=1000; echo half >&2; sleep 2; cat; echo all >&2";
        let mut wish = to(Wish::sh(script), "/run/down", "file:///run/log");
        wish.stdin_uri = Some("fifo:///run/up".to_owned());
        let middle = vm.create("middle", wish).await.expect("create").start().await.expect("start");
        Blow::Kill.strike(vm).await;
        // Its end is the reader's, though nobody has deleted it.
        assert_eq!(reader.task.wait().await.expect("wait").exit_status, 0);
        let (sum, _) = reader.task.delete().await.expect("delete");
        assert_eq!(String::from_utf8_lossy(&sum), format!("{}  -\n", sha256(&noise(1, 3_000_000))));
        let exit = middle.task.wait().await.expect("wait");
        assert_eq!((exit.exit_status, exit.stdout_bytes), (0, 3_000_000));
        for one in [middle, writer] {
            assert_eq!(one.task.wait().await.expect("wait").exit_status, 0);
            one.task.delete().await.expect("delete");
        }
        let log = in_guest(
            vm,
            "look",
            "grep -v records /guest/run/log; rm /guest/run/up /guest/run/down /guest/run/log",
        );
        let log = log.await;
        assert!(log.starts_with("old\n") && log.ends_with("half\nall\n"), "{log}");
    });
}

/// A logger of busybox, in the container's own rootfs, that runs this script; its tools are in $B.
fn logger(id: &str, script: &str) -> String {
    let bin = format!("/run/bundles/{id}/rootfs/bin");
    let script: String =
        format!("B={bin}; {script}").bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("binary://{bin}/busybox?sh=-c&{script}")
}

#[test]
fn program_takes_output_and_its_death_or_the_agents_blocks_nothing() {
    vm_test(async |vm| {
        // Slow at first, so that the agent dies while output waits.
        let script = "echo $CONTAINER_ID,$CONTAINER_NAMESPACE >/run/log-env; exec 5>&-; $B/sleep 1
            $B/cat <&4 >/run/log-err & $B/cat <&3 >/run/log-out; wait";
        let uri = logger("logged", script);
        let size = 2 * MIB;
        let wish = to(Wish::new(&["misbehave", "burst", &size.to_string(), "70000"]), &uri, &uri);
        let logged = vm.create("logged", wish).await.expect("create").start().await.expect("start");
        Blow::Kill.strike(vm).await;
        let exit = logged.task.wait().await.expect("wait");
        assert_eq!((exit.exit_status, exit.stdout_bytes), (0, size as u64));
        // With Delete the log is complete.
        logged.task.delete().await.expect("delete");
        let sums =
            in_guest(vm, "sums", "cd /guest/run; cat log-env; sha256sum log-out log-err; rm log-*");
        let expected = format!(
            "logged,\n{}  log-out\n{}  log-err\n",
            sha256(&noise(1, size)),
            sha256(&noise(2, 70_000))
        );
        assert_eq!(sums.await, expected);

        // One that leaves at once, and one that reads nothing.
        let size = MIB.to_string();
        for (id, script) in [("left", "exit 3"), ("killed", "exec 5>&-; $B/sleep 1; kill -9 $$")] {
            let wish = Wish::new(&["misbehave", "burst", &size, "0"]);
            let uri = logger(id, script);
            assert_eq!(vm.run(id, to(wish, &uri, "")).await.status, 0, "{id}");
        }
        let wish = to(Wish::new(&["true"]), "binary:///not/there?a=b", "");
        let error = vm.create("none", wish).await.err().expect("no such program").to_string();
        assert!(error.contains("start logger /not/there: execute: "), "{error}");
    });
}
