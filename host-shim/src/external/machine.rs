//! The program as a hypervisor of ours.
//!
//! ```text
//! Idle --- start ---> Booting --- its service says that the VM runs ---> Running
//!                        +------------- the program has ended -------------+---> Ended
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use tempfile::TempDir;
use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use super::arguments::{Sockets, arguments};
use super::process::Process;
use super::rest;
use crate::chain;
use crate::limits::{EXTERNAL_POLL_INTERVAL, QUIT_TIMEOUT};
use crate::vm::{Description, Disk, Serial};
use crate::vmm::hypervisor::{Ask, Fact, Hypervisor, Refusal, Waker};
use crate::vmm::paths::{self, Disks};
use crate::vmm::server::Files;
use crate::vmm::{ExitReason, Exited};

/// What its service says of a VM that runs.
const RUNNING: &str = "VirtualMachineStateRunning";

/// A VM in another's program. Dropped, it is killed.
#[derive(Debug)]
pub struct External {
    program: PathBuf,
    post: Post,
    happenings: Receiver<Happening>,
    state: State,
    facts: VecDeque<Fact<()>>,
    next_dial: u64,
}

#[derive(Debug)]
enum State {
    /// No start yet.
    Idle,
    /// The program was started; its service is asked now and then.
    Booting { vm: Vm, ask_at: Instant, said: String },
    /// The guest runs.
    Running(Vm),
    /// The VM is gone.
    Ended,
}

#[derive(Debug)]
struct Vm {
    process: Process,
    sockets: Sockets,
    disks: Disks,
    /// Of the sockets; gone with the VM.
    _directory: TempDir,
    /// Why it ends, when we end it, and when it is killed unless it has.
    verdict: Option<Exited>,
    kill_at: Option<Instant>,
}

#[derive(Debug)]
enum Happening {
    /// The program will say no more: it has ended, or is about to.
    Ended,
    Dialed {
        port: u32,
        stream: UnixStream,
    },
}

#[derive(Clone, Debug)]
struct Post {
    sender: Sender<Happening>,
    waker: Waker,
}

impl Post {
    fn send(&self, happening: Happening) -> bool {
        let taken = self.sender.send(happening).is_ok();
        self.waker.wake();
        taken
    }
}

impl External {
    /// Nothing runs yet. `program` is a path, or a name to be looked for in PATH.
    pub fn new(program: PathBuf, waker: Waker) -> Self {
        let (sender, happenings) = channel();
        let post = Post { sender, waker };
        let facts = VecDeque::new();
        Self { program, post, happenings, state: State::Idle, facts, next_dial: 1 }
    }

    fn launch(&self, vm: &Description, files: Files) -> Result<Vm, Refusal> {
        let failed = |what: &str, error: &io::Error| {
            Refusal::new(ErrorCode::Failed, format!("{what}: {}", chain(error)))
        };
        paths::check(vm, &files)?;
        let directory = short_directory().map_err(|error| failed("make a directory", &error))?;
        let invalid = |error| Refusal::new(ErrorCode::Invalid, chain(&error));
        let sockets = Sockets::within(directory.path()).map_err(invalid)?;
        let arguments = arguments(vm, &sockets).map_err(invalid)?;
        for port in vm.guest_dials() {
            listen(*port, &sockets.of_port(*port), &self.post)
                .map_err(|error| failed("listen for the guest", &error))?;
        }
        let Files { disks, console, .. } = files;
        let disks = Disks::let_go(vm, disks);
        let post = self.post.clone();
        let ended = move || {
            post.send(Happening::Ended);
        };
        let process =
            Process::start(&self.program, arguments, console, ended).map_err(|error| {
                let text = format!("start {:?}: {}", self.program, chain(&error));
                let code = match error.kind() {
                    io::ErrorKind::NotFound => ErrorCode::Missing,
                    _ => ErrorCode::Failed,
                };
                Refusal::new(code, text)
            })?;
        let (verdict, kill_at) = (None, None);
        Ok(Vm { process, sockets, disks, _directory: directory, verdict, kill_at })
    }

    fn vm(&mut self) -> Option<&mut Vm> {
        match &mut self.state {
            State::Booting { vm, .. } | State::Running(vm) => Some(vm),
            State::Idle | State::Ended => None,
        }
    }

    fn refuse(&mut self, ask: Ask, refusal: Refusal) {
        self.facts.push_back(Fact::Refused { ask, refusal });
    }

    fn end(&mut self) {
        let mut vm = match std::mem::replace(&mut self.state, State::Ended) {
            State::Booting { vm, .. } | State::Running(vm) => vm,
            other => return self.state = other,
        };
        // It closed its stderr, and what is left to it is to exit.
        let (well, how) = vm.process.reap();
        let exit = vm.verdict.take().unwrap_or_else(|| match well {
            true => Exited { reason: ExitReason::PowerOff, detail: String::new() },
            false => {
                let detail = format!("{}: {how}", self.program.display());
                Exited { reason: ExitReason::Crashed, detail }
            }
        });
        self.facts.push_back(Fact::Ended(exit));
    }

    /// Asks the program's service, while the VM boots.
    fn look(&mut self, now: Instant) {
        let State::Booting { vm, ask_at, said } = &mut self.state else { return };
        if now < *ask_at {
            return;
        }
        *ask_at = now + EXTERNAL_POLL_INTERVAL;
        // On this thread: it is a socket of this machine, and a program that does not answer has its time limit.
        *said = rest::state(&vm.sockets.rest()).unwrap_or_else(|error| error.to_string());
        if said != RUNNING {
            return;
        }
        vm.disks.take_again();
        let pid = vm.process.pid();
        if let State::Booting { vm, .. } = std::mem::replace(&mut self.state, State::Ended) {
            self.state = State::Running(vm);
        }
        let accelerator = self.program.file_name().unwrap_or_default().to_string_lossy();
        let accelerator = accelerator.into_owned();
        self.facts.push_back(Fact::Running { accelerator, reason: String::new(), pid });
    }
}

