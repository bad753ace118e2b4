//! A VM's life as its owner sees it, the same with every hypervisor.
//!
//! ```text
//!        Start                      Running, or the guest answers
//! Idle ---------> Starting ---------------------------------------> Running
//!   |                 |   Ended, refused, or late                      | Ended
//!   +-----------------+----------------------> Told <-----------------+
//!
//! any state --- the owner is gone ---> Over          Told --- nothing lingers, or too long ---> Over
//! ```
//!
//! Owns: which request waits for which fact, and what each connection needs to stay alive. Promises: each request is
//! answered; a connection is kept until the owner releases it, and let go then; a VM that does not come up in time ends
//! with all that can be said about why; what connections hold is handed over after the VM's end.
//! Never: does I/O of its own, or asks for the time: a driver ([`drive`]) tells both.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant};

use vminitd_protocol::pb::vminitd::vmm::v1::ErrorCode;
use vminitd_protocol::ports::DEFAULT_RPC_PORT;

use super::hypervisor::{Ask, Fact, Hypervisor, Refusal, Waker};
use super::server::{Order, Outbox, ReplyTo, Writer, serve};
use super::sleep::SleepWatch;
use super::{ExitReason, Exited, origin};
use crate::limits::{LINGER_TIMEOUT, START_PROBE_INTERVAL, START_TIMEOUT};

/// One VM and its owner.
#[derive(Debug)]
pub struct Life<H: Hypervisor> {
    hypervisor: H,
    outbox: Outbox,
    state: State,
    /// Requests that wait for a fact.
    waiting: HashMap<Ask, ReplyTo>,
    next_ask: u64,
    /// What the connections that the owner has need, by their numbers.
    kept: HashMap<u64, H::Kept>,
}

#[derive(Debug)]
enum State {
    /// No Start yet.
    Idle,
    /// The VM is being made. The guest is dialled now and then: one that answers runs, whatever else is said of it.
    Starting { reply: ReplyTo, since: Instant, probe_at: Instant, probe: Option<Ask> },
    /// The guest runs.
    Running,
    /// The owner is told of the end. Connections may hold bytes that it has yet to read.
    Told { until: Instant },
    /// The end. Not `told`: there is no owner any more.
    Over { told: bool },
}

impl<H: Hypervisor> Life<H> {
    /// A life without a VM yet, for the owner behind `outbox`.
    pub fn new(hypervisor: H, outbox: Outbox) -> Self {
        Self {
            hypervisor,
            outbox,
            state: State::Idle,
            waiting: HashMap::new(),
            next_ask: 1,
            kept: HashMap::new(),
        }
    }

    /// Takes an order. Call [`Life::turn`] then.
    pub fn take(&mut self, order: Order, now: Instant) {
        match order {
            Order::Start { vm, files, reply } => {
                if !matches!(self.state, State::Idle) {
                    return reply.error(ErrorCode::State, "this vminit-vmm has its VM already");
                }
                match self.hypervisor.start(vm, files, now) {
                    Ok(()) => {
                        let probe_at = now + START_PROBE_INTERVAL;
                        self.state = State::Starting { reply, since: now, probe_at, probe: None };
                    }
                    // Its owner has nothing to gain from another try.
                    Err(refusal) => {
                        reply.error(refusal.code, refusal.text.clone());
                        self.end(Exited { reason: ExitReason::Crashed, detail: refusal.text }, now);
                    }
                }
            }
            Order::Connect { port, reply } => {
                if let Some(ask) = self.ask(reply) {
                    self.hypervisor.connect(port, ask);
                }
            }
            Order::Accept { dial, reply } => {
                let done = match self.has_vm() {
                    true => self.hypervisor.accept(dial),
                    false => Err(Refusal::no_vm()),
                };
                answer(reply, done);
            }
            Order::Release { conn, reply } => {
                self.kept.remove(&conn);
                reply.done();
            }
            Order::AttachDisk { disk, file, reply } => {
                if let Some(ask) = self.ask(reply) {
                    self.hypervisor.attach_disk(disk, file, ask);
                }
            }
            Order::DetachDisk { serial, reply } => {
                if let Some(ask) = self.ask(reply) {
                    self.hypervisor.detach_disk(&serial, ask, now);
                }
            }
            Order::AttachTap { mac, tap, reply } => {
                if let Some(ask) = self.ask(reply)
                    && let Err(refusal) = self.hypervisor.attach_tap(mac, tap, ask)
                {
                    self.hear(Fact::Refused { ask, refusal }, now);
                }
            }
            Order::DetachNic { mac, reply } => {
                if let Some(ask) = self.ask(reply)
                    && let Err(refusal) = self.hypervisor.detach_nic(mac, ask, now)
                {
                    self.hear(Fact::Refused { ask, refusal }, now);
                }
            }
            Order::Save { path, reply } => {
                if let Some(ask) = self.ask(reply) {
                    self.hypervisor.save(&path, ask);
                }
            }
            Order::PowerButton(reply) => {
                let done = match self.has_vm() {
                    true => self.hypervisor.power_button(),
                    false => Err(Refusal::no_vm()),
                };
                answer(reply, done);
            }
            Order::Stop(reply) => self.stop(reply, |hypervisor| hypervisor.stop(now)),
            Order::Kill(reply) => self.stop(reply, H::kill),
            // Nobody is left to be told anything.
            Order::OwnerGone { .. } => self.state = State::Over { told: false },
        }
    }

