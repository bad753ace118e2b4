//! Further processes in a running container: the container's init sleeps, execs come and go beside it.

use host_shim::guest::unlimited;
use prost::Message;
use qemu_tests::{ExecWish, Exit, Running, Vm, Wish, vm_test};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use ttrpc::Code;
use vminitd_protocol::pb::containerd::events::TaskExit;
use vminitd_protocol::pb::containerd::runc::v1::ProcessDetails;
use vminitd_protocol::pb::containerd::task::v3::{
    DeleteRequest, ExecProcessRequest, PauseRequest, PidsRequest, ResumeRequest, StartRequest,
    WaitRequest,
};
use vminitd_protocol::pb::containerd::v1::types::Status;
use vminitd_protocol::pb::google::protobuf::Any;
use vminitd_protocol::topics::{
    TASK_DELETE, TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT, TASK_START,
};

#[test]
fn exec_whole_life_has_its_states_and_events_in_order() {
    vm_test(async |vm| whole_life(vm, "c").await);
}

/// Exec to Delete of one exec, and the end of its container.
pub async fn whole_life(vm: &Vm, id: &str) {
    let sleeper = vm.create(id, Wish::sh("read end").with_stdin()).await.expect("create");
    let mut running = sleeper.start().await.expect("start");
    let wish = ExecWish::sh("read line; echo out $line; echo err >&2; exit 5").with_stdin();
    let exec = running.task.exec("e", wish).await.expect("exec");
    let state = exec.state().await.expect("state");
    assert_eq!((state.status(), state.pid, state.exec_id.as_str()), (Status::Created, 0, "e"));
    let mut exec = exec.start().await.expect("start of the exec");
    let state = exec.exec.state().await.expect("state");
    assert_eq!((state.status(), state.pid), (Status::Running, exec.pid));
    let mut stdin = exec.exec.stdin.take().expect("asked for");
    stdin.write_all(b"hello\n").await.expect("write");
    let exit = exec.exit().await;
    assert_eq!((exit.exit_status, exit.stdout_bytes, exit.stderr_bytes), (5, 10, 4));
    let exit = exec.finish().await;
    assert_eq!((exit.text().as_str(), exit.stderr.as_slice()), ("out hello\n", &b"err\n"[..]));
    assert_eq!(running.task.state().await.expect("state").status(), Status::Running);
    let gone = vm.exec_in(id, "e", ExecWish::new(&["true"])).await;
    assert!(gone.is_ok(), "the id is free again");
    drop(running.task.stdin.take());
    running.finish().await;
    let topics = vm.topics(id);
    let own: Vec<_> = topics
        .iter()
        .filter(|topic| {
            [TASK_START, TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT].contains(&topic.as_str())
        })
        .collect();
    assert_eq!(
        own,
        [TASK_START, TASK_EXEC_ADDED, TASK_EXEC_STARTED, TASK_EXIT, TASK_EXEC_ADDED, TASK_EXIT]
    );
}

/// A container whose init does nothing until its stdin ends.
async fn idle<'vm>(vm: &'vm Vm, id: &str, wish: Wish) -> Running<'vm> {
    let task = vm.create(id, Wish { stdin: true, ..wish }).await.expect("create");
    task.start().await.expect("start")
}

fn waits() -> Wish {
    Wish::sh("read end")
}

async fn end(mut running: Running<'_>) -> Exit {
    drop(running.task.stdin.take());
    running.finish().await
}

