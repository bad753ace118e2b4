//! A containerd on a host of its own, and what tests ask of it through ctr.
//!
//! Owns: the host, the daemon on it, and the image's unpacked root filesystem.
//! Promises: after the test, what it has left is listed and fails it; a failing test prints the end of the daemon's log,
//! which has the shims' logs in it.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use host_shim::locate::QEMU_VARIABLE;
use nix::sys::signal::Signal;

use super::host::{Host, Outcome, Process, cgroups_below};
use super::{Version, image, version};

/// The image's name in containerd.
pub const IMAGE: &str = "docker.io/vminitd/test:latest";

/// Room in an image of the blockfile snapshotter.
const SCRATCH_BYTES: u64 = 48 << 20;

/// How long what a test has ended may take to be gone.
const SETTLE: Duration = Duration::from_secs(30);

/// Plugins that want what is not here, or cost time at each start.
const WITHOUT: [&str; 9] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
];

/// What runs the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// runc, to prove the rig and to measure against.
    Runc,
    /// Ours.
    Vminitd,
}

impl Runtime {
    /// Its name in containerd.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Vminitd => "io.containerd.vminitd.v1",
        }
    }
}

/// How a containerd is set up, where a test wants more than the usual.
#[derive(Clone, Debug, Default)]
pub struct SetUp {
    /// Variables of its environment, which its shims inherit.
    pub env: Vec<(&'static str, String)>,
    /// The erofs and blockfile snapshotters.
    pub block_snapshotters: bool,
}

/// A running containerd.
pub struct Containerd {
    /// Where it runs.
    pub host: Host,
    /// Which one it is.
    pub version: Version,
    /// What `run` takes.
    pub runtime: Runtime,
    /// containerd's namespace, also the cgroup in which it puts containers by default: nobody else's, also not that of
    /// a test beside this one.
    pub namespace: String,
    /// nsenter, whose child the daemon is.
    daemon: Option<Child>,
    set_up: SetUp,
    before: BTreeSet<String>,
}

/// Runs a test on a containerd of this name (`1.6`, `1.7`, `2`) with our runtime; skips it aloud when that could not be
/// had. What the test leaves behind fails it.
pub fn with_containerd(name: &str, test: impl FnOnce(&mut Containerd)) {
    with_containerd_set_up(name, SetUp::default(), test);
}

/// The same, set up otherwise.
pub fn with_containerd_set_up(name: &str, set_up: SetUp, test: impl FnOnce(&mut Containerd)) {
    let Some(version) = version(name) else {
        // Past the capture of libtest: a skip is for people to see.
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no containerd {name} to test with");
        return;
    };
    let mut containerd = Containerd::start_set_up(version, Runtime::Vminitd, set_up);
    test(&mut containerd);
    containerd.assert_nothing_left();
}

impl Containerd {
    /// Starts it and imports the image.
    pub fn start(version: Version, runtime: Runtime) -> Self {
        Self::start_set_up(version, runtime, SetUp::default())
    }

    /// The same, set up otherwise.
    pub fn start_set_up(version: Version, runtime: Runtime, set_up: SetUp) -> Self {
        let host = Host::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("vminitd-rig-{}-{number}", std::process::id());
        let before = BTreeSet::new();
        let mut this = Self { host, version, runtime, namespace, daemon: None, set_up, before };
        this.start_daemon();
        let image = image().to_str().expect("a path of ours");
        this.ctr(&["images", "import", "--snapshotter", "overlayfs", image]).good();
        this.before = this.listing();
        this
    }

    fn config(&self) -> String {
        let root = self.host.dir().join("root");
        let mut config = format!(
            "version = 2\nroot = {root:?}\nstate = \"/run/containerd\"\ndisabled_plugins = {WITHOUT:?}\n[debug]\n  level = \"debug\"\n"
        );
        if self.set_up.block_snapshotters {
            let scratch = self.scratch();
            config += &format!(
                "[plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"erofs\", \"walking\"]\n\
                 [plugins.\"io.containerd.snapshotter.v1.blockfile\"]\n  scratch_file = {scratch:?}\n  fs_type = \"ext4\"\n  mount_options = [\"loop\"]\n"
            );
        }
        config
    }

    /// An empty filesystem, of which the blockfile snapshotter makes copies.
    fn scratch(&self) -> PathBuf {
        let path = self.host.dir().join("scratch.ext4");
        if !path.exists() {
            let file = File::create(&path).expect("a new file");
            file.set_len(SCRATCH_BYTES).expect("a sparse file");
            let mut mkfs = Command::new("mkfs.ext4");
            mkfs.args(["-q", "-O", "^has_journal"]).arg(&path);
            assert!(mkfs.status().expect("mkfs.ext4").success());
        }
        path
    }

