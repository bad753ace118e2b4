//! The owner's end of the control socket.
//!
//! Owns: the vminit-vmm process, and the task that reads from it. Promises: every request gets an answer or an error,
//! also when vminit-vmm dies; dropping [`Vmm`] ends the VM and all that served it.
//! Never: blocks the runtime; loses a connection that arrived for a caller who no longer waits (it is closed).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::FlockArg;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use vminitd_protocol::pb::vminitd::vmm::v1 as pb;

use super::frame::{Decoder, encode};
use super::{ExitReason, Exited, GuestStream, PROTOCOL, paths};
use crate::limits::{AT_EXEC, MAX_QUEUED_DIALS, REAP_TIMEOUT, STDERR_TAIL_BYTES};
use crate::sys::{self, scm};
use crate::vm::{Description, Disk, MacAddress, Serial, to_disk};

/// A running vminit-vmm and the one VM in it.
#[derive(Debug)]
pub struct Vmm {
    line: Line,
    exit: watch::Receiver<Option<Exited>>,
    wakes: watch::Receiver<u64>,
    /// Ends with the VM, or is aborted by the drop.
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    pid: u32,
}

/// What the guest dials. It waits until [`Dial::accept`]; dropping this refuses it.
#[derive(Debug)]
pub struct Dial {
    /// The port of the host.
    pub port: u32,
    stream: GuestStream,
    /// vminit-vmm's name for it.
    dial: u64,
    line: Line,
}

impl Dial {
    /// Answers the guest. The stream is usable at once; a guest that has given up meanwhile shows as its end. Who closes
    /// it before anything came may be faster than the answer, and have refused.
    pub fn accept(self) -> GuestStream {
        let accept = pb::Accept { dial: self.dial };
        // Nobody waits for the answer: a VM that has ended shows in the stream.
        let _ = self.line.ask(pb::request::Kind::Accept(accept), Vec::new());
        self.stream
    }
}

/// What runs the VM.
#[derive(Clone, Debug)]
pub struct Started {
    /// For people: `kvm`, `tcg`.
    pub accelerator: String,
    /// Why it is not the fastest; empty when it is.
    pub accelerator_reason: String,
    /// The process that runs the guest.
    pub pid: u32,
}

/// Why there is no VM, or why a request to vminit-vmm failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The program is missing or cannot be executed.
    #[error("start {program:?}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// This process has no descriptor left.
    #[error("make the control socket of vminit-vmm")]
    Socket(#[source] io::Error),
    /// The VM has ended, or vminit-vmm has; the request may have been carried out or not.
    #[error("the VM has ended: {0}")]
    Ended(Exited),
    /// vminit-vmm has refused or failed.
    #[error("{text}")]
    Refused {
        /// Whose fault.
        code: pb::ErrorCode,
        /// For people.
        text: String,
    },
    /// vminit-vmm answered something else than was asked.
    #[error("vminit-vmm gave no answer to {request}")]
    Answer {
        /// The request.
        request: &'static str,
    },
}

