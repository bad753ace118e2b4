//! The virtio vsock device of one VM, as a vhost-user backend: QEMU connects to it, and each vsock connection becomes
//! one end of a Unix stream socket pair in the caller's hands.
//!
//! Owns: the thread that serves the device, the VM's memory mapped into this process, and our end of each pair.
//! Promises: what one side sent before it shut down or went away reaches the other side, in order and once; each
//! direction ends on its own; a closed port is refused at once, both ways; a peer that does not read holds up its own
//! connection only and costs at most [`limits::GUEST_CREDIT_BYTES`] here; nothing that a guest writes into its memory
//! makes the device panic, spin, or allocate without bound.
//! Never: trusts a length or an address of the guest, blocks on a socket, or outlives QEMU (it hands over what is
//! left for the host first, [`limits::DRAIN_TIMEOUT`]).
//!
//! ```text
//!   owner's fd ====== our end --- worker ------ engine --- rings ------ guest memory
//!   (socket pair)     + backlog   (epoll,       (table of  (virtqueues,
//!                                  vhost-user)   states)    rx and tx)
//! ```
//!
//! One file per concept: [`packet`] the wire format and [`connection`] the protocol's states (both pure), [`table`]
//! which connection is whose turn, `ring` and `scatter` guest memory, `host_socket` our end of a pair, `engine`
//! what moves bytes between these, `frontend` QEMU's requests, `worker` the thread.
//!
//! The crate `vhost-user-backend` was not used: it takes a listening path, not a connected socket, runs requests and
//! rings in two threads that share every ring through a mutex, and tells a paused VM from a reset one by nothing.
//! `virtio-vsock` neither: it takes one data descriptor per packet, and guests from Linux 6.12 on send several.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};

pub mod connection;
mod engine;
mod frontend;
mod host_socket;
pub mod limits;
pub mod packet;
mod ring;
mod scatter;
pub mod table;
mod worker;

#[cfg(test)]
mod driver_model;

use worker::{Command, Worker};

/// What one device needs to know of its VM.
#[derive(Debug, Clone)]
pub struct Config {
    /// The guest's address; 3 or more.
    pub guest_cid: u64,
    /// The ports of the host that the guest may dial; any other is refused at once.
    pub guest_dial_ports: Vec<u32>,
    /// Each dial of the guest waits for [`Handle::accept`], and is refused when its stream is closed before. Otherwise
    /// all are answered at once, for an owner in this process that takes what it has listed.
    pub ask_owner: bool,
}

/// What the device tells its owner, from its own thread.
#[derive(Debug)]
pub enum VsockEvent {
    /// The guest dialled a port on the list; it has been answered already, unless [`Config::ask_owner`] is set.
    GuestDialed {
        /// The host's port that it dialled.
        port: u32,
        /// The guest's own port.
        guest_port: u32,
        /// Its name for [`Handle::accept`].
        dial: u64,
        /// The connection: a blocking, close-on-exec Unix stream socket. Closing it ends the connection.
        stream: OwnedFd,
    },
    /// The device has ended; no event follows, and every connection is closed.
    Gone {
        /// Why.
        reason: GoneReason,
    },
}

/// Why a device ended.
#[derive(Debug)]
pub enum GoneReason {
    /// Its [`Device`] was dropped.
    Stopped,
    /// The VMM closed its end of the vhost-user socket: it has ended, or is about to.
    FrontendClosed,
    /// It could not go on.
    Failed(VsockError),
}

