//! The machine's states and what moves it between them.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::accelerator::{Choice, Known, choose};
use super::args::{Fds, arguments};
use super::board::Board;
use super::hotplug::{Action, Hotplug, NewDisk};
use super::process::Process;
use super::qmp::{self, Cause, Message};
use super::{Happening, Post, Tools};
use crate::chain;
use crate::limits::{LOST_HELPER_GRACE, QMP_GREETING_TIMEOUT, QUIT_TIMEOUT};
use crate::locate::{self, LocateError};
use crate::sys::namespaces::may_unshare;
use crate::sys::scm;
use crate::virtiofs::{self, Sandbox, ShareError};
use crate::vm::{Accelerator, Arch, Description, Disk, MacAddress, Network, Nic, Options, Serial};
use crate::vmm::hypervisor::{Ask, Fact, Hypervisor, Refusal, Waker};
use crate::vmm::server::Files;
use crate::vmm::{ExitReason, Exited};
use crate::vsock::{self, ConnectError, GoneReason, VsockEvent};

/// A VM in QEMU, and what serves it. Dropped, they are killed.
#[derive(Debug)]
pub struct Qemu {
    tools: Tools,
    post: Post,
    happenings: Receiver<Happening>,
    state: State,
    /// What nobody has been told yet.
    facts: VecDeque<Fact<()>>,
}

#[derive(Debug)]
enum State {
    /// No start yet.
    Idle,
    /// Waits for the probe of an accelerator.
    Choosing(Start),
    /// QEMU was started; waits for its greeting.
    Booting { vm: Box<Vm>, deadline: Instant },
    /// The guest runs.
    Running(Box<Vm>),
    /// The VM is gone. With a device, connections may hold bytes that the owner has yet to read.
    Ended(Option<vsock::Device>),
}

/// A start that waits for its accelerator.
#[derive(Debug)]
struct Start {
    vm: Box<Description>,
    files: Files,
    qemu: PathBuf,
}

/// What runs a guest. Dropped, it is killed.
#[derive(Debug)]
struct Vm {
    qemu: Process,
    qmp: UnixStream,
    /// `None` once it has ended, or is left to linger.
    vsock: Option<vsock::Device>,
    shares: Vec<Process>,
    choice: Choice,
    /// Disks that come and go.
    hotplug: Hotplug<Ask>,
    /// QEMU is a zombie.
    qemu_dead: bool,
    /// All that it ever said over QMP has been heard.
    qmp_closed: bool,
    /// Why QEMU is about to end, by its own word.
    cause: Option<Cause>,
    /// Why it must end, by ours.
    verdict: Option<Exited>,
    /// When it is killed unless it has ended; set with `verdict` or when a helper is lost.
    kill_at: Option<Instant>,
    /// The helper that is lost: the cause, if QEMU did not end before it.
    lost: Option<String>,
}

impl Qemu {
    /// Nothing runs yet. `waker` wakes the thread that will drive this.
    pub fn new(tools: Tools, waker: Waker) -> Self {
        let (sender, happenings) = channel();
        let post = Post { sender, waker };
        Self { tools, post, happenings, state: State::Idle, facts: VecDeque::new() }
    }
}

impl Hypervisor for Qemu {
    /// The device sees the end of a connection by itself.
    type Kept = ();

