//! A running VM, as its owner has it: what boots it, reaches it, and learns how it ended.
//!
//! Owns: the vminit-vmm process, and the file that holds what the guest prints. Promises: dropping a [`Machine`] ends
//! the VM and leaves nothing but that file; an end is explained by the guest's own last words where it had any; when
//! the guest is through, so is the VM, whatever its hypervisor still waits for, as long as somebody waits for the end;
//! a guest that floods its console does not fill the disk.
//! Never: waits for the guest to serve. "Runs" is what the hypervisor says; who wants to know more dials it.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use crate::guest;
use crate::limits::{
    AFTER_GUEST_TIMEOUT, CONSOLE_FILE_BYTES, CONSOLE_TAIL_BYTES, MAX_CONSOLE_ARRIVALS,
    QUIT_TIMEOUT, REAP_TIMEOUT,
};
use crate::vm::{Description, Disk, MacAddress, Serial};
use crate::vmm::GuestStream;
pub use crate::vmm::client::Dial;
pub use crate::vmm::client::VmmError;
use crate::vmm::client::{OpenError, OpenFiles, Started, Vmm, open_disk};
pub use crate::vmm::{ExitReason, Exited};

/// What a Linux kernel prints in front of the reason for its panic.
const PANIC_MARK: &str = "Kernel panic - not syncing: ";

/// What PID 1 of ours prints in front of the reason for which it gives up.
const FATAL_MARK: &str = "vminitd: fatal: ";

/// What it prints in front of what was still dirty or busy when it ended the VM.
const LEFT_MARK: &str = ", left: ";

/// In which line.
const REPORT_MARK: &str = "vminitd: stop report: ";

/// How to boot.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// What runs the VM.
    pub vmm: VmmProgram,
    /// The file for what the guest prints. It is made, or emptied, and for its owner alone.
    pub console: PathBuf,
}

/// A program that runs one VM for its owner: a vminit-vmm.
#[derive(Clone, Debug)]
pub struct VmmProgram {
    /// The program.
    pub path: PathBuf,
    /// What it is told, in front of the control socket's number.
    pub arguments: Vec<OsString>,
}

impl From<PathBuf> for VmmProgram {
    fn from(path: PathBuf) -> Self {
        Self { path, arguments: Vec::new() }
    }
}

/// A VM that runs, or has ended.
#[derive(Debug)]
pub struct Machine {
    vmm: Vmm,
    started: Started,
    spawned_at: Instant,
    console: PathBuf,
    /// True when the last byte of the console is in its file.
    console_whole: watch::Receiver<bool>,
    /// True when the guest has printed its stop report: all that is left to it is to turn itself off.
    reported: watch::Receiver<bool>,
    /// It did not turn itself off in time.
    overdue: AtomicBool,
    arrivals: Arrivals,
}

/// How many bytes of the console had come, and when: the first [`MAX_CONSOLE_ARRIVALS`] times that some came.
type Arrivals = Arc<Mutex<Vec<(u64, Instant)>>>;

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file of the description's. The caller's fault.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The console's file cannot be made. The caller's fault.
    #[error("make the console file {path:?}")]
    Console {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// This process has no descriptor or thread left.
    #[error("set up the console")]
    Pipe(#[source] io::Error),
    /// vminit-vmm cannot be started, or could not start the VM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// Why the guest could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there. While the guest boots, try again.
    #[error("guest refused the connection to port {port}")]
    Refused {
        /// The port.
        port: u32,
    },
    /// The guest's kernel has not come that far. Try again.
    #[error("guest is not up yet")]
    NotUp,
    /// There is no guest any more.
    #[error("the VM has ended: {exited}")]
    Gone {
        /// How it ended.
        exited: Exited,
    },
    /// vminit-vmm could not do it.
    #[error("dial the guest's port {port}")]
    Failed {
        /// The port.
        port: u32,
        /// Its reason.
        #[source]
        source: VmmError,
    },
}

/// Why a disk was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its image. The caller's fault.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The VM has no room for it, or another one of that name; the guest keeps it; or there is no VM any more.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

impl ConnectError {
    /// True when the guest may be dialled with success a little later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotUp)
    }
}

