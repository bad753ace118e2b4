//! `vminitctl exec` and what finds the VM for it, as a person uses them: against a `vminitctl run` of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::cli::{OnTerminal, Vms, bundle_beside_the_agent, children, wait};
use qemu_tests::{noise, sha256};

/// A VM that runs until it is dropped; its container says `up` when it runs.
struct Background(Child);

impl Background {
    fn start(mut run: Command) -> Self {
        let mut child =
            run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("output");
        assert_eq!(line, "up\n");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).expect("it runs");
    }

    /// Its stdin ends, and so does the container.
    fn end(&mut self) -> Option<i32> {
        drop(self.0.stdin.take());
        wait(&mut self.0).code()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until stdin ends.
const IDLE: &[&str] = &["sh", "-c", "echo up; cat"];

fn exec(vms: &Vms, args: &[&str]) -> Output {
    vms.vminitctl(&[&["exec"], args].concat()).output().expect("it starts")
}

fn with_stdin(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // What goes in comes out again, so both have to be moved at the same time.
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("a writer").expect("it reads");
    output
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn told(status: i32, stdout: &str, stderr: &str) -> (Option<i32>, String, String) {
    (Some(status), stdout.to_owned(), stderr.to_owned())
}

#[test]
fn exec_is_like_a_local_command_in_the_container() {
    let vms = Vms::new();
    let mut vm = Background::start(vms.run(&["-i", "-e", "A=1", "-e", "B=2"], IDLE));

    let output = exec(&vms, &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(text(&output), told(3, "out\n", "err\n"));
    // The container's environment and ids, and what the options put in their place.
    let script = "echo $A $B; pwd; id -u; id -g";
    assert_eq!(text(&exec(&vms, &["--", "sh", "-c", script])), told(0, "1 2\n/\n0\n0\n", ""));
    let options = ["--user", "7:8", "--cwd", "/tmp", "-e", "B=3", "--"];
    let output = exec(&vms, &[&options, &["sh", "-c", script][..]].concat());
    assert_eq!(text(&output), told(0, "1 3\n/tmp\n7\n8\n", ""));
    // Beside the container's own process, in its pid namespace.
    assert_eq!(text(&exec(&vms, &["cat", "/proc/1/comm"])), told(0, "cat\n", ""));

    let input = noise(3, 8 << 20);
    let cat = vms.vminitctl(&["exec", "-i", "cat"]);
    let output = with_stdin(cat, &input);
    assert!(output.stdout == input, "{} bytes", output.stdout.len());
    let sum = vms.vminitctl(&["exec", "-i", "sha256sum"]);
    assert_eq!(text(&with_stdin(sum, &input)), told(0, &format!("{}  -\n", sha256(&input)), ""));
    assert_eq!(text(&exec(&vms, &["cat"])), told(0, "", ""), "without -i stdin is empty");

    for (command, status) in [("no-such-program", 127), ("/bin/not-executable", 126)] {
        let (code, _, stderr) = text(&exec(&vms, &[command]));
        assert_eq!(code, Some(status), "{stderr}");
        assert!(stderr.contains(command), "{stderr}");
    }
    assert_eq!(exec(&vms, &["misbehave", "kill-self", "15"]).status.code(), Some(143));

    let mut term = vms.vminitctl(&["exec", "misbehave", "handle-term", "42"]);
    let mut child = term.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut ready = [0; 6];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("output");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it runs");
    assert_eq!(wait(&mut child).code(), Some(42));

    // An exec ends with its container.
    let mut hang = vms.vminitctl(&["exec", "sh", "-c", "echo on; sleep 1000"]);
    let mut child = hang.stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 3]).expect("output");
    assert_eq!(vm.end(), Some(0));
    assert_eq!(wait(&mut child).code(), Some(137));
}

#[test]
fn exec_notices_nothing_when_the_agent_is_killed() {
    let vms = Vms::new();
    let bundle = bundle_beside_the_agent("echo up; cat");
    let path = bundle.path().to_str().expect("it is UTF-8");
    let mut vm = Background::start(vms.vminitctl(&["run", "-i", "--bundle", path]));

    let script = "inspect signal 9; sleep 1; cat; exit 4";
    let input = noise(5, 3 << 20);
    let output = with_stdin(vms.vminitctl(&["exec", "-i", "sh", "-c", script]), &input);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == input, "{} bytes", output.stdout.len());

    let mut terminal = OnTerminal::start(&vms.vminitctl(&["exec", "-t", "sh"]));
    terminal.types("inspect signal 9; echo blow=$?\r");
    terminal.shows("blow=0");
    terminal.resize(44, 120);
    terminal.types("until stty size | grep '120$'; do sleep 0.1; done\r");
    terminal.shows("44 120");
    assert!(terminal.is_raw());
    terminal.types("exit 9\r");
    assert_eq!(terminal.ends().code(), Some(9), "{}", terminal.screen());
    terminal.assert_restored();

    // Execs that are made while there is no agent.
    for _ in 0..3 {
        let blow = vms.vminitctl(&["exec", "inspect", "signal", "9"]).status().expect("it starts");
        assert!(blow.success());
        assert_eq!(text(&exec(&vms, &["echo", "again"])), told(0, "again\n", ""));
    }
    assert_eq!(vm.end(), Some(0));
}

#[test]
fn vms_are_found_by_name_and_errors_say_what_there_is() {
    let vms = Vms::new();
    let (code, _, stderr) = text(&exec(&vms, &["true"]));
    assert_eq!(code, Some(125));
    assert!(stderr.contains("no VM runs; start one: vminitctl run"), "{stderr}");

    let mut web = Background::start(vms.run(&["-i", "--name", "web"], IDLE));
    let (code, _, stderr) =
        text(&vms.run(&["--name", "web"], &["true"]).output().expect("it starts"));
    assert_eq!(code, Some(125));
    assert!(stderr.contains("a VM named web runs already"), "{stderr}");
    assert_eq!(text(&exec(&vms, &["hostname"])), told(0, "web\n", ""));

    let db = Background::start(vms.run(&["-i", "--name", "db"], IDLE));
    let (_, list, _) = text(&vms.vminitctl(&["list"]).output().expect("it starts"));
    let names: Vec<&str> = list.lines().map(|line| line.split(' ').next().unwrap_or("")).collect();
    assert_eq!(names, ["NAME", "db", "web"], "{list}");
    assert!(list.contains("sh -c echo up; cat"), "{list}");
    let (code, _, stderr) = text(&exec(&vms, &["true"]));
    assert_eq!(code, Some(125));
    assert!(stderr.contains("several VMs run (db, web); say which one"), "{stderr}");
    assert_eq!(text(&exec(&vms, &["--name", "db", "hostname"])), told(0, "db\n", ""));

    // A run that is killed takes its VM along; what it leaves is cleared away, and its name is free.
    let helpers = children(Pid::from_raw(db.0.id() as i32));
    db.signal(Signal::SIGKILL);
    drop(db);
    let (_, _, stderr) = text(&exec(&vms, &["--name", "db", "true"]));
    assert!(stderr.contains("no VM named db runs; running: web"), "{stderr}");
    assert!(!vms.path("db").exists());
    for helper in helpers {
        let gone = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            kill(helper, None).is_err()
        });
        assert!(gone, "vminit-vmm outlives its owner");
    }
    assert_eq!(web.end(), Some(0));
    assert!(!vms.path("web").exists());
}