    /// Does what is due and passes on what has happened.
    pub fn turn(&mut self, now: Instant) {
        self.watch_start(now);
        while let Some(fact) = self.hypervisor.poll(now) {
            self.hear(fact, now);
        }
        if let State::Told { until } = &self.state
            && (now >= *until || !self.hypervisor.lingers(self.kept.len()))
        {
            self.state = State::Over { told: true };
        }
    }

    /// The machine has slept.
    pub fn woke(&mut self) {
        if self.has_vm() {
            self.hypervisor.woke();
            self.outbox.woke();
        }
    }

    /// When [`Life::turn`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Starting { since, probe_at, .. } => {
                Some((*since + START_TIMEOUT).min(*probe_at))
            }
            State::Told { until } => Some(*until),
            State::Idle | State::Running | State::Over { .. } => None,
        };
        own.into_iter().chain(self.hypervisor.deadline()).min()
    }

    /// True when the owner was told of the VM's end.
    pub fn is_told(&self) -> bool {
        matches!(self.state, State::Told { .. } | State::Over { told: true })
    }

    /// True when there is nothing left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over { .. })
    }

    fn has_vm(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Running)
    }

    /// Notes who waits, if there is a VM to wait for.
    fn ask(&mut self, reply: ReplyTo) -> Option<Ask> {
        if !self.has_vm() {
            answer(reply, Err(Refusal::no_vm()));
            return None;
        }
        let ask = self.new_ask();
        self.waiting.insert(ask, reply);
        Some(ask)
    }

    fn new_ask(&mut self) -> Ask {
        self.next_ask += 1;
        Ask(self.next_ask)
    }

    fn stop(&mut self, reply: ReplyTo, how: impl FnOnce(&mut H)) {
        if !self.has_vm() {
            return answer(reply, Err(Refusal::no_vm()));
        }
        // First: the VM's end may be the next thing that the owner hears.
        reply.done();
        how(&mut self.hypervisor);
    }

    fn watch_start(&mut self, now: Instant) {
        let State::Starting { since, probe_at, probe, .. } = &mut self.state else { return };
        if now >= *since + START_TIMEOUT {
            let text = origin::never_ran(&self.hypervisor.state(), now.duration_since(*since));
            self.hypervisor.kill();
            if let State::Starting { reply, .. } = std::mem::replace(&mut self.state, State::Idle) {
                reply.error(ErrorCode::Failed, text.clone());
            }
            return self.end(Exited { reason: ExitReason::Crashed, detail: text }, now);
        }
        if now < *probe_at {
            return;
        }
        *probe_at = now + START_PROBE_INTERVAL;
        if probe.is_some() {
            return;
        }
        self.next_ask += 1;
        let ask = Ask(self.next_ask);
        *probe = Some(ask);
        self.hypervisor.connect(DEFAULT_RPC_PORT, ask);
    }

    fn hear(&mut self, fact: Fact<H::Kept>, now: Instant) {
        match fact {
            Fact::Running { accelerator, reason, pid } => self.runs(&accelerator, &reason, pid),
            Fact::Connected { ask, stream, kept } => match self.waiting.remove(&ask) {
                Some(reply) => {
                    // Before the owner can release it.
                    let conn = self.outbox.next_conn();
                    self.kept.insert(conn, kept);
                    reply.connected(conn, stream);
                }
                None if self.is_probe(ask) => {
                    let reason = format!(
                        "the guest answers, though the hypervisor says: {}",
                        self.hypervisor.state()
                    );
                    self.runs("unknown", &reason, 0);
                }
                // Who asked is gone, and so is the connection.
                None => {}
            },
            Fact::Dialed { port, dial, stream, kept } => {
                let conn = self.outbox.next_conn();
                if self.outbox.guest_dialed(conn, port, dial, stream) {
                    self.kept.insert(conn, kept);
                }
            }
            Fact::Done { ask } => {
                if let Some(reply) = self.waiting.remove(&ask) {
                    reply.done();
                }
            }
            Fact::Refused { ask, refusal } => match self.waiting.remove(&ask) {
                Some(reply) => reply.error(refusal.code, refusal.text),
                None => self.probe_again(ask),
            },
            Fact::Slept => self.outbox.woke(),
            Fact::Ended(exit) => self.end(exit, now),
        }
    }

    fn is_probe(&self, ask: Ask) -> bool {
        matches!(&self.state, State::Starting { probe: Some(probe), .. } if *probe == ask)
    }

    fn probe_again(&mut self, ask: Ask) {
        if let State::Starting { probe, .. } = &mut self.state
            && *probe == Some(ask)
        {
            *probe = None;
        }
    }

    fn runs(&mut self, accelerator: &str, reason: &str, pid: u32) {
        match std::mem::replace(&mut self.state, State::Running) {
            State::Starting { reply, .. } => reply.started(accelerator, reason, pid),
            // It was seen to run before.
            other => self.state = other,
        }
    }

    fn end(&mut self, exit: Exited, now: Instant) {
        if self.is_told() || self.is_over() {
            return;
        }
        let until = now + LINGER_TIMEOUT;
        if let State::Starting { reply, .. } =
            std::mem::replace(&mut self.state, State::Told { until })
        {
            reply.error(ErrorCode::Failed, exit.detail.clone());
        }
        // Who waits is answered: that the VM has ended.
        self.waiting.clear();
        self.outbox.exited(&exit);
    }
}

