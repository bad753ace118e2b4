//! Looks at the guest from a container that shares its pid namespace and has its root at the given directory:
//! `inspect list GUEST_ROOT` prints what a container could leave behind, a line each, sorted;
//! `inspect signal SIGNAL` sends one to the agent; `inspect kill COUNT MILLIS SEED` kills that many agents at random
//! moments, up to so long after each came; `inspect memory` prints PSS of init and agent in KiB.
//!
//! Promises: two listings of a guest in the same state are the same text.
//! Never: is built into an image that we ship.

use std::fs;
use std::path::Path;
use std::process::exit;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list", root] => list(Path::new(root)),
        ["signal", number] => {
            let signal = number.parse().ok().and_then(|n: i32| Signal::try_from(n).ok());
            kill(agent(), signal.expect("a signal's number")).expect("signal to the agent");
        }
        ["kill", count, millis, seed] => {
            let number = |text: &str| text.parse::<u64>().expect("a number");
            kill_often(number(count), number(millis), number(seed));
        }
        ["pid"] => println!("{}", agent()),
        ["memory"] => {
            println!("init {}", pss(1));
            println!("agent {}", pss(agent().as_raw()));
        }
        _ => {
            eprintln!("inspect list ROOT | signal NUMBER | kill COUNT MILLIS SEED | pid | memory");
            exit(64);
        }
    }
}

/// The agent is the process of that name.
fn agent() -> Pid {
    find_agent().expect("an agent runs")
}

fn find_agent() -> Option<Pid> {
    processes()
        .into_iter()
        .find(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name == "vminitd-agent\n")
        })
        .map(Pid::from_raw)
}

/// Each agent lives for a random time, drawn evenly, so that some do not come to serve.
fn kill_often(count: u64, millis: u64, seed: u64) {
    let mut state = seed | 1;
    let mut last = None;
    for _ in 0..count {
        let agent = loop {
            match find_agent() {
                Some(agent) if Some(agent) != last => break agent,
                _ => sleep(Duration::from_millis(2)),
            }
        };
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sleep(Duration::from_micros(state % (millis * 1000)));
        // One that has died meanwhile was killed by somebody else.
        let _ = kill(agent, Signal::SIGKILL);
        last = Some(agent);
    }
    println!("killed {count}");
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn list(root: &Path) {
    let mut lines = Vec::new();
    for pid in processes() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state == Some('Z') {
            lines.push(format!("zombie {}", stat.split(' ').nth(1).unwrap_or("?")));
        }
    }
    for line in fs::read_to_string("/proc/1/mountinfo").expect("PID 1 has mounts").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|f| *f == "-").and_then(|at| fields.get(at + 1));
        lines.push(format!("mount {} {}", fields[4], kind.unwrap_or(&"?")));
    }
    for (name, pid) in [("init", 1), ("agent", agent().as_raw())] {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("root may look");
        for fd in fds.filter_map(Result::ok) {
            let target = fs::read_link(fd.path()).unwrap_or_default().display().to_string();
            // Init keeps its launchers' cgroups for the next launches.
            if !target.contains("/vminitd/launch-") {
                let kind = target.split(":[").next().unwrap_or("");
                let number = fd.file_name().to_str().and_then(|n| n.parse().ok()).unwrap_or(-1);
                let what = if kind == "socket" { socket(pid, number) } else { String::new() };
                lines.push(format!("fd {name} {kind}{what}"));
            }
        }
    }
    walk(&root.join("sys/fs/cgroup"), "cgroup", true, &mut lines);
    walk(&root.join("run"), "file", false, &mut lines);
    lines.sort();
    for line in lines {
        println!("{line}");
    }
}

/// What a socket of another process is: vsock ones by their own port, others by their family.
fn socket(pid: i32, fd: i32) -> String {
    // SAFETY: no memory is passed; see pidfd_open(2) and pidfd_getfd(2).
    let copy = unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0);
        libc::close(process as i32);
        copy as i32
    };
    // SAFETY: plain data, for which all zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `address`, which outlives the call.
    let named = unsafe { libc::getsockname(copy, (&raw mut address).cast(), &raw mut length) };
    // SAFETY: the copy is ours, and not used after this; -1 is refused.
    unsafe { libc::close(copy) };
    match (named, i32::from(address.svm_family)) {
        (0, libc::AF_VSOCK) => format!(" vsock {}", address.svm_port),
        (0, family) => format!(" family {family}"),
        _ => " ?".to_owned(),
    }
}

fn walk(directory: &Path, word: &str, directories_only: bool, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name().to_string_lossy().into_owned();
        // A container's root filesystem is a mount, and counted as one; launch-N as above.
        if name == "rootfs" || name == "mounts" || name.starts_with("launch-") {
            continue;
        }
        if is_directory || !directories_only {
            lines.push(format!("{word} {}", entry.path().display()));
        }
        if is_directory {
            walk(&entry.path(), word, directories_only, lines);
        }
    }
}

fn pss(pid: i32) -> String {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Pss:"));
    line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("?").to_owned()
}
