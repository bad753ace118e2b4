//! The agent killed, stopped and killed again, under containers that must not notice.
//!
//! How it is proved: a container with the guest's pid namespace sends the signal from inside; what ran before has to
//! run on, and State, Wait, Kill and Delete have to work for it on a new connection.

use std::pin::Pin;

use qemu_tests::{Blow, Vm, Wish, noise, vm_test};
use tokio::io::AsyncWriteExt;
use vminitd_protocol::pb::containerd::v1::types::Status;

use crate::{exec, lifecycle, pty, stdio};

async fn survives(vm: &Vm, blow: Blow) {
    let wish = Wish::sh("read line; echo got $line; exit 9").with_stdin();
    let mut running =
        vm.create("survivor", wish).await.expect("create").start().await.expect("start");
    let created = vm.create("created", Wish::sh("echo late")).await.expect("create");

    let took = blow.strike(vm).await;
    assert!(
        took < vm.first_start * 3,
        "{took:?} for the restart, {:?} for the first start",
        vm.first_start
    );

    assert_eq!(running.task.state().await.expect("state").status(), Status::Running);
    assert_eq!(created.state().await.expect("state").status(), Status::Created);
    let late = created.start().await.expect("start").finish().await;
    assert_eq!((late.status, late.text()), (0, "late\n".to_owned()));

    running
        .task
        .stdin
        .as_mut()
        .expect("stdin")
        .write_all(b"it\n")
        .await
        .expect("the stream lives on");
    assert_eq!(running.task.wait().await.expect("wait").exit_status, 9);
    let (stdout, _) = running.task.delete().await.expect("delete");
    assert_eq!(stdout, b"got it\n");
}

#[test]
fn agent_that_is_killed_comes_back_and_containers_live_on() {
    vm_test(async |vm| survives(vm, Blow::Kill).await);
}

#[test]
fn agent_that_is_stopped_is_replaced_and_containers_live_on() {
    vm_test(async |vm| survives(vm, Blow::Stop).await);
}

#[test]
fn agent_that_is_killed_again_and_again_loses_no_byte_and_no_exit() {
    vm_test(async |vm| {
        let size = (8 << 20).to_string();
        let mut running = Vec::new();
        for n in 0..3 {
            let wish = Wish::new(&["misbehave", "burst", &size, "100"]);
            running.push(
                vm.create(&format!("burst{n}"), wish)
                    .await
                    .expect("create")
                    .start()
                    .await
                    .expect("start"),
            );
        }
        for _ in 0..5 {
            Blow::Kill.strike(vm).await;
        }
        for one in running {
            let exit = one.task.wait().await.expect("wait");
            assert_eq!(exit.exit_status, 0);
            let (stdout, stderr) = one.task.delete().await.expect("delete");
            assert!(stdout == noise(1, 8 << 20), "{} bytes of stdout", stdout.len());
            assert!(stderr == noise(2, 100), "{} bytes of stderr", stderr.len());
        }
    });
}

#[test]
fn exit_while_no_agent_runs_is_found_by_the_next() {
    vm_test(async |vm| {
        // It exits some time after the blow, in most rounds while the agent is down.
        let wish = Wish::new(&["misbehave", "ticks", "3", "20"]);
        let running = vm.create("short", wish).await.expect("create").start().await.expect("start");
        Blow::Kill.strike(vm).await;
        assert_eq!(running.task.wait().await.expect("wait").exit_status, 0);
        let (stdout, _) = running.task.delete().await.expect("delete");
        assert_eq!(stdout, b"0\n1\n2\n");
    });
}

type Check = for<'vm> fn(&'vm Vm, &'vm str) -> Pin<Box<dyn Future<Output = ()> + 'vm>>;

/// What other modules test in a fresh VM; each takes an id for its container.
const CHECKS: &[(&str, Check)] = &[
    ("life", |vm, id| Box::pin(lifecycle::whole_life(vm, id))),
    ("exec", |vm, id| Box::pin(exec::whole_life(vm, id))),
    ("last", |vm, id| Box::pin(exec::exit_of_init_is_last(vm, id, Wish::sh("read end")))),
    ("pty", |vm, id| Box::pin(pty::interactive_shell(vm, id))),
    ("output", |vm, id| Box::pin(stdio::both_outputs(vm, id, 1 << 20))),
    ("input", |vm, id| Box::pin(stdio::input_to_its_end(vm, id, 1 << 20))),
];

#[test]
fn every_check_of_a_fresh_vm_holds_after_each_blow() {
    vm_test(async |vm| {
        for blow in [Blow::Kill, Blow::Abort, Blow::Stop] {
            blow.strike(vm).await;
            for (name, check) in CHECKS {
                let what = format!("{name}-after-{blow:?}");
                println!("{what}");
                check(vm, &what).await;
            }
        }
    });
}

#[test]
fn blow_in_the_middle_of_a_life_changes_nothing_of_it() {
    vm_test(async |vm| {
        for blow in [Blow::Kill, Blow::Abort, Blow::Stop] {
            let id = format!("{blow:?}");
            let mut wish = Wish::sh("stty raw -echo; echo up; cat; exit 3").with_terminal();
            let (mut screen, uri) = pty::Screen::open(vm, &format!("{id}-screen")).await;
            wish.stdout_uri = Some(uri);
            let running = vm.create(&id, wish).await.expect("create").start().await;
            let mut running = running.expect("start");
            screen.until("up").await;
            let mut stdin = running.task.stdin.take().expect("connected");
            stdin.write_all(b"before ").await.expect("typed");
            screen.until("before ").await;
            blow.strike(vm).await;
            stdin.write_all(b"after").await.expect("typed");
            screen.until("after").await;
            let state = running.task.state().await.expect("state");
            assert_eq!((state.status(), state.terminal), (Status::Running, true));
            running.task.kill(9).await.expect("kill");
            assert_eq!(running.task.wait().await.expect("wait").exit_status, 137);
            running.task.delete().await.expect("delete");
        }
    });
}
