//! containerd killed between any two calls, the agent killed under the shim, a shim told to end under a live task:
//! nothing is lost, and nothing is left.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use qemu_tests::containerd::{Containerd, with_containerd};
use qemu_tests::rootfs;
use serde_json::json;
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use vminitd_protocol::pb::containerd::task::v3::{ShutdownRequest, TaskClient};

/// Runs `ctr ARGS`, and kills containerd as soon as a line with all of `marks` is in its log; starts it again.
fn containerd_dies_at(containerd: &mut Containerd, marks: &[&str], args: &[&str]) {
    let from = containerd.log().len();
    let mut ctr = containerd.ctr_command(args);
    let mut ctr = ctr.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nsenter");
    let seen = |line: &str| marks.iter().all(|mark| line.contains(mark));
    containerd.host.wait_for(&format!("{marks:?}"), || {
        containerd.log().split_off(from).lines().any(seen).then_some(())
    });
    containerd.end_daemon(Signal::SIGKILL);
    // It has lost its containerd, and says so or is killed.
    let _ = ctr.kill();
    ctr.wait().expect("our child");
    // What it makes for itself stays, if it has come as far as to a call after that for which it made them.
    containerd.host.sh("rm -rf /run/containerd/fifo/*");
    containerd.start_daemon();
}

/// Ends what there is of a container, as who finds it after a crash would.
fn clear(containerd: &Containerd, id: &str) {
    if containerd.task(id).is_some() {
        containerd.ctr(&["task", "rm", "--force", id]);
        containerd.host.wait_for("no task", || containerd.task(id).is_none().then_some(()));
    }
    containerd.ctr(&["container", "rm", id]).good();
    containerd.assert_nothing_left();
}

fn runs_still(containerd: &Containerd, id: &str) {
    assert_eq!(containerd.task(id).expect("a task").0, "RUNNING");
    assert_eq!(containerd.exec(id, &["echo", "still"]).good(), "still\n");
}

fn run(containerd: &Containerd, id: &str) -> [String; 9] {
    let words = ["run", "--runtime", containerd.runtime.name(), "--detach", "--null-io"];
    let words = [&words[..], &[qemu_tests::containerd::IMAGE, id, "sleep", "1000"]].concat();
    words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>().try_into().expect("nine")
}

/// A life that is cut at each of its calls. A task whose Start was answered must live on; one before it may be there or
/// not, but can be removed.
fn dies_between_all_calls(containerd: &mut Containerd) {
    let answered = |call: &str| format!("call=\"{call}\"");
    let create = [" booting a VM".to_owned(), " the guest serves".to_owned(), answered("create")];
    for (number, mark) in create.iter().enumerate() {
        let id = format!("c{number}");
        let args = run(containerd, &id);
        containerd_dies_at(containerd, &[mark], &args.each_ref().map(String::as_str));
        clear(containerd, &id);
    }
    let args = run(containerd, "s");
    containerd_dies_at(containerd, &[&answered("start")], &args.each_ref().map(String::as_str));
    runs_still(containerd, "s");
    let exec = ["task", "exec", "--exec-id", "e", "s", "sleep", "1"];
    containerd_dies_at(containerd, &[&answered("exec")], &exec);
    runs_still(containerd, "s");
    // What has ended while there is no containerd may be thrown away by the next.
    containerd_dies_at(containerd, &[&answered("kill")], &["task", "kill", "-s", "KILL", "s"]);
    clear(containerd, "s");
    containerd.start_container(&[], "d", &["sleep", "1000"]);
    containerd_dies_at(containerd, &[&answered("delete")], &["task", "rm", "--force", "d"]);
    clear(containerd, "d");
}

#[test]
fn containerd_killed_between_any_two_calls_loses_and_leaves_nothing() {
    with_containerd("2", dies_between_all_calls);
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_older_containerds_killed_between_any_two_calls_lose_and_leave_nothing() {
    for name in ["1.6", "1.7"] {
        with_containerd(name, dies_between_all_calls);
    }
}

/// Kills the agent of the VM in which `pod` runs: a container of the same pod, in the guest's own pid namespace.
fn kill_agent(containerd: &Containerd, pod: &str, id: &str) {
    let capabilities = json!(["CAP_KILL", "CAP_SYS_PTRACE"]);
    let config = json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["inspect", "signal", "9"],
            "env": ["PATH=/usr/bin:/bin"],
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "root": { "path": rootfs() },
        "annotations": { "io.containerd.runc.v2.group": pod },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "linux": { "namespaces": [{ "type": "mount" }] },
    });
    let path = containerd.host.dir().join(format!("{id}.json"));
    std::fs::write(&path, config.to_string()).expect("a new file");
    let path = path.to_str().expect("a path of ours");
    let run = ["run", "--rm", "--runtime", containerd.runtime.name(), "--config", path, id];
    containerd.ctr(&run).good();
}

