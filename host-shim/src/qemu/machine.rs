//! The machine's states and what moves it between them.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::accelerator::{Choice, Known, choose};
use super::args::{Fds, arguments};
use super::board::Board;
use super::hotplug::{Action, Hotplug, NewDisk};
use super::process::Process;
use super::qmp::{self, Cause, Message};
use super::{Happening, Tools, Wires};
use crate::chain;
use crate::limits::{LOST_HELPER_GRACE, QMP_GREETING_TIMEOUT, QUIT_TIMEOUT};
use crate::locate::{self, LocateError};
use crate::sys::namespaces::may_unshare;
use crate::sys::scm;
use crate::virtiofs::{self, Sandbox, ShareError};
use crate::vm::{Accelerator, Arch, Description, Disk};
use crate::vmm::server::{Files, Order, Outbox, ReplyTo};
use crate::vmm::{ExitReason, Exited};
use crate::vsock::{self, ConnectError, GoneReason, VsockEvent};

/// Runs one VM, from its owner's Start to its end, and tells the owner how it ended.
pub fn run(tools: Tools, wires: Wires) {
    let mut machine = Machine {
        tools,
        happen: wires.happen.clone(),
        outbox: wires.outbox.clone(),
        state: State::Idle,
    };
    loop {
        let happening = match machine.deadline() {
            None => wires.happenings.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => wires.happenings.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match happening {
            Ok(happening) => machine.take(happening),
            Err(RecvTimeoutError::Timeout) => machine.take_deadline(),
            // Cannot happen: the machine has a sender itself.
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match &mut machine.state {
            State::Told { linger } => {
                let linger = linger.take();
                wires.writer.finish();
                return hand_over(&wires.happenings, linger);
            }
            State::Over => return,
            State::Idle | State::Choosing(_) | State::Booting { .. } | State::Running(_) => {}
        }
    }
}

struct Machine {
    tools: Tools,
    happen: Sender<Happening>,
    outbox: Outbox,
    state: State,
}

enum State {
    /// No Start yet.
    Idle,
    /// Waits for the probe of an accelerator.
    Choosing(Start),
    /// QEMU was started; waits for its greeting.
    Booting { vm: Box<Vm>, reply: ReplyTo, deadline: Instant },
    /// The guest runs.
    Running(Box<Vm>),
    /// The VM is gone and the owner is told. With `linger`, connections may hold bytes that it has yet to read.
    Told { linger: Option<vsock::Device> },
    /// There is no owner any more: the end.
    Over,
}

/// A Start that waits for its accelerator.
struct Start {
    vm: Box<Description>,
    files: Files,
    qemu: PathBuf,
    reply: ReplyTo,
}

/// What runs a guest. Dropped, it is killed.
struct Vm {
    qemu: Process,
    qmp: UnixStream,
    /// `None` once it has ended, or is left to linger.
    vsock: Option<vsock::Device>,
    shares: Vec<Process>,
    choice: Choice,
    /// Disks that come and go.
    hotplug: Hotplug<ReplyTo>,
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

impl Machine {
    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Booting { vm, deadline, .. } => Some(vm.kill_at.unwrap_or(*deadline)),
            State::Running(vm) => vm.kill_at.into_iter().chain(vm.hotplug.deadline()).min(),
            State::Idle | State::Choosing(_) | State::Told { .. } | State::Over => None,
        }
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Order(order) => self.obey(order),
            Happening::Chosen(choice) => {
                if let State::Choosing(start) = std::mem::replace(&mut self.state, State::Idle) {
                    self.launch(start, choice);
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
            Happening::VsockEnded(reason) => self.lose(|vm| {
                vm.vsock = None;
                format!("the vsock device ended: {reason}")
            }),
        }
    }

    fn take_deadline(&mut self) {
        let now = Instant::now();
        if let State::Running(vm) = &mut self.state
            && vm.kill_at.is_none_or(|at| at > now)
        {
            let actions = vm.hotplug.late(now);
            return vm.perform(actions);
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
            *deadline = Instant::now() + QMP_GREETING_TIMEOUT;
        }
    }

    fn vm(&mut self) -> Option<&mut Vm> {
        match &mut self.state {
            State::Booting { vm, .. } | State::Running(vm) => Some(vm),
            State::Idle | State::Choosing(_) | State::Told { .. } | State::Over => None,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start { vm, files, reply } => self.start(vm, files, reply),
            Order::Connect { port, reply } => self.connect(port, reply),
            Order::Accept { dial, reply } => match self.vm().and_then(|vm| vm.vsock.as_ref()) {
                Some(vsock) => {
                    vsock.handle().accept(dial);
                    reply.done();
                }
                None => no_vm(reply),
            },
            // The device sees the end of a connection by itself.
            Order::Release { reply, .. } => reply.done(),
            Order::AttachDisk { disk, file, reply } => self.plug(reply, |hotplug, reply| {
                let Disk { serial, read_only, .. } = disk;
                let host_device = is_block_device(&file);
                hotplug.attach(NewDisk { serial, read_only, host_device, file }, reply)
            }),
            Order::DetachDisk { serial, reply } => {
                self.plug(reply, |hotplug, reply| hotplug.detach(&serial, reply, Instant::now()))
            }
            Order::PowerButton(reply) => match self
                .vm()
                .map(|vm| vm.qmp.write_all(qmp::POWER_BUTTON.as_bytes()))
            {
                Some(Ok(())) => reply.done(),
                Some(Err(error)) => reply.error(ErrorCode::Failed, format!("tell QEMU: {error}")),
                None => no_vm(reply),
            },
            Order::Stop(reply) => self.stop(reply),
            Order::Kill(reply) => self.kill(reply),
            // Nobody is left to be told anything.
            Order::OwnerGone { .. } => self.state = State::Over,
        }
    }

    fn start(&mut self, vm: Box<Description>, files: Files, reply: ReplyTo) {
        if !matches!(self.state, State::Idle) {
            return reply.error(ErrorCode::State, "this vminit-vmm has its VM already");
        }
        let arch = vm.arch();
        let qemu = match self.tools.qemu.clone().map_or_else(|| locate::qemu(arch), Ok) {
            Ok(qemu) => qemu,
            Err(error) => return self.refuse(reply, &LaunchError::Missing(error)),
        };
        if arch != Arch::HOST && vm.accelerator() == Accelerator::Hardware {
            return self.refuse(reply, &LaunchError::Foreign { arch });
        }
        let cache = self.tools.cache.as_deref();
        let known = choose(arch, vm.accelerator(), &qemu, &files.kernel, cache);
        let start = Start { vm, files, qemu, reply };
        match known {
            Known::Choice(choice) => self.launch(start, choice),
            Known::Unknown(question) => {
                self.state = State::Choosing(start);
                let happen = self.happen.clone();
                // Its own thread: it waits for a guest. The probe's QEMU is tied to it.
                let probe = move || drop(happen.send(Happening::Chosen(question.probe())));
                if std::thread::Builder::new().name("probe".into()).spawn(probe).is_err() {
                    let reason = "no thread to try KVM in".to_owned();
                    let choice = Choice { engine: super::accelerator::Engine::Tcg, reason };
                    self.take(Happening::Chosen(choice));
                }
            }
        }
    }

    fn launch(&mut self, start: Start, choice: Choice) {
        let Start { vm, files, qemu, reply } = start;
        match Vm::launch(&vm, files, qemu, choice, &self.tools, &self.happen, &self.outbox) {
            Ok(vm) => {
                let deadline = Instant::now() + QMP_GREETING_TIMEOUT;
                self.state = State::Booting { vm: Box::new(vm), reply, deadline };
            }
            Err(error) => self.refuse(reply, &error),
        }
    }

    /// A Start that cannot be carried out ends this process: its owner has nothing to gain from another try.
    fn refuse(&mut self, reply: ReplyTo, error: &LaunchError) {
        let text = chain(error);
        reply.error(error.code(), text.clone());
        self.outbox.exited(&Exited { reason: ExitReason::Crashed, detail: text });
        self.state = State::Told { linger: None };
    }

    fn connect(&mut self, port: u32, reply: ReplyTo) {
        let Some(vsock) = self.vm().and_then(|vm| vm.vsock.as_ref()) else {
            return no_vm(reply);
        };
        vsock.handle().connect(port, move |result| match result {
            Ok(stream) => drop(reply.connected(stream)),
            Err(error) => reply.error(code(&error), chain(&error)),
        });
    }

    /// Attaches or detaches a disk. QEMU takes commands only once it has booted.
    fn plug(
        &mut self,
        reply: ReplyTo,
        ask: impl FnOnce(&mut Hotplug<ReplyTo>, ReplyTo) -> Vec<Action<ReplyTo>>,
    ) {
        let State::Running(vm) = &mut self.state else { return no_vm(reply) };
        let actions = ask(&mut vm.hotplug, reply);
        vm.perform(actions);
    }

    fn stop(&mut self, reply: ReplyTo) {
        let Some(vm) = self.vm() else {
            return self.end_before_qemu(reply);
        };
        vm.verdict.get_or_insert(Exited {
            reason: ExitReason::Killed,
            detail: "stopped by its owner".to_owned(),
        });
        match vm.qmp.write_all(qmp::QUIT.as_bytes()) {
            Ok(()) => vm.kill_at = Some(Instant::now() + QUIT_TIMEOUT),
            // QEMU is ending already, or will not listen.
            Err(_) => vm.qemu.kill(),
        }
        reply.done();
    }

    fn kill(&mut self, reply: ReplyTo) {
        let Some(vm) = self.vm() else {
            return self.end_before_qemu(reply);
        };
        vm.verdict.get_or_insert(Exited {
            reason: ExitReason::Killed,
            detail: "killed by its owner".to_owned(),
        });
        vm.qemu.kill();
        reply.done();
    }

    fn end_before_qemu(&mut self, reply: ReplyTo) {
        if !matches!(self.state, State::Choosing(_)) {
            return no_vm(reply);
        }
        reply.done();
        self.outbox.exited(&Exited {
            reason: ExitReason::Killed,
            detail: "ended before QEMU was started".to_owned(),
        });
        self.state = State::Told { linger: None };
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
                vm.perform(actions);
            }
            (Message::Deleted(device), State::Running(vm)) => {
                let actions = vm.hotplug.deleted(&device);
                vm.perform(actions);
            }
            (Message::Kept(device), State::Running(vm)) => {
                let actions = vm.hotplug.kept(&device);
                vm.perform(actions);
            }
            (Message::Answer(..) | Message::Deleted(_) | Message::Kept(_), _) => {}
            (Message::Greeting | Message::Status(_) | Message::Error(_) | Message::Other, _) => {}
        }
    }

    fn booted(&mut self) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Booting { vm, reply, .. } => {
                reply.started(&vm.choice.engine.to_string(), &vm.choice.reason, vm.qemu.pid());
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
        let (vm, reply) = match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(vm) => (vm, None),
            State::Booting { vm, reply, .. } => (vm, Some(reply)),
            other => return self.state = other,
        };
        let (exit, vsock) = vm.bury();
        if let Some(reply) = reply {
            reply.error(ErrorCode::Failed, exit.detail.clone());
        }
        self.outbox.exited(&exit);
        self.state = State::Told { linger: vsock };
    }
}