    fn start(&mut self, vm: Box<Description>, files: Files, _now: Instant) -> Result<(), Refusal> {
        let arch = vm.arch();
        let qemu = match self.tools.qemu.clone().map_or_else(|| locate::qemu(arch), Ok) {
            Ok(qemu) => qemu,
            Err(error) => return Err(refusal(&LaunchError::Missing(error))),
        };
        if arch != Arch::HOST && vm.accelerator() == Accelerator::Hardware {
            return Err(refusal(&LaunchError::Foreign { arch }));
        }
        if let Some(what) = had_elsewhere(&vm) {
            return Err(refusal(&LaunchError::Elsewhere { what }));
        }
        let cache = self.tools.cache.as_deref();
        let known = choose(arch, vm.accelerator(), &qemu, &files.kernel, cache);
        let start = Start { vm, files, qemu };
        match known {
            Known::Choice(choice) => return self.launch(start, choice),
            Known::Unknown(question) => {
                self.state = State::Choosing(start);
                let post = self.post.clone();
                // Its own thread: it waits for a guest. The probe's QEMU is tied to it.
                let probe = move || post.send(Happening::Chosen(question.probe()));
                if std::thread::Builder::new().name("probe".into()).spawn(probe).is_err() {
                    let reason = "no thread to try KVM in".to_owned();
                    let choice = Choice { engine: super::accelerator::Engine::Tcg, reason };
                    self.post.send(Happening::Chosen(choice));
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, port: u32, ask: Ask) {
        let refused = |refusal| Fact::Refused { ask, refusal };
        let vsock = match &self.state {
            State::Running(vm) => vm.vsock.as_ref(),
            State::Choosing(_) | State::Booting { .. } => {
                let refusal = Refusal::new(ErrorCode::NotUp, "QEMU is not up yet");
                return self.facts.push_back(refused(refusal));
            }
            State::Idle | State::Ended(_) => None,
        };
        let Some(vsock) = vsock else {
            return self.facts.push_back(refused(Refusal::no_vm()));
        };
        let post = self.post.clone();
        vsock.handle().connect(port, move |result| post.send(Happening::Connected(ask, result)));
    }

    fn accept(&mut self, dial: u64) -> Result<(), Refusal> {
        let vsock = self.vm().and_then(|vm| vm.vsock.as_ref()).ok_or_else(Refusal::no_vm)?;
        vsock.handle().accept(dial);
        Ok(())
    }

    fn attach_disk(&mut self, disk: Disk, file: OwnedFd, ask: Ask) {
        self.plug(ask, |hotplug| {
            let Disk { serial, read_only, .. } = disk;
            let host_device = is_block_device(&file);
            hotplug.attach(NewDisk { serial, read_only, host_device, file }, ask)
        });
    }

    fn detach_disk(&mut self, serial: &Serial, ask: Ask, now: Instant) {
        self.plug(ask, |hotplug| hotplug.detach(serial, ask, now));
    }

    fn attach_tap(&mut self, mac: MacAddress, tap: OwnedFd, ask: Ask) -> Result<(), Refusal> {
        self.plug(ask, |hotplug| hotplug.attach_tap(mac, tap, ask));
        Ok(())
    }

    fn detach_nic(&mut self, mac: MacAddress, ask: Ask, now: Instant) -> Result<(), Refusal> {
        self.plug(ask, |hotplug| hotplug.detach_nic(mac, ask, now));
        Ok(())
    }

    fn save(&mut self, _path: &Path, ask: Ask) {
        let refusal =
            Refusal::new(ErrorCode::Invalid, "saving a VM's state is not to be had under QEMU");
        self.facts.push_back(Fact::Refused { ask, refusal });
    }

    fn power_button(&mut self) -> Result<(), Refusal> {
        let vm = self.vm().ok_or_else(Refusal::no_vm)?;
        vm.qmp
            .write_all(qmp::POWER_BUTTON.as_bytes())
            .map_err(|error| Refusal::new(ErrorCode::Failed, format!("tell QEMU: {error}")))
    }

    fn stop(&mut self, now: Instant) {
        let Some(vm) = self.vm() else { return self.end_before_qemu() };
        vm.verdict.get_or_insert(killed("stopped by its owner"));
        match vm.qmp.write_all(qmp::QUIT.as_bytes()) {
            Ok(()) => vm.kill_at = Some(now + QUIT_TIMEOUT),
            // QEMU is ending already, or will not listen.
            Err(_) => vm.qemu.kill(),
        }
    }

    fn kill(&mut self) {
        let Some(vm) = self.vm() else { return self.end_before_qemu() };
        vm.verdict.get_or_insert(killed("killed by its owner"));
        vm.qemu.kill();
    }

    /// QEMU's guest has the host's clock at hand.
    fn woke(&mut self) {}

    fn state(&self) -> String {
        match &self.state {
            State::Idle => "QEMU was not started".to_owned(),
            State::Choosing(_) => "KVM is being tried".to_owned(),
            State::Booting { vm, .. } => {
                format!("QEMU (process {}) has not said hello", vm.qemu.pid())
            }
            State::Running(vm) => format!("QEMU (process {}) runs", vm.qemu.pid()),
            State::Ended(_) => "QEMU has ended".to_owned(),
        }
    }

    fn poll(&mut self, now: Instant) -> Option<Fact<()>> {
        if self.due().is_some_and(|at| at <= now) {
            self.take_deadline(now);
        }
        while self.facts.is_empty() {
            let happening = self.happenings.try_recv().ok()?;
            self.take(happening);
        }
        self.facts.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        self.due()
    }

    fn lingers(&self, _connections: usize) -> bool {
        matches!(&self.state, State::Ended(Some(_)))
    }
}

impl Qemu {
    fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Booting { vm, deadline, .. } => Some(vm.kill_at.unwrap_or(*deadline)),
            State::Running(vm) => vm.kill_at.into_iter().chain(vm.hotplug.deadline()).min(),
            State::Idle | State::Choosing(_) | State::Ended(_) => None,
        }
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Chosen(choice) => {
                if let State::Choosing(start) = std::mem::replace(&mut self.state, State::Idle)
                    && let Err(refusal) = self.launch(start, choice)
                {
                    self.crash(refusal.text);
                }
            }
            Happening::Qmp(message) => self.hear(message),
            Happening::QmpClosed => self.end(|vm| vm.qmp_closed = true),
            Happening::QemuEnded => self.end(|vm| vm.qemu_dead = true),
            Happening::ShareEnded(index) => {
                let lost =
                    |vm: &mut Vm| vm.shares.get_mut(index).map_or_else(String::new, Process::reap);
                self.lose(lost);
            }
            Happening::VsockEnded(reason) => {
                if let State::Ended(device) = &mut self.state {
                    *device = None;
                }
                self.lose(|vm| {
                    vm.vsock = None;
                    format!("the vsock device ended: {reason}")
                });
            }
            Happening::Connected(ask, Ok(stream)) => {
                self.facts.push_back(Fact::Connected { ask, stream, kept: () });
            }
            Happening::Connected(ask, Err(error)) => {
                let refusal = Refusal::new(code(&error), chain(&error));
                self.facts.push_back(Fact::Refused { ask, refusal });
            }
            Happening::Dialed { port, dial, stream } => {
                self.facts.push_back(Fact::Dialed { port, dial, stream, kept: () });
            }
        }
    }