impl Vmm {
    /// Starts `program` (a vminit-vmm) with `arguments` of its own, which then waits for [`Vmm::start`]. Dials of the guest come out of the second.
    ///
    /// Its control socket is its standard input: an fd that no other process started at the same moment can inherit,
    /// and that needs no code between fork and exec. It gets a process group of its own, so that a terminal's Ctrl-C
    /// does not reach it.
    pub fn spawn(
        program: &Path,
        arguments: &[OsString],
    ) -> Result<(Self, mpsc::Receiver<Dial>), VmmError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(VmmError::Socket)?;
        ours.set_nonblocking(true).map_err(VmmError::Socket)?;
        let socket = Arc::new(UnixStream::from_std(ours).map_err(VmmError::Socket)?);
        let log = tempfile::tempfile().map_err(VmmError::Socket)?;
        let stderr = log.try_clone().map_err(VmmError::Socket)?;
        let child = Command::new(program)
            .args(arguments)
            .args(["--control-fd", "0"].map(OsStr::new))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| VmmError::Spawn { program: program.to_owned(), source })?;
        let pid = child.id().unwrap_or_default();
        let (frames, to_write) = mpsc::unbounded_channel();
        let line = Line { frames, waiting: Arc::default(), next_id: Arc::new(AtomicU64::new(1)) };
        let (dials, dialed) = mpsc::channel(MAX_QUEUED_DIALS);
        let (exit_sender, exit) = watch::channel(None);
        let (woke, wakes) = watch::channel(0);
        let reader = Reader {
            socket: socket.clone(),
            line: line.clone(),
            dials,
            exit: exit_sender,
            woke,
            child,
            log,
            program: program.to_owned(),
            since: Instant::now(),
        };
        let reader = tokio::spawn(reader.run());
        let writer = tokio::spawn(write_frames(socket, to_write));
        Ok((Self { line, exit, wakes, reader, writer, pid }, dialed))
    }

    /// Makes and runs the VM. What the guest prints goes to `console`.
    pub async fn start(
        &self,
        vm: &Description,
        files: OpenFiles,
        console: OwnedFd,
    ) -> Result<Started, VmmError> {
        let OpenFiles(mut fds) = files;
        fds.push(console);
        let start = pb::Start { protocol: PROTOCOL, vm: Some(vm.into()) };
        match self.ask(pb::request::Kind::Start(start), fds).await? {
            Answer { kind: pb::reply::Kind::Started(started), .. } => {
                let pb::Started { accelerator, accelerator_reason, pid } = started;
                Ok(Started { accelerator, accelerator_reason, pid })
            }
            _ => Err(VmmError::Answer { request: "start" }),
        }
    }

    /// Dials `port` of the guest, once.
    pub async fn connect(&self, port: u32) -> Result<GuestStream, VmmError> {
        match self.ask(pb::request::Kind::Connect(pb::Connect { port }), Vec::new()).await? {
            Answer { stream: Some(stream), .. } => Ok(stream),
            _ => Err(VmmError::Answer { request: "connect" }),
        }
    }

    /// Gives the running guest one more disk, of which `file` is the image, open as the disk says.
    pub async fn attach_disk(&self, disk: &Disk, file: OwnedFd) -> Result<(), VmmError> {
        let attach = pb::AttachDisk { disk: Some(to_disk(disk)) };
        self.ask(pb::request::Kind::AttachDisk(attach), vec![file]).await.map(drop)
    }

    /// Takes such a disk away; returns when the guest has let it go.
    pub async fn detach_disk(&self, serial: &Serial) -> Result<(), VmmError> {
        let detach = pb::DetachDisk { serial: serial.to_string() };
        self.ask(pb::request::Kind::DetachDisk(detach), Vec::new()).await.map(drop)
    }

    /// Writes the VM's state to a new file, where its hypervisor can.
    pub async fn save(&self, path: &Path) -> Result<(), VmmError> {
        let path = path.as_os_str().as_encoded_bytes().to_vec();
        self.ask(pb::request::Kind::Save(pb::Save { path }), Vec::new()).await.map(drop)
    }

    /// Gives the running guest one more interface, connected to `tap`.
    pub async fn attach_tap(&self, mac: MacAddress, tap: OwnedFd) -> Result<(), VmmError> {
        let attach = pb::AttachTap { mac: mac.to_string() };
        self.ask(pb::request::Kind::AttachTap(attach), vec![tap]).await.map(drop)
    }

    /// Takes such an interface, or a removable one, away; returns when the guest has let it go.
    pub async fn detach_nic(&self, mac: MacAddress) -> Result<(), VmmError> {
        let detach = pb::DetachNic { mac: mac.to_string() };
        self.ask(pb::request::Kind::DetachNic(detach), Vec::new()).await.map(drop)
    }

    /// Asks the guest to power off, as a button on the case would.
    pub async fn power_button(&self) -> Result<(), VmmError> {
        self.ask(pb::request::Kind::PowerButton(pb::PowerButton {}), Vec::new()).await.map(drop)
    }

    /// Ends the VM without asking the guest, but with what its disks hold written back.
    pub async fn stop(&self) -> Result<(), VmmError> {
        self.ask(pb::request::Kind::Stop(pb::Stop {}), Vec::new()).await.map(drop)
    }

    /// Ends the VM now.
    pub async fn kill(&self) -> Result<(), VmmError> {
        self.ask(pb::request::Kind::Kill(pb::Kill {}), Vec::new()).await.map(drop)
    }

    /// Waits for the VM's end.
    pub async fn exited(&self) -> Exited {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(unexplained),
            // The reader was aborted: the runtime is shutting down.
            Err(_) => unexplained(),
        }
    }

    /// Counts how often time has passed of which the guest knows nothing: the host has slept.
    pub fn wakes(&self) -> watch::Receiver<u64> {
        self.wakes.clone()
    }

    /// The pid of vminit-vmm.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills vminit-vmm: the last resort when it no longer answers. The VM dies with it.
    pub fn kill_process(&self) {
        // The reader owns the child.
        self.reader.abort();
    }

    /// How the VM ended, if it has.
    pub fn exit(&self) -> Option<Exited> {
        self.exit.borrow().clone()
    }

    async fn ask(&self, kind: pb::request::Kind, fds: Vec<OwnedFd>) -> Result<Answer, VmmError> {
        let Some(answer) = self.line.ask(kind, fds) else {
            return Err(VmmError::Ended(self.exited().await));
        };
        match answer.await {
            Ok(Answer { kind: pb::reply::Kind::Error(error), .. }) => {
                Err(VmmError::Refused { code: error.code(), text: error.text })
            }
            Ok(answer) => Ok(answer),
            // Nobody can answer any more: the exit is known, or about to be.
            Err(_) => Err(VmmError::Ended(self.exited().await)),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // The reader owns the child, which dies with it; the socket closes with both.
        self.reader.abort();
        self.writer.abort();
    }
}

