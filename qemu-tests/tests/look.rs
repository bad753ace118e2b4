//! `vminitctl`'s commands about a running VM, as a person at another terminal uses them.
//!
//! Each is asked of the same VM; what it says is held against what the container does.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use qemu_tests::cli::{Vms, wait};
use serde_json::Value;

fn said(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn running_vm_is_listed_watched_measured_debugged_and_killed() {
    let vms = Vms::new();
    let script = "trap 'echo hup' HUP; echo begun; while :; do sleep 0.1; done";
    let mut run = vms.run(&["--name", "web"], &["sh", "-c", script]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().expect("a line").expect("a line");
    assert_eq!(line(), "begun");
    let ctl = |args: &[&str]| said(vms.vminitctl(args));

    let listed = json(&ctl(&["ps", "--json"]));
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"web".into(), &"running".into()));
    let socket = listed[0]["socket"].as_str().expect("a path").to_owned();
    assert_eq!(ctl(&["exec", "--name", &socket, "echo", "in"]), "in\n", "by its socket");
    assert_eq!(ctl(&["exec", "--name", "w", "echo", "in"]), "in\n", "by a beginning");

    let stats = &json(&ctl(&["stats", "--json", "web"]))[0];
    assert!(stats["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    assert!(stats["pids"].as_u64().is_some_and(|pids| pids >= 1), "{stats}");
    assert!(ctl(&["stats", "web"]).contains("\nmemory "));

    let console = ctl(&["console", "web"]);
    let logs = ctl(&["logs", "web"]);
    assert!(!logs.is_empty() && logs.lines().all(|line| line.starts_with("vminitd: ")), "{logs}");
    assert!(console.lines().count() >= logs.lines().count());
    assert_eq!(ctl(&["logs", "--tail", "1", "web"]).lines().count(), 1);

    let mut watch = vms.vminitctl(&["events", "--all", "--json", "web"]);
    let watch = watch.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut follow = vms.vminitctl(&["console", "--follow", "web"]);
    let mut follow = follow.stdout(Stdio::null()).spawn().expect("it starts");

    let debug = |args: &[&str]| ctl(&[&["debug", "web", "--"], args].concat());
    assert!(debug(&["cat", "/proc/1/cmdline"]).contains("echo begun"), "its processes");
    assert!(debug(&["ls", "/proc/1/root/bin"]).contains("misbehave\n"), "its files");
    assert!(!debug(&["ls", "/bin"]).contains("misbehave\n"), "and tools of our own");
    let mut failing = vms.vminitctl(&["debug", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failing.status().expect("it starts").code(), Some(7));
    // It does not wait for more input, which need not come: the pipe stays open.
    let mut fed = vms.vminitctl(&["debug", "-i", "web", "--", "sh", "-c", "exit 8"]);
    let mut fed = fed.stdin(Stdio::piped()).spawn().expect("it starts");
    let open = fed.stdin.take();
    assert_eq!(wait(&mut fed).code(), Some(8));
    drop(open);

    ctl(&["kill", "--signal", "hup", "web"]);
    assert_eq!(line(), "hup");
    ctl(&["kill", "-s", "9", "web"]);
    assert_eq!(wait(&mut run).code(), Some(137));

    // Both end with the VM, and that is no failure.
    assert_eq!(wait(&mut follow).code(), Some(0));
    let watched = watch.wait_with_output().expect("our child");
    assert_eq!(watched.status.code(), Some(0));
    let watched = json(&String::from_utf8_lossy(&watched.stdout));
    let mut topics = watched.iter().filter(|event| event["event"]["container"] == "main");
    let exit =
        topics.find(|event| event["topic"] == "/tasks/exit" && event["event"]["id"] == "main");
    assert_eq!(exit.expect("its exit")["event"]["status"], 137, "{watched:#?}");
}
