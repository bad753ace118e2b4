//! Pause and Resume: what stands still, what a paused container still answers to, and that a new agent knows of it.

use std::time::Duration;

use host_shim::guest::unlimited;
use prost::Message;
use qemu_tests::{Blow, PATIENCE_S, Running, Vm, Wish, vm_test};
use vminitd_protocol::pb::containerd::task::v3::{
    PauseRequest, PidsRequest, ResumeRequest, StatsRequest,
};
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::pb::io::containerd::cgroups::v2::Metrics;
use vminitd_protocol::topics::{
    TASK_CREATE, TASK_DELETE, TASK_EXIT, TASK_PAUSED, TASK_RESUMED, TASK_START,
};

async fn pause(vm: &Vm, id: &str) -> ttrpc::Result<()> {
    vm.guest().task().pause(unlimited(), &PauseRequest { id: id.to_owned() }).await.map(drop)
}

async fn resume(vm: &Vm, id: &str) -> ttrpc::Result<()> {
    vm.guest().task().resume(unlimited(), &ResumeRequest { id: id.to_owned() }).await.map(drop)
}

async fn start<'vm>(vm: &'vm Vm, id: &str, wish: Wish) -> Running<'vm> {
    vm.create(id, wish).await.expect("create").start().await.expect("start")
}

/// Microseconds of CPU that the container has used.
async fn used(vm: &Vm, id: &str) -> u64 {
    let request = StatsRequest { id: id.to_owned() };
    let answer = vm.guest().task().stats(unlimited(), &request).await.expect("stats");
    let metrics = Metrics::decode(&*answer.stats.expect("figures").value).expect("metrics");
    metrics.cpu.expect("cpu").usage_usec
}

fn text(result: ttrpc::Result<()>) -> String {
    match result.expect_err("a refusal") {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => panic!("{other}"),
    }
}

#[test]
fn paused_container_stands_still_and_can_be_killed() {
    vm_test(async |vm| {
        let created = vm.create("created", Wish::new(&["true"])).await.expect("create");
        assert_eq!(text(pause(vm, "created").await), "cannot pause a created process");
        assert_eq!(text(resume(vm, "created").await), "cannot resume a created process");
        created.kill(9).await.expect("kill");
        created.wait().await.expect("wait");
        created.delete().await.expect("delete");

        let running = start(vm, "busy", Wish::sh("while :; do :; done")).await;
        assert_eq!(text(resume(vm, "busy").await), "cannot resume a running process");
        pause(vm, "busy").await.expect("pause");
        assert_eq!(running.task.state().await.expect("state").status(), Status::Paused);
        assert_eq!(text(pause(vm, "busy").await), "cannot pause a paused process");
        let before = used(vm, "busy").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(used(vm, "busy").await, before);
        resume(vm, "busy").await.expect("resume");
        assert_eq!(running.task.state().await.expect("state").status(), Status::Running);
        let runs = async {
            while used(vm, "busy").await == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(PATIENCE_S), runs).await.expect("it runs on");
        pause(vm, "busy").await.expect("pause");
        running.task.kill(9).await.expect("kill");
        assert_eq!(running.finish().await.status, 137);
        vm.await_events(TASK_DELETE, "busy", 1).await;
        let life = [
            TASK_CREATE,
            TASK_START,
            TASK_PAUSED,
            TASK_RESUMED,
            TASK_PAUSED,
            TASK_EXIT,
            TASK_DELETE,
        ];
        assert_eq!(vm.topics("busy"), life);

        // All of it at once, with a signal that the init handles and one that nobody can.
        let wish = Wish::sh("trap 'exit 5' TERM; sleep 3600 & while :; do sleep 0.05; done");
        let running = start(vm, "handles", wish).await;
        let pids = PidsRequest { id: "handles".to_owned() };
        while vm.guest().task().pids(unlimited(), &pids).await.expect("pids").processes.len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.task.kill_all(15).await.expect("kill all");
        assert_eq!(running.finish().await.status, 5);
        let running = start(vm, "cannot", Wish::sh("sleep 3600 & sleep 3600")).await;
        pause(vm, "cannot").await.expect("pause");
        running.task.kill_all(9).await.expect("kill all");
        assert_eq!(running.finish().await.status, 137);
    });
}

#[test]
fn pause_outlives_the_agent_and_is_told_once() {
    vm_test(async |vm| {
        let running = start(vm, "busy", Wish::sh("while :; do :; done")).await;
        pause(vm, "busy").await.expect("pause");
        Blow::Kill.strike(vm).await;
        assert_eq!(running.task.state().await.expect("state").status(), Status::Paused);
        let before = used(vm, "busy").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(used(vm, "busy").await, before);
        resume(vm, "busy").await.expect("resume");
        Blow::Kill.strike(vm).await;
        assert_eq!(running.task.state().await.expect("state").status(), Status::Running);
        running.task.kill(9).await.expect("kill");
        assert_eq!(running.task.wait().await.expect("wait").exit_status, 137);
        running.task.delete().await.expect("delete");
        vm.await_events(TASK_DELETE, "busy", 1).await;
        let life = [TASK_CREATE, TASK_START, TASK_PAUSED, TASK_RESUMED, TASK_EXIT, TASK_DELETE];
        assert_eq!(vm.topics("busy"), life);
    });
}
