//! A host within this one: namespaces for mounts, processes and the network, in which a containerd runs.
//!
//! Owns: the namespaces' first process, with which all others in there die, and a directory.
//! Promises: [`Host::listing`] has everything that could be left behind: processes, mounts, sockets, files below /run and
//! TMPDIR, cgroups. Never: needs more than root and util-linux.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::PATIENCE_S;
use crate::cli::children;

/// What the first process does: a /run of its own, the loopback device, and then to reap whom others leave, until its
/// input ends, which it does with us.
const INIT: &str = "mount -t tmpfs -o mode=755 run /run && mkdir /run/netns && ip link set lo up && echo ready || exit 1
exec 2>/dev/null 3<&0; trap 'exit 0' TERM; (read -r _ <&3; kill -TERM 1) &
while :; do sleep 3600 & wait $!; done";

/// Where the first process's `sleep` is not counted.
const IDLE: [&str; 2] = ["sleep 3600", "sh -c mount -t tmpfs"];

/// A host of its own.
pub struct Host {
    /// `unshare`, which waits for the first process and whose death kills that.
    unshare: Child,
    _stdin: Option<ChildStdin>,
    /// The first process, as this machine counts.
    pid: i32,
    dir: TempDir,
}

/// A process in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in there.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its arguments, with spaces between.
    pub command: String,
    /// Bytes of memory of its own and of files that it has touched: RssAnon + RssFile.
    pub resident: u64,
    /// True when it has ended and nobody has asked for its status.
    pub zombie: bool,
}

/// How a program ended, and what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its status; 124 when it was killed because it did not end.
    pub status: i32,
    /// Its output.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
}

impl Outcome {
    /// Its output, if it ended well; else the test fails.
    pub fn good(self) -> String {
        assert_eq!(self.status, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Host {
    /// A host on which nothing runs.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vminitd-rig-").tempdir().expect("a directory");
        fs::create_dir(dir.path().join("tmp")).expect("a new directory");
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]);
        unshare.args(["sh", "-c", INIT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut unshare = unshare.spawn().expect("unshare");
        let mut line = String::new();
        let stdout = unshare.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a pipe");
        assert_eq!(line, "ready\n", "containerd's tests need root, for namespaces of their own");
        let parent = nix::unistd::Pid::from_raw(unshare.id() as i32);
        let pid = children(parent).first().expect("the first process").as_raw();
        let stdin = unshare.stdin.take();
        Self { unshare, _stdin: stdin, pid, dir }
    }

    /// A directory on a disk, for as long as the host is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path below the host's own /run or /proc, as it is reached from here.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// A program on that host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--net", "--"]);
        command.arg(program).env("TMPDIR", self.dir().join("tmp")).stdin(Stdio::null());
        command.env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// A program that is killed when it takes longer than any should.
    pub fn limited(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command("timeout");
        command.args(["--foreground", "-k", "5", &PATIENCE_S.to_string()]).arg(program);
        command
    }

    /// Runs a line of shell there; returns what it printed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.limited("sh").args(["-c", script]).output().expect("nsenter");
        Outcome::from(output).good()
    }

    /// What runs there, but for the first process.
    pub fn processes(&self) -> Vec<Process> {
        let mut processes: Vec<Process> = fs::read_dir(self.path("proc"))
            .expect("the host's /proc")
            .filter_map(|entry| process(&entry.ok()?.path()))
            .filter(|process| !IDLE.iter().any(|idle| process.command.starts_with(idle)))
            .collect();
        processes.sort_by_key(|process| process.pid);
        processes
    }

    /// Those of them whose program has this name.
    pub fn running(&self, program: &str) -> Vec<Process> {
        let named = |process: &Process| {
            let first = process.command.split(' ').next().unwrap_or("");
            first.rsplit('/').next() == Some(program) && !process.zombie
        };
        self.processes().into_iter().filter(named).collect()
    }

    /// Sends a signal to a process there.
    pub fn kill(&self, process: &Process, signal: Signal) {
        self.sh(&format!("kill -{} {}", signal as i32, process.pid));
    }

    /// All that could be left behind. `cgroups` is the name of a directory of cgroups that is ours.
    pub fn listing(&self, cgroups: &str) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for process in self.processes() {
            let zombie = if process.zombie { "zombie " } else { "" };
            lines.insert(format!("process {zombie}{} {}", process.pid, process.command));
        }
        let of_init = |file: &str| {
            fs::read_to_string(format!("/proc/{}/{file}", self.pid)).expect("the first process")
        };
        for line in of_init("mountinfo").lines() {
            let mut fields = line.split(' ');
            lines.insert(format!("mount {}", fields.nth(4).unwrap_or("")));
        }
        for line in of_init("net/unix").lines() {
            // Listeners: the others have the names of those to whom they are connected.
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, "00010000", _, _, _, name] = fields[..] {
                lines.insert(format!("listener {name}"));
            }
        }
        let tcp = of_init("net/tcp") + &of_init("net/tcp6");
        for line in tcp.lines().filter(|line| line.contains(" 0A ")) {
            let address = line.split_whitespace().nth(1).unwrap_or("");
            lines.insert(format!("tcp listener {address}"));
        }
        files(&self.path("run"), "/run", &mut lines);
        files(&self.dir().join("tmp"), "TMPDIR", &mut lines);
        for group in cgroups_below(Path::new("/sys/fs/cgroup"), cgroups) {
            lines.insert(format!("cgroup {}", group.display()));
        }
        lines
    }

    /// Waits until `condition` gives something; fails the test, saying what was waited for, if it never does.
    pub fn wait_for<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(PATIENCE_S);
        loop {
            if let Some(value) = condition() {
                return value;
            }
            let processes = || self.processes().into_iter().map(|process| process.command);
            assert!(
                Instant::now() < until,
                "waited in vain: {what}; what runs: {:#?}",
                processes().collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // With --kill-child the namespace's first process dies with it, and with that all others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let first = Path::new("/proc").join(self.pid.to_string());
        let until = Instant::now() + Duration::from_secs(PATIENCE_S);
        while first.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn process(dir: &Path) -> Option<Process> {
    let pid = dir.file_name()?.to_str()?.parse().ok()?;
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or("")
    };
    let kib = |name| field(name).split(' ').next()?.parse::<u64>().ok();
    let arguments = fs::read(dir.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&arguments).replace('\0', " ").trim_end().to_owned();
    Some(Process {
        pid,
        parent: field("PPid").parse().ok()?,
        command: if command.is_empty() { field("Name").to_owned() } else { command },
        resident: (kib("RssAnon").unwrap_or(0) + kib("RssFile").unwrap_or(0)) << 10,
        zombie: field("State").starts_with('Z'),
    })
}

fn files(dir: &Path, name: &str, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        // A container's root filesystem is a mount, and told as that.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !name.ends_with("/rootfs") {
            files(&entry.path(), &name, lines);
        }
        lines.insert(format!("file {name}"));
    }
}

/// Cgroups at any depth below a directory called `name`, in every hierarchy.
pub(super) fn cgroups_below(dir: &Path, name: &str) -> Vec<PathBuf> {
    let directories = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path())
            .collect()
    };
    fn all(dir: &Path, directories: &impl Fn(&Path) -> Vec<PathBuf>, found: &mut Vec<PathBuf>) {
        for child in directories(dir) {
            all(&child, directories, found);
            found.push(child);
        }
    }
    let mut found = Vec::new();
    let hierarchies = directories(dir).into_iter().chain([dir.to_owned()]);
    for hierarchy in hierarchies {
        all(&hierarchy.join(name), &directories, &mut found);
    }
    found
}
