//! One VM for one test.
//!
//! Owns: the machine, its console and the recorded events. Promises: the VM is gone when the test is, and a failure
//! shows the console's and the events' last lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use host_shim::dials;
use host_shim::guest::{Guest, Ports, resume_after, unlimited};
use host_shim::images::{ROOT_IMAGE_CMDLINE, ROOT_IMAGE_SERIAL};
use host_shim::machine::{BootOptions, Exited, Machine, console_tail};
use host_shim::vm::{Accelerator, Arch, Description, Disk, Draft, Nic, Share, Tag, VmName};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::types::Envelope;
use vminitd_protocol::pb::google::protobuf::Empty;

use crate::PATIENCE_S;
use crate::counting;
use crate::images::root_image;
use crate::leaks::Listing;
use crate::rootfs::rootfs;

/// The tag of the share with the root filesystem.
pub const ROOTFS_TAG: &str = "rootfs";

/// Lines of the console that a failure shows.
const TAIL_LINES: usize = 40;

/// A VM that does not print a single byte within this time is booted once more, and the retry is reported.
const SILENT_BOOT: Duration = Duration::from_secs(60);

/// How the VM differs from the usual.
#[derive(Clone, Debug)]
pub struct Options {
    /// Words for the kernel command line.
    pub append: String,
    /// Memory.
    pub memory: &'static str,
    /// CPUs.
    pub cpus: u32,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Ports of the host that the guest may dial, and the sockets that they are.
    pub guest_dials: BTreeMap<u32, PathBuf>,
    /// Directories of the host, beside the root filesystem's.
    pub shares: Vec<Share>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Another initramfs.
    pub initramfs: Option<PathBuf>,
    /// No initramfs: a read-only root on the first disk.
    pub erofs_root: bool,
    /// Emulated at a nanosecond an instruction, see [`crate::counting`].
    pub counted: bool,
    /// Look for leaks, and power off through the guest, when the test is through.
    pub look_for_leaks: bool,
}

impl Default for Options {
    fn default() -> Self {
        let append = "vminitd.log=info".to_owned();
        Self {
            append,
            memory: "256M",
            cpus: 1,
            disks: Vec::new(),
            guest_dials: BTreeMap::new(),
            shares: Vec::new(),
            nics: Vec::new(),
            initramfs: None,
            erofs_root: false,
            counted: false,
            look_for_leaks: true,
        }
    }
}

/// A guest that serves.
pub struct Vm {
    machine: Arc<Machine>,
    guest: Mutex<Guest>,
    console: PathBuf,
    events: Arc<Mutex<Vec<Envelope>>>,
    listener: Mutex<JoinHandle<()>>,
    booted: Instant,
    /// How many disks it has before those that the test gave it.
    first_disk: u8,
    /// How long the first agent took from the spawn to its first answer.
    pub first_start: Duration,
    _directory: TempDir,
}

/// Runs `test` with a VM of its own, then looks for leaks and powers off.
pub fn vm_test(test: impl AsyncFnOnce(&Vm)) {
    vm_test_with(Options::default(), test);
}

/// The same for a VM that is not the usual one.
pub fn vm_test_with(options: Options, test: impl AsyncFnOnce(&Vm)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let look_for_leaks = options.look_for_leaks;
        let vm = Vm::boot(options).await;
        let before = if look_for_leaks { Some(Listing::of(&vm).await) } else { None };
        test(&vm).await;
        if let Some(before) = before {
            vm.assert_nothing_left(&before).await;
            let exited = vm.power_off().await;
            assert_eq!(exited.reason.to_string(), "power-off", "{exited}");
        }
    });
}

/// The same in a VM that boots from an initramfs, and in one that boots from a read-only root on a disk.
pub fn vm_test_on_each_medium(options: Options, test: impl AsyncFn(&Vm)) {
    for erofs_root in [false, true] {
        vm_test_with(Options { erofs_root, ..options.clone() }, async |vm| test(vm).await);
    }
}

/// The same, but on the second medium only where `VMINITD_TEST_MEDIA=all` asks for it, as `./dev test-all` does: for what
/// differs so little there that a VM more at each change does not pay.
pub fn vm_test_on_each_medium_in_test_all(options: Options, test: impl AsyncFn(&Vm)) {
    let all = std::env::var_os("VMINITD_TEST_MEDIA").is_some_and(|media| media == "all");
    match all {
        true => vm_test_on_each_medium(options, test),
        false => vm_test_with(options, async |vm| test(vm).await),
    }
}

impl Vm {
    /// Boots, and waits until the guest serves.
    pub async fn boot(options: Options) -> Self {
        match Self::try_boot(&options).await {
            Ok(vm) => vm,
            Err(failure) if failure.silent => {
                eprintln!(
                    "REPORT: a VM printed nothing for {} s and is booted again",
                    SILENT_BOOT.as_secs()
                );
                Self::try_boot(&options)
                    .await
                    .unwrap_or_else(|failure| panic!("second boot: {}", failure.text))
            }
            Err(failure) => panic!("{}", failure.text),
        }
    }

