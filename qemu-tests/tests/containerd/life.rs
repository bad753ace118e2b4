//! A task's life as ctr asks for it, on each containerd.

use std::thread;

use qemu_tests::cli::OnTerminal;
use qemu_tests::containerd::{Containerd, with_containerd};

/// What every containerd must do: run, exec, kill.
fn runs_execs_and_kills(containerd: &mut Containerd) {
    let exit = containerd.run(&[], "one", &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((exit.status, exit.stdout.as_str(), exit.stderr.as_str()), (3, "out\n", "err\n"));

    containerd.start_container(&[], "two", &["sleep", "1000"]);
    assert_eq!(containerd.task("two").expect("a task").0, "RUNNING");
    assert_eq!(containerd.exec("two", &["cat", "/proc/1/cmdline"]).good(), "sleep\x001000\x00");
    assert_eq!(containerd.exec("two", &["sh", "-c", "exit 9"]).status, 9);
    containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "two"]).good();
    containerd.wait_for_state("two", "STOPPED");
    let removed = containerd.ctr(&["task", "rm", "two"]);
    assert!(removed.stderr.contains("non-zero exit code 137"), "{removed:?}");
    containerd.ctr(&["container", "rm", "two"]).good();
}

#[test]
fn task_runs_execs_and_is_killed_on_containerd_1_6() {
    with_containerd("1.6", runs_execs_and_kills);
}

#[test]
fn task_runs_execs_and_is_killed_on_containerd_1_7() {
    with_containerd("1.7", runs_execs_and_kills);
}

#[test]
fn task_runs_execs_and_is_killed_on_containerd_2() {
    with_containerd("2", runs_execs_and_kills);
}

/// Of one container after another: pause, metrics, events, removal by force.
fn is_paused_measured_and_told_of(containerd: &mut Containerd) {
    let events = containerd.events();
    containerd.start_container(&[], "p", &["sh", "-c", "while :; do sleep 0.1; done"]);
    containerd.ctr(&["task", "pause", "p"]).good();
    assert_eq!(containerd.task("p").expect("a task").0, "PAUSED");
    containerd.ctr(&["task", "resume", "p"]).good();
    assert_eq!(containerd.task("p").expect("a task").0, "RUNNING");
    let metrics = containerd.ctr(&["task", "metrics", "p"]).good();
    assert!(metrics.contains("memory.usage"), "{metrics}");
    assert!(metrics.contains("pids.current"), "{metrics}");
    let processes = containerd.ctr(&["task", "ps", "p"]).good();
    assert!(processes.lines().count() >= 2, "{processes}");
    assert_eq!(containerd.exec("p", &["true"]).status, 0);
    containerd.remove("p");

    containerd.host.wait_for("its events", || {
        events.topics("p").contains(&"/tasks/delete".to_owned()).then_some(())
    });
    let topics = events.topics("p");
    let tasks: Vec<&str> =
        topics.iter().map(String::as_str).filter(|topic| topic.starts_with("/tasks/")).collect();
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(tasks, expected);
    events.end(containerd);
}

#[test]
fn task_is_paused_measured_and_told_of() {
    with_containerd("2", is_paused_measured_and_told_of);
}

fn has_a_terminal(containerd: &mut Containerd) {
    let script = "stty size; tty; read x; echo got $x; exit 5";
    let run = containerd.run_command(&["--rm", "--tty"], "t", &["sh", "-c", script]);
    let mut screen = OnTerminal::start(&run);
    screen.shows("33 99");
    screen.shows("/dev/");
    screen.types("word\r");
    screen.shows("got word");
    assert_eq!(screen.ends().code(), Some(5));
}

#[test]
fn task_has_the_terminal_of_who_runs_it() {
    with_containerd("2", has_a_terminal);
}

/// `count` at a time.
fn run_side_by_side(containerd: &mut Containerd, count: usize) {
    let containerd = &*containerd;
    thread::scope(|scope| {
        let runs: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || {
                    let (id, text) = (format!("n{number}"), format!("I am {number}"));
                    (containerd.run(&[], &id, &["echo", &text]), text)
                })
            })
            .collect();
        for run in runs {
            let (exit, text) = run.join().expect("a run");
            assert_eq!(exit.good(), format!("{text}\n"));
        }
    });
}

#[test]
fn containers_run_side_by_side() {
    with_containerd("2", |containerd| run_side_by_side(containerd, 4));
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_twenty_containers_run_side_by_side_on_each_containerd() {
    for name in ["1.6", "1.7", "2"] {
        with_containerd(name, |containerd| run_side_by_side(containerd, 20));
    }
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_whole_life_of_a_task_on_the_older_containerds() {
    for name in ["1.6", "1.7"] {
        with_containerd(name, |containerd| {
            is_paused_measured_and_told_of(containerd);
            has_a_terminal(containerd);
        });
    }
}