/// The guest may have sent bytes that the owner has yet to read: the device hands them over, and ends by itself, at
/// once when there are none. An owner that wants no more closes its socket.
fn hand_over(happenings: &Receiver<Happening>, device: Option<vsock::Device>) {
    let Some(_device) = device else { return };
    let deadline = Instant::now() + vsock::limits::DRAIN_TIMEOUT + Duration::from_secs(1);
    loop {
        match happenings.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Happening::VsockEnded(_) | Happening::Order(Order::OwnerGone { .. })) | Err(_) => {
                return;
            }
            Ok(_) => {}
        }
    }
}

impl Vm {
    fn launch(
        vm: &Description,
        files: Files,
        qemu: PathBuf,
        choice: Choice,
        tools: &Tools,
        happen: &Sender<Happening>,
        outbox: &Outbox,
    ) -> Result<Self, LaunchError> {
        let (shares, share_sockets) = serve_shares(vm, tools, happen)?;
        let (vsock, vsock_socket) = start_vsock(vm, happen, outbox)?;
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
        let ended = happen.clone();
        let process = Process::start("QEMU", &mut command, &inherited, move || {
            drop(ended.send(Happening::QemuEnded))
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
            ),
            qemu_dead: false,
            qmp_closed: false,
            cause: None,
            verdict: None,
            kill_at: None,
            lost: None,
        };
        vm.listen(happen.clone())?;
        Ok(vm)
    }