    fn take_deadline(&mut self, now: Instant) {
        if let State::Running(vm) = &mut self.state
            && vm.kill_at.is_none_or(|at| at > now)
        {
            let actions = vm.hotplug.late(now);
            return vm.perform(actions, &mut self.facts);
        }
        let late = matches!(&self.state, State::Booting { vm, .. } if vm.kill_at.is_none());
        let Some(vm) = self.vm() else { return };
        if late {
            let detail = format!(
                "QEMU said nothing for {} s after its start",
                QMP_GREETING_TIMEOUT.as_secs()
            );
            vm.verdict.get_or_insert(Exited { reason: ExitReason::Crashed, detail });
        }
        if let Some(detail) = vm.lost.take() {
            vm.verdict.get_or_insert(Exited { reason: ExitReason::Crashed, detail });
        }
        vm.kill_at = None;
        vm.qemu.kill();
        // Its end comes as QemuEnded; until then nothing is due.
        if let State::Booting { deadline, .. } = &mut self.state {
            *deadline = now + QMP_GREETING_TIMEOUT;
        }
    }

    fn vm(&mut self) -> Option<&mut Vm> {
        match &mut self.state {
            State::Booting { vm, .. } | State::Running(vm) => Some(vm),
            State::Idle | State::Choosing(_) | State::Ended(_) => None,
        }
    }

    fn launch(&mut self, start: Start, choice: Choice) -> Result<(), Refusal> {
        let Start { vm, files, qemu } = start;
        let vm = Vm::launch(&vm, files, qemu, choice, &self.tools, &self.post)
            .map_err(|error| refusal(&error))?;
        let deadline = Instant::now() + QMP_GREETING_TIMEOUT;
        self.state = State::Booting { vm: Box::new(vm), deadline };
        Ok(())
    }

    fn crash(&mut self, detail: String) {
        self.state = State::Ended(None);
        self.facts.push_back(Fact::Ended(Exited { reason: ExitReason::Crashed, detail }));
    }

    /// Attaches or detaches a disk. QEMU takes commands only once it has booted.
    fn plug(&mut self, ask: Ask, order: impl FnOnce(&mut Hotplug<Ask>) -> Vec<Action<Ask>>) {
        let State::Running(vm) = &mut self.state else {
            return self.facts.push_back(Fact::Refused { ask, refusal: Refusal::no_vm() });
        };
        let actions = order(&mut vm.hotplug);
        vm.perform(actions, &mut self.facts);
    }

