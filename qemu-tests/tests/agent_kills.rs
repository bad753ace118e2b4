//! Agents killed at random moments, two hundred of them, under a mix of everything that a host does.
//!
//! How it is proved: each worker leads its lives as docs/wire.md tells a host to (see `Steady`), and compares every
//! byte and status; at the end the events have no gap, no exit is told twice, and the guest holds what it held before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use host_shim::guest::unlimited;
use prost::Message;
use qemu_tests::{
    ExecWish, Listing, Options, Steady, Wish, inspector, noise, sha256, vm_test_with,
};
use tokio::time::sleep;
use vminitd_protocol::pb::containerd::events::TaskExit;
use vminitd_protocol::pb::containerd::task::v3 as task;
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::pb::google::protobuf::Any;
use vminitd_protocol::topics::{TASK_DELETE, TASK_EXIT};

/// Lives of every kind, one after the other, until the killer is done; returns how many.
async fn lives(host: &Steady, worker: usize, done: &AtomicBool) -> usize {
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        let id = format!("w{worker}-{count}");
        let size = [100usize, 70_000, 1 << 20, 8 << 20][(count + worker) % 4];
        let burst = ["misbehave", "burst", &size.to_string(), "1000"].map(str::to_owned);
        let burst: Vec<&str> = burst.iter().map(String::as_str).collect();
        match worker % 3 {
            0 => whole(host.run(&id, &Wish::new(&burst)).await.end(host).await, size),
            1 => {
                // stdin through a container and back, and an exec beside it.
                let mut life = host.run(&id, &Wish::new(&["cat"]).with_stdin()).await;
                let exec = host.exec(&id, "beside", &ExecWish::new(&burst)).await;
                whole(exec.end(host).await, size);
                life.feed(&noise(3, 300_000)).await;
                let ended = life.end(host).await;
                assert_eq!((ended.status, sha256(&ended.stdout)), (0, sha256(&noise(3, 300_000))));
            }
            _ => {
                let mut life = host.run(&id, &Wish::sh("read end; exit 7").with_stdin()).await;
                every_call(host, &id).await;
                let raw = format!("stty raw -echo; misbehave burst {size} 0");
                let screen = ExecWish { terminal: true, ..ExecWish::sh(&raw) };
                let ended = host.exec(&id, "screen", &screen).await.end(host).await;
                assert_eq!((ended.status, sha256(&ended.stdout)), (0, sha256(&noise(1, size))));
                life.feed(b"end\n").await;
                assert_eq!(life.end(host).await.status, 7);
            }
        }
        count += 1;
    }
    count
}

fn whole(ended: qemu_tests::Ended, size: usize) {
    assert_eq!(ended.status, 0);
    assert!(ended.stdout == noise(1, size), "{} of {size} bytes of stdout", ended.stdout.len());
    assert!(ended.stderr == noise(2, 1000), "{} bytes of stderr", ended.stderr.len());
}

/// The calls that a life does not need.
async fn every_call(host: &Steady, id: &str) {
    let id = id.to_owned();
    macro_rules! ask {
        ($method:ident, $request:expr) => {{
            let request = $request;
            host.ask(|client| {
                let request = request.clone();
                async move { client.$method(unlimited(), &request).await }
            })
            .await
        }};
    }
    // Made twice, these are refused by the state that the first has made.
    let twice = |answer: Result<_, (ttrpc::Code, String)>| match answer {
        Ok(_) => {}
        Err((_, text)) => assert!(text.starts_with("cannot "), "{text}"),
    };
    twice(ask!(pause, task::PauseRequest { id: id.clone() }));
    assert_eq!(host.state(&id, "").await.expect("there").status(), Status::Paused);
    twice(ask!(resume, task::ResumeRequest { id: id.clone() }));
    assert_eq!(host.state(&id, "").await.expect("there").status(), Status::Running);
    let limits = Any { type_url: String::new(), value: br#"{"pids":{"limit":50}}"#.to_vec() };
    let update =
        task::UpdateTaskRequest { id: id.clone(), resources: Some(limits), ..Default::default() };
    ask!(update, update).expect("update");
    let pids = ask!(pids, task::PidsRequest { id: id.clone() }).expect("pids");
    assert_eq!(pids.processes.len(), 1);
    let size =
        task::ResizePtyRequest { id: id.clone(), width: 80, height: 25, ..Default::default() };
    ask!(resize_pty, size).expect("resize");
    ask!(connect, task::ConnectRequest { id: id.clone() }).expect("connect");
    let signal = task::KillRequest { id, signal: 28, ..Default::default() };
    ask!(kill, signal).expect("kill with SIGWINCH, which does nothing");
}

/// How many agents the test kills.
const KILLS: usize = 200;

#[test]
fn two_hundred_agents_killed_at_random_lose_no_byte_no_exit_and_no_event() {
    let options = Options { memory: "512M", look_for_leaks: false, ..Default::default() };
    vm_test_with(options, async |vm| {
        let before = Listing::of(vm).await;
        let host = Steady::new(vm);
        let kills = KILLS.to_string();
        let killer =
            host.run("killer", &inspector(&["inspect", "kill", &kills, "700", "20261121"])).await;
        let done = AtomicBool::new(false);
        let workers = async {
            tokio::join!(
                lives(&host, 0, &done),
                lives(&host, 1, &done),
                lives(&host, 2, &done),
                lives(&host, 3, &done)
            )
        };
        let end = async {
            while !killer.has_ended(&host).await {
                sleep(Duration::from_millis(250)).await;
            }
            let ended = killer.end(&host).await;
            done.store(true, Ordering::Relaxed);
            ended
        };
        let (counts, ended) = tokio::join!(workers, end);
        assert_eq!(String::from_utf8_lossy(&ended.stdout), format!("killed {KILLS}\n"));
        println!("lives by worker: {counts:?}");
        // Its connection is none of the guest's leaks.
        drop(host);
        vm.reconnect().await;
        vm.run("last", Wish::new(&["true"])).await;
        vm.await_events(TASK_DELETE, "last", 1).await;
        assert!(vm.agents() > KILLS / 4, "{} agents came to serve", vm.agents());

        let events = vm.events();
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "a number is missing or twice");
        let mut exits = BTreeMap::new();
        for event in events.iter().filter(|event| event.topic == TASK_EXIT) {
            let exit =
                TaskExit::decode(&*event.event.as_ref().expect("one").value).expect("an exit");
            *exits.entry((exit.container_id, exit.id, exit.pid)).or_insert(0) += 1;
        }
        assert!(exits.values().all(|count| *count == 1), "{exits:?}");
        // Streams whose handshake died with an agent are nobody's; they go when their place is needed.
        let kept = |line: &String| !line.contains("socket vsock 1025");
        let mut left = vec![];
        for _ in 0..20 {
            left = Listing::of(vm).await.grown_since(&before);
            left.retain(kept);
            if left.is_empty() {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        panic!("left behind:\n{}", left.join("\n"));
    });
}