fn answer(reply: ReplyTo, done: Result<(), Refusal>) {
    match done {
        Ok(()) => reply.done(),
        Err(Refusal { code, text }) => reply.error(code, text),
    }
}

/// An owner who is served.
#[derive(Debug)]
pub struct Owner {
    orders: Receiver<Order>,
    outbox: Outbox,
    writer: Writer,
}

/// Begins to serve the owner at the other end of `socket`. Each order wakes the thread that drives its VM.
pub fn owner(socket: UnixStream, waker: &Waker) -> io::Result<Owner> {
    let (order, orders) = channel();
    let wake = waker.clone();
    let (outbox, writer) = serve(socket, move |what| {
        // Nobody takes it any more: this process is about to end.
        let _ = order.send(what);
        wake.wake();
    })?;
    Ok(Owner { orders, outbox, writer })
}

/// Drives the owner's VM on this thread, from its Start to the end. `wait` returns when the waker has woken it since
/// its last return, when the time is over, or for no reason.
pub fn drive<H: Hypervisor>(hypervisor: H, owner: Owner, mut wait: impl FnMut(Option<Duration>)) {
    let Owner { orders, outbox, writer } = owner;
    let mut life = Life::new(hypervisor, outbox);
    let mut writer = Some(writer);
    let mut sleep = SleepWatch::default();
    loop {
        if sleep.has_slept() {
            life.woke();
        }
        loop {
            match orders.try_recv() {
                Ok(order) => life.take(order, Instant::now()),
                Err(TryRecvError::Empty) => break,
                // The control socket's thread has said so, by its last order.
                Err(TryRecvError::Disconnected) => break,
            }
        }
        life.turn(Instant::now());
        if life.is_told()
            && let Some(writer) = writer.take()
        {
            writer.finish();
            continue;
        }
        if life.is_over() {
            return;
        }
        let due = life.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        wait(due);
    }
}

/// A waker and what it wakes, for a thread that has nothing else to wait for.
pub fn alarm() -> (Waker, impl FnMut(Option<Duration>)) {
    // One is enough: who is woken looks at everything.
    let (ring, rung) = sync_channel::<()>(1);
    let waker = Waker::new(move || {
        let _ = ring.try_send(());
    });
    // So that there is always somebody who could.
    let keep = waker.clone();
    let wait = move |due: Option<Duration>| {
        let _ = &keep;
        match due {
            None => drop(rung.recv()),
            Some(due) => drop(rung.recv_timeout(due)),
        }
    };
    (waker, wait)
}

#[cfg(test)]
mod tests;