/// A VM's files, open: all but the console.
#[derive(Debug)]
pub struct OpenFiles(Vec<OwnedFd>);

/// A file of the VM's cannot be opened. The caller's fault mostly; the path is in it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("open the {what} {path:?}")]
    Open {
        /// `kernel`, `initramfs` or `disk`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another VM writes the disk, or this one would write what another reads.
    #[error("the disk {path:?} is in use: {by}")]
    InUse {
        /// Its path.
        path: PathBuf,
        /// By whom, and what would do.
        by: &'static str,
    },
}

impl OpenFiles {
    /// Opens what `vm` names, each as the guest may use it.
    pub fn open(vm: &Description) -> Result<Self, OpenError> {
        let mut fds = vec![open("kernel", vm.kernel(), true)?];
        if let Some(path) = vm.initramfs() {
            fds.push(open("initramfs", path, true)?);
        }
        for disk in vm.disks() {
            fds.push(open_disk(disk)?);
        }
        Ok(Self(fds))
    }
}

/// Opens a disk's image as the guest may use it, and takes it for this VM.
pub fn open_disk(disk: &Disk) -> Result<OwnedFd, OpenError> {
    lock(open("disk", &disk.path, disk.read_only)?, disk)
}

/// Takes the image for this VM: flock(2), shared by those who only read. The lock goes with the fd to whoever runs the
/// VM, and is free when the last of them has ended, however. (QEMU locks by itself, but can name no path.)
fn lock(fd: OwnedFd, disk: &Disk) -> Result<OwnedFd, OpenError> {
    let how =
        if disk.read_only { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
    let by = match disk.read_only {
        true => "another VM writes it",
        false => "another VM has it; images that are given read-only to all (,ro) can be shared",
    };
    match paths::lock(&fd, how) {
        Ok(()) => Ok(fd),
        Err(Errno::EWOULDBLOCK) => Err(OpenError::InUse { path: disk.path.clone(), by }),
        Err(errno) => {
            Err(OpenError::Open { what: "disk", path: disk.path.clone(), source: errno.into() })
        }
    }
}

fn open(what: &'static str, path: &Path, read_only: bool) -> Result<OwnedFd, OpenError> {
    let error = |source| OpenError::Open { what, path: path.to_owned(), source };
    let file = File::options().read(true).write(!read_only).open(path).map_err(error)?;
    // A directory opens well and fails later, where nobody can say why.
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(error(io::ErrorKind::IsADirectory.into())),
        Ok(_) => Ok(file.into()),
        Err(source) => Err(error(source)),
    }
}

fn unexplained() -> Exited {
    Exited { reason: ExitReason::VmmDied, detail: String::new() }
}

/// Says, when it is dropped, that a connection is over. Where vminit-vmm's end of it is an object that must be let go
/// (macOS), this is what ends the connection; on Linux closing the stream has done so already.
#[derive(Debug)]
pub struct Release {
    line: Line,
    conn: u64,
}

impl Drop for Release {
    fn drop(&mut self) {
        self.line.tell(pb::request::Kind::Release(pb::Release { conn: self.conn }));
    }
}

