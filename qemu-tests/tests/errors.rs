//! Codes and texts that hosts branch on (docs/wire.md), one assertion per row, each from a real guest.

#![expect(clippy::needless_update, reason = "some requests have no further field")]

use host_shim::guest::unlimited;
use qemu_tests::{Vm, Wish, vm_test};
use ttrpc::Code;
use vminitd_protocol::pb::containerd::task::v3 as task;
use vminitd_protocol::pb::containerd::vminitd::services::bundle::v1::CreateRequest;

/// Code and text of an error that the guest answered.
fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("no refusal: {other:?}"),
    }
}

fn is(code: Code, text: &str) -> (Code, String) {
    (code, text.to_owned())
}

macro_rules! ask {
    ($vm:expr, $method:ident, $request:ident { $($field:ident: $value:expr),* }) => {
        $vm.guest().task().$method(
            unlimited(),
            &task::$request { $($field: $value.into(),)* ..Default::default() },
        ).await
    };
}

#[test]
fn unknown_container_is_not_found_by_every_call_but_connect_and_shutdown() {
    vm_test(async |vm| {
        let unknown = is(Code::NOT_FOUND, "container not created: not found");
        assert_eq!(refusal(ask!(vm, state, StateRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, start, StartRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, delete, DeleteRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, pids, PidsRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, pause, PauseRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, resume, ResumeRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, kill, KillRequest { id: "x", signal: 9u32 })), unknown);
        assert_eq!(refusal(ask!(vm, resize_pty, ResizePtyRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, close_io, CloseIoRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, wait, WaitRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, update, UpdateTaskRequest { id: "x" })), unknown);
        assert_eq!(refusal(ask!(vm, stats, StatsRequest { id: "x" })), unknown);
        ask!(vm, connect, ConnectRequest { id: "x" }).expect("connect");
        let created = Wish::new(&["sleep", "3600"]);
        let task = vm.create("c", created).await.expect("create");
        // With a container, Shutdown is no more than a question.
        ask!(vm, shutdown, ShutdownRequest { id: "c" }).expect("shutdown");
        task.kill(9).await.expect("kill");
        task.wait().await.expect("wait");
        task.delete().await.expect("delete");
    });
}

#[test]
fn unknown_exec_is_not_found() {
    vm_test(async |vm| {
        let task = vm.create("c", Wish::new(&["sleep", "3600"])).await.expect("create");
        let unknown = is(Code::NOT_FOUND, "process does not exist e: not found");
        assert_eq!(refusal(ask!(vm, state, StateRequest { id: "c", exec_id: "e" })), unknown);
        assert_eq!(
            refusal(ask!(vm, kill, KillRequest { id: "c", exec_id: "e", signal: 9u32 })),
            unknown
        );
        assert_eq!(refusal(ask!(vm, wait, WaitRequest { id: "c", exec_id: "e" })), unknown);
        task.kill(9).await.expect("kill");
        task.wait().await.expect("wait");
        task.delete().await.expect("delete");
    });
}

#[test]
fn wrong_state_is_refused_and_changes_nothing() {
    vm_test(async |vm| {
        let mut running = vm
            .create("c", Wish::new(&["sleep", "3600"]))
            .await
            .expect("create")
            .start()
            .await
            .expect("start");
        assert_eq!(
            refusal(ask!(vm, start, StartRequest { id: "c" })),
            is(Code::UNKNOWN, "cannot start a running process")
        );
        assert_eq!(
            refusal(ask!(vm, delete, DeleteRequest { id: "c" })),
            is(Code::UNKNOWN, "cannot delete a running process")
        );
        let again = vm.create_again("c").await;
        assert_eq!(refusal(again).0, Code::ALREADY_EXISTS);
        running.task.kill(9).await.expect("kill");
        running.exit().await;
        assert_eq!(
            refusal(ask!(vm, kill, KillRequest { id: "c", signal: 9u32 })),
            is(Code::NOT_FOUND, "process already finished: not found")
        );
        running.finish().await;
        assert_eq!(
            refusal(ask!(vm, delete, DeleteRequest { id: "c" })),
            is(Code::NOT_FOUND, "container not created: not found")
        );
    });
}

