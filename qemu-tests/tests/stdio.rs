//! Bytes: all of them, in order, before the exit, and their ends in both directions.

use qemu_tests::{Vm, Wish, noise, sha256, vm_test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

#[test]
fn twenty_mib_of_stdout_and_of_stderr_arrive_whole_and_are_counted() {
    vm_test(async |vm| both_outputs(vm, "burst", 20 * MIB).await);
}

/// So many bytes of each, all at once.
pub async fn both_outputs(vm: &Vm, id: &str, bytes: usize) {
    let size = bytes.to_string();
    let exit = vm.run(id, Wish::new(&["misbehave", "burst", &size, &size])).await;
    assert_eq!(exit.status, 0);
    assert_eq!(sha256(&exit.stdout), sha256(&noise(1, bytes)));
    assert_eq!(sha256(&exit.stderr), sha256(&noise(2, bytes)));
    assert_eq!((exit.wait.stdout_bytes, exit.wait.stderr_bytes), (bytes as u64, bytes as u64));
}

#[test]
fn burst_then_exit_of_any_size_arrives_whole() {
    vm_test(async |vm| {
        for (round, size) in
            [0, 1, 4095, 4096, 65_535, 65_536, 65_537, MIB, 3 * MIB + 7].into_iter().enumerate()
        {
            let args = ["misbehave", "burst", &size.to_string(), "1"];
            let exit = vm.run(&format!("b{round}"), Wish::new(&args)).await;
            assert!(exit.stdout == noise(1, size), "{size}: {} bytes", exit.stdout.len());
            assert_eq!(exit.wait.stdout_bytes, size as u64);
            assert_eq!(exit.wait.stderr_bytes, 1);
        }
    });
}

#[test]
fn output_is_all_counted_when_wait_returns_before_anybody_reads_it() {
    vm_test(async |vm| {
        // 40 KiB fit into the pipe: the program is gone long before the host looks at the stream.
        let args = ["misbehave", "burst", "40960", "0"];
        let mut running = vm
            .create("early", Wish::new(&args))
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        assert_eq!(running.exit().await.stdout_bytes, 40_960);
        assert!(running.finish().await.stdout == noise(1, 40_960));
    });
}

#[test]
fn twenty_mib_of_stdin_arrive_and_the_half_close_ends_them() {
    vm_test(async |vm| input_to_its_end(vm, "sum", 20 * MIB).await);
}

/// So many bytes, and a half-close.
pub async fn input_to_its_end(vm: &Vm, id: &str, bytes: usize) {
    let input = noise(3, bytes);
    let mut task = vm.create(id, Wish::new(&["sha256sum"]).with_stdin()).await.expect("create");
    let mut stdin = task.stdin.take().expect("it was asked for");
    let running = task.start().await.expect("start");
    stdin.write_all(&input).await.expect("the guest takes it");
    stdin.shutdown().await.expect("a half-close");
    let exit = running.finish().await;
    assert_eq!((exit.status, exit.text()), (0, format!("{}  -\n", sha256(&input))));
}

#[test]
fn close_io_ends_stdin_behind_what_was_sent_and_may_be_repeated() {
    vm_test(async |vm| {
        let mut task = vm.create("cat", Wish::new(&["cat"]).with_stdin()).await.expect("create");
        let stdin = task.stdin.as_mut().expect("it was asked for");
        stdin.write_all(b"hello\n").await.expect("the guest takes it");
        let mut running = task.start().await.expect("start");
        for _ in 0..2 {
            let request = vminitd_protocol::pb::containerd::task::v3::CloseIoRequest {
                id: "cat".to_owned(),
                stdin: true,
                ..Default::default()
            };
            vm.guest()
                .task()
                .close_io(host_shim::guest::unlimited(), &request)
                .await
                .expect("close_io");
        }
        assert_eq!(running.exit().await.exit_status, 0);
        assert_eq!(running.finish().await.text(), "hello\n");
    });
}

#[test]
fn stdio_that_goes_nowhere_reads_as_empty_and_takes_everything() {
    vm_test(async |vm| {
        let mut wish = Wish::sh("echo out && echo err >&2 && exit 5");
        (wish.stdout_uri, wish.stderr_uri) = (Some(String::new()), Some(String::new()));
        assert_eq!(vm.run("nowhere", wish).await.status, 5);
        let exit = vm.run("null", Wish::sh("cat; readlink /proc/self/fd/0")).await;
        assert_eq!((exit.status, exit.text()), (0, "/dev/null\n".to_owned()));
    });
}

#[test]
fn stdout_is_a_pipe_that_can_be_opened_again() {
    vm_test(async |vm| {
        let exit =
            vm.run("reopen", Wish::sh("echo one >/dev/stdout; echo two >/proc/self/fd/2")).await;
        assert_eq!(exit.text(), "one\n");
        assert_eq!(exit.stderr, b"two\n");
    });
}

#[test]
fn stdin_of_one_container_ends_while_another_sits_created() {
    vm_test(async |vm| {
        let a = vm.create("a", Wish::new(&["cat"]).with_stdin()).await.expect("create");
        // B is a copy of its launcher that waits; it must hold nothing of A's.
        let b = vm.create("b", Wish::new(&["cat"]).with_stdin()).await.expect("create");
        let mut a = a.start().await.expect("start");
        drop(a.task.stdin.take());
        assert_eq!(a.exit().await.exit_status, 0);
        a.finish().await;
        b.kill(9).await.expect("kill");
        b.wait().await.expect("wait");
        b.delete().await.expect("delete");
    });
}

#[test]
fn grandchild_that_holds_stdout_delays_neither_exit_nor_what_was_written_before() {
    vm_test(async |vm| {
        let wish = Wish::new(&["misbehave", "hold-stdout", "1500"]).in_guest_pid_namespace();
        let mut running =
            vm.create("hold", wish).await.expect("create").start().await.expect("start");
        let exit = running.exit().await;
        assert_eq!((exit.exit_status, exit.stdout_bytes), (0, 6));
        let text = running.finish().await.text();
        assert!(text.starts_with("early\n"), "{text:?}");
    });
}

#[test]
fn host_that_reads_nothing_blocks_no_other_container() {
    vm_test(async |vm| {
        let size = (8 * MIB).to_string();
        let mut stream = vm.stream("stalled-out").await;
        let mut wish = Wish::new(&["misbehave", "burst", &size, "0"]);
        wish.stdout_uri = Some("stream://stalled-out".to_owned());
        let running =
            vm.create("stalled", wish).await.expect("create").start().await.expect("start");
        for round in 0..3 {
            assert_eq!(vm.run(&format!("other{round}"), Wish::sh("echo hi")).await.text(), "hi\n");
        }
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("the guest's end of file");
        assert!(bytes == noise(1, 8 * MIB), "{} bytes", bytes.len());
        assert_eq!(running.finish().await.status, 0);
    });
}

#[test]
fn same_stream_for_stdout_and_stderr_is_merged_and_ends_once() {
    vm_test(async |vm| {
        let mut stream = vm.stream("both").await;
        let mut wish = Wish::sh("echo out; echo err >&2; echo out");
        (wish.stdout_uri, wish.stderr_uri) =
            (Some("stream://both".to_owned()), Some("stream://both".to_owned()));
        let running =
            vm.create("merged", wish).await.expect("create").start().await.expect("start");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("the guest's end of file");
        assert_eq!(text, "out\nerr\nout\n");
        assert_eq!(running.finish().await.status, 0);
    });
}
