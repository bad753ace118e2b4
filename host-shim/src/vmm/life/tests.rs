//! A life against a hypervisor that does what a test says, and a real control socket: what the owner reads counts.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use vminitd_protocol::pb::vminitd::vmm::v1 as pb;

use super::super::PROTOCOL;
use super::super::server::Files;
use super::super::server::tests::{Owner, file, owner, start};
use super::*;
use crate::vm::{Description, Disk, Serial};

#[derive(Debug, Default)]
struct Script {
    facts: VecDeque<Fact<Rc<()>>>,
    dialled: Vec<(u32, Ask)>,
    killed: bool,
    woken: u32,
    /// What every connection has a share in.
    connection: Rc<()>,
}

#[derive(Debug, Default, Clone)]
struct Scripted(Rc<RefCell<Script>>);

impl Hypervisor for Scripted {
    type Kept = Rc<()>;

    fn start(&mut self, _: Box<Description>, _: Files, _: Instant) -> Result<(), Refusal> {
        Ok(())
    }
    fn connect(&mut self, port: u32, ask: Ask) {
        self.0.borrow_mut().dialled.push((port, ask));
    }
    fn accept(&mut self, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn attach_disk(&mut self, _: Disk, _: OwnedFd, _: Ask) {}
    fn detach_disk(&mut self, _: &Serial, _: Ask, _: Instant) {}
    fn save(&mut self, _: &std::path::Path, _: Ask) {}
    fn power_button(&mut self) -> Result<(), Refusal> {
        Err(Refusal::new(ErrorCode::Failed, "no button"))
    }
    fn stop(&mut self, _: Instant) {}
    fn kill(&mut self) {
        self.0.borrow_mut().killed = true;
    }
    fn woke(&mut self) {
        self.0.borrow_mut().woken += 1;
    }
    fn state(&self) -> String {
        "starting".to_owned()
    }
    fn poll(&mut self, _: Instant) -> Option<Fact<Rc<()>>> {
        self.0.borrow_mut().facts.pop_front()
    }
    fn deadline(&self) -> Option<Instant> {
        None
    }
    fn lingers(&self, connections: usize) -> bool {
        connections > 0
    }
}

struct Stage {
    owner: Owner,
    life: Life<Scripted>,
    script: Scripted,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let (owner, script) = (owner(), Scripted::default());
        let life = Life::new(script.clone(), owner.outbox.clone());
        Self { owner, life, script, now: Instant::now() }
    }

    /// With a VM that was asked for.
    fn starting() -> Self {
        let mut stage = Self::new();
        stage.order(start(PROTOCOL), &[file(), file(), file()]);
        stage
    }

    fn running() -> Self {
        let mut stage = Self::starting();
        stage.happen(Fact::Running { accelerator: "x".into(), reason: String::new(), pid: 1 });
        assert!(matches!(stage.reply(), pb::reply::Kind::Started(_)));
        stage
    }

    fn order(&mut self, kind: pb::request::Kind, fds: &[OwnedFd]) {
        self.owner.ask(kind, fds);
        let order = self.owner.order();
        self.life.take(order, self.now);
        self.life.turn(self.now);
    }

