//! A fork of init that makes one process, says how it went, and exits.
//!
//! What is unusual it leaves to libcontainer. That and we clone the calling process and run allocating
//! code in the clone, which only a process without threads may do; PID 1 is one, and its fork is cheap. What may hang, crash or
//! leak here hangs, crashes and leaks in a process that init kills and reaps.
//!
//! Owns: its copy of PID 1's memory, and the descriptors of its order.
//! Promises: nothing of PID 1 reaches the container ([`first_acts`]); one result, with the whole
//! chain of causes; no unwinding out of [`run`], in this process or in those that libcontainer
//! clones from it.
//! Never: touches what of init's state lies in its memory; the descriptors behind it are closed.

mod confined;
mod console;
mod create;
mod executor;
mod first_acts;
mod jobs;
mod join;
pub mod outcome;
mod reach_filter;
mod reason;
mod root;
pub mod scratch;
mod settle;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use self::outcome::Outcome;
use self::scratch::Scratch;
use crate::limits::LINK_MESSAGE_BYTES;
use crate::link::codec;
use crate::link::message::{FdRole, Job, Launch};
use crate::sys::{clone, seqpacket};

/// What a launcher is forked for.
#[derive(Debug)]
pub struct Order {
    /// What to launch, and the descriptors that [`Launch::fds`] names. None: that comes as a message
    /// on `result`, and has only [`Needs::USUAL`]; without one, the launcher ends with its peer.
    pub launch: Option<(Launch, Vec<OwnedFd>)>,
    /// Where the [`Outcome`] goes: a seqpacket socket.
    pub result: OwnedFd,
    /// CLONE_NEW* of net, ipc and uts: what the container gets of its own, made right away.
    pub ahead: i32,
}

/// The life of a launcher, in the fresh fork.
pub fn run(order: Order) -> ! {
    let own_pid = std::process::id();
    let Order { launch, result, ahead } = order;
    let mut has_scratch = false;
    let result_number = {
        use std::os::fd::AsRawFd;
        result.as_raw_fd()
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let (needs, own) = match &launch {
            Some((launch, fds)) => (Needs::of(&launch.job), fds.as_slice()),
            None => (Needs::USUAL, &[][..]),
        };
        first_acts::perform(needs, own, &result).map_err(|error| reason::of(&error))?;
        create::make_ahead(ahead).map_err(|error| format!("make namespaces: {error}"))?;
        let (launch, fds) = match launch {
            Some(launch) => launch,
            None => hear(&result)?,
        };
        // Not ahead: a container of the same user sees each keyring that there is.
        if !launch.job.keeps_keyring() {
            first_acts::new_keyring().map_err(|error| reason::of(&error))?;
        }
        has_scratch = Scratch::is_needed(&launch.job);
        jobs::perform(&launch, Stdio::of(&launch.fds, fds), result_number, ahead)
    }));
    if std::process::id() != own_pid {
        // A panic in a process that libcontainer cloned from this one has unwound to here, through
        // frames that are the launcher's. It has no say; the launcher notices that it is gone.
        clone::exit_now(PANICKED);
    }
    let (outcome, console) = match outcome {
        Ok(Ok((outcome, console))) => (outcome, console),
        Ok(Err(reason)) => (Outcome::Failed { reason: codec::bounded_reason(reason) }, None),
        Err(_) => {
            let reason = reason::with_causes("launcher panicked");
            (Outcome::Failed { reason: codec::bounded_reason(reason) }, None)
        }
    };
    let fds: Vec<_> = console.iter().map(AsFd::as_fd).collect();
    let sent = codec::encode(&outcome)
        .map_err(std::io::Error::other)
        .and_then(|bytes| seqpacket::send(result.as_fd(), &bytes, &fds));
    // After the result, which somebody waits for.
    if has_scratch {
        scratch::remove(own_pid);
    }
    clone::exit_now(if sent.is_ok() { 0 } else { NOT_SENT })
}

/// What a launcher that was forked ahead is wanted for.
fn hear(result: &OwnedFd) -> Result<(Launch, Vec<OwnedFd>), String> {
    let mut buffer = vec![0; LINK_MESSAGE_BYTES];
    let order = seqpacket::receive(result.as_fd(), &mut buffer);
    let order = order.map_err(|error| format!("hear what to launch: {error}"))?;
    if order.bytes == 0 {
        // For nothing.
        clone::exit_now(0);
    }
    let launch: Launch =
        codec::decode(&buffer[..order.bytes]).map_err(|error| error.to_string())?;
    match order.fds.len() == launch.fds.len() {
        true => Ok((launch, order.fds)),
        false => Err("descriptors of the launch were lost".to_owned()),
    }
}

/// What of a launcher's first acts differs from job to job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A filter on what may be reached; whether it leaves AF_VSOCK open.
    filter: Option<bool>,
}

impl Needs {
    /// Of nearly every create and exec, for which a launcher may be forked ahead.
    pub const USUAL: Needs = Needs { filter: Some(false) };

    /// Of a job.
    pub fn of(job: &Job) -> Needs {
        let filter = job.makes_process().then(|| job.allows_vsock());
        Needs { filter }
    }
}

/// The process's descriptors 0 to 2, as far as they are given.
#[derive(Debug, Default)]
struct Stdio {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    ready: Option<OwnedFd>,
    init: Option<OwnedFd>,
}

impl Stdio {
    fn of(roles: &[FdRole], fds: Vec<OwnedFd>) -> Stdio {
        let mut stdio = Stdio::default();
        for (role, fd) in roles.iter().zip(fds) {
            match role {
                FdRole::Stdin => stdio.stdin = Some(fd),
                FdRole::Stdout => stdio.stdout = Some(fd),
                FdRole::Stderr => stdio.stderr = Some(fd),
                FdRole::Ready => stdio.ready = Some(fd),
                FdRole::Init => stdio.init = Some(fd),
            }
        }
        stdio
    }
}

/// Exit codes that only init sees, in [`crate::link::message::ToAgent::LaunchFailed`]'s reason.
const PANICKED: i32 = 101;
const NOT_SENT: i32 = 102;

impl Job {
    /// Whether the container keeps the session keyring that it is started with.
    fn keeps_keyring(&self) -> bool {
        match self {
            Job::Create { no_new_keyring, .. } | Job::Exec { no_new_keyring, .. } => {
                *no_new_keyring
            }
            Job::Log { .. } => false,
            Job::StartWithHooks | Job::DeleteWithHooks => true,
        }
    }

    /// Whether a process of the container's comes of it.
    fn makes_process(&self) -> bool {
        matches!(self, Job::Create { .. } | Job::Exec { .. })
    }

    /// CLONE_NEW*: what a launcher that was forked ahead may have made already.
    pub fn ahead(&self) -> i32 {
        match self {
            // libcontainer would make them once more.
            Job::Create { bundle, new_namespaces, .. } if bundle.is_empty() => *new_namespaces,
            _ => 0,
        }
    }

    /// Whether AF_VSOCK stays open to the container. Hooks of a start or a delete are the host's
    /// own programs, and so are loggers.
    fn allows_vsock(&self) -> bool {
        match self {
            Job::Create { allow_vsock, .. } | Job::Exec { allow_vsock, .. } => *allow_vsock,
            Job::Log { .. } | Job::StartWithHooks | Job::DeleteWithHooks => true,
        }
    }

    fn terminal(&self) -> bool {
        match self {
            Job::Create { terminal, .. } | Job::Exec { terminal, .. } => *terminal,
            Job::Log { .. } | Job::StartWithHooks | Job::DeleteWithHooks => false,
        }
    }
}
