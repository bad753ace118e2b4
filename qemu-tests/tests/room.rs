//! Room: a container that takes all of what it can write to costs nobody an exit.

use std::time::Duration;

use qemu_tests::{Options, PATIENCE_S, Running, Task, Vm, Wish, inspector, vm_test_with};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;
use vminitd_protocol::topics::{TASK_CREATE, TASK_DELETE, TASK_EXIT, TASK_START};

/// Reads directories, a line each; fills them until nothing fits, or the kernel kills for memory, and says so.
const HOARD: &str = "while read places; do
    for place in $places; do
        dd if=/dev/zero of=$place/filler bs=64k 2>/dev/null
        [ $? -lt 128 ] || break
    done
    echo full
done";

/// A container that sits on the guest's own filesystems.
fn hoarder() -> Wish {
    let mut wish = Wish::sh(HOARD).with_stdin();
    wish.stdout_uri = Some("stream://hoarder-says".to_owned());
    let mounts = wish.spec["mounts"].as_array_mut().expect("the default spec has some");
    for (source, destination) in
        [("/run", "/run0"), ("/run/bundles", "/run1"), ("/tmp", "/tmp0"), ("/dev/shm", "/shm0")]
    {
        let options = ["bind", "rprivate"];
        mounts.push(json!({
            "destination": destination, "type": "bind", "source": source, "options": options,
        }));
    }
    wish
}

/// Of all processes the hoarder's are to be killed for memory.
fn spared(mut wish: Wish) -> Wish {
    wish.spec["process"]["oomScoreAdj"] = json!(-1000);
    wish
}

async fn started<'vm>(vm: &'vm Vm, id: &str) -> Running<'vm> {
    let wish = spared(Wish::sh("read line; exit 7").with_stdin());
    vm.create(id, wish).await.expect("create").start().await.expect("start")
}

async fn blow(vm: &Vm, blow: Task<'_>) {
    let before = vm.agents();
    let _ = timeout(Duration::from_secs(5), blow.start()).await;
    vm.reconnect_to_another_than(before).await;
}

#[test]
fn filling_every_filesystem_stops_no_exit_from_being_recorded() {
    // What is full stays full: nothing to look for afterwards.
    let options = Options { memory: "512M", look_for_leaks: false, ..Default::default() };
    vm_test_with(options, async |vm| {
        let mut says = BufReader::new(vm.stream("hoarder-says").await).lines();
        // The second round needs more memory than containers may have: the kernel kills for it then.
        let rounds = [("w0", "b0", "/run0\n"), ("w1", "b1", "/run1 /tmp0 /shm0 /dev/shm /\n")];
        let mut prepared = Vec::new();
        for (witness, agent_killer, places) in rounds {
            let killer = spared(inspector(&["inspect", "signal", "9"]));
            let killer = vm.create(agent_killer, killer).await.expect("create");
            prepared.push((started(vm, witness).await, killer, places));
        }
        let hoarder = vm.create("hoarder", hoarder()).await.expect("create");
        let mut hoarder = hoarder.start().await.expect("start");
        for (mut witness, killer, places) in prepared {
            let stdin = hoarder.task.stdin.as_mut().expect("it was asked for");
            stdin.write_all(places.as_bytes()).await.expect("the stream lives");
            let said = timeout(Duration::from_secs(PATIENCE_S), says.next_line()).await;
            let said = said.expect("it gets full, or killed").expect("the stream lives");
            let killed = said.is_none();
            assert!(!killed || places.contains(' '), "killed for what fits into the memory");

            drop(witness.task.stdin.take());
            let exit = witness.task.wait().await.expect("wait");
            let out_of_memory =
                vm.console().contains("oom") || vm.console().contains("Out of memory");
            let expected = exit.exit_status == 7 || (out_of_memory && exit.exit_status == 137);
            assert!(expected, "status {}:\n{}", exit.exit_status, vm.console());
            blow(vm, killer).await;
            let again = witness.task.wait().await.expect("wait");
            assert_eq!((again.exit_status, again.exited_at), (exit.exit_status, exit.exited_at));
            let id = witness.task.id.clone();
            witness.task.delete().await.expect("delete");
            vm.await_events(TASK_DELETE, &id, 1).await;
            assert_eq!(vm.topics(&id), [TASK_CREATE, TASK_START, TASK_EXIT, TASK_DELETE]);
        }
        assert!(!vm.console().contains("exit not recorded"), "{}", vm.console());
    });
}
