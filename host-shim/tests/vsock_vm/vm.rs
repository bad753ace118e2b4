//! One QEMU with `vsock-peer` as its PID 1 and the device under test in this process.
//! Owns: the VM's process, the device, a directory for console and QMP. Promises: nothing of it outlives the value;
//! a missing kernel, program or QEMU fails the test with what to do.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use host_shim::vsock::{self, ConnectError, Device, GoneReason, VsockEvent};
use initramfs::Tree;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

/// The host's ports that the guest may dial: `vsock-peer` is up, its results, and one for the test.
pub const READY_PORT: u32 = 9000;
pub const RESULT_PORT: u32 = 9001;
pub const DIAL_PORT: u32 = 9002;

pub const GUEST_CID: u64 = 3;

/// For anything that a guest under emulation on a loaded machine may take; only a defect takes as long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// For a boot, which takes a second or two.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// A running VM.
pub struct Vm {
    qemu: Child,
    pub device: Option<Device>,
    /// Behind a lock for tests that await a call in one thread and cause it in another.
    events: Mutex<Receiver<VsockEvent>>,
    dir: TempDir,
}

impl Vm {
    /// Boots a VM and waits until its programs listen.
    pub fn boot() -> Vm {
        Vm::boot_with(&["-no-reboot"])
    }

    /// The same with other arguments for QEMU.
    pub fn boot_with(arguments: &[&str]) -> Vm {
        raise_file_limit();
        let vm = Vm::start(arguments);
        if vm.is_ready_within(BOOT_PATIENCE) {
            return vm;
        }
        // Seen with QEMU once in some hundred boots on a loaded machine: no CPU ever runs, nothing is printed.
        eprintln!("a VM did not boot, and is tried once more; console:\n{}", vm.console());
        drop(vm);
        let vm = Vm::start(arguments);
        assert!(
            vm.is_ready_within(PATIENCE),
            "a VM did not boot twice; console:\n{}",
            vm.console()
        );
        vm
    }

    fn start(arguments: &[&str]) -> Vm {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (ours, qemus) = UnixStream::pair().expect("a socket pair");
        let (sender, events) = channel();
        let config = vsock::Config {
            guest_cid: GUEST_CID,
            guest_dial_ports: vec![READY_PORT, RESULT_PORT, DIAL_PORT],
            ask_owner: false,
        };
        let report = move |event| drop(sender.send(event));
        let device = vsock::start(ours, config, report).expect("the device starts");
        let qemu = start_qemu(dir.path(), qemus.into(), arguments);
        Vm { qemu, device: Some(device), events: Mutex::new(events), dir }
    }

    fn is_ready_within(&self, patience: Duration) -> bool {
        let events = self.events.lock().expect("no test panicked in here");
        matches!(
            events.recv_timeout(patience),
            Ok(VsockEvent::GuestDialed { port: READY_PORT, .. })
        )
    }

    /// Waits until `vsock-peer` dials in, as it does when it has begun to listen.
    pub fn await_ready(&self) {
        drop(self.dialed(READY_PORT));
    }

    /// The next connection that the guest dials, which must be to `port`.
    pub fn dialed(&self, port: u32) -> UnixStream {
        match self.event() {
            VsockEvent::GuestDialed { port: dialed, stream, .. } => {
                assert_eq!(dialed, port, "the port that the guest dialled");
                patient(stream)
            }
            event @ VsockEvent::Gone { .. } => panic!("{event:?}; console:\n{}", self.console()),
        }
    }

    /// The next event.
    pub fn event(&self) -> VsockEvent {
        match self.events.lock().expect("no test panicked in here").recv_timeout(PATIENCE) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => {
                panic!("nothing happened; console:\n{}", self.console())
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the device ended without saying so"),
        }
    }

    /// Waits until the device has ended.
    pub fn gone(&self) -> GoneReason {
        match self.event() {
            VsockEvent::Gone { reason } => reason,
            event @ VsockEvent::GuestDialed { .. } => panic!("the device lives: {event:?}"),
        }
    }

    pub fn try_connect(&self, port: u32) -> Result<UnixStream, ConnectError> {
        let (sender, answer) = channel();
        self.handle().connect(port, move |result| drop(sender.send(result)));
        answer.recv_timeout(PATIENCE).expect("an answer").map(patient)
    }

    pub fn connect(&self, port: u32) -> UnixStream {
        self.try_connect(port)
            .unwrap_or_else(|error| panic!("{error}; console:\n{}", self.console()))
    }