impl Machine {
    /// Starts vminit-vmm, and the VM in it; returns when the hypervisor runs it. Dials of the guest are refused; see
    /// [`Machine::boot_with_dials`].
    pub async fn boot(vm: Description, options: BootOptions) -> Result<Self, BootError> {
        Self::boot_with_dials(vm, options).await.map(|(machine, _)| machine)
    }

    /// The same for a VM whose guest may dial ports of the host ([`Description::guest_dials`]): they come out of the
    /// second. One that nobody takes is closed.
    pub async fn boot_with_dials(
        vm: Description,
        options: BootOptions,
    ) -> Result<(Self, tokio::sync::mpsc::Receiver<Dial>), BootError> {
        let files = OpenFiles::open(&vm)?;
        let file = create(&options.console)
            .map_err(|source| BootError::Console { path: options.console.clone(), source })?;
        let arrivals = Arrivals::default();
        let (guests_end, console_whole, reported) =
            record(file, arrivals.clone()).map_err(BootError::Pipe)?;
        let spawned_at = Instant::now();
        let (vmm, dials) = Vmm::spawn(&options.vmm.path, &options.vmm.arguments)?;
        let started = vmm.start(&vm, files, guests_end).await?;
        let console = options.console;
        let overdue = AtomicBool::new(false);
        let machine =
            Self { vmm, started, spawned_at, console, console_whole, reported, overdue, arrivals };
        Ok((machine, dials))
    }

    /// Dials `port` of the guest, once.
    pub async fn connect(&self, port: u32) -> Result<GuestStream, ConnectError> {
        match self.vmm.connect(port).await {
            Ok(stream) => Ok(stream),
            Err(VmmError::Refused { code: ErrorCode::Refused, .. }) => {
                Err(ConnectError::Refused { port })
            }
            Err(VmmError::Refused { code: ErrorCode::NotUp, .. }) => Err(ConnectError::NotUp),
            Err(VmmError::Refused { code: ErrorCode::State, .. } | VmmError::Ended(_)) => {
                Err(ConnectError::Gone { exited: self.exited().await })
            }
            Err(source) => Err(ConnectError::Failed { port, source }),
        }
    }

    /// Gives the running guest one more disk, where there is a slot for it ([`Description::hotplug_slots`]). When this
    /// returns the guest is about to find it, and a mount that names its serial waits for it.
    pub async fn attach_disk(&self, disk: &Disk) -> Result<(), DiskError> {
        let file = open_disk(disk)?;
        Ok(self.vmm.attach_disk(disk, file).await?)
    }

    /// Takes such a disk away again; returns when the guest has let it go and nothing has its image open. Nothing of
    /// it should be mounted any more: its filesystem would lose the disk under it.
    pub async fn detach_disk(&self, serial: &Serial) -> Result<(), DiskError> {
        Ok(self.vmm.detach_disk(serial).await?)
    }

    /// Gives the running guest one more interface, connected to `tap`; the guest is about to find it.
    pub async fn attach_tap(&self, mac: MacAddress, tap: OwnedFd) -> Result<(), VmmError> {
        self.vmm.attach_tap(mac, tap).await
    }

    /// Takes such an interface away again, or one that was removable from the start; returns when the guest has let it go.
    pub async fn detach_nic(&self, mac: MacAddress) -> Result<(), VmmError> {
        self.vmm.detach_nic(mac).await
    }

