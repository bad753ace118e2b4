//! `vminitctl attach`: others take part in a task whose streams are containerd's.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use qemu_tests::cli::{OnTerminal, vminitctl};
use qemu_tests::containerd::{Containerd, with_containerd};

fn attach(containerd: &Containerd, id: &str) -> Command {
    let mut command = containerd.host.limited(vminitctl());
    command.args(["attach", id]);
    command
}

/// The numbers of the lines that are read next.
fn some_lines(out: &mut impl BufRead) -> Vec<u32> {
    let line = |line: Result<String, _>| line.expect("a pipe").strip_prefix("line ")?.parse().ok();
    out.lines().take(3).map(|text| line(text).expect("a line of the task's")).collect()
}

#[test]
fn who_attaches_sees_what_the_task_writes_and_takes_nothing_from_containerd() {
    with_containerd("2", |containerd| {
        let script = "n=0; while [ ! -e /tmp/end ]; do n=$((n+1)); echo line $n; sleep 0.1; done; echo last; exit 5";
        let log = containerd.host.dir().join("task.log");
        let mut run = containerd.run_command(&["--rm"], "task", &["sh", "-c", script]);
        run.stdout(File::create(&log).expect("a new file")).stderr(Stdio::null());
        let mut run = run.spawn().expect("nsenter");
        containerd.wait_for_state("task", "RUNNING");

        let start = || -> Child {
            attach(containerd, "task").stdout(Stdio::piped()).spawn().expect("nsenter")
        };
        let mut first = start();
        let seen = some_lines(&mut BufReader::new(first.stdout.take().expect("piped")));
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
        // Its reader is gone, and so is it, with the next line.
        first.wait().expect("our child");
        let mut second = start();
        let mut out = BufReader::new(second.stdout.take().expect("piped"));
        let again = some_lines(&mut out);
        assert!(again[0] > seen[2] && again[2] == again[0] + 2, "{seen:?} {again:?}");
        // Not by ctr, whose exec would leave its FIFOs when the task is deleted before it is.
        let end = ["exec", "--name", "task", "--", "touch", "/tmp/end"];
        let end = containerd.host.limited(vminitctl()).args(end).status().expect("nsenter");
        assert!(end.success());
        let rest: Vec<String> = out.lines().map(|line| line.expect("a pipe")).collect();
        assert_eq!(rest.last().map(String::as_str), Some("last"));
        assert_eq!(second.wait().expect("our child").code(), Some(5));
        assert_eq!(run.wait().expect("our child").code(), Some(5));

        let all = fs::read_to_string(&log).expect("the log");
        let count = all.lines().count() - 1;
        let expected: String = (1..=count).map(|number| format!("line {number}\n")).collect();
        assert_eq!(all, expected + "last\n");
    });
}

#[test]
fn terminal_is_shared_with_who_attaches_and_left_by_its_key() {
    with_containerd("2", |containerd| {
        let script = "while read x; do echo got $x; if [ $x = end ]; then exit 6; fi; done";
        let run = containerd.run_command(&["--rm", "--tty"], "t", &["sh", "-c", script]);
        let mut owner = OnTerminal::start(&run);
        containerd.wait_for_state("t", "RUNNING");
        owner.types("one\r");
        owner.shows("got one");

        let mut other = OnTerminal::start(&attach(containerd, "t"));
        other.shows("attached to t");
        other.types("two\r");
        other.shows("got two");
        owner.shows("got two");
        other.types("\x1d");
        other.shows("left t");
        assert_eq!(other.ends().code(), Some(0));

        owner.types("three\r");
        owner.shows("got three");
        let mut again = OnTerminal::start(&attach(containerd, "t"));
        again.shows("attached to t");
        again.types("end\r");
        again.shows("got end");
        assert_eq!(again.ends().code(), Some(6));
        owner.shows("got end");
        assert_eq!(owner.ends().code(), Some(6));
    });
}