#[test]
fn exec_is_what_its_process_says_and_else_what_its_container_is() {
    vm_test(async |vm| {
        let running = idle(vm, "c", waits()).await;
        let look = "id -u; id -g; id -G; umask; pwd; echo $WORD; ulimit -n; \
                    grep -E 'CapEff|CapBnd|CapPrm|NoNewPrivs' /proc/self/status";
        let mut wish = ExecWish::sh(look);
        wish.process["user"] =
            json!({ "uid": 1000, "gid": 1001, "additionalGids": [7, 9], "umask": 0o027 });
        wish.process["cwd"] = json!("/tmp");
        wish.process["env"] = json!(["PATH=/bin", "WORD=said"]);
        wish.process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 }]);
        let few = json!(["CAP_KILL"]);
        wish.process["capabilities"] = json!({ "bounding": few, "effective": [], "permitted": [], "inheritable": [], "ambient": [] });
        let text = running.task.run_exec("said", wish).await.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..7],
            ["1000", "1001", "1001 7 9", "0027", "/tmp", "said", "77"],
            "{text}"
        );
        let of = |name: &str, text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
        };
        assert_eq!(of("CapBnd:", &text), format!("{:016x}", 1 << 5));
        assert_eq!(of("CapEff:", &text), "0".repeat(16));
        assert_eq!(of("NoNewPrivs:", &text), "1");

        // Without capabilities of its own it has those of the container, not all.
        let mut wish = ExecWish::sh("cat /proc/1/status; echo ---; cat /proc/self/status");
        wish.process["noNewPrivileges"] = json!(false);
        let text = running.task.run_exec("same", wish).await.text();
        let (init, own) = text.split_once("---").expect("both");
        for set in ["CapBnd:", "CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            assert_eq!(of(set, own), of(set, init), "{set}");
        }
        assert_eq!(of("NoNewPrivs:", own), "0");
        // It is in every namespace of the container, and in its cgroup.
        let links = "for n in cgroup ipc mnt net pid uts user; do readlink /proc/1/ns/$n; readlink /proc/self/ns/$n; done; cat /proc/self/cgroup";
        let text = running.task.run_exec("namespaces", ExecWish::sh(links)).await.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 15, "{text}");
        assert!(lines[..14].chunks(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert_eq!(lines[14], "0::/");
        end(running).await;
    });
}

