//! Containers that run out of memory: what the host is told, and that nobody else suffers.
//!
//! The kernel's own count of kills is the measure: a process that eats more than it may is killed, and each such kill
//! has to be told once, before the exit that it caused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use qemu_tests::{ExecWish, PATIENCE_S, Vm, Wish, inspector, vm_test};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use vminitd_protocol::topics::{
    TASK_CREATE, TASK_DELETE, TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT, TASK_OOM, TASK_START,
};

fn limited(mut wish: Wish, resources: serde_json::Value) -> Wish {
    wish.spec["linux"]["resources"] = resources;
    wish
}

async fn assert_topics(vm: &Vm, id: &str, ooms: usize) {
    vm.await_events(TASK_DELETE, id, 1).await;
    let expected: Vec<&str> = [TASK_CREATE, TASK_START]
        .into_iter()
        .chain(std::iter::repeat_n(TASK_OOM, ooms))
        .chain([TASK_EXIT, TASK_DELETE])
        .collect();
    assert_eq!(vm.topics(id), expected, "{id}");
}

#[test]
fn kill_for_memory_is_told_before_the_exit_that_it_caused() {
    vm_test(async |vm| {
        // The init itself, again and again: the exit never comes first.
        for round in 0..10 {
            let id = format!("init{round}");
            let wish = limited(
                Wish::new(&["misbehave", "eat-memory", "64"]),
                json!({ "memory": { "limit": 8 << 20 } }),
            );
            assert_eq!(vm.run(&id, wish).await.status, 137, "{id}");
            assert_topics(vm, &id, 1).await;
        }

        // Children, of whom no exit tells: each kill by itself.
        let script = "for i in 1 2 3; do misbehave eat-memory 64; echo $?; done";
        let exit = vm
            .run("children", limited(Wish::sh(script), json!({ "memory": { "limit": 8 << 20 } })))
            .await;
        assert_eq!((exit.status, &*exit.text()), (0, "137\n137\n137\n"));
        assert_topics(vm, "children", 3).await;

        // An exec: its own exit comes behind.
        let wish = Wish::new(&["sleep", "3600"]);
        let wish = limited(wish, json!({ "memory": { "limit": 8 << 20 } }));
        let running = vm.create("exec", wish).await.expect("create").start().await.expect("start");
        let eats = ExecWish::new(&["misbehave", "eat-memory", "64"]);
        assert_eq!(running.task.run_exec("eats", eats).await.status, 137);
        running.task.kill(9).await.expect("kill");
        running.finish().await;
        vm.await_events(TASK_DELETE, "exec", 1).await;
        let topics = vm.topics("exec");
        let behind_start = [TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_OOM, TASK_EXIT, TASK_EXIT];
        assert_eq!(topics[2..7], behind_start, "{topics:?}");

        // As a group: nobody stays, and it is one event.
        let script = "sleep 3600 & sleep 3600 & misbehave eat-memory 64; echo alive";
        let resources =
            json!({ "memory": { "limit": 8 << 20 }, "unified": { "memory.oom.group": "1" } });
        let exit = vm.run("group", limited(Wish::sh(script), resources)).await;
        assert_eq!((exit.status, &*exit.text()), (137, ""));
        assert_topics(vm, "group", 1).await;

        // A limit that is not met is not told of.
        let wish = limited(Wish::new(&["true"]), json!({ "memory": { "limit": 64 << 20 } }));
        assert_eq!(vm.run("none", wish).await.status, 0);
        assert_topics(vm, "none", 0).await;
    });
}

#[test]
fn container_without_limit_that_eats_all_memory_dies_alone() {
    vm_test(async |vm| {
        let mut bystander = vm
            .create("bystander", Wish::new(&["cat"]).with_stdin())
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        let done = AtomicBool::new(false);
        let answers = async {
            let (guest, mut answers) = (vm.guest(), 0);
            while !done.load(Ordering::Relaxed) {
                guest.info().await.expect("the agent answers");
                answers += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answers
        };
        let eater = async {
            let exit = vm.run("eater", Wish::new(&["misbehave", "eat-memory", "4096"])).await;
            done.store(true, Ordering::Relaxed);
            exit
        };
        let (answers, exit) = tokio::join!(answers, eater);
        assert!(answers > 1, "{answers}");
        assert_eq!(exit.status, 137, "{}", exit.text());
        assert_topics(vm, "eater", 1).await;
        // One agent, and the same.
        assert_eq!(vm.agents(), 1);

        drop(bystander.task.stdin.take());
        assert_eq!(bystander.finish().await.status, 0);
        assert_topics(vm, "bystander", 0).await;
    });
}

#[test]
fn kills_for_memory_while_the_agent_is_killed_are_told_once_each() {
    vm_test(async |vm| {
        // For each line it kills the agent, and is short of memory at once.
        let script = "while read line; do inspect signal 9; misbehave eat-memory 64; done";
        let wish =
            limited(inspector(&["sh", "-c", script]), json!({ "memory": { "limit": 16 << 20 } }));
        let mut running =
            vm.create("c", wish.with_stdin()).await.expect("create").start().await.expect("start");
        let mut stdin = running.task.stdin.take().expect("stdin");
        for round in 1..=4 {
            let before = vm.agents();
            stdin.write_all(b"now\n").await.expect("stdin outlives the agent");
            let another = async {
                while vm.agents() == before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let patience = Duration::from_secs(PATIENCE_S);
            tokio::time::timeout(patience, another).await.expect("another agent");
            vm.reconnect().await;
            vm.await_events(TASK_OOM, "c", round).await;
        }
        drop(stdin);
        vm.await_events(TASK_EXIT, "c", 1).await;
        running.task.delete().await.expect("delete");
        assert_topics(vm, "c", 4).await;
    });
}