    async fn try_boot(options: &Options) -> Result<Self, BootFailure> {
        let directory =
            tempfile::Builder::new().prefix("vminitd-test-").tempdir().expect("a directory");
        let console = directory.path().join("console.log");
        let started = Instant::now();
        let machine = Arc::new(Self::spawn(options, &console).await);
        let patience = Duration::from_secs(PATIENCE_S);
        let connect = Guest::connect(machine.clone(), Ports::default(), patience);
        let silent = async {
            tokio::time::sleep(SILENT_BOOT).await;
            while std::fs::metadata(&console).is_ok_and(|file| file.len() > 0) {
                tokio::time::sleep(SILENT_BOOT).await;
            }
        };
        let tail = || console_tail(&console, TAIL_LINES).join("\n");
        let guest = tokio::select! {
            guest = connect => guest.map_err(|error| BootFailure::loud(format!("{error}: {}\n{}", error.last, tail())))?,
            exited = machine.exited() => {
                return Err(BootFailure::loud(format!("the VM ended before it served: {exited}\n{}", tail())));
            }
            () = silent => return Err(BootFailure { silent: true, text: "nothing on the console".to_owned() }),
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let listener = listen(&guest, events.clone()).await;
        let first_start = started.elapsed();
        let guest = Mutex::new(guest);
        let booted = Instant::now();
        Ok(Self {
            machine,
            guest,
            console,
            events,
            listener: Mutex::new(listener),
            booted,
            first_disk: options.erofs_root.into(),
            first_start,
            _directory: directory,
        })
    }

    /// A machine of which nothing more is known than that QEMU was started.
    pub async fn spawn(options: &Options, console: &std::path::Path) -> Machine {
        let (dist, share) = (host_dist(), guest_share());
        let mut disks = options.disks.clone();
        let mut append = options.append.clone();
        let mut initramfs = options.initramfs.clone();
        if options.erofs_root {
            let path = root_image(console.parent().expect("a file in a directory"));
            let serial = ROOT_IMAGE_SERIAL.parse().expect("a serial");
            disks.insert(0, Disk { serial, path, read_only: true });
            append = format!("{append} {ROOT_IMAGE_CMDLINE}");
        } else {
            initramfs.get_or_insert_with(|| share.join("initramfs.cpio.zst"));
        }
        let mut shares = vec![Share {
            tag: Tag::try_from(ROOTFS_TAG.to_owned()).expect("a tag"),
            path: rootfs().to_owned(),
            read_only: true,
        }];
        shares.extend(options.shares.iter().cloned());
        let draft = Draft {
            name: VmName::try_from(format!("test-{}", std::process::id())).expect("a name"),
            arch: arch(),
            kernel: share.join(arch().kernel_file()),
            initramfs,
            cmdline: append.parse().expect("words for a command line"),
            memory: options.memory.parse().expect("a size"),
            cpus: options.cpus,
            guest_cid: Default::default(),
            guest_dials: options.guest_dials.keys().copied().collect(),
            disks,
            hotplug_slots: Default::default(),
            shares,
            nics: options.nics.clone(),
            accelerator: if options.counted { Accelerator::Emulation } else { Default::default() },
            options: Default::default(),
        };
        let description = Description::try_from(draft).expect("a VM that makes sense");
        let mut vmm = dist.join("bin/vminit-vmm");
        if options.counted {
            let directory = console.parent().expect("a file in a directory");
            vmm = counting::vmm(directory, &vmm).expect("a QEMU that counts");
        }
        let boot = BootOptions { vmm: vmm.into(), console: console.to_owned() };
        let booted = Machine::boot_with_dials(description, boot).await;
        let (machine, dials) = booted.unwrap_or_else(|error| {
            let mut text = error.to_string();
            let mut next = std::error::Error::source(&error);
            while let Some(cause) = next {
                text = format!("{text}: {cause}");
                next = cause.source();
            }
            panic!("boot: {text}")
        });
        let tell = |port, path: &Path, error| println!("dial of {port}: {path:?}: {error}");
        tokio::spawn(dials::serve(dials, options.guest_dials.clone(), tell));
        machine
    }

    /// The guest's services, on the connection that the VM has now.
    pub fn guest(&self) -> Guest {
        self.guest.lock().expect("no test panics with it").clone()
    }

    /// The machine.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The guest's node of the disk `index` of [`Options::disks`], of the first two dozen.
    pub fn disk_node(&self, index: u8) -> String {
        format!("/dev/vd{}", char::from(b'a' + self.first_disk + index))
    }

    /// Whether it boots from a read-only root, where only /run, /tmp and /dev have new directories.
    pub fn has_erofs_root(&self) -> bool {
        self.first_disk > 0
    }

    /// A new connection, for example after the agent was killed; events go on behind the last one recorded.
    pub async fn reconnect(&self) {
        let patience = Duration::from_secs(PATIENCE_S);
        let guest = self
            .guest()
            .reconnect(patience)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", error.last));
        // First, so that nothing is recorded twice.
        self.listener.lock().expect("no test panics with it").abort();
        let listener = listen(&guest, self.events.clone()).await;
        *self.listener.lock().expect("no test panics with it") = listener;
        *self.guest.lock().expect("no test panics with it") = guest;
    }

    /// How many agents have served in this VM, by the console.
    pub fn agents(&self) -> usize {
        let serves = |line: &&str| line.contains("init: agent ") && line.contains(" serves");
        self.console().lines().filter(serves).count()
    }

    /// Waits until more than `before` agents have served, and connects to the last. One that is being killed may
    /// well answer until it is gone.
    pub async fn reconnect_to_another_than(&self, before: usize) {
        let another = async {
            while self.agents() <= before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(PATIENCE_S), another).await.expect("another agent");
        self.reconnect().await;
    }

    /// Events so far, in the order in which they came.
    pub fn events(&self) -> Vec<Envelope> {
        self.events.lock().expect("no test panics with it").clone()
    }

    /// Waits until an event of this topic was published about `container` `count` times.
    pub async fn await_events(&self, topic: &str, container: &str, count: usize) {
        let seen = async {
            while self
                .events()
                .iter()
                .filter(|e| e.topic == topic && mentions(e, container))
                .count()
                < count
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_secs(PATIENCE_S);
        timeout(patience, seen)
            .await
            .unwrap_or_else(|_| panic!("no {count} events {topic} of {container}"));
    }

    /// Topics of the events about `container`, in order.
    pub fn topics(&self, container: &str) -> Vec<String> {
        self.events()
            .into_iter()
            .filter(|event| mentions(event, container))
            .map(|event| event.topic)
            .collect()
    }

    /// Everything on the console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Fails if the guest holds more than at `before`. What ends in the background gets some time to.
    pub async fn assert_nothing_left(&self, before: &Listing) {
        let mut left = Vec::new();
        for _ in 0..20 {
            left = Listing::of(self).await.grown_since(before);
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        panic!("the guest keeps what it should have freed:\n  {}", left.join("\n  "));
    }

    /// Asks the guest to power off, and waits for the VM's end.
    pub async fn power_off(&self) -> Exited {
        let ended = async {
            // The connection may break before the answer: what counts is the end.
            let _ = self.guest().system().prepare_shutdown(unlimited(), &Empty {}).await;
            self.machine.exited().await
        };
        timeout(Duration::from_secs(PATIENCE_S), ended)
            .await
            .expect("the guest powers off when asked")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console, {:.1} s after the boot:", self.booted.elapsed().as_secs_f64());
            eprintln!("{}", console_tail(&self.console, TAIL_LINES).join("\n"));
            eprintln!(
                "--- events: {:?}",
                self.events().iter().rev().take(12).map(|e| &e.topic).collect::<Vec<_>>()
            );
        }
    }
}

struct BootFailure {
    silent: bool,
    text: String,
}

impl BootFailure {
    fn loud(text: String) -> Self {
        Self { silent: false, text }
    }
}

async fn listen(guest: &Guest, record: Arc<Mutex<Vec<Envelope>>>) -> JoinHandle<()> {
    let events = guest.events();
    let last = record.lock().expect("no test panics with it").last().map_or(0, |event| event.seq);
    let mut stream =
        events.stream(resume_after(last), &Empty {}).await.expect("a stream of events");
    tokio::spawn(async move {
        let _client = events;
        while let Ok(Some(envelope)) = stream.recv().await {
            record.lock().expect("no test panics with it").push(envelope);
        }
    })
}

/// Every event of a container carries its id as field 1, or (exec events aside) in its payload's bytes.
fn mentions(event: &Envelope, container: &str) -> bool {
    let Some(any) = &event.event else { return false };
    let length = container.len() as u8;
    any.value
        .windows(container.len() + 2)
        .any(|w| w[0] == 0x0a && w[1] == length && &w[2..] == container.as_bytes())
}

/// The architecture of the guests that are tested: `./dev test --arch` says which, else this machine's own.
pub fn arch() -> Arch {
    static ARCH: LazyLock<Arch> = LazyLock::new(|| match std::env::var("VMINITD_ARCH") {
        Ok(name) => name.parse().unwrap_or_else(|error| panic!("VMINITD_ARCH: {error}")),
        Err(_) => Arch::HOST,
    });
    *ARCH
}

/// What the guest is made of.
pub fn guest_share() -> PathBuf {
    host_dist().join("share/vminitd").join(arch().name())
}

fn host_dist() -> PathBuf {
    std::env::var_os("VMINITD_DIST")
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("VMINITD_DIST is not set; run the VM tests with `./dev test`"))
}
