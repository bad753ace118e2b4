//! Further processes in a running container: the container's init sleeps, execs come and go beside it.

use qemu_tests::{ExecWish, Wish, vm_test};
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::topics::{TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT, TASK_START};

#[test]
fn exec_whole_life_has_its_states_and_events_in_order() {
    vm_test(async |vm| {
        let sleeper = vm.create("c", Wish::sh("read end").with_stdin()).await.expect("create");
        let mut running = sleeper.start().await.expect("start");
        let wish = ExecWish::sh("read line; echo out $line; echo err >&2; exit 5").with_stdin();
        let exec = running.task.exec("e", wish).await.expect("exec");
        let state = exec.state().await.expect("state");
        assert_eq!((state.status(), state.pid, state.exec_id.as_str()), (Status::Created, 0, "e"));
        let mut exec = exec.start().await.expect("start of the exec");
        let state = exec.exec.state().await.expect("state");
        assert_eq!((state.status(), state.pid), (Status::Running, exec.pid));
        use tokio::io::AsyncWriteExt;
        let mut stdin = exec.exec.stdin.take().expect("asked for");
        stdin.write_all(b"hello\n").await.expect("write");
        let exit = exec.exit().await;
        assert_eq!((exit.exit_status, exit.stdout_bytes, exit.stderr_bytes), (5, 10, 4));
        let exit = exec.finish().await;
        assert_eq!((exit.text().as_str(), exit.stderr.as_slice()), ("out hello\n", &b"err\n"[..]));
        assert_eq!(running.task.state().await.expect("state").status(), Status::Running);
        let gone = vm.exec_in("c", "e", ExecWish::new(&["true"])).await;
        assert!(gone.is_ok(), "the id is free again");
        drop(running.task.stdin.take());
        running.finish().await;
        let topics = vm.topics("c");
        let own: Vec<_> = topics
            .iter()
            .filter(|topic| {
                [TASK_START, TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT]
                    .contains(&topic.as_str())
            })
            .collect();
        assert_eq!(
            own,
            [TASK_START, TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT, TASK_EXEC_ADDED, TASK_EXIT]
        );
    });
}
