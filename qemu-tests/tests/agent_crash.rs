//! The agent killed, stopped and killed again, under containers that must not notice.
//!
//! How it is proved: a container with the guest's pid namespace sends the signal from inside; what ran before has to
//! run on, and State, Wait, Kill and Delete have to work for it on a new connection.

use std::time::{Duration, Instant};

use qemu_tests::{PATIENCE_S, Vm, Wish, inspector, noise, vm_test};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use vminitd_protocol::pb::containerd::v1::types::Status;

const SIGKILL: &str = "9";
const SIGSTOP: &str = "19";

/// Sends the agent a signal, and returns how long it took until a new one answered.
async fn blow(vm: &Vm, round: usize, signal: &str) -> Duration {
    let id = format!("blow{round}");
    let before = agents(vm);
    let task = vm.create(&id, inspector(&["inspect", "signal", signal])).await.expect("create");
    let started = Instant::now();
    // The answer dies with the agent, or comes before it.
    let _ = timeout(Duration::from_secs(5), task.start()).await;
    // Not before the old agent is gone: it may well answer until then.
    let another = async {
        while agents(vm) == before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(PATIENCE_S), another).await.expect("another agent");
    vm.reconnect().await;
    let took = started.elapsed();
    vm.delete_by_force(&id).await;
    took
}

/// How many agents have served in this VM, by the console.
fn agents(vm: &Vm) -> usize {
    vm.console()
        .lines()
        .filter(|line| line.contains("init: agent ") && line.contains(" serves"))
        .count()
}

async fn survives(vm: &Vm, signal: &str) {
    let wish = Wish::sh("read line; echo got $line; exit 9").with_stdin();
    let mut running =
        vm.create("survivor", wish).await.expect("create").start().await.expect("start");
    let created = vm.create("created", Wish::sh("echo late")).await.expect("create");

    let took = blow(vm, 0, signal).await;
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
    vm_test(async |vm| survives(vm, SIGKILL).await);
}

#[test]
fn agent_that_is_stopped_is_replaced_and_containers_live_on() {
    vm_test(async |vm| survives(vm, SIGSTOP).await);
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
        for round in 0..5 {
            blow(vm, round, SIGKILL).await;
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
        blow(vm, 0, SIGKILL).await;
        assert_eq!(running.task.wait().await.expect("wait").exit_status, 0);
        let (stdout, _) = running.task.delete().await.expect("delete");
        assert_eq!(stdout, b"0\n1\n2\n");
    });
}
