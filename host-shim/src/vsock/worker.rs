//! The device's thread: waits for events and lets the other parts act on them.
//! Owns: the VMM's socket, the event loop, everything the device has.
//! Promises: sleeps when there is nothing to do; what the guest had put on its ring before the VMM stopped it is read
//! first, so that nothing sent before a power-off is lost; ends when the VMM hangs up or its owner says so.
//! Never: decides anything about a connection.

use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use vhost::vhost_user::{BackendReqHandler, Error};

use super::engine::{Engine, Round};
use super::frontend::{Frontend, RX};
use super::limits::{DRAIN_RETRY, DRAIN_TIMEOUT, MAX_QUEUE_ENTRIES, ROUND_PACKETS};
use super::ring::{BrokenRing, Position};
use super::table::ConnectionId;
use super::{Config, ConnectError, GoneReason, Reply, VsockError, VsockEvent};

/// Events that are not a connection's; those have their id, which counts from 1.
const WAKE: u64 = u64::MAX;
const FRONTEND: u64 = u64::MAX - 1;
const KICK_RX: u64 = u64::MAX - 2;
const KICK_TX: u64 = u64::MAX - 3;

/// Events fetched by one call.
const EVENTS: usize = 64;

/// What other threads ask of the device.
#[derive(Debug)]
pub enum Command {
    /// Dial the guest.
    Connect { port: u32, reply: Reply },
    /// Answer a dial of the guest.
    Accept { dial: u64 },
    /// End.
    Stop,
}

/// Everything that goes to the device's thread.
pub struct Worker {
    socket: UnixStream,
    config: Config,
    events: Box<dyn FnMut(VsockEvent) + Send>,
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
    epoll: Epoll,
}

impl Worker {
    pub fn new(
        socket: UnixStream,
        config: &Config,
        events: Box<dyn FnMut(VsockEvent) + Send>,
        inbox: Receiver<Command>,
        wake: Arc<EventFd>,
    ) -> io::Result<Worker> {
        // Requests are read whole, after an event has said that one is there.
        socket.set_nonblocking(false)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, FRONTEND))?;
        Ok(Worker { socket, config: config.clone(), events, inbox, wake, epoll })
    }

    /// Serves the device until it ends.
    pub fn run(self) {
        let Worker { socket, config, events, inbox, wake, epoll } = self;
        let epoll = Rc::new(epoll);
        let mut engine =
            Engine::new(config.guest_cid, config.guest_dial_ports, epoll.clone(), events);
        if config.ask_owner {
            engine.ask_owner();
        }
        let frontend = Arc::new(Mutex::new(Frontend::new(config.guest_cid)));
        let requests = BackendReqHandler::from_stream(socket, frontend.clone());
        let mut service = Service {
            engine,
            inbox,
            wake,
            epoll,
            tx: Round::Idle,
            rx: Round::Idle,
            stopped_at: None,
        };
        let reason = match service.serve(&frontend, requests) {
            Ok(reason) => reason,
            Err(error) => GoneReason::Failed(error),
        };
        // The VM's memory is needed no more; what the guest sent is here.
        drop(frontend);
        if !matches!(reason, GoneReason::Stopped)
            && let Err(error) = service.drain()
        {
            tracing::warn!(%error, "bytes of the guest may not have reached the host");
        }
        let Service { mut engine, inbox, .. } = service;
        tracing::debug!(?reason, "vsock device ends");
        engine.report(VsockEvent::Gone { reason });
        // Both drops answer whoever still waits for a connection.
        drop(inbox);
        drop(engine);
    }
}

/// What events led to.
#[derive(Debug, Default)]
struct Seen {
    /// The VMM has sent a request, or hung up.
    frontend: bool,
}

struct Service {
    engine: Engine,
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
    epoll: Rc<Epoll>,
    /// How the last round over each ring ended; `More` means that it is to be looked at again.
    tx: Round,
    rx: Round,
    /// Where the rings stood when they stopped, until they run again.
    stopped_at: Option<[Position; 2]>,
}

impl Service {
    fn serve(
        &mut self,
        frontend: &Arc<Mutex<Frontend>>,
        mut requests: BackendReqHandler<Mutex<Frontend>>,
    ) -> Result<GoneReason, VsockError> {
        loop {
            let seen = self.wait(self.timeout())?;
            let now = Instant::now();
            let guest = if lock(frontend).running().is_some() { Guest::Up } else { Guest::Down };
            if self.obey_commands(guest, now) == Obeyed::Stop {
                return Ok(GoneReason::Stopped);
            }
            self.engine.handle_time(now);
            self.move_packets(&mut lock(frontend), now);
            if seen.frontend {
                // The VMM may be about to stop the rings for good; no virtual CPU adds to them any more then.
                self.read_all(&mut lock(frontend), now);
                let before = lock(frontend).positions();
                match requests.handle_request() {
                    Ok(()) => self.note_request(&mut lock(frontend), before)?,
                    Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => {
                        return Ok(GoneReason::FrontendClosed);
                    }
                    Err(error) => return Err(VsockError::Request(error)),
                }
            }
        }
    }