#[test]
fn agent_killed_under_the_shim_is_not_noticed_by_containerd() {
    with_containerd("2", |containerd| {
        let events = containerd.events();
        let group = ["--annotation", "io.containerd.runc.v2.group=a"];
        // It waits for its input, so that the agent dies under it however slow this machine is.
        let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; read x; echo got $x; exit 7";
        let options = [&["--rm"], &group[..]].concat();
        let mut run = containerd.run_command(&options, "a", &["sh", "-c", script]);
        let run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run = run.spawn().expect("nsenter");
        let mut stdout = BufReader::new(run.stdout.take().expect("piped"));
        for number in 0..10 {
            let mut line = String::new();
            stdout.read_line(&mut line).expect("a pipe");
            assert_eq!(line, format!("line {number}\n"));
        }
        for blow in ["k1", "k2"] {
            kill_agent(containerd, "a", blow);
            assert_eq!(containerd.exec("a", &["echo", "in"]).good(), "in\n");
        }
        std::io::Write::write_all(&mut run.stdin.take().expect("piped"), b"word\n")
            .expect("a pipe");
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("a pipe");
        let expected: String = (10..3000).map(|number| format!("line {number}\n")).collect();
        assert_eq!(rest, expected + "got word\n");
        assert_eq!(run.wait().expect("our child").code(), Some(7));
        let topics = events.topics("a");
        let count = |name: &str| topics.iter().filter(|topic| *topic == name).count();
        // Its own and those of its two execs, each once.
        assert_eq!((count("/tasks/exit"), count("/tasks/create")), (3, 1), "{:#?}", events.lines());
        events.end(containerd);
    });
}

#[test]
fn shim_told_to_end_under_a_live_task_hands_over_its_output_and_leaves_nothing() {
    with_containerd("2", |containerd| {
        let events = containerd.events();
        let script = "yes | head -c 500000; echo; echo all; sleep 1000";
        let mut run = containerd.run_command(&["--rm"], "live", &["sh", "-c", script]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("nsenter");
        let mut stdout = run.stdout.take().expect("piped");
        // All of it is written, and most of it not read: the pipe and the FIFO hold 64 KiB each.
        let mut first = [0; 1000];
        stdout.read_exact(&mut first).expect("a pipe");
        let bundle =
            format!("/run/containerd/io.containerd.runtime.v2.task/{}/live", containerd.namespace);
        let address = containerd.host.path(&bundle).join("address");
        let address = std::fs::read_to_string(address).expect("the shim's address");
        let socket = containerd.host.path(address.trim_start_matches("unix://"));
        let reader = std::thread::spawn(move || {
            let mut rest = Vec::new();
            stdout.read_to_end(&mut rest).expect("a pipe");
            rest
        });
        shut_down(&socket, "live");
        let rest = reader.join().expect("a reader");
        assert!(rest.len() <= 500_000 - 1000 + 5, "{}", rest.len());
        assert!(rest.iter().all(|byte| b"y\nal".contains(byte)));
        // What ctr makes of a task that is gone before it could be deleted is its own affair.
        run.wait().expect("our child");
        containerd.host.wait_for("no task", || containerd.task("live").is_none().then_some(()));
        // So are the FIFOs of its own.
        containerd.host.sh("rm -rf /run/containerd/fifo/*");
        let lines = events.lines();
        let mut exits = lines.iter().filter(|line| line.starts_with("/tasks/exit"));
        // containerd, which has not asked for this, tells the same once more for a shim that is gone.
        let is_exit = |line: &String| line.contains("\"exit_status\":137");
        assert!(exits.next().is_some_and(is_exit) && exits.all(is_exit), "{lines:#?}");
        events.end(containerd);
    });
}

fn shut_down(socket: &Path, id: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let socket = UnixStream::connect(socket).await.expect("the shim listens");
        let client = TaskClient::new(Client::new(Socket::new(socket)));
        let request = ShutdownRequest { id: id.to_owned(), now: true };
        // It may end before its answer is through.
        let _ = client.shutdown(ttrpc::context::with_timeout(0), &request).await;
    });
}
