//! A VM in Virtualization.framework, as a hypervisor of ours.
//!
//! Owns: the VM's objects, all of them on the main thread: what makes them takes a [`MainThreadMarker`], and the VM has
//! the main queue, on which the framework calls back. Promises: delegates, which the framework holds weakly, live as
//! long as the VM; a connection's object lives until its owner releases it, since its end would end the descriptors.
//! Never: decides what is configured ([`host_shim::vz::plan`]) or what an owner is told ([`host_shim::vmm::life`]).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use block2::RcBlock;
use objc2::rc::Retained;
use objc2::{AnyThread, MainThreadMarker, available};
use objc2_foundation::NSError;
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener, VZVirtualMachine,
    VZVirtualMachineState,
};
use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;

use host_shim::chain;
use host_shim::sys::no_sigpipe;
use host_shim::vm::{Description, Disk, Serial};
use host_shim::vmm::hypervisor::{Ask, Fact, Hypervisor, Refusal};
use host_shim::vmm::paths::{self, Disks};
use host_shim::vmm::server::Files;
use host_shim::vmm::{ExitReason, Exited};
use host_shim::vz::failure::Failure;
use host_shim::vz::plan;

use super::delegate::{MachineDelegate, PortDelegate};
use super::text::{failure_of, url};
use super::{configuration, mac};

/// What the framework has called back with. All on the main thread.
pub(super) enum Event {
    Started(Result<(), Failure>),
    /// It has its saved state, and stands.
    Restored(Result<(), Failure>),
    Connected(Ask, Result<Connection, Failure>),
    Dialed(Connection),
    /// A step of saving.
    Paused(Ask, PathBuf, Result<(), Failure>),
    Saved(Ask, Result<(), Failure>),
    Resumed(Ask, Result<(), Failure>, Result<(), Failure>),
    GuestStopped,
    Failed(Failure),
    Stopped(Result<(), Failure>),
}

pub(super) type Inbox = Rc<RefCell<VecDeque<Event>>>;

/// What keeps a connection to the guest: while it lives, descriptors of the connection do.
#[derive(Debug)]
pub struct Connection(pub(super) Retained<VZVirtioSocketConnection>);

/// A VM in Virtualization.framework.
pub struct Vz {
    main: MainThreadMarker,
    inbox: Inbox,
    facts: VecDeque<Fact<Connection>>,
    vm: Option<Vm>,
    next_dial: u64,
}

/// What was made of a plan.
struct Vm {
    machine: Retained<VZVirtualMachine>,
    socket: Retained<VZVirtioSocketDevice>,
    /// Held weakly by the machine.
    _delegate: Retained<MachineDelegate>,
    /// Held weakly by their listeners, as these by nobody.
    _listeners: Vec<(Retained<VZVirtioSocketListener>, Retained<PortDelegate>)>,
    disks: Disks,
    /// What its owner gets less of than it wished.
    notes: String,
    /// Why it ends, when we end it.
    verdict: Option<Exited>,
}

impl Vz {
    /// Nothing runs yet.
    pub fn new(main: MainThreadMarker) -> Self {
        Self { main, inbox: Inbox::default(), facts: VecDeque::new(), vm: None, next_dial: 1 }
    }