/// Where requests go in.
#[derive(Clone, Debug)]
struct Line {
    frames: mpsc::UnboundedSender<(Vec<u8>, Vec<OwnedFd>)>,
    /// Who waits for which answer; `None` once nobody can answer any more.
    waiting: Arc<Mutex<Waiting>>,
    next_id: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    ended: bool,
}

#[derive(Debug)]
struct Answer {
    kind: pb::reply::Kind,
    stream: Option<GuestStream>,
}

impl Line {
    /// Queues a request; `None` when there is nobody to ask.
    fn ask(&self, kind: pb::request::Kind, fds: Vec<OwnedFd>) -> Option<oneshot::Receiver<Answer>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = pb::Request { id, fds: 0, kind: Some(kind) };
        let frame = encode(&mut request, fds.len());
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.ended || self.frames.send((frame, fds)).is_err() {
            return None;
        }
        waiting.answers.insert(id, sender);
        Some(receiver)
    }

    /// Queues a request of which nobody awaits the answer. Also after the VM's end: vminit-vmm stays for connections
    /// that were not released.
    fn tell(&self, kind: pb::request::Kind) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&mut pb::Request { id, fds: 0, kind: Some(kind) }, 0);
        // A vminit-vmm that is gone has let go of everything.
        let _ = self.frames.send((frame, Vec::new()));
    }

    fn answer(&self, id: u64, answer: Answer) {
        let sender =
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&id);
        if let Some(sender) = sender {
            // Who no longer waits gets nothing: a stream in the answer is closed and released here.
            let _ = sender.send(answer);
        }
    }

    fn end(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.ended = true;
        waiting.answers.clear();
    }
}

async fn write_frames(
    socket: Arc<UnixStream>,
    mut frames: mpsc::UnboundedReceiver<(Vec<u8>, Vec<OwnedFd>)>,
) {
    while let Some((frame, fds)) = frames.recv().await {
        let mut rest = &frame[..];
        let mut riding: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        while !rest.is_empty() {
            match socket
                .async_io(Interest::WRITABLE, || scm::send(socket.as_fd(), rest, &riding))
                .await
            {
                Ok(sent) => {
                    rest = &rest[sent..];
                    riding.clear();
                }
                // vminit-vmm is gone; the reader tells everybody.
                Err(_) => return,
            }
        }
    }
}

/// What comes from vminit-vmm, until it ends.
struct Reader {
    socket: Arc<UnixStream>,
    line: Line,
    dials: mpsc::Sender<Dial>,
    exit: watch::Sender<Option<Exited>>,
    woke: watch::Sender<u64>,
    child: Child,
    /// vminit-vmm's stderr.
    log: File,
    /// What it is, and since when.
    program: PathBuf,
    since: Instant,
}

impl Reader {
    async fn run(mut self) {
        let nonsense = self.read_until_end().await.err();
        self.line.end();
        if self.exit.borrow().is_none() {
            let exit = self.post_mortem(nonsense).await;
            self.exit.send_replace(Some(exit));
        }
        // vminit-vmm now hands over the last bytes of connections; it ends with them, or when it is dropped.
        let _ = self.child.wait().await;
    }