    fn path(&self) -> String {
        let dist = std::env::var("VMINITD_DIST")
            .expect("VMINITD_DIST is not set; run containerd's tests with `./dev test`");
        let own =
            [Path::new(&dist).join("bin"), self.version.bin.clone(), self.version.runc.clone()];
        let own = own.into_iter().chain(self.version.erofs.clone());
        let own: Vec<String> =
            own.map(|path| path.to_str().expect("a path of ours").to_owned()).collect();
        let own = own.join(":");
        format!("{own}:{}", std::env::var("PATH").unwrap_or_default())
    }

    /// Where the daemon and, through it, the shims write.
    pub fn log_path(&self) -> PathBuf {
        self.host.dir().join("containerd.log")
    }

    /// All that was logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts the daemon, with the state that the last one left.
    pub fn start_daemon(&mut self) {
        let config = self.host.dir().join("config.toml");
        fs::write(&config, self.config()).expect("a new file");
        let log = File::options().append(true).create(true).open(self.log_path()).expect("a log");
        let mut daemon = self.host.command(self.version.bin.join("containerd"));
        daemon.arg("--config").arg(&config).env("PATH", self.path());
        daemon.envs(self.set_up.env.iter().map(|(name, value)| (name, value)));
        daemon.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.daemon = Some(daemon.spawn().expect("nsenter"));
        let serves = || (self.ctr(&["version"]).status == 0).then_some(());
        self.host.wait_for("containerd serves", serves);
    }

    /// Has VMs run by a shell script, which knows QEMU as `$QEMU`; starts the daemon anew.
    pub fn replace_qemu(&mut self, script: &str) {
        let qemu = host_shim::locate::qemu(crate::vm::arch()).expect("QEMU");
        let path = self.host.dir().join("qemu");
        fs::write(&path, format!("#!/bin/sh\nQEMU='{}'\n{script}\n", qemu.display())).expect("new");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("ours");
        let path = path.to_str().expect("a path of ours").to_owned();
        self.set_up.env.push((QEMU_VARIABLE, path));
        self.end_daemon(Signal::SIGTERM);
        self.start_daemon();
    }

    /// The daemon's process.
    pub fn daemon(&self) -> Process {
        self.host.running("containerd").pop().expect("the daemon")
    }

    /// Ends the daemon as systemd does (SIGTERM), or as nobody should (SIGKILL). The shims go on.
    pub fn end_daemon(&mut self, signal: Signal) {
        self.host.kill(&self.daemon(), signal);
        self.daemon.take().expect("started").wait().expect("our child");
    }

    /// `ctr ARGS`, yet to be run.
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = self.host.limited(self.version.bin.join("ctr"));
        command.env("PATH", self.path()).args(["--namespace", &self.namespace]).args(args);
        command
    }

    /// `ctr ARGS`.
    pub fn ctr(&self, args: &[&str]) -> Outcome {
        self.ctr_command(args).output().expect("nsenter").into()
    }

    /// `ctr run OPTIONS IMAGE ID COMMAND` with the runtime, yet to be run.
    pub fn run_command(&self, options: &[&str], id: &str, command: &[&str]) -> Command {
        let mut run = self.ctr_command(&["run", "--runtime", self.runtime.name()]);
        run.args(options).args([IMAGE, id]).args(command);
        run
    }

    /// `ctr run --rm OPTIONS IMAGE ID COMMAND`.
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Outcome {
        let options = [&["--rm"], options].concat();
        self.run_command(&options, id, command).output().expect("nsenter").into()
    }

    /// A container in the background, which [`Containerd::remove`] ends.
    pub fn start_container(&self, options: &[&str], id: &str, command: &[&str]) {
        let options = [&["--detach", "--null-io"], options].concat();
        // Not piped: a shim that held our pipes would hold us.
        let mut run = self.run_command(&options, id, command);
        let log = self.host.dir().join(format!("run-{id}.log"));
        let out = File::create(&log).expect("a new file");
        run.stdout(out.try_clone().expect("a descriptor")).stderr(out);
        let status = run.status().expect("nsenter");
        assert!(status.success(), "ctr run: {}", fs::read_to_string(&log).unwrap_or_default());
    }