    /// A completion handler that puts what `event` makes of its error into the inbox.
    fn done(
        &self,
        event: impl Fn(Result<(), Failure>) -> Event + 'static,
    ) -> RcBlock<dyn Fn(*mut NSError)> {
        let inbox = self.inbox.clone();
        RcBlock::new(move |error: *mut NSError| {
            // SAFETY: the framework gives a completion handler a valid error or none.
            let result = unsafe { error.as_ref() }.map_or(Ok(()), |error| Err(failure_of(error)));
            inbox.borrow_mut().push_back(event(result));
        })
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started(Ok(())) => self.runs(),
            Event::Started(Err(failure)) => self.end(crashed("start the VM", &failure)),
            Event::Restored(Ok(())) => {
                let resumed = self.done(Event::Started);
                let Some(vm) = &self.vm else { return };
                // SAFETY: on the main thread, whose queue the machine has.
                unsafe { vm.machine.resumeWithCompletionHandler(&resumed) };
                self.facts.push_back(Fact::Slept);
            }
            Event::Restored(Err(failure)) => self.end(crashed("restore the VM's state", &failure)),
            Event::Connected(ask, Ok(connection)) => match connection.descriptor() {
                Ok(stream) => {
                    self.facts.push_back(Fact::Connected { ask, stream, kept: connection });
                }
                Err(error) => self.refuse(ask, ErrorCode::Failed, chain(&error)),
            },
            Event::Connected(ask, Err(failure)) => {
                // The framework does not tell a guest that is not up from a closed port.
                self.refuse(ask, ErrorCode::Refused, failure.to_string());
            }
            Event::Dialed(connection) => {
                let Ok(stream) = connection.descriptor() else { return };
                // SAFETY: a plain number of an object that lives.
                let port = unsafe { connection.0.destinationPort() };
                let dial = self.next_dial;
                self.next_dial += 1;
                self.facts.push_back(Fact::Dialed { port, dial, stream, kept: connection });
            }
            Event::Paused(ask, path, result) => self.paused(ask, &path, result),
            Event::Saved(ask, result) => {
                let resumed = self.done(move |back| Event::Resumed(ask, result.clone(), back));
                let Some(vm) = &self.vm else { return };
                // SAFETY: on the main thread, whose queue the machine has.
                unsafe { vm.machine.resumeWithCompletionHandler(&resumed) };
            }
            Event::Resumed(ask, Ok(()), Ok(())) => {
                self.facts.push_back(Fact::Done { ask });
                self.facts.push_back(Fact::Slept);
            }
            Event::Resumed(ask, Err(failure), _) | Event::Resumed(ask, Ok(()), Err(failure)) => {
                self.refuse(ask, ErrorCode::Failed, format!("save the VM's state: {failure}"));
            }
            Event::GuestStopped => {
                self.end(Exited { reason: ExitReason::PowerOff, detail: String::new() });
            }
            Event::Failed(failure) => self.end(crashed("the VM stopped", &failure)),
            Event::Stopped(Ok(())) => self.end(killed("ended")),
            // It is stopping already, or cannot be stopped yet: its end comes by the delegate, or from our owner.
            Event::Stopped(Err(_)) => {}
        }
    }

    fn runs(&mut self) {
        let Some(vm) = &self.vm else { return };
        vm.disks.take_again();
        let reason = vm.notes.clone();
        self.facts.push_back(Fact::Running { accelerator: "vz".to_owned(), reason, pid: 0 });
    }

    fn paused(&mut self, ask: Ask, path: &Path, result: Result<(), Failure>) {
        if let Err(failure) = result {
            return self.refuse(ask, ErrorCode::State, format!("pause the VM: {failure}"));
        }
        let saved = self.done(move |result| Event::Saved(ask, result));
        let Some(vm) = &self.vm else { return };
        if available!(macos = 14.0)
            && let Some(url) = url(path)
        {
            // SAFETY: on the main thread, whose queue the machine has.
            unsafe { vm.machine.saveMachineStateToURL_completionHandler(&url, &saved) };
        }
    }

    fn refuse(&mut self, ask: Ask, code: ErrorCode, text: String) {
        self.facts.push_back(Fact::Refused { ask, refusal: Refusal::new(code, text) });
    }

    fn end(&mut self, exit: Exited) {
        if let Some(vm) = self.vm.take() {
            self.facts.push_back(Fact::Ended(vm.verdict.unwrap_or(exit)));
        }
    }

    fn stop_with(&mut self, detail: &str) {
        let stopped = self.done(Event::Stopped);
        let Some(vm) = &mut self.vm else { return };
        vm.verdict.get_or_insert(killed(detail));
        // SAFETY: on the main thread, whose queue the machine has. A VM that is stopping says so in its answer.
        unsafe { vm.machine.stopWithCompletionHandler(&stopped) };
    }

    fn make(&self, vm: &Description, files: Files) -> Result<(Vm, Option<PathBuf>), Refusal> {
        let invalid = |text: String| Refusal::new(ErrorCode::Invalid, text);
        paths::check(vm, &files)?;
        let plan =
            plan::plan(vm, &mac::limits(self.main)).map_err(|error| invalid(chain(&error)))?;
        let configuration = configuration::apply(&plan, &files, self.main)
            .map_err(|error| invalid(chain(&error)))?;
        // SAFETY: the configuration was validated, and this is the main thread, whose queue a machine without one has.
        let machine = unsafe {
            VZVirtualMachine::initWithConfiguration(VZVirtualMachine::alloc(), &configuration)
        };
        let delegate = MachineDelegate::new(self.main, self.inbox.clone());
        delegate.attach(&machine);
        // SAFETY: on the main thread.
        let devices = unsafe { machine.socketDevices() };
        let socket = devices
            .firstObject()
            .and_then(|device| device.downcast::<VZVirtioSocketDevice>().ok())
            .ok_or_else(|| Refusal::new(ErrorCode::Failed, "the VM has no vsock device"))?;
        let listeners = plan.guest_dials.iter().map(|port| {
            let delegate = PortDelegate::new(self.main, self.inbox.clone());
            (delegate.listen(&socket, *port), delegate)
        });
        let vm = Vm {
            _listeners: listeners.collect(),
            machine,
            socket,
            _delegate: delegate,
            disks: Disks::let_go(vm, files.disks),
            notes: plan.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            verdict: None,
        };
        Ok((vm, plan.restore))
    }
}

impl Hypervisor for Vz {
    type Kept = Connection;