/// Why a device could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The host's doing: 0 to 2 are the hypervisor's, nobody's and the host's own, 2^32 - 1 is "any".
    #[error("guest cid {cid} is reserved")]
    ReservedCid {
        /// The refused address.
        cid: u64,
    },
    /// The host has no thread or descriptor left.
    #[error("set up the vsock device's {what}")]
    SetUp {
        /// The thing that could not be made.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The VMM's doing: it sent a request that makes no sense, or half of one.
    #[error("handle a vhost-user request")]
    Request(#[source] vhost::vhost_user::Error),
    /// The host's doing: waiting for events failed, which it never should.
    #[error("wait for events of the vsock device")]
    Wait(#[source] io::Error),
}

/// Why the guest could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or the listener's queue is full.
    #[error("guest refused the connection to port {port}")]
    Refused {
        /// The dialled port.
        port: u32,
    },
    /// The guest did not answer within [`limits::DIAL_TIMEOUT`].
    #[error("guest did not answer on port {port}")]
    Timeout {
        /// The dialled port.
        port: u32,
    },
    /// The guest's vsock driver is not up yet, or the VM is paused, or the guest was reset meanwhile. Worth another try.
    #[error("guest has no vsock driver running")]
    NoGuest,
    /// The device has ended.
    #[error("vsock device has ended")]
    DeviceGone,
    /// [`limits::MAX_CONNECTIONS`] are open.
    #[error("too many vsock connections")]
    TooMany,
    /// The host has no descriptor left.
    #[error("make a socket pair")]
    Resources(#[source] io::Error),
}

/// Starts the device on a Unix stream socket that is connected to the VMM.
///
/// With QEMU: make a socket pair, give QEMU one end (`-chardev socket,id=vs0,fd=N
/// -device vhost-user-vsock-pci,chardev=vs0`, guest memory shared: `-object memory-backend-memfd,share=on`) and this
/// function the other. Close the first after the fork, or the device never learns of QEMU's end.
///
/// `events` is called on the device's thread and must not block; the last call is [`VsockEvent::Gone`]. A guest may dial,
/// reset and dial again as fast as it can, and each dial is an event with a descriptor: whoever queues them bounds the
/// queue, and drops those beyond (which ends these connections).
/// A descriptor is used per connection: the caller's process wants its soft `RLIMIT_NOFILE` raised to the hard one.
pub fn start(
    socket: UnixStream,
    config: Config,
    events: impl FnMut(VsockEvent) + Send + 'static,
) -> Result<Device, VsockError> {
    let cid = config.guest_cid;
    if cid < 3 || cid >= u64::from(u32::MAX) {
        return Err(VsockError::ReservedCid { cid });
    }
    let set_up = |what| move |source| VsockError::SetUp { what, source };
    let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| set_up("wake-up event")(errno.into()))?;
    let wake = Arc::new(wake);
    let hang_up = socket.try_clone().map_err(set_up("socket"))?;
    let (commands, inbox) = mpsc::channel();
    let worker = Worker::new(socket, &config, Box::new(events), inbox, wake.clone())
        .map_err(set_up("event loop"))?;
    let thread = thread::Builder::new()
        .name(format!("vsock-{cid}"))
        .spawn(move || worker.run())
        .map_err(set_up("thread"))?;
    let handle = Handle { commands, wake };
    Ok(Device { handle, hang_up, thread: Some(thread) })
}

/// A running device. Dropping it ends the thread and every connection; what the guest had sent and the host has
/// not yet taken is lost then (let the device end by itself, with the VMM, to keep it).
#[derive(Debug)]
pub struct Device {
    handle: Handle,
    /// A second descriptor of the VMM's socket, to wake the thread from a read in the middle of a request.
    hang_up: UnixStream,
    /// Taken when it is joined, in [`Drop`].
    thread: Option<thread::JoinHandle<()>>,
}

impl Device {
    /// What dials the guest; may be cloned and sent to other threads, and may outlive the device.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.handle.command(Command::Stop);
        // Already closed by the other side: then the thread is awake anyway.
        let _ = self.hang_up.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by the thread; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Dials the guest of one device.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
}

impl Handle {
    /// Dials `port` of the guest. `reply` is called exactly once, on the device's thread (or on this one when the
    /// device has ended), and must not block. The descriptor is a blocking, close-on-exec Unix stream socket;
    /// closing it ends the connection.
    pub fn connect(
        &self,
        port: u32,
        reply: impl FnOnce(Result<OwnedFd, ConnectError>) + Send + 'static,
    ) {
        self.command(Command::Connect { port, reply: Reply::new(reply) });
    }

    /// Accepts what the guest has dialled, see [`VsockEvent::GuestDialed`]. Nothing happens when the guest has given up.
    pub fn accept(&self, dial: u64) {
        self.command(Command::Accept { dial });
    }

    fn command(&self, command: Command) {
        // A command that cannot be delivered is dropped here, and its reply answers "device gone".
        if self.commands.send(command).is_ok() {
            // The event's counter cannot be full: the worker empties it.
            let _ = self.wake.write(1);
        }
    }
}

/// The answer that a dialler waits for: given once, at the latest when it is dropped.
struct Reply(Option<Box<ReplyFn>>);

type ReplyFn = dyn FnOnce(Result<OwnedFd, ConnectError>) + Send;

impl Reply {
    fn new(reply: impl FnOnce(Result<OwnedFd, ConnectError>) + Send + 'static) -> Reply {
        Reply(Some(Box::new(reply)))
    }

    fn give(mut self, result: Result<OwnedFd, ConnectError>) {
        if let Some(reply) = self.0.take() {
            reply(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply(Err(ConnectError::DeviceGone));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

#[cfg(test)]
mod tests;