    /// `ctr task exec ID COMMAND`.
    pub fn exec(&self, id: &str, command: &[&str]) -> Outcome {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let exec = format!("e{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.ctr(&[&["task", "exec", "--exec-id", &exec, id], command].concat())
    }

    /// The state of a task as `ctr task ls` says it (`RUNNING`), and its pid.
    pub fn task(&self, id: &str) -> Option<(String, i32)> {
        let tasks = self.ctr(&["task", "ls"]).good();
        tasks.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (fields[0] == id).then(|| (fields[2].to_owned(), fields[1].parse().unwrap_or(0)))
        })
    }

    /// Waits until a task is in that state.
    pub fn wait_for_state(&self, id: &str, state: &str) {
        let what = format!("{id} is {state}");
        self.host.wait_for(&what, || (self.task(id)?.0 == state).then_some(()));
    }

    /// Kills a task if it runs, and removes it and its container.
    pub fn remove(&self, id: &str) {
        if self.task(id).is_some() {
            self.ctr(&["task", "rm", "--force", id]).good();
        }
        self.ctr(&["container", "rm", id]).good();
    }

    /// What `ctr events` prints from now on.
    pub fn events(&self) -> Events {
        let path = self.host.dir().join("events.log");
        let out = File::create(&path).expect("a new file");
        let mut command = self.host.command(self.version.bin.join("ctr"));
        command.args(["--namespace", &self.namespace, "events"]).stdout(out).stderr(Stdio::null());
        let child = command.spawn().expect("nsenter");
        let ctr = self.host.wait_for("ctr events runs", || self.host.running("ctr").pop());
        let events = Events { path, child, ctr, namespace: self.namespace.clone() };
        // It subscribes some time after it has started; a namespace's label is an event that hurts nobody.
        self.host.wait_for("ctr events has subscribed", || {
            self.ctr(&["namespaces", "label", &self.namespace, "rig=1"]).good();
            (!events.lines().is_empty()).then_some(())
        });
        events
    }

    fn listing(&self) -> BTreeSet<String> {
        self.host.listing(&self.namespace)
    }

    /// Fails when there is more than before the test, a while after it.
    pub fn assert_nothing_left(&self) {
        self.assert_nothing_left_after(SETTLE);
    }

    /// Fails when there is more than before the test, `patience` later.
    pub fn assert_nothing_left_after(&self, patience: Duration) {
        let until = Instant::now() + patience;
        // Directories for all containers, which are made with the first and belong to containerd and ctr.
        let stays = ["fifo", "io.containerd.runtime.v2.task/NS", "runc", "runc/NS", "s"];
        let stays = stays
            .map(|name| format!("file /run/containerd/{}", name.replace("NS", &self.namespace)));
        loop {
            let now = self.listing();
            // A daemon that was started anew is another process.
            let daemon = self.version.bin.join("containerd").display().to_string();
            let is_new_daemon = |line: &str| line.contains(&daemon) && !line.contains("zombie");
            let grown = now.difference(&self.before);
            let grown: Vec<&String> =
                grown.filter(|line| !is_new_daemon(line) && !stays.contains(line)).collect();
            if grown.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left behind: {grown:#?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            println!(
                "containerd {}, the end of its log:\n{}",
                self.version.number,
                tail.join("\n")
            );
        }
        // The namespaces go with the host; cgroups are no namespace's, and are busy until all are dead.
        let _ = self.host.command("sh").args(["-c", "kill -9 -1"]).status();
        let left = || cgroups_below(Path::new("/sys/fs/cgroup"), &self.namespace);
        for _ in 0..50 {
            if left().into_iter().filter(|group| fs::remove_dir(group).is_err()).count() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What containerd publishes.
pub struct Events {
    path: PathBuf,
    child: Child,
    ctr: Process,
    namespace: String,
}

impl Events {
    /// The topics and bodies so far, a line each, without the time.
    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let at_topic = |line: &str| {
            let (_, event) = line.split_once(&self.namespace)?;
            Some(event.trim().to_owned())
        };
        text.lines().filter_map(at_topic).collect()
    }

    /// The topics about a container so far.
    pub fn topics(&self, id: &str) -> Vec<String> {
        let about = format!("\"{id}\"");
        let lines = self.lines().into_iter().filter(|line| line.contains(&about));
        lines.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
    }

    /// Ends `ctr events`.
    pub fn end(mut self, containerd: &Containerd) {
        containerd.host.kill(&self.ctr, Signal::SIGKILL);
        self.child.wait().expect("our child");
    }
}