    fn end_before_qemu(&mut self) {
        if matches!(self.state, State::Choosing(_)) {
            self.state = State::Ended(None);
            self.facts.push_back(Fact::Ended(killed("ended before QEMU was started")));
        }
    }

    fn hear(&mut self, message: Message) {
        match (message, &mut self.state) {
            (Message::Greeting, State::Booting { vm, .. }) => {
                // A QEMU that is gone is told of by its end.
                let _ = vm.qmp.write_all(qmp::CAPABILITIES.as_bytes());
            }
            (Message::Ready, _) => self.booted(),
            (Message::Stopped, _) => {
                let _ = self.vm().map(|vm| vm.qmp.write_all(qmp::STATUS.as_bytes()));
            }
            (Message::Status(status), _) if status != "running" && status != "shutdown" => {
                if let Some(vm) = self.vm() {
                    let detail = format!(
                        "QEMU stopped the guest: {status} (accelerator {})",
                        vm.choice.engine
                    );
                    vm.verdict.get_or_insert(Exited { reason: ExitReason::Crashed, detail });
                    vm.qemu.kill();
                }
            }
            (Message::Shutdown(cause), _) => {
                if let Some(vm) = self.vm() {
                    vm.cause.get_or_insert(cause);
                }
            }
            (Message::Panicked, _) => {
                if let Some(vm) = self.vm() {
                    vm.cause = Some(Cause::GuestPanic);
                }
            }
            (Message::Answer(command, result), State::Running(vm)) => {
                let actions = vm.hotplug.answered(command, result);
                vm.perform(actions, &mut self.facts);
            }
            (Message::Deleted(device), State::Running(vm)) => {
                let actions = vm.hotplug.deleted(&device);
                vm.perform(actions, &mut self.facts);
            }
            (Message::Kept(device), State::Running(vm)) => {
                let actions = vm.hotplug.kept(&device);
                vm.perform(actions, &mut self.facts);
            }
            (Message::Answer(..) | Message::Deleted(_) | Message::Kept(_), _) => {}
            (Message::Greeting | Message::Status(_) | Message::Error(_) | Message::Other, _) => {}
        }
    }

    fn booted(&mut self) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Booting { vm, .. } => {
                self.facts.push_back(Fact::Running {
                    accelerator: vm.choice.engine.to_string(),
                    reason: vm.choice.reason.clone(),
                    pid: vm.qemu.pid(),
                });
                self.state = State::Running(vm);
            }
            other => self.state = other,
        }
    }

    /// Something that serves the guest has ended. When QEMU ends, they all do, and some may be seen first.
    fn lose(&mut self, why: impl FnOnce(&mut Vm) -> String) {
        if let Some(vm) = self.vm() {
            let why = why(vm);
            vm.lost.get_or_insert(why);
            vm.kill_at.get_or_insert(Instant::now() + LOST_HELPER_GRACE);
        }
    }

    /// QEMU's end is two facts, of which either may come first: it is dead, and its last words are heard.
    fn end(&mut self, fact: impl FnOnce(&mut Vm)) {
        match self.vm() {
            Some(vm) => fact(vm),
            None => return,
        }
        if !self.vm().is_some_and(|vm| vm.qemu_dead && vm.qmp_closed) {
            return;
        }
        let vm = match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(vm) | State::Booting { vm, .. } => vm,
            other => return self.state = other,
        };
        // The guest may have sent bytes that the owner has yet to read: the device hands them over, and ends by
        // itself, at once when there are none.
        let (exit, vsock) = vm.bury();
        self.facts.push_back(Fact::Ended(exit));
        self.state = State::Ended(vsock);
    }
}

