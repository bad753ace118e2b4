//! vminit-vmm's end of the control socket: a thread that reads orders and one that writes notices.
//!
//! Owns: the socket. Promises: each request is answered once, at the latest when its [`ReplyTo`] is dropped; an
//! [`Outbox`] never blocks, so that whatever serves the guest never waits for an owner; the owner's end, a frame that
//! makes no sense and an owner that has stopped reading all come as [`Order::OwnerGone`].
//! Never: knows what runs a VM. Its orders may come at any time and in any sequence: who takes them checks.

use std::ffi::OsString;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use vminitd_protocol::pb::vminitd::vmm::v1 as pb;

use super::frame::{Decoder, FrameError, encode};
use super::{ExitReason, Exited, PROTOCOL};
use crate::limits::{MAX_QUEUED_DIALS, OUTBOX_MESSAGES};
use crate::sys::scm;
use crate::vm::{Description, Disk, MacAddress, NicError, Serial, from_disk};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 16 << 10;

/// What the owner wants, checked as far as that goes without the VM.
#[derive(Debug)]
pub enum Order {
    /// Make and run this VM.
    Start {
        /// What it is to be.
        vm: Box<Description>,
        /// Its files.
        files: Files,
        /// Answer: [`ReplyTo::started`].
        reply: ReplyTo,
    },
    /// Dial the guest.
    Connect {
        /// The guest's port.
        port: u32,
        /// Answer: [`ReplyTo::connected`].
        reply: ReplyTo,
    },
    /// Take what the guest has dialled.
    Accept {
        /// The device's name for it.
        dial: u64,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// The owner is done with a connection.
    Release {
        /// Its number.
        conn: u64,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// Give the guest one more disk.
    AttachDisk {
        /// What it is to be.
        disk: Disk,
        /// Its image.
        file: OwnedFd,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// Take it away again.
    DetachDisk {
        /// Which.
        serial: Serial,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// Write the VM's state to a new file.
    Save {
        /// Which; absolute.
        path: PathBuf,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// Give the guest one more interface.
    AttachTap {
        /// How the guest finds it.
        mac: MacAddress,
        /// What it is connected to.
        tap: OwnedFd,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// Take an interface away.
    DetachNic {
        /// Which.
        mac: MacAddress,
        /// Answer: [`ReplyTo::done`].
        reply: ReplyTo,
    },
    /// Ask the guest to power off.
    PowerButton(ReplyTo),
    /// End the VM, but write back what disks hold.
    Stop(ReplyTo),
    /// End the VM now.
    Kill(ReplyTo),
    /// There is nobody to run the VM for.
    OwnerGone {
        /// Why, for the log.
        why: String,
    },
}

/// The files of a VM, opened by its owner.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub kernel: OwnedFd,
    /// The initramfs, exactly if the description has one.
    pub initramfs: Option<OwnedFd>,
    /// One per disk of the description.
    pub disks: Vec<OwnedFd>,
    /// What the guest prints goes here.
    pub console: OwnedFd,
}

/// Starts to serve the owner at the other end of `socket`. `take` is called on the reading thread for each order;
/// the last is [`Order::OwnerGone`].
pub fn serve(
    socket: UnixStream,
    take: impl FnMut(Order) + Send + 'static,
) -> io::Result<(Outbox, Writer)> {
    let socket = Arc::new(socket);
    let (queue, queued) = sync_channel(OUTBOX_MESSAGES);
    let dials = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox {
        queue,
        dials: dials.clone(),
        next_conn: Arc::new(AtomicU64::new(1)),
        socket: socket.clone(),
    };
    let writing = socket.clone();
    let writer = std::thread::Builder::new()
        .name("to-owner".into())
        .spawn(move || write_notices(&writing, &queued, &dials))?;
    let replies = outbox.clone();
    std::thread::Builder::new()
        .name("from-owner".into())
        .spawn(move || read_requests(&socket, &replies, take))?;
    Ok((outbox, Writer(writer)))
}

/// Where notices to the owner go. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: SyncSender<Letter>,
    /// Notices of the guest's dials that are queued.
    dials: Arc<AtomicUsize>,
    next_conn: Arc<AtomicU64>,
    socket: Arc<UnixStream>,
}

/// The thread that empties the outbox.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits until the last notice is written ([`Outbox::exited`]), or the owner is gone.
    pub fn finish(self) {
        // A panic of the thread has been printed by it.
        let _ = self.0.join();
    }
}

#[derive(Debug)]
enum Letter {
    Notice { notice: Box<pb::Notice>, fds: Vec<OwnedFd>, dial: bool },
    Last(Box<pb::Notice>),
}

impl Outbox {
    /// Tells the owner that the guest dials `port`; `conn` is the connection's number. With too many such notices
    /// unread, the connection is closed instead, which refuses it: false.
    pub fn guest_dialed(&self, conn: u64, port: u32, dial: u64, stream: OwnedFd) -> bool {
        if self.dials.fetch_add(1, Ordering::Relaxed) >= MAX_QUEUED_DIALS {
            self.dials.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let dialed = pb::GuestDialed { conn, port, dial };
        let notice = event(pb::event::Kind::GuestDialed(dialed));
        self.post(Letter::Notice { notice, fds: vec![stream], dial: true });
        true
    }

    /// Tells the owner that the machine has slept.
    pub fn woke(&self) {
        let notice = event(pb::event::Kind::Woke(pb::Woke {}));
        self.post(Letter::Notice { notice, fds: Vec::new(), dial: false });
    }

    /// Tells the owner that the VM has ended: the last notice.
    pub fn exited(&self, exit: &Exited) {
        let reason = match exit.reason {
            ExitReason::PowerOff => pb::ExitReason::PowerOff,
            ExitReason::Reboot => pb::ExitReason::Reboot,
            ExitReason::Panic => pb::ExitReason::Panic,
            ExitReason::Killed => pb::ExitReason::Killed,
            ExitReason::Crashed => pb::ExitReason::Crashed,
            ExitReason::VmmDied => pb::ExitReason::Unknown,
        };
        let exited = pb::Exited { reason: reason.into(), detail: exit.detail.clone() };
        self.post(Letter::Last(event(pb::event::Kind::Exited(exited))));
    }

    fn reply(&self, id: u64, kind: pb::reply::Kind, fds: Vec<OwnedFd>) {
        let reply = pb::Reply { id, kind: Some(kind) };
        let notice = Box::new(pb::Notice { fds: 0, kind: Some(pb::notice::Kind::Reply(reply)) });
        self.post(Letter::Notice { notice, fds, dial: false });
    }

    /// A number for one more connection.
    pub fn next_conn(&self) -> u64 {
        self.next_conn.fetch_add(1, Ordering::Relaxed)
    }

    fn post(&self, letter: Letter) {
        match self.queue.try_send(letter) {
            // Disconnected: the writer has ended because the owner is gone; the reader knows too.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            // So many unread: the owner is stuck. The reader now meets the end of the stream.
            Err(TrySendError::Full(_)) => {
                let _ = self.socket.shutdown(Shutdown::Both);
            }
        }
    }
}

/// The answer that a request waits for.
#[derive(Debug)]
pub struct ReplyTo {
    id: u64,
    /// Taken by the answer.
    outbox: Option<Outbox>,
}

impl ReplyTo {
    /// It is done.
    pub fn done(self) {
        self.answer(pb::reply::Kind::Done(pb::Done {}), Vec::new());
    }

    /// The VM runs: by what, why not by something faster, in which process.
    pub fn started(self, accelerator: &str, accelerator_reason: &str, pid: u32) {
        let (accelerator, accelerator_reason) =
            (accelerator.to_owned(), accelerator_reason.to_owned());
        self.answer(
            pb::reply::Kind::Started(pb::Started { accelerator, accelerator_reason, pid }),
            Vec::new(),
        );
    }

    /// The guest took the connection, which has this number.
    pub fn connected(self, conn: u64, stream: OwnedFd) {
        self.answer(pb::reply::Kind::Connected(pb::Connected { conn }), vec![stream]);
    }

    /// It was refused or has failed.
    pub fn error(self, code: pb::ErrorCode, text: impl Into<String>) {
        self.answer(
            pb::reply::Kind::Error(pb::Error { code: code.into(), text: text.into() }),
            Vec::new(),
        );
    }

    fn answer(mut self, kind: pb::reply::Kind, fds: Vec<OwnedFd>) {
        if let Some(outbox) = self.outbox.take() {
            outbox.reply(self.id, kind, fds);
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if let Some(outbox) = self.outbox.take() {
            let error = pb::Error {
                code: pb::ErrorCode::State.into(),
                text: "the VM has ended".to_owned(),
            };
            outbox.reply(self.id, pb::reply::Kind::Error(error), Vec::new());
        }
    }
}

fn event(kind: pb::event::Kind) -> Box<pb::Notice> {
    let event = pb::Event { kind: Some(kind) };
    Box::new(pb::Notice { fds: 0, kind: Some(pb::notice::Kind::Event(event)) })
}

fn write_notices(socket: &UnixStream, queued: &Receiver<Letter>, dials: &AtomicUsize) {
    for letter in queued {
        let (mut notice, fds, last) = match letter {
            Letter::Notice { notice, fds, dial } => {
                dials.fetch_sub(usize::from(dial), Ordering::Relaxed);
                (notice, fds, false)
            }
            Letter::Last(notice) => (notice, Vec::new(), true),
        };
        let frame = encode(&mut *notice, fds.len());
        // An owner that is gone: the reader says so.
        if send_all(socket, &frame, &fds).is_err() || last {
            return;
        }
    }
}

fn send_all(socket: &UnixStream, mut frame: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    while !frame.is_empty() {
        match scm::send(socket.as_fd(), frame, &fds) {
            Ok(sent) => {
                frame = &frame[sent..];
                fds.clear();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_requests(socket: &UnixStream, outbox: &Outbox, mut take: impl FnMut(Order)) {
    let why = match read_until_end(socket, outbox, &mut take) {
        Ok(()) => "the owner closed its end".to_owned(),
        Err(error) => format!("the owner sent nonsense: {error}"),
    };
    // From now on nobody answers: the owner shall not wait.
    let _ = socket.shutdown(Shutdown::Both);
    take(Order::OwnerGone { why });
}

fn read_until_end(
    socket: &UnixStream,
    outbox: &Outbox,
    take: &mut impl FnMut(Order),
) -> Result<(), FrameError> {
    let mut decoder = Decoder::<pb::Request, OwnedFd>::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut fds = Vec::new();
        let read = match scm::receive(socket.as_fd(), &mut buffer, &mut fds) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Whatever else is wrong with the socket, the owner cannot be heard any more.
            Ok(0) | Err(_) => return Ok(()),
            Ok(read) => read,
        };
        decoder.handle(&buffer[..read], fds);
        while let Some((request, fds)) = decoder.poll()? {
            let reply = ReplyTo { id: request.id, outbox: Some(outbox.clone()) };
            match to_order(request, fds, reply) {
                Ok(order) => take(order),
                Err((reply, text)) => reply.error(pb::ErrorCode::Invalid, text),
            }
        }
    }
}

fn to_order(
    request: pb::Request,
    fds: Vec<OwnedFd>,
    reply: ReplyTo,
) -> Result<Order, (ReplyTo, String)> {
    match request.kind {
        Some(pb::request::Kind::Start(start)) => to_start(start, fds, reply),
        Some(pb::request::Kind::Connect(connect)) => {
            Ok(Order::Connect { port: connect.port, reply })
        }
        Some(pb::request::Kind::Accept(accept)) => Ok(Order::Accept { dial: accept.dial, reply }),
        Some(pb::request::Kind::Release(release)) => {
            Ok(Order::Release { conn: release.conn, reply })
        }
        Some(pb::request::Kind::AttachDisk(attach)) => to_attach(attach, fds, reply),
        Some(pb::request::Kind::DetachDisk(detach)) => match Serial::try_from(detach.serial) {
            Ok(serial) => Ok(Order::DetachDisk { serial, reply }),
            Err(error) => Err((reply, error.to_string())),
        },
        Some(pb::request::Kind::Save(save)) => {
            let path = PathBuf::from(OsString::from_vec(save.path));
            match path.is_absolute() {
                true => Ok(Order::Save { path, reply }),
                false => Err((reply, format!("{path:?} is no absolute path"))),
            }
        }
        Some(pb::request::Kind::AttachTap(attach)) => to_attach_tap(&attach, fds, reply),
        Some(pb::request::Kind::DetachNic(detach)) => match detach.mac.parse() {
            Ok(mac) => Ok(Order::DetachNic { mac, reply }),
            Err(error) => Err((reply, error.to_string())),
        },
        Some(pb::request::Kind::PowerButton(_)) => Ok(Order::PowerButton(reply)),
        Some(pb::request::Kind::Stop(_)) => Ok(Order::Stop(reply)),
        Some(pb::request::Kind::Kill(_)) => Ok(Order::Kill(reply)),
        None => {
            Err((reply, "vminit-vmm knows no such request; it is older than its owner".to_owned()))
        }
    }
}

fn to_start(
    start: pb::Start,
    fds: Vec<OwnedFd>,
    reply: ReplyTo,
) -> Result<Order, (ReplyTo, String)> {
    if start.protocol != PROTOCOL {
        let text = format!(
            "the owner speaks version {} of the protocol, vminit-vmm {PROTOCOL}",
            start.protocol
        );
        return Err((reply, text));
    }
    let vm = match start.vm.map(Description::try_from) {
        Some(Ok(vm)) => Box::new(vm),
        Some(Err(error)) => return Err((reply, error.to_string())),
        None => return Err((reply, "a start without a description".to_owned())),
    };
    let (expected, came) = (vm.file_count(), fds.len());
    match Files::sort(&vm, fds) {
        Some(files) => Ok(Order::Start { vm, files, reply }),
        None => {
            Err((reply, format!("a start with {came} files where the description has {expected}")))
        }
    }
}

fn to_attach(
    attach: pb::AttachDisk,
    mut fds: Vec<OwnedFd>,
    reply: ReplyTo,
) -> Result<Order, (ReplyTo, String)> {
    let disk = match attach.disk.map(from_disk) {
        Some(Ok(disk)) => disk,
        Some(Err(error)) => return Err((reply, error.to_string())),
        None => return Err((reply, "an attach without a disk".to_owned())),
    };
    match (fds.pop(), fds.len()) {
        (Some(file), 0) => Ok(Order::AttachDisk { disk, file, reply }),
        (came, more) => {
            let came = more + usize::from(came.is_some());
            Err((reply, format!("an attach with {came} files instead of 1")))
        }
    }
}

fn to_attach_tap(
    attach: &pb::AttachTap,
    mut fds: Vec<OwnedFd>,
    reply: ReplyTo,
) -> Result<Order, (ReplyTo, String)> {
    let mac = match attach.mac.parse() {
        Ok(mac) => mac,
        Err(error) => return Err((reply, NicError::to_string(&error))),
    };
    match (fds.pop(), fds.len()) {
        (Some(tap), 0) => Ok(Order::AttachTap { mac, tap, reply }),
        _ => Err((reply, "an attach of an interface without its one tap".to_owned())),
    }
}

impl Files {
    /// In the order of vmm.proto; `None` when there are more or fewer than the description says.
    fn sort(vm: &Description, fds: Vec<OwnedFd>) -> Option<Self> {
        if fds.len() != vm.file_count() {
            return None;
        }
        let mut fds = fds.into_iter();
        Some(Self {
            kernel: fds.next()?,
            initramfs: match vm.initramfs() {
                Some(_) => Some(fds.next()?),
                None => None,
            },
            disks: fds.by_ref().take(vm.disks().len()).collect(),
            console: fds.next()?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;
    use crate::vm::tests::draft;

    const PATIENCE: Duration = Duration::from_secs(10);

    pub(in super::super) struct Owner {
        pub socket: UnixStream,
        pub orders: Receiver<Order>,
        pub outbox: Outbox,
    }

    pub(in super::super) fn owner() -> Owner {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (sender, orders) = channel();
        let (outbox, _) = serve(theirs, move |order| drop(sender.send(order))).unwrap();
        Owner { socket, orders, outbox }
    }

    impl Owner {
        pub fn ask(&self, kind: pb::request::Kind, fds: &[OwnedFd]) {
            let mut request = pb::Request { id: 7, fds: 0, kind: Some(kind) };
            send_all(&self.socket, &encode(&mut request, fds.len()), fds).unwrap();
        }

        pub fn order(&self) -> Order {
            self.orders.recv_timeout(PATIENCE).unwrap()
        }

        pub fn notice(&self) -> (pb::notice::Kind, Vec<OwnedFd>) {
            let mut decoder = Decoder::<pb::Notice, OwnedFd>::default();
            loop {
                // One byte at a time, so that no next notice is read along.
                let (mut byte, mut fds) = ([0], Vec::new());
                assert_eq!(scm::receive(self.socket.as_fd(), &mut byte, &mut fds).unwrap(), 1);
                decoder.handle(&byte, fds);
                if let Some((notice, fds)) = decoder.poll().unwrap() {
                    return (notice.kind.unwrap(), fds);
                }
            }
        }

        pub fn error_text(&self) -> String {
            match self.notice().0 {
                pb::notice::Kind::Reply(pb::Reply {
                    id: 7,
                    kind: Some(pb::reply::Kind::Error(error)),
                }) => error.text,
                other => panic!("no error: {other:?}"),
            }
        }
    }

    pub(in super::super) fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    pub(in super::super) fn start(protocol: u32) -> pb::request::Kind {
        let vm = Description::try_from(draft()).unwrap();
        pb::request::Kind::Start(pb::Start { protocol, vm: Some((&vm).into()) })
    }

    #[test]
    fn a_connection_reaches_the_owner_as_a_descriptor() {
        let owner = owner();
        owner.ask(pb::request::Kind::Connect(pb::Connect { port: 1024 }), &[]);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        match owner.order() {
            Order::Connect { port: 1024, reply } => reply.connected(1, theirs.into()),
            other => panic!("{other:?}"),
        }
        let (kind, mut fds) = owner.notice();
        assert!(matches!(
            kind,
            pb::notice::Kind::Reply(pb::Reply { id: 7, kind: Some(pb::reply::Kind::Connected(_)) })
        ));
        UnixStream::from(fds.pop().unwrap()).write_all(b"hello").unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_start_brings_its_files_in_order() {
        let owner = owner();
        owner.ask(start(PROTOCOL), &[file(), file(), file()]);
        match owner.order() {
            Order::Start { vm, files, reply } => {
                assert_eq!(vm.name().as_str(), "test");
                assert!(files.initramfs.is_some() && files.disks.is_empty());
                reply.started("tcg", "", 1);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_start_that_is_wrong_is_refused_with_the_reason() {
        let owner = owner();
        owner.ask(start(PROTOCOL), &[file()]);
        assert_eq!(owner.error_text(), "a start with 1 files where the description has 3");
        owner.ask(start(9), &[]);
        assert_eq!(owner.error_text(), "the owner speaks version 9 of the protocol, vminit-vmm 1");
    }

    #[test]
    fn a_disk_comes_with_its_image_or_not_at_all() {
        let owner = owner();
        let attach = |serial: &str| {
            let disk =
                pb::Disk { serial: serial.to_owned(), read_only: true, ..Default::default() };
            pb::request::Kind::AttachDisk(pb::AttachDisk { disk: Some(disk) })
        };
        owner.ask(attach("late"), &[file()]);
        match owner.order() {
            Order::AttachDisk { disk, reply, .. } => {
                assert!(disk.serial.as_str() == "late" && disk.read_only);
                drop(reply);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(owner.error_text(), "the VM has ended");
        owner.ask(attach("late"), &[file(), file()]);
        assert_eq!(owner.error_text(), "an attach with 2 files instead of 1");
        owner.ask(attach("a,b"), &[file()]);
        assert!(owner.error_text().contains("disk serial"));
        let detach = pb::DetachDisk { serial: String::new() };
        owner.ask(pb::request::Kind::DetachDisk(detach), &[]);
        assert!(owner.error_text().contains("disk serial"));
    }

    #[test]
    fn a_request_that_nobody_answered_is_answered_when_it_is_dropped() {
        let owner = owner();
        owner.ask(pb::request::Kind::Stop(pb::Stop {}), &[]);
        drop(owner.order());
        assert_eq!(owner.error_text(), "the VM has ended");
    }

    #[test]
    fn an_owner_that_is_gone_is_the_last_order() {
        let owner = owner();
        owner.socket.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(owner.order(), Order::OwnerGone { .. }));
        assert!(owner.orders.recv_timeout(PATIENCE).is_err());
    }

    #[test]
    fn nonsense_ends_the_owner() {
        let owner = owner();
        (&owner.socket).write_all(&[0xff; 64]).unwrap();
        match owner.order() {
            Order::OwnerGone { why } => assert!(why.contains("nonsense"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_owner_that_does_not_read_is_taken_for_gone_and_nobody_waits_for_it() {
        let owner = owner();
        let detail = "x".repeat(1000);
        for id in 0..2 * OUTBOX_MESSAGES as u64 {
            let error = pb::Error { code: 0, text: detail.clone() };
            owner.outbox.reply(id, pb::reply::Kind::Error(error), Vec::new());
        }
        assert!(matches!(owner.order(), Order::OwnerGone { .. }));
    }

    #[test]
    fn a_flood_of_guest_dials_costs_connections_not_the_owner() {
        let owner = owner();
        for _ in 0..2 * OUTBOX_MESSAGES {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            owner.outbox.guest_dialed(owner.outbox.next_conn(), 1027, 7, ours.into());
        }
        owner.ask(pb::request::Kind::Kill(pb::Kill {}), &[]);
        assert!(matches!(owner.order(), Order::Kill(_)));
    }
}