#[test]
fn exec_takes_priorities_cpus_and_home_from_its_process() {
    vm_test(async |vm| {
        let running = idle(vm, "c", waits()).await;
        let look = "cat /proc/self/oom_score_adj; cut -d' ' -f19,41 /proc/self/stat; \
                    sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status; echo $HOME $TWICE; \
                    ls /proc/self/fd | wc -l; umask";
        let mut wish = ExecWish::sh(look);
        wish.process["oomScoreAdj"] = json!(321);
        wish.process["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7 });
        wish.process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        wish.process["execCPUAffinity"] = json!({ "final": "0" });
        wish.process["env"] = json!(["PATH=/bin", "TWICE=a", "TWICE=b"]);
        let text = running.task.run_exec("said", wish).await.text();
        // ls has its directory open besides the three.
        let expected = ["321", "7 3", "0", "/root b", "4", "0022"];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        end(running).await;
    });
}

#[test]
fn exec_refusals_have_the_texts_that_hosts_match_on_and_leave_nothing() {
    vm_test(async |vm| {
        let running = idle(vm, "c", waits()).await;
        let task = &running.task;
        let refused = |answer: ttrpc::Result<()>| match answer {
            Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
            other => panic!("no refusal: {other:?}"),
        };
        let is = |code, text: &str| (code, text.to_owned());

        let mut asleep = task
            .exec("e", ExecWish::new(&["sleep", "3600"]))
            .await
            .expect("exec")
            .start()
            .await
            .expect("start");
        let again = vm
            .exec_in(
                "c",
                "e",
                ExecWish {
                    stdout_uri: Some(String::new()),
                    stderr_uri: Some(String::new()),
                    ..ExecWish::new(&["true"])
                },
            )
            .await;
        assert_eq!(refused(again.map(drop)), is(Code::ALREADY_EXISTS, "id e: already exists"));
        let quiet = |args: &[&str]| ExecWish {
            stdout_uri: Some(String::new()),
            stderr_uri: Some(String::new()),
            ..ExecWish::new(args)
        };
        let request = StartRequest { id: "c".to_owned(), exec_id: "e".to_owned() };
        let twice = vm.guest().task().start(unlimited(), &request).await;
        assert_eq!(refused(twice.map(drop)), is(Code::UNKNOWN, "cannot start a running process"));
        let request = DeleteRequest { id: "c".to_owned(), exec_id: "e".to_owned() };
        let early = vm.guest().task().delete(unlimited(), &request).await;
        assert_eq!(refused(early.map(drop)), is(Code::UNKNOWN, "cannot delete a running process"));
        asleep.exec.kill(15).await.expect("kill");
        assert_eq!(asleep.exit().await.exit_status, 143);
        assert_eq!(
            refused(asleep.exec.kill(15).await),
            is(Code::NOT_FOUND, "process already finished: not found")
        );
        asleep.finish().await;

        let added = task.exec("added", quiet(&["true"])).await.expect("exec");
        assert_eq!(
            refused(added.kill(9).await),
            is(Code::FAILED_PRECONDITION, "process not created: failed precondition")
        );
        added.delete().await.expect("delete of what never ran");

        for (id, args, status) in [
            ("missing", "/no/such", "no such file"),
            ("mode", "/bin/not-executable", "permission denied"),
        ] {
            let exec = task.exec(id, quiet(&[args])).await.expect("exec");
            let waiting = {
                let guest = vm.guest().task();
                let request = WaitRequest { id: "c".to_owned(), exec_id: id.to_owned() };
                tokio::spawn(async move { guest.wait(unlimited(), &request).await })
            };
            let request = StartRequest { id: "c".to_owned(), exec_id: id.to_owned() };
            let (code, text) =
                refused(vm.guest().task().start(unlimited(), &request).await.map(drop));
            assert_eq!(code, Code::UNKNOWN);
            assert!(
                text.starts_with("OCI runtime exec failed: ") && text.contains(status),
                "{text}"
            );
            assert_eq!(waiting.await.expect("no panic").expect("a Wait returns").exit_status, 255);
            exec.delete().await.expect("delete of what failed");
        }
        for (json, part) in [
            ("{", "parse the process"),
            (r#"{"cwd":"/","user":{"uid":0,"gid":0}}"#, "process.args"),
        ] {
            let request = ExecProcessRequest {
                id: "c".to_owned(),
                exec_id: "bad".to_owned(),
                spec: Some(Any { type_url: "any".to_owned(), value: json.into() }),
                ..Default::default()
            };
            let (code, text) =
                refused(vm.guest().task().exec(unlimited(), &request).await.map(drop));
            assert!(code == Code::INVALID_ARGUMENT && text.contains(part), "{text}");
        }
        let lost = ExecWish { stdout_uri: Some("stream://nobody".to_owned()), ..quiet(&["true"]) };
        let lost = task.exec("lost", lost).await.expect("streams are looked up at Start");
        let request = StartRequest { id: "c".to_owned(), exec_id: "lost".to_owned() };
        let answer = vm.guest().task().start(unlimited(), &request).await;
        assert_eq!(
            refused(answer.map(drop)),
            is(Code::NOT_FOUND, "unable to get stream \"nobody\": not found")
        );
        lost.delete().await.expect("delete");

        // A container that stands still, then one that has ended.
        vm.guest()
            .task()
            .pause(unlimited(), &PauseRequest { id: "c".to_owned() })
            .await
            .expect("pause");
        let paused = vm.exec_in("c", "p", quiet(&["true"])).await;
        assert_eq!(refused(paused.map(drop)), is(Code::UNKNOWN, "cannot exec in a paused state"));
        vm.guest()
            .task()
            .resume(unlimited(), &ResumeRequest { id: "c".to_owned() })
            .await
            .expect("resume");
        let late = task.exec("late", quiet(&["true"])).await.expect("exec");
        task.kill(9).await.expect("kill");
        task.wait().await.expect("wait");
        let request = StartRequest { id: "c".to_owned(), exec_id: "late".to_owned() };
        let answer = vm.guest().task().start(unlimited(), &request).await;
        assert_eq!(
            refused(answer.map(drop)),
            is(
                Code::FAILED_PRECONDITION,
                "container c init process is not running: failed precondition"
            )
        );
        drop(late);
        end(running).await;
    });
}

#[test]
fn pids_name_the_execs_and_nobody_else() {
    vm_test(async |vm| {
        let running = idle(vm, "c", waits()).await;
        let exec = running
            .task
            .exec("e1", ExecWish::new(&["sleep", "3600"]))
            .await
            .expect("exec")
            .start()
            .await
            .expect("start");
        let request = PidsRequest { id: "c".to_owned() };
        let pids = vm.guest().task().pids(unlimited(), &request).await.expect("pids").processes;
        let mut found: Vec<(u32, Option<String>)> = pids
            .into_iter()
            .map(|process| {
                let details = process.info.map(|any| {
                    assert_eq!(any.type_url, "containerd.runc.v1.ProcessDetails");
                    ProcessDetails::decode(&*any.value).expect("details").exec_id
                });
                (process.pid, details)
            })
            .collect();
        found.sort();
        let mut expected = vec![(running.task.pid, None), (exec.pid, Some("e1".to_owned()))];
        expected.sort();
        assert_eq!(found, expected);
        exec.exec.kill(9).await.expect("kill");
        exec.finish().await;
        end(running).await;
    });
}

#[test]
fn exit_of_init_is_the_last_of_its_container() {
    vm_test(async |vm| {
        // With a pid namespace of its own the kernel ends the execs; without one we do.
        exit_of_init_is_last(vm, "own", waits()).await;
        exit_of_init_is_last(vm, "shared", waits().in_guest_pid_namespace()).await;
    });
}

/// Ends a container under its execs.
pub async fn exit_of_init_is_last(vm: &Vm, id: &str, wish: Wish) {
    let running = idle(vm, id, wish).await;
    let mut execs = Vec::new();
    for n in 0..4 {
        let exec = running
            .task
            .exec(&format!("{id}{n}"), ExecWish::new(&["misbehave", "ignore-term"]))
            .await;
        execs.push(exec.expect("exec").start().await.expect("start"));
    }
    let left =
        running.task.exec("left", ExecWish::new(&["misbehave", "orphans", "3", "3600000"])).await;
    left.expect("exec").start().await.expect("start").finish().await;
    let exit = end(running).await;
    assert_eq!(exit.status, 1, "{id}: read met the end");
    for mut exec in execs {
        assert_eq!(exec.exit().await.exit_status, 137);
    }
    vm.await_events(TASK_DELETE, id, 1).await;
    let exits: Vec<String> = vm
        .events()
        .iter()
        .filter(|event| event.topic == TASK_EXIT)
        .map(|event| TaskExit::decode(&*event.event.as_ref().expect("one").value).expect("an exit"))
        .filter(|exit| exit.container_id == id)
        .map(|exit| exit.id)
        .collect();
    assert_eq!(exits.len(), 6, "{exits:?}");
    assert_eq!(exits.last().map(String::as_str), Some(id), "{exits:?}");
}

#[test]
fn many_execs_at_once_each_have_their_own_output() {
    vm_test(async |vm| {
        let running = idle(vm, "c", waits()).await;
        let lives = (0..24).map(|n| {
            let task = &running.task;
            async move {
                let wish =
                    ExecWish::sh(&format!("read word; echo {n} $word; exit {n}")).with_stdin();
                let mut exec = task
                    .exec(&format!("e{n}"), wish)
                    .await
                    .expect("exec")
                    .start()
                    .await
                    .expect("start");
                let mut stdin = exec.exec.stdin.take().expect("asked for");
                stdin.write_all(format!("word{n}\n").as_bytes()).await.expect("write");
                let exit = exec.finish().await;
                assert_eq!((exit.status, exit.text()), (n, format!("{n} word{n}\n")));
            }
        });
        futures(lives).await;
        end(running).await;
    });
}

/// All of them, side by side.
async fn futures(all: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