#[test]
fn bad_stdio_is_named() {
    vm_test(async |vm| {
        let mut wish = Wish::new(&["true"]);
        wish.stdout_uri = Some("carrier-pigeon://a".to_owned());
        assert_eq!(
            refusal(vm.create("c", wish).await.map(|task| task.id)),
            is(Code::UNIMPLEMENTED, "unsupported STDIO scheme carrier-pigeon")
        );
        let mut wish = Wish::new(&["true"]);
        wish.stdout_uri = Some("stream://nobody".to_owned());
        assert_eq!(
            refusal(vm.create("d", wish).await.map(|task| task.id)),
            is(Code::NOT_FOUND, "unable to get stream \"nobody\": not found")
        );
    });
}

async fn failed_create(vm: &Vm, id: &str, wish: Wish) -> (Code, String) {
    refusal(vm.create(id, wish).await.map(|task| task.id))
}

#[test]
fn program_that_cannot_run_is_a_runtime_failure_with_its_cause() {
    vm_test(async |vm| {
        let (code, text) = failed_create(vm, "missing", Wish::new(&["no-such-program"])).await;
        assert_eq!(code, Code::UNKNOWN);
        assert!(text.starts_with("OCI runtime create failed: "), "{text}");
        assert!(
            text.contains("no-such-program") && text.contains("executable file not found"),
            "{text}"
        );
        let (code, text) = failed_create(vm, "mode", Wish::new(&["/bin/not-executable"])).await;
        assert_eq!(code, Code::UNKNOWN);
        assert!(text.contains("not-executable") && text.contains("permission denied"), "{text}");
        // The ids are free, and their streams too.
        assert_eq!(vm.run("missing", Wish::new(&["true"])).await.status, 0);
    });
}

#[test]
fn bundle_that_is_none_is_refused_with_the_reason() {
    vm_test(async |vm| {
        let mut wish = Wish::new(&["true"]);
        wish.raw_config = Some(b"{ not json".to_vec());
        let (_, text) = failed_create(vm, "bad-json", wish).await;
        assert!(text.contains("config.json"), "{text}");
        let mut wish = Wish::new(&["true"]);
        wish.spec["process"]["args"] = serde_json::json!([]);
        failed_create(vm, "no-args", wish).await;
        let missing = refusal(ask!(
            vm,
            create,
            CreateTaskRequest { id: "nowhere", bundle: "/run/bundles/nowhere" }
        ));
        assert!(missing.1.contains("nowhere"), "{}", missing.1);
    });
}

#[test]
fn bundle_names_that_lead_elsewhere_are_invalid_and_leave_nothing() {
    vm_test(async |vm| {
        for (id, file) in [
            ("../x", "config.json"),
            ("a/b", "config.json"),
            ("", "config.json"),
            ("ok", "../evil"),
            ("ok", "a/b"),
        ] {
            let files = [(file.to_owned(), b"{}".to_vec())].into();
            let answer = vm
                .guest()
                .bundle()
                .create(unlimited(), &CreateRequest { id: id.to_owned(), files })
                .await;
            assert_eq!(refusal(answer).0, Code::INVALID_ARGUMENT, "{id:?} {file:?}");
        }
    });
}

#[test]
fn mount_of_a_type_that_we_do_not_know_is_named() {
    vm_test(async |vm| {
        let mut wish = Wish::new(&["true"]);
        wish.mounts = Some(vec![vminitd_protocol::pb::containerd::types::Mount {
            r#type: "floppy".to_owned(),
            source: "/dev/fd0".to_owned(),
            ..Default::default()
        }]);
        let (_, text) = failed_create(vm, "floppy", wish).await;
        assert!(text.contains("floppy"), "{text}");
    });
}

#[test]
fn what_is_not_built_yet_says_so() {
    vm_test(async |vm| {
        let task = vm.create("c", Wish::new(&["sleep", "3600"])).await.expect("create");
        let (code, text) = refusal(ask!(vm, checkpoint, CheckpointTaskRequest { id: "c" }));
        assert_eq!(code, Code::UNIMPLEMENTED);
        assert_eq!(text, "checkpoint: a process in a VM is saved with its VM: not implemented");
        task.kill(9).await.expect("kill");
        task.wait().await.expect("wait");
        task.delete().await.expect("delete");
    });
}