    /// After the VMM has gone: waits until the host has taken what the guest had sent.
    fn drain(&mut self) -> Result<(), VsockError> {
        self.engine.dismiss_dialers();
        self.engine.handle_guest_gone();
        let mut left = self.engine.left();
        let mut deadline = Instant::now() + DRAIN_TIMEOUT;
        while left.0 > 0 && Instant::now() < deadline {
            self.wait(Some(deadline.min(Instant::now() + DRAIN_RETRY)))?;
            let now = Instant::now();
            if self.obey_commands(Guest::Gone, now) == Obeyed::Stop {
                break;
            }
            self.engine.retry_host(now);
            let now_left = self.engine.left();
            if now_left != left {
                deadline = Instant::now() + DRAIN_TIMEOUT;
                left = now_left;
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Instant> {
        if self.tx == Round::More || self.rx == Round::More {
            return Some(Instant::now());
        }
        self.engine.next_deadline()
    }

    /// Sleeps until something happens, and lets the connections have their events.
    fn wait(&mut self, until: Option<Instant>) -> Result<Seen, VsockError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, milliseconds(until)) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(errno) => return Err(VsockError::Wait(errno.into())),
        };
        let now = Instant::now();
        let mut seen = Seen::default();
        for event in &events[..count] {
            match event.data() {
                WAKE => {
                    // Emptied before the commands are read, so that one that comes now wakes us again.
                    let _ = self.wake.read();
                }
                FRONTEND => seen.frontend = true,
                KICK_RX => self.rx = Round::More,
                KICK_TX => self.tx = Round::More,
                id => self.engine.handle_host_event(ConnectionId(id), event.events(), now),
            }
        }
        Ok(seen)
    }

    fn obey_commands(&mut self, guest: Guest, now: Instant) -> Obeyed {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Connect { port, reply }) => match guest {
                    Guest::Up => self.engine.connect(port, reply, now),
                    Guest::Down => reply.give(Err(ConnectError::NoGuest)),
                    Guest::Gone => reply.give(Err(ConnectError::DeviceGone)),
                },
                Ok(Command::Accept { dial }) => self.engine.greet(ConnectionId(dial)),
                Ok(Command::Stop) => return Obeyed::Stop,
                Err(TryRecvError::Empty) => return Obeyed::All,
                // The device's handle is kept by the device, whose drop sends `Stop` first.
                Err(TryRecvError::Disconnected) => return Obeyed::Stop,
            }
        }
    }

    /// One round over each ring, as far as there is something to do.
    fn move_packets(&mut self, frontend: &mut Frontend, now: Instant) {
        match self.round(frontend, now) {
            Ok(()) => {}
            Err(broken) => {
                tracing::warn!(error = %broken, "the guest broke its vsock device; its connections end");
                frontend.set_broken();
                self.engine.handle_guest_gone();
                self.stopped_at = None;
                (self.tx, self.rx) = (Round::Idle, Round::Idle);
            }
        }
    }

    fn round(&mut self, frontend: &mut Frontend, now: Instant) -> Result<(), BrokenRing> {
        let Some(running) = frontend.running() else {
            (self.tx, self.rx) = (Round::Idle, Round::Idle);
            return Ok(());
        };
        if self.tx != Round::Idle {
            self.tx = self.engine.read_packets(running.memory, running.tx, now)?;
        }
        // Also when the last round found no buffers: to ask once more costs less than to remember.
        self.rx = self.engine.write_packets(running.memory, running.rx, now)?;
        if self.tx == Round::Blocked && !self.engine.is_blocked() {
            self.tx = Round::More;
        }
        running.signal();
        Ok(())
    }

    /// Reads what the guest has put on its ring until now, kicked or not.
    fn read_all(&mut self, frontend: &mut Frontend, now: Instant) {
        // Bounded: a guest that goes on adding is not about to be stopped.
        for _ in 0..=u32::from(MAX_QUEUE_ENTRIES) / ROUND_PACKETS {
            self.tx = Round::More;
            self.move_packets(frontend, now);
            if self.tx != Round::More {
                break;
            }
        }
    }

    /// After a request of the VMM: the rings may have come, gone, or moved. `before` is where they stood.
    fn note_request(
        &mut self,
        frontend: &mut Frontend,
        before: Option<[Position; 2]>,
    ) -> Result<(), VsockError> {
        let (retired, fresh) = frontend.take_kicks();
        for kick in retired {
            // One that was never watched is not found, which is as good.
            let _ = self.epoll.delete(&kick);
        }
        for (ring, kick) in fresh {
            let event = match ring {
                RX => KICK_RX,
                _ => KICK_TX,
            };
            self.epoll
                .add(kick, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, event))
                .map_err(|errno| VsockError::SetUp { what: "kick event", source: errno.into() })?;
        }
        let after = frontend.positions();
        let started = match (before, after) {
            (Some(before), None) => {
                self.stopped_at = Some(before);
                return Ok(());
            }
            (None, None) => return Ok(()),
            (None, Some(after)) => {
                (self.tx, self.rx) = (Round::More, Round::More);
                self.stopped_at.take() != Some(after)
            }
            (Some(before), Some(after)) => before != after,
        };
        if started {
            // Not where they stopped: it is no paused VM that goes on, but a driver that begins anew.
            self.engine.handle_guest_gone();
        }
        Ok(())
    }
}

/// Whether it can be dialled.
#[derive(Debug, Clone, Copy)]
enum Guest {
    Up,
    Down,
    Gone,
}

/// What was found in the inbox.
#[derive(Debug, PartialEq, Eq)]
enum Obeyed {
    All,
    Stop,
}

/// The handler's lock: taken by this thread only, since requests are handled on it; a poisoned one cannot be seen.
fn lock(frontend: &Mutex<Frontend>) -> MutexGuard<'_, Frontend> {
    frontend.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rounded up, so that a deadline has come when the wait is over.
fn milliseconds(until: Option<Instant>) -> EpollTimeout {
    let Some(until) = until else { return EpollTimeout::NONE };
    let left = until.saturating_duration_since(Instant::now());
    let left = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
    EpollTimeout::try_from(left as i32).unwrap_or(EpollTimeout::ZERO)
}
