//! `vminitctl run`, as a person uses it: held against the same command run locally.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use qemu_tests::cli::{self, bundle_beside_the_agent};
use qemu_tests::{noise, rootfs, sha256};

fn vminitctl() -> Command {
    Command::new(cli::vminitctl())
}

fn run(args: &[&str]) -> Output {
    let output = vminitctl()
        .args(["run", "--rootfs"])
        .arg(rootfs())
        .arg("--")
        .args(args)
        .stdin(Stdio::null())
        .output();
    output.expect("vminitctl starts")
}

#[test]
fn run_gives_output_and_status_of_the_command_to_the_byte() {
    let script = "echo out; echo err >&2; exit 3";
    let (ours, local) =
        (run(&["sh", "-c", script]), Command::new("sh").args(["-c", script]).output().expect("sh"));
    assert_eq!(ours.status.code(), local.status.code());
    assert_eq!(ours.stdout, local.stdout);
    assert_eq!(String::from_utf8_lossy(&ours.stderr), String::from_utf8_lossy(&local.stderr));
}

#[test]
fn run_passes_a_hundred_megabytes_of_stdin_unchanged() {
    let input = noise(9, 100_000_000);
    let mut child = vminitctl()
        .args(["run", "-i", "--rootfs"])
        .arg(rootfs())
        .args(["--", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("vminitctl starts");
    child.stdin.take().expect("a pipe").write_all(&input).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}  -\n", sha256(&input)));
    assert!(output.status.success());
}

#[test]
fn run_tells_not_found_from_not_executable() {
    let missing = run(&["no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", String::from_utf8_lossy(&missing.stderr));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-program"));
    let mode = run(&["/bin/not-executable"]);
    assert_eq!(mode.status.code(), Some(126), "{}", String::from_utf8_lossy(&mode.stderr));
}

#[test]
fn run_exits_with_128_and_the_signal_of_a_killed_command() {
    assert_eq!(run(&["misbehave", "kill-self", "15"]).status.code(), Some(143));
}

#[test]
fn run_forwards_signals_to_the_command() {
    let mut child = vminitctl()
        .args(["run", "--rootfs"])
        .arg(rootfs())
        .args(["--", "misbehave", "handle-term", "42"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("vminitctl starts");
    let mut ready = [0; 6];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("output");
    assert_eq!(&ready, b"ready\n");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    assert_eq!(child.wait().expect("it ends").code(), Some(42));
}

#[test]
fn run_ends_a_command_whose_reader_went_away_without_a_complaint() {
    let mut child = vminitctl()
        .args(["run", "--rootfs"])
        .arg(rootfs())
        .args(["--", "yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vminitctl starts");
    let mut some = [0; 2];
    child.stdout.take().expect("a pipe").read_exact(&mut some).expect("output");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(137));
}

#[test]
fn run_leaves_the_hosts_directory_as_it_is() {
    let output =
        run(&["sh", "-c", "echo x >/data/new && rm /bin/cat && cat /data/new; ls /bin/cat"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(rootfs().join("bin/cat").exists() && !rootfs().join("data/new").exists());
}

#[test]
fn run_shows_the_consoles_last_lines_when_the_guest_does_not_come_up() {
    let output = vminitctl()
        .args(["run", "--append", "vminitd.stream_port=1024", "--rootfs"])
        .arg(rootfs())
        .args(["--", "true"])
        .stdin(Stdio::null())
        .output()
        .expect("vminitctl starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("vminitd: fatal: "), "{text}");
}

#[test]
fn run_names_the_option_and_what_would_do() {
    let output = vminitctl()
        .args(["run", "--memory", "2X", "--rootfs", "/", "--", "true"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--memory") && text.contains("2X") && text.contains("512M"), "{text}");
    assert_eq!(output.status.code(), Some(125), "{text}");
    let output = vminitctl()
        .args(["run", "--kernel", "/no/such", "--rootfs", "/", "--", "true"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("/no/such"), "{text}");
}

#[test]
fn run_notices_nothing_when_the_agent_is_killed() {
    let bundle = bundle_beside_the_agent("inspect signal 9; sleep 1; cat; exit 4");
    let mut child = vminitctl()
        .args(["run", "-i", "--bundle"])
        .arg(bundle.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vminitctl starts");
    let input = noise(5, 3 << 20);
    // What goes in comes out again, so both have to be moved at the same time.
    let mut stdin = child.stdin.take().expect("a pipe");
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("a writer").expect("it reads");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(output.stdout == input, "{} bytes; {stderr}", output.stdout.len());
}
