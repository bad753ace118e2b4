//! Events: numbered, none missed and none told twice, whoever dies or does not listen.

use std::time::Duration;

use host_shim::container::shared_rootfs;
use host_shim::guest::{resume_after, unlimited};
use host_shim::vmm::GuestStream;
use prost::Message;
use qemu_tests::{PATIENCE_S, ROOTFS_TAG, Vm, Wish, inspector, vm_test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::types::{Envelope, Mount};
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::ports::DEFAULT_RPC_PORT;
use vminitd_protocol::topics::{TASK_CREATE, TASK_DELETE, TASK_EXIT, TASK_START};

/// The events after `seq` that are there now, on a stream of its own.
async fn replay(vm: &Vm, seq: u64, count: usize) -> Vec<Envelope> {
    let events = vm.guest().events();
    let mut stream = events.stream(resume_after(seq), &Empty {}).await.expect("a stream");
    let mut all = Vec::new();
    while all.len() < count {
        let event = timeout(Duration::from_secs(PATIENCE_S), stream.recv()).await;
        all.push(event.expect("the ring has it").expect("no error").expect("an event"));
    }
    all
}

/// The code and text with which a resume after `seq` is refused.
async fn refusal(vm: &Vm, seq: &str) -> (ttrpc::Code, String) {
    let mut context = unlimited();
    context.add("vminitd-resume-after".to_owned(), seq.to_owned());
    let events = vm.guest().events();
    let mut stream = events.stream(context, &Empty {}).await.expect("a stream");
    match timeout(Duration::from_secs(PATIENCE_S), stream.recv()).await.expect("an answer") {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("after {seq}: {other:?}"),
    }
}

fn assert_dense(events: &[Envelope], first: u64) {
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    let expected: Vec<u64> = (first..first + events.len() as u64).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn resume_tells_what_was_missed_once_and_goes_on() {
    vm_test(async |vm| {
        assert_eq!(vm.run("a", Wish::new(&["true"])).await.status, 0);
        vm.await_events(TASK_DELETE, "a", 1).await;
        let so_far = vm.events();
        assert_dense(&so_far, 1);
        let middle = so_far.len() as u64 / 2;
        // Two at once, from different places, and both see what comes later too.
        let (all, rest, ran) = tokio::join!(
            replay(vm, 0, so_far.len() + 4),
            replay(vm, middle, so_far.len() - middle as usize + 4),
            vm.run("b", Wish::new(&["true"])),
        );
        assert_eq!(ran.status, 0);
        assert_eq!(all[..so_far.len()], so_far);
        assert_eq!(all[middle as usize..], rest);
        let topics: Vec<&str> = rest.iter().rev().take(4).map(|event| &*event.topic).collect();
        assert_eq!(topics, [TASK_DELETE, TASK_EXIT, TASK_START, TASK_CREATE]);

        let newest = all.last().expect("events").seq;
        let (code, text) = refusal(vm, &(newest + 1).to_string()).await;
        assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
        assert!(text.contains(&format!("newest event, which is {newest}:")), "{text}");
        let (code, text) = refusal(vm, "yesterday").await;
        assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
        assert!(text.contains("\"yesterday\" is no event's number"), "{text}");
    });
}

#[test]
fn events_while_the_agent_is_killed_are_told_once_to_whoever_resumes() {
    vm_test(async |vm| {
        let ids: Vec<String> = (0..4).map(|n| format!("c{n}")).collect();
        let mut running = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            // They end one after the other, before, between and after the blows.
            let wish = Wish::sh(&format!("sleep {}.2", n));
            let task = vm.create(id, wish).await.expect("create");
            running.push(task.start().await.expect("start"));
        }
        for round in 0..3 {
            let done = format!("done{round}");
            let exited = vm.create(&done, Wish::new(&["true"])).await.expect("create");
            let mut exited = exited.start().await.expect("start");
            exited.exit().await;
            let wish = inspector(&["inspect", "signal", "9"]);
            let blow = vm.create(&format!("blow{round}"), wish).await.expect("create");
            let before = vm.agents();
            // The blow meets a deletion, somewhere in it.
            let delete = timeout(Duration::from_secs(5), exited.task.delete());
            let (_, _) = tokio::join!(delete, timeout(Duration::from_secs(5), blow.start()));
            vm.reconnect_to_another_than(before).await;
            vm.delete_by_force(&format!("blow{round}")).await;
            vm.delete_by_force(&done).await;
            vm.await_events(TASK_DELETE, &done, 1).await;
            assert_eq!(vm.topics(&done), [TASK_CREATE, TASK_START, TASK_EXIT, TASK_DELETE]);
        }
        for one in running {
            assert_eq!(one.task.wait().await.expect("wait").exit_status, 0);
            one.task.delete().await.expect("delete");
        }
        for id in &ids {
            vm.await_events(TASK_DELETE, id, 1).await;
            assert_eq!(vm.topics(id), [TASK_CREATE, TASK_START, TASK_EXIT, TASK_DELETE], "{id}");
        }
        let seen = vm.events();
        assert_dense(&seen, 1);
        assert_eq!(replay(vm, 0, seen.len()).await, seen);
    });
}

#[test]
fn subscriber_that_reads_nothing_is_dropped_and_another_misses_nothing() {
    vm_test(async |vm| {
        let mut stalled = stalled_subscriber(vm).await;
        // Large events, so that few fill the ring: nine paths of four kilobytes each.
        let long = |first, last| format!("{first}{}{last}", "./".repeat(2000));
        let mut rounds = 0;
        while !vm.console().contains("does not keep up") {
            let id = format!("long{rounds}");
            let mut wish = Wish::new(&["true"]);
            wish.stdout_uri = Some(long("file:///dev/", "null"));
            wish.stderr_uri = wish.stdout_uri.clone();
            let mut mounts = shared_rootfs(ROOTFS_TAG, &format!("/run/bundles/{id}"));
            let overlay = mounts.pop().expect("the overlay is the last");
            mounts.extend(vec![bind(long("/", "tmp")); 7]);
            mounts.push(overlay);
            wish.mounts = Some(mounts);
            vm.create(&id, wish).await.expect("create");
            vm.delete_by_force(&id).await;
            rounds += 1;
            assert!(rounds < 1000, "nobody is dropped");
        }
        vm.await_events(TASK_DELETE, &format!("long{}", rounds - 1), 1).await;
        assert_dense(&vm.events(), 1);

        let mut told = Vec::new();
        let end = async {
            let mut chunk = [0; 1 << 16];
            while !String::from_utf8_lossy(&told).contains("subscriber too slow") {
                let bytes = stalled.read(&mut chunk).await.expect("the connection lives");
                assert!(bytes > 0, "the stream ends without a word");
                told.extend_from_slice(&chunk[..bytes]);
            }
        };
        timeout(Duration::from_secs(PATIENCE_S), end).await.expect("an end");
        let lines = vm.console().lines().filter(|line| line.contains("does not keep up")).count();
        assert_eq!(lines, 1);

        let (code, text) = refusal(vm, "0").await;
        assert_eq!(code, ttrpc::Code::OUT_OF_RANGE);
        let oldest = text.trim_start_matches("events before ").split(' ').next();
        let oldest: u64 = oldest.expect("a word").parse().expect("the oldest event's number");
        assert!(oldest > 1, "{text}");
        assert_eq!(replay(vm, oldest - 1, 3).await, vm.events()[oldest as usize - 1..][..3]);
    });
}

fn bind(source: String) -> Mount {
    let options = vec!["bind".to_owned()];
    Mount { r#type: "bind".to_owned(), source, options, ..Default::default() }
}

/// A connection that asks for events and never reads one.
async fn stalled_subscriber(vm: &Vm) -> GuestStream {
    let request = ttrpc::Request {
        service: "vminitd.v1.Events".to_owned(),
        method: "Stream".to_owned(),
        ..Default::default()
    };
    let body = request.encode_to_vec();
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    // Stream 1, a request, and no more data from this side.
    frame.extend([0, 0, 0, 1, 1, 1]);
    frame.extend(body);
    let mut connection = vm.guest().dial(DEFAULT_RPC_PORT).await.expect("dial");
    connection.write_all(&frame).await.expect("the guest takes it");
    connection
}