    /// Reads QMP on a thread of its own, until QEMU's end closes it.
    fn listen(&self, happen: Sender<Happening>) -> Result<(), LaunchError> {
        let mut socket = self.qmp.try_clone().map_err(LaunchError::Socket)?;
        let listen = move || {
            let (mut reader, mut buffer) = (qmp::Reader::default(), [0; 4096]);
            while let Ok(read @ 1..) = socket.read(&mut buffer) {
                reader.handle(&buffer[..read]);
                // A QEMU that talks nonsense is heard no more; its end is seen anyway.
                while let Some(message) = reader.poll().ok().flatten() {
                    let _ = happen.send(Happening::Qmp(message));
                }
            }
            let _ = happen.send(Happening::QmpClosed);
        };
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(listen)
            .map_err(LaunchError::Socket)?;
        Ok(())
    }

    fn perform(&mut self, actions: Vec<Action<ReplyTo>>) {
        for action in actions {
            match action {
                // A QEMU that is gone is told of by its end, which answers who waits.
                Action::Send { line, fd } => drop(self.tell(line.as_bytes(), fd)),
                Action::Done(reply) => reply.done(),
                Action::Failed { reply, code, text } => reply.error(code, text),
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
    happen: &Sender<Happening>,
) -> Result<(Vec<Process>, Vec<OwnedFd>), LaunchError> {
    if vm.shares().is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let program = tools.virtiofsd.clone().map_or_else(locate::virtiofsd, Ok)?;
    let sandbox = Sandbox::best(nix::unistd::geteuid().is_root(), may_unshare().unwrap_or(false));
    let (mut processes, mut sockets) = (Vec::new(), Vec::new());
    for (index, share) in vm.shares().iter().enumerate() {
        let ended = happen.clone();
        let ended = move || drop(ended.send(Happening::ShareEnded(index)));
        let (process, socket) = virtiofs::serve(&program, share, sandbox, ended)?;
        processes.push(process);
        sockets.push(socket);
    }
    Ok((processes, sockets))
}

fn start_vsock(
    vm: &Description,
    happen: &Sender<Happening>,
    outbox: &Outbox,
) -> Result<(vsock::Device, OwnedFd), LaunchError> {
    let (ours, qemus) = UnixStream::pair().map_err(LaunchError::Socket)?;
    let config = vsock::Config {
        guest_cid: vm.guest_cid().get().into(),
        guest_dial_ports: vm.guest_dials().iter().copied().collect(),
        ask_owner: true,
    };
    let (happen, outbox) = (happen.clone(), outbox.clone());
    let events = move |event| match event {
        VsockEvent::GuestDialed { port, dial, stream, .. } => {
            outbox.guest_dialed(port, dial, stream)
        }
        VsockEvent::Gone { reason } => drop(happen.send(Happening::VsockEnded(explain(&reason)))),
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
            | Self::Share(ShareError::Kind { .. } | ShareError::NoNamespace { .. })
            | Self::Cmdline(_) => ErrorCode::Invalid,
            Self::Share(ShareError::Start { .. })
            | Self::Vsock(_)
            | Self::Socket(_)
            | Self::Qemu { .. } => ErrorCode::Failed,
        }
    }
}

fn no_vm(reply: ReplyTo) {
    reply.error(ErrorCode::State, "there is no VM yet; start one first");
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