impl Hypervisor for External {
    /// The program sees the end of a connection by itself.
    type Kept = ();

    fn start(&mut self, vm: Box<Description>, files: Files, now: Instant) -> Result<(), Refusal> {
        let vm = self.launch(&vm, files)?;
        self.state = State::Booting { vm, ask_at: now, said: String::new() };
        Ok(())
    }

    fn connect(&mut self, port: u32, ask: Ask) {
        // The program takes connections for the guest before there is one: its word counts, not the socket's.
        let State::Running(vm) = &self.state else {
            return self.refuse(ask, Refusal::new(ErrorCode::NotUp, "the VM is not up yet"));
        };
        match UnixStream::connect(vm.sockets.of_port(port)) {
            Ok(stream) => {
                let stream = stream.into();
                self.facts.push_back(Fact::Connected { ask, stream, kept: () });
            }
            Err(error) => {
                let text = format!("port {port}: {}", chain(&error));
                self.refuse(ask, Refusal::new(ErrorCode::Refused, text));
            }
        }
    }

    /// The program has answered the guest already.
    fn accept(&mut self, _dial: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn attach_disk(&mut self, _disk: Disk, _file: OwnedFd, ask: Ask) {
        self.refuse(ask, no_later_disks());
    }

    fn detach_disk(&mut self, _serial: &Serial, ask: Ask, _now: Instant) {
        self.refuse(ask, no_later_disks());
    }

    fn save(&mut self, _path: &Path, ask: Ask) {
        let text = "saving a VM's state is not to be had from another's program";
        self.refuse(ask, Refusal::new(ErrorCode::Invalid, text));
    }

    fn power_button(&mut self) -> Result<(), Refusal> {
        let vm = self.vm().ok_or_else(Refusal::no_vm)?;
        rest::change(&vm.sockets.rest(), "Stop")
            .map_err(|error| Refusal::new(ErrorCode::Failed, chain(&error)))
    }

    fn stop(&mut self, now: Instant) {
        let Some(vm) = self.vm() else { return };
        vm.verdict.get_or_insert(killed("stopped by its owner"));
        match rest::change(&vm.sockets.rest(), "HardStop") {
            Ok(()) => vm.kill_at = Some(now + QUIT_TIMEOUT),
            Err(_) => vm.process.kill(),
        }
    }

    fn kill(&mut self) {
        let Some(vm) = self.vm() else { return };
        vm.verdict.get_or_insert(killed("killed by its owner"));
        vm.process.kill();
    }

    fn woke(&mut self) {}

    fn state(&self) -> String {
        let program = self.program.display();
        match &self.state {
            State::Idle => format!("{program} was not started"),
            State::Booting { vm, said, .. } => {
                format!("{program} (process {}) says {said:?}", vm.process.pid())
            }
            State::Running(vm) => format!("{program} (process {}) runs it", vm.process.pid()),
            State::Ended => format!("{program} has ended"),
        }
    }

    fn poll(&mut self, now: Instant) -> Option<Fact<()>> {
        if let Some(vm) = self.vm()
            && vm.kill_at.is_some_and(|at| at <= now)
        {
            vm.kill_at = None;
            vm.process.kill();
        }
        self.look(now);
        while self.facts.is_empty() {
            match self.happenings.try_recv().ok()? {
                Happening::Ended => self.end(),
                Happening::Dialed { port, stream } => {
                    let dial = self.next_dial;
                    self.next_dial += 1;
                    let stream = stream.into();
                    self.facts.push_back(Fact::Dialed { port, dial, stream, kept: () });
                }
            }
        }
        self.facts.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Booting { vm, ask_at, .. } => Some(vm.kill_at.unwrap_or(*ask_at).min(*ask_at)),
            State::Running(vm) => vm.kill_at,
            State::Idle | State::Ended => None,
        }
    }

    fn lingers(&self, _connections: usize) -> bool {
        false
    }
}

/// A directory of its own for sockets: below TMPDIR where that is short enough, else below /tmp.
fn short_directory() -> io::Result<TempDir> {
    let make = |directory: &Path| tempfile::Builder::new().prefix("vz-").tempdir_in(directory);
    let wished = make(&std::env::temp_dir())?;
    match Sockets::within(wished.path()) {
        Ok(_) => Ok(wished),
        Err(_) => make(Path::new("/tmp")),
    }
}

/// Takes what the guest dials, on a thread that ends with the socket's last dial after the VM's end.
fn listen(port: u32, path: &Path, post: &Post) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let post = post.clone();
    let accept = move || {
        while let Ok((stream, _)) = listener.accept() {
            if !post.send(Happening::Dialed { port, stream }) {
                return;
            }
        }
    };
    std::thread::Builder::new().name(format!("dial-{port}")).spawn(accept)?;
    Ok(())
}

fn no_later_disks() -> Refusal {
    let text = "no disk can be attached while the VM runs: vfkit's command line has none";
    Refusal::new(ErrorCode::Invalid, text)
}

fn killed(detail: &str) -> Exited {
    Exited { reason: ExitReason::Killed, detail: detail.to_owned() }
}