    fn start(&mut self, vm: Box<Description>, files: Files, _now: Instant) -> Result<(), Refusal> {
        let (vm, restore) = self.make(&vm, files)?;
        match restore {
            None => {
                let started = self.done(Event::Started);
                // SAFETY: on the main thread, whose queue the machine has.
                unsafe { vm.machine.startWithCompletionHandler(&started) };
            }
            Some(path) => {
                let restored = self.done(Event::Restored);
                if available!(macos = 14.0)
                    && let Some(url) = url(&path)
                {
                    // SAFETY: on the main thread, whose queue the machine has.
                    unsafe {
                        vm.machine.restoreMachineStateFromURL_completionHandler(&url, &restored);
                    }
                }
            }
        }
        self.vm = Some(vm);
        Ok(())
    }

    fn connect(&mut self, port: u32, ask: Ask) {
        let Some(vm) = &self.vm else {
            let Refusal { code, text } = Refusal::no_vm();
            return self.refuse(ask, code, text);
        };
        let inbox = self.inbox.clone();
        let connected =
            RcBlock::new(move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
                // SAFETY: the framework gives a valid connection, or none and a valid error.
                let result = match unsafe { (Retained::retain(connection), error.as_ref()) } {
                    (Some(connection), None) => Ok(Connection(connection)),
                    (_, Some(error)) => Err(failure_of(error)),
                    (None, None) => Err(Failure::default()),
                };
                inbox.borrow_mut().push_back(Event::Connected(ask, result));
            });
        // SAFETY: on the main thread, whose queue the machine of the device has.
        unsafe { vm.socket.connectToPort_completionHandler(port, &connected) };
    }

    /// The framework wants its answer at once, so all dials on the list were accepted when they came.
    fn accept(&mut self, _dial: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn attach_disk(&mut self, _disk: Disk, _file: OwnedFd, ask: Ask) {
        self.refuse(ask, ErrorCode::Invalid, plan::Note::NoLaterDisks.to_string());
    }

    fn detach_disk(&mut self, _serial: &Serial, ask: Ask, _now: Instant) {
        self.refuse(ask, ErrorCode::Invalid, plan::Note::NoLaterDisks.to_string());
    }

    fn save(&mut self, path: &Path, ask: Ask) {
        let to = path.to_owned();
        let paused = self.done(move |result| Event::Paused(ask, to.clone(), result));
        match &self.vm {
            // SAFETY: on the main thread, whose queue the machine has.
            Some(vm) if available!(macos = 14.0) => unsafe {
                vm.machine.pauseWithCompletionHandler(&paused);
            },
            Some(_) => self.refuse(
                ask,
                ErrorCode::Invalid,
                "saving a VM's state needs macOS 14".to_owned(),
            ),
            None => {
                let Refusal { code, text } = Refusal::no_vm();
                self.refuse(ask, code, text);
            }
        }
    }

    fn power_button(&mut self) -> Result<(), Refusal> {
        let vm = self.vm.as_ref().ok_or_else(Refusal::no_vm)?;
        // SAFETY: on the main thread, whose queue the machine has.
        unsafe { vm.machine.requestStopWithError() }
            .map_err(|error| Refusal::new(ErrorCode::Failed, failure_of(&error).to_string()))
    }

    fn stop(&mut self, _now: Instant) {
        self.stop_with("stopped by its owner");
    }

    fn kill(&mut self) {
        self.stop_with("killed by its owner");
    }

    fn woke(&mut self) {}

    fn state(&self) -> String {
        let Some(vm) = &self.vm else { return "there is no VM".to_owned() };
        // SAFETY: on the main thread, whose queue the machine has.
        let state = match unsafe { vm.machine.state() } {
            VZVirtualMachineState::Stopped => "stopped",
            VZVirtualMachineState::Running => "running",
            VZVirtualMachineState::Paused => "paused",
            VZVirtualMachineState::Error => "error",
            VZVirtualMachineState::Starting => "starting",
            VZVirtualMachineState::Pausing => "pausing",
            VZVirtualMachineState::Resuming => "resuming",
            VZVirtualMachineState::Stopping => "stopping",
            VZVirtualMachineState::Saving => "saving",
            VZVirtualMachineState::Restoring => "restoring",
            _ => "unknown",
        };
        format!("Virtualization.framework says {state}")
    }

    fn poll(&mut self, _now: Instant) -> Option<Fact<Connection>> {
        while self.facts.is_empty() {
            let event = self.inbox.borrow_mut().pop_front()?;
            self.take(event);
        }
        self.facts.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn lingers(&self, connections: usize) -> bool {
        connections > 0
    }
}

impl Connection {
    /// A descriptor of the connection, for its owner. It ends with the object, so that is kept.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the object is connected, and owns the descriptor as long as it lives, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0.fileDescriptor()) };
        let ours = fd.try_clone_to_owned()?;
        no_sigpipe(ours.as_fd());
        Ok(ours)
    }
}

fn crashed(what: &str, failure: &Failure) -> Exited {
    Exited { reason: ExitReason::Crashed, detail: format!("{what}: {failure}") }
}

fn killed(detail: &str) -> Exited {
    Exited { reason: ExitReason::Killed, detail: detail.to_owned() }
}