impl Vm {
    fn launch(
        vm: &Description,
        files: Files,
        qemu: PathBuf,
        choice: Choice,
        tools: &Tools,
        post: &Post,
    ) -> Result<Self, LaunchError> {
        let (shares, share_sockets) = serve_shares(vm, tools, post)?;
        let (vsock, vsock_socket) = start_vsock(vm, post)?;
        let (qmp, qmp_socket) = UnixStream::pair().map_err(LaunchError::Socket)?;
        let fds = Fds {
            kernel: files.kernel.as_raw_fd(),
            initramfs: files.initramfs.as_ref().map(AsRawFd::as_raw_fd),
            disks: files.disks.iter().map(AsRawFd::as_raw_fd).collect(),
            console: files.console.as_raw_fd(),
            qmp: qmp_socket.as_raw_fd(),
            vsock: Some(vsock_socket.as_raw_fd()),
            shares: share_sockets.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let inherited: Vec<BorrowedFd<'_>> = [&files.kernel, &files.console]
            .into_iter()
            .chain(&files.initramfs)
            .chain(&files.disks)
            .chain(&share_sockets)
            .map(AsFd::as_fd)
            .chain([qmp_socket.as_fd(), vsock_socket.as_fd()])
            .collect();
        let mut command = Command::new(&qemu);
        command.args(arguments(vm, choice.engine, &fds)?);
        let ended = post.clone();
        let process = Process::start("QEMU", &mut command, &inherited, move || {
            ended.send(Happening::QemuEnded)
        })
        .map_err(|source| LaunchError::Qemu { program: qemu, source })?;
        // From here on only QEMU has its ends: when it dies, all who serve it see that.
        let vm = Self {
            qemu: process,
            qmp,
            vsock: Some(vsock),
            shares,
            choice,
            hotplug: Hotplug::new(
                Board::of(vm.arch()),
                vm.hotplug_slots(),
                vm.disks().iter().map(|disk| disk.serial.clone()).collect(),
                &vm.removable_nics().collect::<Vec<_>>(),
            ),
            qemu_dead: false,
            qmp_closed: false,
            cause: None,
            verdict: None,
            kill_at: None,
            lost: None,
        };
        vm.listen(post.clone())?;
        Ok(vm)
    }

    /// Reads QMP on a thread of its own, until QEMU's end closes it.
    fn listen(&self, post: Post) -> Result<(), LaunchError> {
        let mut socket = self.qmp.try_clone().map_err(LaunchError::Socket)?;
        let listen = move || {
            let (mut reader, mut buffer) = (qmp::Reader::default(), [0; 4096]);
            while let Ok(read @ 1..) = socket.read(&mut buffer) {
                reader.handle(&buffer[..read]);
                // A QEMU that talks nonsense is heard no more; its end is seen anyway.
                while let Some(message) = reader.poll().ok().flatten() {
                    post.send(Happening::Qmp(message));
                }
            }
            post.send(Happening::QmpClosed);
        };
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(listen)
            .map_err(LaunchError::Socket)?;
        Ok(())
    }

    fn perform(&mut self, actions: Vec<Action<Ask>>, facts: &mut VecDeque<Fact<()>>) {
        for action in actions {
            match action {
                // A QEMU that is gone is told of by its end, which answers who waits.
                Action::Send { line, fd } => drop(self.tell(line.as_bytes(), fd)),
                Action::Done(ask) => facts.push_back(Fact::Done { ask }),
                Action::Failed { reply: ask, code, text } => {
                    facts.push_back(Fact::Refused { ask, refusal: Refusal::new(code, text) });
                }
            }
        }
    }

    /// Sends a command, with the descriptor that rides on it.
    fn tell(&mut self, mut line: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
        if let Some(fd) = fd {
            let sent = scm::send(self.qmp.as_fd(), line, &[fd.as_fd()])?;
            line = &line[sent..];
        }
        self.qmp.write_all(line)
    }

    /// QEMU is dead: ends the rest, and says why it all ended.
    fn bury(mut self) -> (Exited, Option<vsock::Device>) {
        let how = self.qemu.reap();
        for share in &mut self.shares {
            share.kill();
        }
        let exit = self.verdict.take().unwrap_or_else(|| match self.cause {
            Some(Cause::GuestShutdown) => {
                Exited { reason: ExitReason::PowerOff, detail: String::new() }
            }
            Some(Cause::GuestReset) => Exited { reason: ExitReason::Reboot, detail: String::new() },
            Some(Cause::GuestPanic) => Exited { reason: ExitReason::Panic, detail: String::new() },
            Some(Cause::Host | Cause::Other) | None => {
                Exited { reason: ExitReason::Crashed, detail: how }
            }
        });
        (exit, self.vsock.take())
    }
}

fn serve_shares(
    vm: &Description,
    tools: &Tools,
    post: &Post,
) -> Result<(Vec<Process>, Vec<OwnedFd>), LaunchError> {
    if vm.shares().is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let program = tools.virtiofsd.clone().map_or_else(locate::virtiofsd, Ok)?;
    let sandbox = Sandbox::best(nix::unistd::geteuid().is_root(), may_unshare().unwrap_or(false));
    let (mut processes, mut sockets) = (Vec::new(), Vec::new());
    for (index, share) in vm.shares().iter().enumerate() {
        let ended = post.clone();
        let ended = move || ended.send(Happening::ShareEnded(index));
        let (process, socket) = virtiofs::serve(&program, share, sandbox, ended)?;
        processes.push(process);
        sockets.push(socket);
    }
    Ok((processes, sockets))
}

fn start_vsock(vm: &Description, post: &Post) -> Result<(vsock::Device, OwnedFd), LaunchError> {
    let (ours, qemus) = UnixStream::pair().map_err(LaunchError::Socket)?;
    let config = vsock::Config {
        guest_cid: vm.guest_cid().get().into(),
        guest_dial_ports: vm.guest_dials().iter().copied().collect(),
        ask_owner: true,
    };
    let post = post.clone();
    let events = move |event| match event {
        VsockEvent::GuestDialed { port, dial, stream, .. } => {
            post.send(Happening::Dialed { port, dial, stream })
        }
        VsockEvent::Gone { reason } => post.send(Happening::VsockEnded(explain(&reason))),
    };
    Ok((vsock::start(ours, config, events)?, qemus.into()))
}

fn explain(reason: &GoneReason) -> String {
    match reason {
        GoneReason::Stopped => "stopped".to_owned(),
        GoneReason::FrontendClosed => "QEMU closed it".to_owned(),
        GoneReason::Failed(error) => chain(error),
    }
}

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    /// A program is not there. The installation's fault.
    #[error(transparent)]
    Missing(#[from] LocateError),
    /// Only emulation runs it here. The caller's fault.
    #[error(
        "no hardware of this machine ({}) runs {arch} guests; leave the accelerator to us",
        Arch::HOST
    )]
    Foreign {
        /// The guest's.
        arch: Arch,
    },
    /// Other hypervisors have it. The caller's fault.
    #[error("{what} is not to be had under QEMU")]
    Elsewhere {
        /// What.
        what: &'static str,
    },
    /// A shared directory.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The vsock device.
    #[error("start the vsock device")]
    Vsock(#[from] vsock::VsockError),
    /// No descriptor or thread is left.
    #[error("make a socket or a thread for QEMU")]
    Socket(#[source] io::Error),
    /// The owner's words and ours do not fit a kernel's command line.
    #[error(transparent)]
    Cmdline(#[from] crate::vm::CmdlineError),
    /// QEMU cannot be executed.
    #[error("start {program:?}")]
    Qemu {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Missing(_) => ErrorCode::Missing,
            Self::Foreign { .. }
            | Self::Elsewhere { .. }
            | Self::Share(ShareError::Kind { .. } | ShareError::NoNamespace { .. })
            | Self::Cmdline(_) => ErrorCode::Invalid,
            Self::Share(ShareError::Start { .. })
            | Self::Vsock(_)
            | Self::Socket(_)
            | Self::Qemu { .. } => ErrorCode::Failed,
        }
    }
}

/// What of this VM only other hypervisors have.
fn had_elsewhere(vm: &Description) -> Option<&'static str> {
    let Options { rosetta, nested: _, save_and_restore, restore } = vm.options();
    let network = |nic: &Nic| match nic.network {
        Network::Datagram { .. } => Some("a network of datagrams"),
        Network::Bridged { .. } => Some("a bridge to an interface of the host"),
        Network::User { .. } | Network::Stream { .. } => None,
    };
    // Nested VMs are a matter of the CPU that KVM shows to every guest.
    let option =
        rosetta
            .then_some("Rosetta")
            .or((*save_and_restore || restore.is_some())
                .then_some("saving and restoring a VM's state"));
    option.or_else(|| vm.nics().iter().find_map(network))
}

fn refusal(error: &LaunchError) -> Refusal {
    Refusal::new(error.code(), chain(error))
}

fn killed(detail: &str) -> Exited {
    Exited { reason: ExitReason::Killed, detail: detail.to_owned() }
}

fn code(error: &ConnectError) -> ErrorCode {
    match error {
        ConnectError::Refused { .. } | ConnectError::Timeout { .. } => ErrorCode::Refused,
        ConnectError::NoGuest => ErrorCode::NotUp,
        ConnectError::DeviceGone => ErrorCode::State,
        ConnectError::TooMany | ConnectError::Resources(_) => ErrorCode::Failed,
    }
}

fn is_block_device(file: &OwnedFd) -> bool {
    let stat = nix::sys::stat::fstat(file.as_raw_fd());
    stat.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFBLK)
}