    fn happen(&mut self, fact: Fact<Rc<()>>) {
        self.script.0.borrow_mut().facts.push_back(fact);
        self.life.turn(self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.life.turn(self.now);
    }

    fn reply(&self) -> pb::reply::Kind {
        match self.owner.notice().0 {
            pb::notice::Kind::Reply(pb::Reply { kind: Some(kind), .. }) => kind,
            other => panic!("no reply: {other:?}"),
        }
    }

    fn event(&self) -> pb::event::Kind {
        match self.owner.notice().0 {
            pb::notice::Kind::Event(pb::Event { kind: Some(kind) }) => kind,
            other => panic!("no event: {other:?}"),
        }
    }

    /// A connection to the guest, its number, and how many hold it here.
    fn connect(&mut self) -> u64 {
        self.order(pb::request::Kind::Connect(pb::Connect { port: 7 }), &[]);
        let (port, ask) = self.script.0.borrow().dialled.last().copied().unwrap();
        assert_eq!(port, 7);
        let (kept, stream) = (self.script.0.borrow().connection.clone(), stream());
        self.happen(Fact::Connected { ask, stream, kept });
        match self.reply() {
            pb::reply::Kind::Connected(connected) => connected.conn,
            other => panic!("{other:?}"),
        }
    }

    fn held(&self) -> usize {
        Rc::strong_count(&self.script.0.borrow().connection) - 1
    }

    fn release(&mut self, conn: u64) {
        self.order(pb::request::Kind::Release(pb::Release { conn }), &[]);
    }
}

fn stream() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

fn ended() -> Fact<Rc<()>> {
    Fact::Ended(Exited { reason: ExitReason::PowerOff, detail: String::new() })
}

#[test]
fn a_connection_is_kept_until_its_owner_releases_it() {
    let mut stage = Stage::running();
    let (one, other) = (stage.connect(), stage.connect());
    assert_eq!(stage.held(), 2);
    stage.release(one);
    assert_eq!(stage.held(), 1);
    // Nothing of the kind: an owner may say anything.
    stage.release(one);
    stage.release(99);
    assert_eq!(stage.held(), 1);
    stage.release(other);
    assert_eq!(stage.held(), 0);
}

#[test]
fn a_dial_of_the_guest_is_kept_as_well() {
    let mut stage = Stage::running();
    let kept = stage.script.0.borrow().connection.clone();
    stage.happen(Fact::Dialed { port: 1027, dial: 5, stream: stream(), kept });
    let pb::event::Kind::GuestDialed(dialed) = stage.event() else { panic!("no dial") };
    assert_eq!((dialed.port, dialed.dial, stage.held()), (1027, 5, 1));
    stage.release(dialed.conn);
    assert_eq!(stage.held(), 0);
}

#[test]
fn after_the_end_connections_are_kept_until_they_are_released_or_it_is_too_late() {
    for released in [true, false] {
        let mut stage = Stage::running();
        let conn = stage.connect();
        stage.happen(ended());
        assert!(matches!(stage.event(), pb::event::Kind::Exited(_)));
        assert!(stage.life.is_told() && !stage.life.is_over() && stage.held() == 1);
        match released {
            true => stage.release(conn),
            false => stage.pass(LINGER_TIMEOUT),
        }
        assert!(stage.life.is_over());
    }
    let mut stage = Stage::running();
    stage.happen(ended());
    assert!(stage.life.is_over(), "nothing is kept");
}

#[test]
fn who_waits_when_the_vm_ends_is_told_so_before_it() {
    let mut stage = Stage::running();
    stage.order(pb::request::Kind::Connect(pb::Connect { port: 7 }), &[]);
    stage.happen(ended());
    assert_eq!(stage.owner.error_text(), "the VM has ended");
    assert!(matches!(stage.event(), pb::event::Kind::Exited(_)));
}

#[test]
fn a_vm_that_never_runs_ends_with_state_thread_and_parentage() {
    let mut stage = Stage::starting();
    stage.pass(START_TIMEOUT - Duration::from_millis(1));
    assert!(!stage.life.is_told());
    stage.pass(Duration::from_millis(1));
    let text = stage.owner.error_text();
    for part in ["60 s ago", "state: starting", "thread", "a child of"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(stage.script.0.borrow().killed);
    let pb::event::Kind::Exited(exited) = stage.event() else { panic!("no end") };
    assert_eq!(exited.detail, text);
}

#[test]
fn a_guest_that_answers_runs_whatever_its_hypervisor_says() {
    let mut stage = Stage::starting();
    stage.pass(START_PROBE_INTERVAL);
    let dialled = |stage: &Stage| stage.script.0.borrow().dialled.last().copied().unwrap();
    let (port, ask) = dialled(&stage);
    assert_eq!(port, DEFAULT_RPC_PORT);
    // Not yet; then it is tried again, one dial at a time.
    stage.pass(START_PROBE_INTERVAL);
    assert_eq!(dialled(&stage).1, ask);
    stage.happen(Fact::Refused { ask, refusal: Refusal::new(ErrorCode::NotUp, "not up") });
    stage.pass(START_PROBE_INTERVAL);
    let (_, ask) = dialled(&stage);
    let kept = stage.script.0.borrow().connection.clone();
    stage.happen(Fact::Connected { ask, stream: stream(), kept });
    let pb::reply::Kind::Started(started) = stage.reply() else { panic!("not started") };
    assert!(started.accelerator_reason.ends_with("says: starting"), "{started:?}");
    assert_eq!(stage.held(), 0, "nobody has that connection");
    // Its deadline is none of its any more, nor the hypervisor's late word.
    stage.happen(Fact::Running { accelerator: "x".into(), reason: String::new(), pid: 1 });
    stage.pass(2 * START_TIMEOUT);
    assert!(!stage.life.is_told());
}

#[test]
fn orders_without_a_vm_are_refused_one_by_one() {
    let mut stage = Stage::new();
    for kind in [
        pb::request::Kind::Connect(pb::Connect { port: 1 }),
        pb::request::Kind::Accept(pb::Accept { dial: 1 }),
        pb::request::Kind::PowerButton(pb::PowerButton {}),
        pb::request::Kind::Stop(pb::Stop {}),
        pb::request::Kind::Kill(pb::Kill {}),
    ] {
        stage.order(kind, &[]);
        assert_eq!(stage.owner.error_text(), "there is no VM yet; start one first");
    }
    let mut stage = Stage::running();
    stage.order(start(PROTOCOL), &[file(), file(), file()]);
    assert_eq!(stage.owner.error_text(), "this vminit-vmm has its VM already");
    stage.order(pb::request::Kind::PowerButton(pb::PowerButton {}), &[]);
    assert_eq!(stage.owner.error_text(), "no button");
}

#[test]
fn a_wake_up_reaches_hypervisor_and_owner_of_a_vm() {
    let mut stage = Stage::running();
    stage.life.woke();
    assert!(matches!(stage.event(), pb::event::Kind::Woke(_)));
    assert_eq!(stage.script.0.borrow().woken, 1);
    let mut nothing = Stage::new();
    nothing.life.woke();
    assert_eq!(nothing.script.0.borrow().woken, 0);
}

#[test]
fn an_owner_that_is_gone_ends_it_in_any_state() {
    for mut stage in [Stage::new(), Stage::starting(), Stage::running()] {
        stage.life.take(Order::OwnerGone { why: String::new() }, stage.now);
        assert!(stage.life.is_over());
    }
}

#[test]
fn an_alarm_that_rang_before_the_wait_is_not_lost() {
    let (waker, mut wait) = alarm();
    waker.wake();
    waker.wake();
    // Would never return.
    wait(None);
    wait(Some(Duration::ZERO));
}