    /// Waits for the VM's end; for any number of callers, also after it.
    pub async fn exited(&self) -> Exited {
        let mut exited = tokio::select! {
            exited = self.vmm.exited() => exited,
            () = self.past_its_end() => {
                self.overdue.store(true, Ordering::Relaxed);
                self.kill().await;
                self.vmm.exited().await
            }
        };
        if exited.reason == ExitReason::Killed && self.overdue.load(Ordering::Relaxed) {
            let seconds = AFTER_GUEST_TIMEOUT.as_secs();
            exited.detail = format!("the guest was through, and {seconds} s later not yet off");
        }
        // The console's last byte comes with the hypervisor's end. A vminit-vmm that died may have left it with others.
        let _ = timeout(REAP_TIMEOUT, self.console_whole.clone().wait_for(|whole| *whole)).await;
        explain(exited, &tail(&self.console))
    }

    /// Waits until the guest should be off. QEMU asks each file server for its last word when the guest lets its
    /// devices go, and waits for one that stands still; nobody can speak to it meanwhile.
    async fn past_its_end(&self) {
        if self.reported.clone().wait_for(|reported| *reported).await.is_err() {
            // The console has ended without one.
            return std::future::pending().await;
        }
        sleep(AFTER_GUEST_TIMEOUT).await;
    }

    /// What executes the guest's instructions: `kvm`, `tcg`.
    pub fn accelerator(&self) -> &str {
        &self.started.accelerator
    }

    /// Why that is not the fastest that there is; empty when it is.
    pub fn accelerator_reason(&self) -> &str {
        &self.started.accelerator_reason
    }

    /// The process that executes the guest, where that is not vminit-vmm itself.
    pub fn qemu_pid(&self) -> Option<i32> {
        i32::try_from(self.started.pid).ok().filter(|pid| *pid > 0)
    }

    /// The pid of vminit-vmm.
    pub fn vmm_pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// When vminit-vmm was started.
    pub fn spawned_at(&self) -> Instant {
        self.spawned_at
    }

    /// The last lines that the guest has printed.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        console_tail(&self.console, lines)
    }

    /// How many bytes of the console had come, and when, in order; the earliest of them.
    pub fn console_arrivals(&self) -> Vec<(u64, Instant)> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file that holds what the guest has printed.
    pub fn console_path(&self) -> &Path {
        &self.console
    }

    /// Counts how often time has passed of which the guest knows nothing: the host has slept, or the VM was begun from
    /// a saved state. See [`crate::guest::wake::follow`].
    pub fn wakes(&self) -> watch::Receiver<u64> {
        self.vmm.wakes()
    }

    /// Writes the VM's state to a new file, for a VM of the same description to begin from
    /// ([`crate::vm::Options::restore`]). The guest stands meanwhile, and goes on.
    pub async fn save(&self, path: &Path) -> Result<(), VmmError> {
        self.vmm.save(path).await
    }

    /// Presses the guest's power button. Whether it heeds it shows in [`Machine::exited`].
    pub async fn power_down(&self) {
        // A VM that has ended needs no button.
        let _ = self.vmm.power_button().await;
    }

    /// Ends the VM without asking the guest, but with what its disks hold written back; returns when it is gone.
    pub async fn stop(&self) {
        let _ = self.vmm.stop().await;
        if timeout(2 * QUIT_TIMEOUT, self.vmm.exited()).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends the VM; returns when it is gone.
    pub async fn kill(&self) {
        let ended = async {
            let _ = self.vmm.kill().await;
            self.vmm.exited().await
        };
        if timeout(QUIT_TIMEOUT, ended).await.is_err() {
            // vminit-vmm itself is stuck: its end ends the rest.
            self.vmm.kill_process();
            self.vmm.exited().await;
        }
    }
}

#[async_trait]
impl guest::Dial for Machine {
    async fn dial(&self, port: u32) -> io::Result<GuestStream> {
        self.connect(port).await.map_err(|error| {
            let kind = match &error {
                ConnectError::Refused { .. } | ConnectError::NotUp => {
                    io::ErrorKind::ConnectionRefused
                }
                ConnectError::Gone { .. } => io::ErrorKind::NotConnected,
                ConnectError::Failed { .. } => io::ErrorKind::Other,
            };
            io::Error::new(kind, error)
        })
    }
}

