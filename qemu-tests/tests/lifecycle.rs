//! States, events and exit statuses of containers, from outside by the Task API.

use qemu_tests::{Options, Vm, Wish, vm_test, vm_test_on_each_medium};
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::topics::{TASK_CREATE, TASK_DELETE, TASK_EXIT, TASK_START};

const WHOLE_LIFE: [&str; 4] = [TASK_CREATE, TASK_START, TASK_EXIT, TASK_DELETE];

#[test]
fn container_whole_life_has_its_states_and_events_in_order() {
    vm_test_on_each_medium(Options::default(), async |vm| whole_life(vm, "a").await);
}

/// Create to Delete of one container.
pub async fn whole_life(vm: &Vm, id: &str) {
    let task = vm.create(id, Wish::sh("read line; exit 3").with_stdin()).await.expect("create");
    let state = task.state().await.expect("state");
    assert_eq!(state.status(), Status::Created);
    assert_eq!((state.id.as_str(), state.pid), (id, task.pid));
    assert!(task.pid > 1, "{}", task.pid);

    let mut running = task.start().await.expect("start");
    assert_eq!(running.task.state().await.expect("state").status(), Status::Running);

    drop(running.task.stdin.take());
    let exit = running.exit().await;
    assert_eq!(exit.exit_status, 3);
    let state = running.task.state().await.expect("state");
    assert_eq!((state.status(), state.exit_status), (Status::Stopped, 3));
    assert_eq!(state.exited_at, exit.exited_at);

    running.finish().await;
    vm.await_events(TASK_DELETE, id, 1).await;
    assert_eq!(vm.topics(id), WHOLE_LIFE);
    let seqs: Vec<u64> = vm.events().iter().map(|event| event.seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
}

#[test]
fn exit_status_is_the_programs_own_or_128_and_the_signal() {
    vm_test(async |vm| {
        for (id, args, status) in [
            ("zero", &["true"][..], 0),
            ("three", &["misbehave", "exit", "3"], 3),
            ("most", &["misbehave", "exit", "255"], 255),
            ("killed", &["misbehave", "kill-self", "9"], 137),
            ("ended", &["misbehave", "kill-self", "15"], 143),
        ] {
            assert_eq!(vm.run(id, Wish::new(args)).await.status, status, "{id}");
        }
    });
}

#[test]
fn kill_ends_the_init_with_the_signal_that_it_handles_or_cannot() {
    vm_test(async |vm| {
        for (id, wish, signal, status) in [
            ("handles", Wish::new(&["misbehave", "handle-term", "7"]), 15, 7),
            ("ignores", Wish::new(&["misbehave", "ignore-term"]), 9, 137),
        ] {
            let mut running =
                vm.create(id, wish).await.expect("create").start().await.expect("start");
            // PID 1 of a namespace gets no signal that it does not handle yet: send it until it does.
            while tokio::time::timeout(std::time::Duration::from_millis(100), running.exit())
                .await
                .is_err()
            {
                let _ = running.task.kill(signal).await;
            }
            assert_eq!(running.task.wait().await.expect("wait").exit_status, status, "{id}");
            running.task.delete().await.expect("delete");
        }
    });
}

#[test]
fn program_that_exits_before_start_returns_is_reported_after_its_start() {
    vm_test(async |vm| {
        for round in 0..10 {
            let id = format!("quick-{round}");
            assert_eq!(vm.run(&id, Wish::new(&["true"])).await.status, 0);
            vm.await_events(TASK_DELETE, &id, 1).await;
            assert_eq!(vm.topics(&id), WHOLE_LIFE, "{id}");
        }
    });
}

#[test]
fn two_hundred_short_containers_in_a_row_leave_nothing() {
    vm_test(async |vm| {
        for round in 0..200 {
            let id = format!("c{round}");
            let exit = vm.run(&id, Wish::sh(&format!("echo {round}; exit {}", round % 100))).await;
            assert_eq!((exit.status, exit.text()), (round % 100, format!("{round}\n")));
        }
    });
}

#[test]
fn twenty_containers_at_once_each_get_their_own_output_and_status() {
    vm_test(async |vm| {
        let lives = (0..20).map(|n| async move {
            let id = format!("many{n}");
            let exit =
                vm.run(&id, Wish::sh(&format!("echo out {n}; echo err {n} >&2; exit {n}"))).await;
            assert_eq!(exit.status, n);
            assert_eq!(exit.text(), format!("out {n}\n"));
            assert_eq!(exit.stderr, format!("err {n}\n").as_bytes());
        });
        futures::future::join_all(lives).await;
    });
}

#[test]
fn created_container_that_was_never_started_can_be_killed_and_deleted() {
    vm_test(async |vm| {
        let task = vm.create("idle", Wish::new(&["true"])).await.expect("create");
        task.kill(9).await.expect("kill");
        assert_eq!(task.wait().await.expect("wait").exit_status, 137);
        task.delete().await.expect("delete");
        // The id is free again.
        assert_eq!(vm.run("idle", Wish::new(&["true"])).await.status, 0);
    });
}
