//! A VM as these tests want it, and the processes that serve it.
//! Owns: the machine and a directory for what it leaves. Promises: what is missing fails the test with what to do.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use host_shim::machine::{BootError, BootOptions, Dial, Exited, Machine, console_tail};
use host_shim::vm::{Cmdline, Description, Draft, Share};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// For whatever takes a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A VM whose kernel is at work.
pub struct Vm {
    pub machine: Machine,
    /// vminit-vmm and all below it.
    pub processes: Vec<Process>,
    pub directory: TempDir,
}

impl Vm {
    /// Boots a kernel without anything to run.
    pub async fn boot(cmdline: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let draft = draft(&directory, cmdline);
        Self::of(directory, draft).await.0
    }

    /// Boots, and waits until the kernel has printed something, which takes all processes. The guest's dials come
    /// out of the second.
    pub async fn of(directory: TempDir, draft: Draft) -> (Self, mpsc::Receiver<Dial>) {
        let vm = Description::try_from(draft).unwrap();
        let booted = Machine::boot_with_dials(vm, options(&directory)).await;
        let (machine, dials) = booted.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let until = Instant::now() + PATIENCE;
        while machine.console_tail(1).is_empty() {
            assert!(Instant::now() < until, "nothing on the console");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let processes = family(machine.vmm_pid());
        (Self { machine, processes, directory }, dials)
    }

    pub async fn exited(&self) -> Exited {
        let exited = timeout(PATIENCE, self.machine.exited()).await;
        exited.unwrap_or_else(|_| {
            panic!("no end; console: {:?}", console_tail(self.machine.console_path(), 5))
        })
    }

    pub fn kill(&self, name: &str) {
        let process = self.processes.iter().find(|process| process.name.starts_with(name));
        let process = process.unwrap_or_else(|| panic!("no {name} in {:?}", self.processes));
        kill(Pid::from_raw(process.pid), Signal::SIGKILL).unwrap();
    }

    pub fn assert_gone(&self) {
        assert_all_gone(&self.processes);
    }
}

pub async fn boot(directory: &TempDir, draft: Draft) -> Result<Machine, BootError> {
    Machine::boot(Description::try_from(draft).unwrap(), options(directory)).await
}

fn options(directory: &TempDir) -> BootOptions {
    BootOptions { vmm: installed().into(), console: directory.path().join("console.log") }
}

pub fn draft(directory: &TempDir, cmdline: &str) -> Draft {
    let shared = directory.path().join("shared");
    fs::create_dir_all(&shared).unwrap();
    // Something to boot from, with nothing in it: an archive's end.
    let initramfs = directory.path().join("shared/initramfs");
    let trailer = format!("070701{}{}TRAILER!!!\0\0\0\0", "0".repeat(88), "0000000B00000000");
    fs::write(&initramfs, trailer).unwrap();
    Draft {
        name: "vmm-process".parse().unwrap(),
        arch: Default::default(),
        kernel: dist().join("share/vminitd/x86_64/vmlinux"),
        initramfs: Some(initramfs),
        cmdline: cmdline.parse::<Cmdline>().unwrap(),
        memory: "128M".parse().unwrap(),
        cpus: 1,
        guest_cid: Default::default(),
        guest_dials: Default::default(),
        disks: Vec::new(),
        hotplug_slots: Default::default(),
        nics: Vec::new(),
        shares: vec![Share { tag: "shared".parse().unwrap(), path: shared, read_only: true }],
        accelerator: Default::default(),
        options: Default::default(),
    }
}

pub fn dist() -> PathBuf {
    let dist = std::env::var_os("VMINITD_DIST").map(PathBuf::from);
    let dist = dist.expect(
        "VMINITD_DIST is not set: run `./dev test`, or `./dev build` and VMINITD_DIST=$PWD/dist",
    );
    assert!(dist.is_absolute(), "VMINITD_DIST={dist:?} is no absolute path");
    assert!(
        dist.join("share/vminitd/x86_64/vmlinux").is_file(),
        "no guest kernel in {dist:?}: run `./dev build`"
    );
    dist
}

/// A program for the inside of a VM.
pub fn test_guest(name: &str) -> PathBuf {
    let programs = std::env::var_os("VMINITD_TEST_GUEST").expect(
        "VMINITD_TEST_GUEST names the directory of the guest's test programs; `./dev test` sets it",
    );
    let program = Path::new(&programs).join(name);
    assert!(program.is_file(), "no program {program:?}: `./dev test` builds it");
    program
}

/// An initramfs whose /init is `script`, for the busybox that is beside it.
pub fn pack_script(directory: &TempDir, script: &str) -> PathBuf {
    let init = directory.path().join("init");
    fs::write(&init, script).unwrap();
    fs::set_permissions(&init, Permissions::from_mode(0o755)).unwrap();
    let mut tree = initramfs::Tree::with_init(&init).unwrap();
    let busybox = Path::new("/bin/busybox");
    tree.add(busybox, Path::new("/busybox"))
        .unwrap_or_else(|error| panic!("{error}; `./dev test` installs busybox-static"));
    let path = directory.path().join("initramfs");
    initramfs::newc::write(&tree, &mut File::create(&path).unwrap()).unwrap();
    path
}

/// The vminit-vmm under test, in a directory as it is installed: it finds virtiofsd by its own place.
pub fn installed() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_vminit-vmm"));
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
    let (bin, libexec) = (root.join("bin"), root.join("libexec/vminitd"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&libexec).unwrap();
    let program = bin.join("vminit-vmm");
    let inode = |path: &Path| fs::metadata(path).map(|file| file.ino()).ok();
    // By name and rename, since other tests, and the owner that is one, do the same.
    let place = |make: &dyn Fn(&Path) -> io::Result<()>, target: &Path| {
        let temporary = tempfile::tempdir_in(&root).unwrap();
        make(&temporary.path().join("new")).unwrap();
        fs::rename(temporary.path().join("new"), target).unwrap();
    };
    if inode(&program) != inode(built) {
        place(&|new| fs::hard_link(built, new), &program);
    }
    let virtiofsd = dist().join("libexec/vminitd/virtiofsd");
    assert!(virtiofsd.is_file(), "no virtiofsd at {virtiofsd:?}: run `./dev build`");
    if fs::read_link(libexec.join("virtiofsd")).ok() != Some(virtiofsd.clone()) {
        place(&|new| std::os::unix::fs::symlink(&virtiofsd, new), &libexec.join("virtiofsd"));
    }
    program
}

pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

pub fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// A process, told from a later one with the same pid by when it was started.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub pid: i32,
    pub name: String,
    started: String,
}

impl Process {
    pub fn of(pid: i32) -> Self {
        Self::find(pid).expect("a running process").0
    }

    /// The process and its parent; none when it is gone or a zombie.
    fn find(pid: i32) -> Option<(Self, i32)> {
        let stat =
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let process = Self { pid, name: name.to_owned(), started: fields[19].to_owned() };
        (fields[0] != "Z").then_some((process, fields[1].parse().ok()?))
    }
}

/// A process and all below it; nothing when it has ended already.
fn family(root: u32) -> Vec<Process> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let all: Vec<(Process, i32)> = pids.filter_map(Process::find).collect();
    let mut found: Vec<Process> =
        Process::find(root.cast_signed()).map(|(process, _)| process).into_iter().collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].pid;
        found
            .extend(all.iter().filter(|(_, of)| *of == parent).map(|(process, _)| process.clone()));
        next += 1;
    }
    found
}

pub fn assert_all_gone(processes: &[Process]) {
    let left = || {
        processes
            .iter()
            .filter(|process| Process::find(process.pid).is_some_and(|(p, _)| p == **process))
    };
    let until = Instant::now() + Duration::from_secs(10);
    while left().next().is_some() {
        assert!(Instant::now() < until, "left behind: {:?}", left().collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(10));
    }
}