/// The last lines of a console's file; empty when there is none. Control characters are left out: a guest shall not
/// drive the terminal of who reads this.
pub fn console_tail(path: &Path, lines: usize) -> Vec<String> {
    let text = tail(path);
    let all: Vec<&str> = text.lines().collect();
    let printable =
        |line: &&str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
    all[all.len().saturating_sub(lines)..].iter().map(printable).collect()
}

fn create(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// A pipe whose other end is written to `file`, by a thread that ends with the last holder of the pipe. Not the file
/// itself: nobody could keep its size within bounds.
fn record(mut file: File, arrivals: Arrivals) -> io::Result<Recorded> {
    let (reader, writer) = io::pipe()?;
    let (reported, is_reported) = watch::channel(false);
    let mut reader = Noting { reader, total: 0, arrivals, matched: 0, reported };
    let (whole, is_whole) = watch::channel(false);
    let record = move || {
        // A console that cannot be read or written is worth no more than that.
        let _ = copy_bounded(&mut reader, &mut file);
        whole.send_replace(true);
    };
    std::thread::Builder::new().name("console".into()).stack_size(64 << 10).spawn(record)?;
    Ok((writer.into(), is_whole, is_reported))
}

/// The pipe's end for the guest; whether the file is whole; whether the guest has reported its end.
type Recorded = (OwnedFd, watch::Receiver<bool>, watch::Receiver<bool>);

/// A reader that notes when something came, and when the stop report did.
struct Noting<R> {
    reader: R,
    total: u64,
    arrivals: Arrivals,
    /// How much of [`REPORT_MARK`] has come last.
    matched: usize,
    reported: watch::Sender<bool>,
}

impl<R> Noting<R> {
    fn look_for_report(&mut self, bytes: &[u8]) {
        let mark = REPORT_MARK.as_bytes();
        for byte in bytes {
            // Its first letter is in it once, so that a beginning cannot overlap another.
            self.matched = if *byte == mark[self.matched] {
                self.matched + 1
            } else {
                usize::from(*byte == mark[0])
            };
            if self.matched == mark.len() {
                self.reported.send_replace(true);
                self.matched = 0;
            }
        }
    }
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.total += read as u64;
        self.look_for_report(&buffer[..read]);
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if read > 0 && arrivals.len() < MAX_CONSOLE_ARRIVALS {
            arrivals.push((self.total, Instant::now()));
        }
        Ok(read)
    }
}

fn copy_bounded(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let (mut buffer, mut left, mut cut) = ([0; 4096], CONSOLE_FILE_BYTES, false);
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // Reading goes on in any case: a full pipe would stop the guest.
        let keep = read.min(usize::try_from(left).unwrap_or(read));
        left -= keep as u64;
        if !cut && to.write_all(&buffer[..keep]).is_err() {
            cut = true;
        }
        if !cut && keep < read {
            cut = true;
            let _ = to.write_all(b"\n[console: the rest is left out]\n");
        }
    }
}

fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_TAIL_BYTES as u64)))?;
        let mut bytes = Vec::new();
        file.take(CONSOLE_TAIL_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Adds the guest's last words to an end that the hypervisor could only describe from outside.
fn explain(exited: Exited, console: &str) -> Exited {
    let said = |mark: &str| {
        let line = console.lines().rfind(|line| line.contains(mark))?;
        let (_, reason) = line.split_once(mark)?;
        Some(reason.chars().filter(|c| !c.is_control()).collect::<String>())
    };
    match (exited.reason, said(PANIC_MARK), said(FATAL_MARK)) {
        (ExitReason::Reboot | ExitReason::Panic, Some(detail), fatal) => {
            let detail =
                fatal.map_or(detail.clone(), |fatal| format!("{detail}; vminitd: fatal: {fatal}"));
            Exited { reason: ExitReason::Panic, detail }
        }
        (ExitReason::PowerOff | ExitReason::Reboot, None, Some(fatal)) => {
            Exited { detail: format!("vminitd: fatal: {fatal}"), ..exited }
        }
        (ExitReason::PowerOff | ExitReason::Reboot, None, None) => {
            match said(REPORT_MARK).as_deref().and_then(|report| report.split_once(LEFT_MARK)) {
                Some((_, left)) => Exited { detail: format!("left: {left}"), ..exited },
                None => exited,
            }
        }
        (_, _, _) => exited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(reason: ExitReason) -> Exited {
        Exited { reason, detail: String::new() }
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic_with_its_reason() {
        let console = "[    1.0] Kernel panic - not syncing: VFS: no root\r\n[    1.1] ---[ end Kernel panic ]---\r\n";
        let told = explain(exited(ExitReason::Reboot), console);
        assert_eq!(told.to_string(), "panic (VFS: no root)");
    }

    #[test]
    fn a_power_off_for_a_fatal_reason_tells_it() {
        let told =
            explain(exited(ExitReason::PowerOff), "noise\nvminitd: fatal: mount /proc: EPERM\n");
        assert_eq!(told.to_string(), "power-off (vminitd: fatal: mount /proc: EPERM)");
    }

    #[test]
    fn a_power_off_that_left_something_tells_what() {
        let report =
            "vminitd: stop report: power-off after 9 ms, left: unmount /x (ext4): busy\r\n";
        let told = explain(exited(ExitReason::PowerOff), report);
        assert_eq!(told.to_string(), "power-off (left: unmount /x (ext4): busy)");
        let clean = "vminitd: stop report: reboot after 9 ms, nothing left\r\n";
        assert_eq!(explain(exited(ExitReason::Reboot), clean), exited(ExitReason::Reboot));
    }

    #[test]
    fn an_end_that_the_guest_did_not_bring_about_keeps_its_own_reason() {
        let told = explain(exited(ExitReason::Killed), "Kernel panic - not syncing: x\n");
        assert_eq!(told, exited(ExitReason::Killed));
        assert_eq!(
            explain(exited(ExitReason::PowerOff), "all is well\n"),
            exited(ExitReason::PowerOff)
        );
    }

    #[test]
    fn the_tail_is_the_last_lines_without_what_drives_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        assert!(console_tail(&path, 3).is_empty());
        std::fs::write(&path, "one\r\ntwo\r\n\x1b[2Jthree\nfour").unwrap();
        assert_eq!(console_tail(&path, 2), ["[2Jthree", "four"]);
        assert_eq!(console_tail(&path, 99).len(), 4);
    }

    #[test]
    fn a_flood_is_cut_and_drained() {
        let mut flood = io::repeat(b'x').take(CONSOLE_FILE_BYTES + 100_000);
        let mut kept = Vec::new();
        copy_bounded(&mut flood, &mut kept).unwrap();
        assert_eq!(flood.limit(), 0);
        assert!(
            (CONSOLE_FILE_BYTES as usize..CONSOLE_FILE_BYTES as usize + 100).contains(&kept.len())
        );
        assert!(kept.ends_with(b"[console: the rest is left out]\n"));
    }

    #[test]
    fn a_stop_report_is_noticed_wherever_it_is_cut() {
        let line = "\r\nvvminitd: vminitd: stop report: power-off after 9 ms, nothing left\r\n";
        for cut in 0..line.len() {
            let (reported, is_reported) = watch::channel(false);
            let reader = io::empty();
            let mut noting =
                Noting { reader, total: 0, arrivals: Arrivals::default(), matched: 0, reported };
            let (one, other) = line.split_at(cut);
            noting.look_for_report(one.as_bytes());
            noting.look_for_report(other.as_bytes());
            assert!(*is_reported.borrow(), "{one:?} {other:?}");
            noting.reported.send_replace(false);
            noting.look_for_report(b"vminitd: stop repor");
            assert!(!*is_reported.borrow());
        }
    }

    #[test]
    fn the_console_file_is_for_its_owner_alone_and_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        std::fs::write(&path, "old").unwrap();
        create(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (0, 0o600));
    }
}