    async fn read_until_end(&mut self) -> io::Result<()> {
        let mut decoder = Decoder::<pb::Notice, OwnedFd>::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let mut fds = Vec::new();
            let socket = self.socket.clone();
            let read = socket
                .async_io(Interest::READABLE, || {
                    scm::receive(socket.as_fd(), &mut buffer, &mut fds)
                })
                .await?;
            if read == 0 {
                return Ok(());
            }
            decoder.handle(&buffer[..read], fds);
            while let Some((notice, fds)) = decoder.poll().map_err(io::Error::other)? {
                self.take(notice, fds)?;
            }
        }
    }

    fn take(&self, notice: pb::Notice, mut fds: Vec<OwnedFd>) -> io::Result<()> {
        match notice.kind {
            Some(pb::notice::Kind::Reply(pb::Reply { id, kind: Some(kind) })) => {
                let stream = match (&kind, fds.pop()) {
                    (pb::reply::Kind::Connected(connected), Some(fd)) => {
                        Some(self.stream(connected.conn, fd)?)
                    }
                    _ => None,
                };
                self.line.answer(id, Answer { kind, stream });
            }
            Some(pb::notice::Kind::Event(pb::Event {
                kind: Some(pb::event::Kind::GuestDialed(dialed)),
            })) => {
                if let Some(fd) = fds.pop() {
                    let dial = Dial {
                        port: dialed.port,
                        stream: self.stream(dialed.conn, fd)?,
                        dial: dialed.dial,
                        line: self.line.clone(),
                    };
                    // Nobody takes them, or not fast enough: it is refused.
                    let _ = self.dials.try_send(dial);
                }
            }
            Some(pb::notice::Kind::Event(pb::Event { kind: Some(pb::event::Kind::Woke(_)) })) => {
                self.woke.send_modify(|wakes| *wakes += 1);
            }
            Some(pb::notice::Kind::Event(pb::Event {
                kind: Some(pb::event::Kind::Exited(exited)),
            })) => {
                let reason = match exited.reason() {
                    pb::ExitReason::PowerOff => ExitReason::PowerOff,
                    pb::ExitReason::Reboot => ExitReason::Reboot,
                    pb::ExitReason::Panic => ExitReason::Panic,
                    pb::ExitReason::Killed => ExitReason::Killed,
                    pb::ExitReason::Crashed | pb::ExitReason::Unknown => ExitReason::Crashed,
                };
                // No request that waits will be answered any more.
                self.line.end();
                self.exit.send_replace(Some(Exited { reason, detail: exited.detail }));
            }
            // From a newer vminit-vmm; it cannot be something that we asked for.
            _ => {}
        }
        Ok(())
    }

    fn stream(&self, conn: u64, fd: OwnedFd) -> io::Result<GuestStream> {
        GuestStream::new(fd, Release { line: self.line.clone(), conn })
    }

    /// vminit-vmm closed its socket without saying why.
    async fn post_mortem(&mut self, nonsense: Option<io::Error>) -> Exited {
        let mut said = Vec::new();
        if let Some(error) = nonsense {
            said.push(format!("it sent nonsense: {error}"));
        }
        match tokio::time::timeout(REAP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => {
                said.push(describe(status));
                let killed = status.signal() == Some(nix::libc::SIGKILL);
                let kills = killed && sys::SIGNATURES_ARE_CHECKED;
                said.extend(refused_by_the_system(&self.program, self.since.elapsed(), kills));
            }
            Ok(Err(error)) => said.push(format!("wait for it: {error}")),
            Err(_) => {
                said.push(format!("it still runs after {} s", Duration::as_secs(&REAP_TIMEOUT)))
            }
        }
        said.extend(tail(&mut self.log).filter(|text| !text.is_empty()));
        Exited { reason: ExitReason::VmmDied, detail: said.join("; ") }
    }
}

/// What a process that the system does not let run is told with. macOS kills it at its exec, without a word to whom
/// has started it.
fn refused_by_the_system(program: &Path, after: Duration, killed: bool) -> Option<String> {
    (killed && after < AT_EXEC).then(|| {
        let path = program.display();
        format!(
            "the system killed it at its start, as it does with a program that may not have the entitlement \
             com.apple.security.virtualization: the signature is missing, broken by a later change, or wants a \
             provisioning profile; `codesign --verify --verbose {path}; codesign --display --entitlements - {path}` \
             shows the signature, `log show --last 2m --predicate 'sender == \"AppleMobileFileIntegrity\"'` the \
             system's reason; sign it again with `codesign --force --sign - --entitlements FILE {path}`, or have an \
             installed VMM run the VM: --vmm external:vfkit"
        )
    })
}

fn describe(status: ExitStatus) -> String {
    // "exit status: 1", "signal: 9 (SIGKILL)".
    status.to_string()
}

fn tail(log: &mut File) -> Option<String> {
    let length = log.seek(SeekFrom::End(0)).ok()?;
    log.seek(SeekFrom::Start(length.saturating_sub(STDERR_TAIL_BYTES as u64))).ok()?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_at_exec_is_told_with_its_reason_the_commands_and_the_way_out() {
        let program = Path::new("/opt/bin/vminit-vmm");
        let told = |after, killed| refused_by_the_system(program, after, killed);
        let text = told(Duration::from_millis(300), true).unwrap();
        for part in [
            "com.apple.security.virtualization",
            "signature",
            "provisioning profile",
            "codesign --display --entitlements - /opt/bin/vminit-vmm",
            "--vmm external:vfkit",
        ] {
            assert!(text.contains(part), "{text}");
        }
        // Later, or by another end, it is something else.
        assert_eq!(told(AT_EXEC, true), None);
        assert_eq!(told(Duration::ZERO, false), None);
    }
}