    pub fn handle(&self) -> vsock::Handle {
        self.device.as_ref().expect("the device was not dropped").handle()
    }

    /// Lets `vsock-peer` do something; its answer.
    pub fn command(&self, command: &str) -> String {
        exchange(self.connect(10), command.as_bytes())
    }

    /// Stops the virtual CPUs, or lets them go on (`stop`, `cont`).
    pub fn qmp(&self, command: &str) {
        let stream = patient(UnixStream::connect(self.dir.path().join("qmp")).expect("QMP").into());
        let mut lines = BufReader::new(&stream).lines();
        let mut ask = |text: &str| {
            writeln!(&stream, "{{\"execute\":\"{text}\"}}").expect("QMP takes a command");
            loop {
                let line = lines.next().expect("QMP answers").expect("a line");
                assert!(!line.contains("\"error\""), "{line}");
                if line.contains("\"return\"") {
                    break;
                }
            }
        };
        ask("qmp_capabilities");
        ask(command);
    }

    /// Waits for QEMU to end by itself.
    pub fn ended(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.qemu.try_wait().expect("our child").is_none() {
            assert!(Instant::now() < deadline, "QEMU still runs; console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills QEMU.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes `text` and the end; the reply, to its end.
pub fn exchange(stream: UnixStream, text: &[u8]) -> String {
    (&stream).write_all(text).expect("the guest takes it");
    end_writing(&stream);
    let mut reply = String::new();
    (&stream).read_to_string(&mut reply).expect("the guest replies");
    reply
}

pub fn end_writing(stream: &UnixStream) {
    stream.shutdown(std::net::Shutdown::Write).expect("the stream is open");
}

/// A stream whose reads and writes fail instead of hanging for ever.
pub fn patient(stream: OwnedFd) -> UnixStream {
    let stream = UnixStream::from(stream);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn start_qemu(dir: &Path, vsock: OwnedFd, arguments: &[&str]) -> Child {
    let qemu = std::env::var_os("VMINITD_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
    let path = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(&qemu);
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-m", "512M", "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-kernel")
        .arg(kernel())
        .arg("-initrd")
        .arg(image())
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .args(["-serial", &format!("file:{}", path("console"))])
        .args(["-chardev", &format!("socket,id=qmp,server=on,wait=off,path={}", path("qmp"))])
        .args(["-mon", "chardev=qmp,mode=control"])
        .args([
            "-object",
            "memory-backend-memfd,id=mem0,size=512M,share=on",
            "-machine",
            "memory-backend=mem0",
        ])
        // Standard input is the one descriptor that is passed without unsafe code.
        .args(["-chardev", "socket,id=vs0,fd=0", "-device", "vhost-user-vsock-pci,chardev=vs0"])
        .args(arguments)
        .stdin(vsock)
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("qemu")).expect("a file in our own directory"));
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; `./dev test` installs QEMU", qemu.display()))
}

/// From VMINITD_KERNEL, or from the directory that `./dev build` leaves, which VMINITD_DIST names.
fn kernel() -> PathBuf {
    let kernel = std::env::var_os("VMINITD_KERNEL").map(PathBuf::from).or_else(|| {
        std::env::var_os("VMINITD_DIST")
            .map(|dist| Path::new(&dist).join("share/vminitd/x86_64/vmlinux"))
    });
    let kernel = kernel
        .expect("VMINITD_KERNEL or VMINITD_DIST names the guest kernel; `./dev test` sets it");
    assert!(kernel.is_file(), "{} is no guest kernel; `./dev kernel` makes one", kernel.display());
    kernel
}

/// An initramfs with `vsock-peer` as /init, packed once.
fn image() -> &'static Path {
    static IMAGE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let programs = std::env::var_os("VMINITD_TEST_GUEST")
            .expect("VMINITD_TEST_GUEST names the directory of the guest's test programs; `./dev test` sets it");
        let peer = Path::new(&programs).join("vsock-peer");
        let tree = Tree::with_init(&peer).unwrap_or_else(|error| panic!("{error}; `./dev test` builds it"));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("initramfs.cpio");
        let mut file = File::create(&path).expect("a file in our own directory");
        initramfs::newc::write(&tree, &mut file).expect("packing an initramfs");
        (dir, path)
    });
    path
}

/// A thousand connections have two descriptors each here.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be the hard one");
}
