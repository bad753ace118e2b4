//! PID 1's loop: one poll over signals, the agent's link and the launchers' results.
//!
//! ```text
//!   poll -> signals -> agent's messages -> launchers' results -> children -> timers -> poll
//! ```
//!
//! Results come before children, because only a result makes a child known.
//!
//! Owns: everything that outlives an agent.
//! Promises: **whose exit is it?** A container's process becomes a child of PID 1 when its launcher
//! exits, which is after the launcher has named it. So for each dead child: look at it without
//! reaping; if its pid is unknown, read all results; only then reap that pid, before the next look
//! (which would find the same one again). A pid cannot be recycled before it is known, and an exit
//! that comes before its launch is reported is found waiting.
//! Never: blocks but in poll; returns an error.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, error, info, warn};

use super::agent_process::{Agent, AgentSettings, Order};
use super::boot::rest::Rest;
use super::clock::Clock;
use super::ending::{Ending, Patience, Step};
use super::epitaph::{self, Moment, remember};
use super::keep::Keep;
use super::launches::{Ended, Known, Launches, Report};
use super::processes::{Process, Processes, Reported};
use super::supervisor::{self, Supervisor};
use super::{Stamps, button, power};
use crate::limits::{KEPT_PER_MESSAGE, LINK_READS_PER_TURN, REAPED_PER_TURN};
use crate::link::message::{Failure, Phase, SUPERVISOR_KEY, ToAgent, ToInit};
use crate::link::sync::Received;
use crate::shutdown;
use crate::sys::input::PowerButton;
use crate::sys::{clock as clocks, signals, wait};

/// What the loop listens to; all others stay blocked. SIGINT is ctrl-alt-del, SIGPWR a power
/// failure; for a VM they mean the same as SIGTERM: its owner wants it to end.
pub const SIGNALS: &[i32] = &[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR];

/// What the boot has made.
#[derive(Debug)]
pub struct Booted {
    /// How agents are started.
    pub agent: AgentSettings,
    /// What is left to do.
    pub rest: Rest,
    /// A signalfd for [`SIGNALS`].
    pub signals: OwnedFd,
    /// For RPCs, and for streams.
    pub listeners: [OwnedFd; 2],
    /// How patient the end is.
    pub patience: Patience,
    /// So far.
    pub stamps: Stamps,
    /// None yet.
    pub supervisor: Supervisor,
}

/// PID 1 after the boot.
#[derive(Debug)]
pub struct EventLoop {
    clock: Clock,
    signals: OwnedFd,
    listeners: [Rc<OwnedFd>; 2],
    stamps: Stamps,
    /// Of the boot, until an agent serves.
    rest: Option<Rest>,
    agent: Agent,
    launches: Launches,
    processes: Processes<Held>,
    keep: Keep<Rc<OwnedFd>>,
    supervisor: Supervisor,
    /// Ends of launches that no agent has been told of.
    untold: Vec<ToAgent>,
    /// The turn ended before all dead children were reaped.
    more_children: bool,
    patience: Patience,
    ending: Option<Ending>,
    /// Once an agent serves, if the machine has one.
    button: Option<PowerButton>,
}

/// What is held for a launched process until the agent forgets it.
#[derive(Debug)]
struct Held {
    pidfd: Rc<OwnedFd>,
    master: Option<Rc<OwnedFd>>,
}

/// What has something to say.
struct Ready {
    signals: bool,
    agent: bool,
    results: bool,
    button: bool,
}

/// The children that are neither launchers nor strangers.
struct Others<'a> {
    agent: &'a Agent,
    processes: &'a Processes<Held>,
    supervisor: &'a Supervisor,
}

impl Known for Others<'_> {
    fn is_known(&self, pid: i32) -> bool {
        self.agent.is(pid) || self.processes.is_launched(pid) || self.supervisor.is(pid)
    }
}

impl EventLoop {
    /// Ready to run.
    pub fn new(booted: Booted) -> EventLoop {
        let Booted { agent, rest, signals, listeners, patience, stamps, supervisor } = booted;
        EventLoop {
            clock: Clock::new(clocks::monotonic(), agent.heartbeat),
            signals,
            listeners: listeners.map(Rc::new),
            stamps,
            rest: Some(rest),
            agent: Agent::new(agent),
            launches: Launches::default(),
            processes: Processes::new(),
            keep: Keep::new(),
            supervisor,
            untold: Vec::new(),
            more_children: false,
            patience,
            ending: None,
            button: None,
        }
    }

    /// Runs until the VM ends.
    pub fn run(mut self) -> ! {
        let orders = self.agent.start(self.clock.now());
        self.follow(orders);
        loop {
            let ready = self.wait();
            self.clock.advance(clocks::monotonic());
            // Before the children are looked for, so that one that dies meanwhile wakes us again.
            if ready.signals {
                self.take_signals();
            }
            if ready.button {
                self.look_at_button();
            }
            if ready.agent {
                self.hear_agent();
            }
            if ready.results {
                self.read_results();
            }
            if ready.signals || self.more_children {
                self.reap();
            }
            self.tick();
            self.agent.flush();
        }
    }

    fn wait(&self) -> Ready {
        let now = self.clock.now();
        let deadlines = [
            self.agent.next_tick(now),
            self.launches.next_tick(now),
            self.supervisor.next_tick(),
            self.ending.as_ref().and_then(Ending::deadline),
        ];
        let mut timeout = self.clock.sleep_until(deadlines.into_iter().flatten().min());
        if self.more_children {
            timeout = Duration::ZERO;
        }
        // Rounded up, or the last millisecond before a deadline would be spent in a busy loop.
        let millis = timeout.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);

        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let link = self.agent.link();
        let behind_link = if link.is_some() { 2 } else { 1 };
        if let Some((link, waits_for_room)) = link {
            let room = if waits_for_room { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(link, PollFlags::POLLIN | room));
        }
        fds.extend(
            self.launches.result_sockets().map(|result| PollFd::new(result, PollFlags::POLLIN)),
        );
        let behind_results = fds.len();
        fds.extend(self.button.iter().map(|button| PollFd::new(button.as_fd(), PollFlags::POLLIN)));
        if let Err(errno) = poll(&mut fds, timeout) {
            // EINTR cannot be, all signals are blocked; ENOMEM passes.
            warn!("poll: {errno}");
            std::thread::sleep(Duration::from_millis(10));
            return Ready { signals: true, agent: true, results: true, button: true };
        }
        let any = |fds: &[PollFd<'_>]| {
            fds.iter().any(|fd| fd.revents().is_none_or(|events| !events.is_empty()))
        };
        Ready {
            signals: any(&fds[..1]),
            agent: any(&fds[1..behind_link]),
            results: any(&fds[behind_link..behind_results]),
            button: any(&fds[behind_results..]),
        }
    }

    fn take_signals(&mut self) {
        loop {
            match signals::next(self.signals.as_fd()) {
                Ok(Some(libc::SIGCHLD)) => self.agent.look_whether_stopped(),
                Ok(Some(signal)) => {
                    remember(Moment::Signal, signal, 0);
                    self.shut_down(false, None, &format!("signal {signal}"));
                }
                Ok(None) => return,
                Err(error) => {
                    warn!("read signals: {error}");
                    return;
                }
            }
        }
    }

    fn look_at_button(&mut self) {
        let Some(button) = &mut self.button else { return };
        match button.pressed() {
            Ok(false) => {}
            Ok(true) => self.shut_down(false, None, "the power button"),
            Err(error) => {
                warn!("the power button is gone: {error}");
                self.button = None;
            }
        }
    }

    fn hear_agent(&mut self) {
        for _ in 0..LINK_READS_PER_TURN {
            match self.agent.receive() {
                Some(received) => self.obey(received),
                None => return,
            }
        }
    }

    fn obey(&mut self, received: Received) {
        let now = self.clock.now();
        let Received { message, fds, fds_lost } = received;
        if fds_lost {
            error!("descriptors from the agent were lost: too many are open");
        }
        match message {
            ToInit::Serving => {
                if self.agent.generation() == 1 {
                    self.stamps.take(Phase::Serving);
                    self.stamps.print();
                }
                self.agent.serves(now);
                self.complete_boot();
            }
            ToInit::Pong { beat } => self.agent.answered(beat),
            ToInit::Launch { request, launch } => {
                if let Err(report) = self.launches.start(request, launch, fds, now) {
                    self.report(report);
                }
            }
            ToInit::Expect { namespaces } => self.launches.expect(namespaces, now),
            ToInit::CancelLaunch { request } => {
                let others = Others {
                    agent: &self.agent,
                    processes: &self.processes,
                    supervisor: &self.supervisor,
                };
                let reports = self.launches.cancel(request, now, &others);
                self.report_all(reports);
            }
            ToInit::Forget { process } => drop(self.processes.forget(process)),
            ToInit::Keep { key, names } => {
                if let Err(refusal) =
                    self.keep.add(key, names, fds.into_iter().map(Rc::new).collect())
                {
                    error!("descriptors are not kept: {refusal}");
                }
            }
            ToInit::Release { request, keys } => {
                for key in keys {
                    drop(self.keep.release(&key));
                }
                self.agent.send(&ToAgent::Released { request }, Vec::new());
            }
            ToInit::AckExits { number } => self.processes.acknowledge(number),
            ToInit::Supervise => self.supervise(fds),
            ToInit::Supervisor { request, order } => {
                let answer = self.supervisor.order(request, order, now);
                self.tell_of_supervisor(answer);
            }
            ToInit::ShutDown { reboot, grace_ms, reason } => {
                self.shut_down(reboot, grace_ms.map(Duration::from_millis), &reason);
            }
            ToInit::Stopped { left } => {
                if let Some(ending) = &mut self.ending {
                    left.iter().for_each(|what| ending.left(what));
                }
                self.go_on_ending(shutdown::Event::Done(Step::Agent));
            }
        }
    }

    fn complete_boot(&mut self) {
        let Some(rest) = self.rest.take() else { return };
        if let Err(error) = rest.complete(self.agent.pid()) {
            epitaph::fatal(format_args!("boot: {}", crate::chain(&error)));
        }
        self.agent.send(&ToAgent::BootComplete, Vec::new());
        self.button = button::find();
    }

    fn read_results(&mut self) {
        let others =
            Others { agent: &self.agent, processes: &self.processes, supervisor: &self.supervisor };
        let reports = self.launches.read_results(self.clock.now(), &others);
        self.report_all(reports);
    }

    fn reap(&mut self) {
        self.more_children = true;
        for _ in 0..REAPED_PER_TURN {
            match wait::peek() {
                Ok(Some(pid)) => self.reap_one(pid),
                Ok(None) => {
                    self.more_children = false;
                    return;
                }
                Err(error) => {
                    warn!("look for dead children: {error}");
                    self.more_children = false;
                    return;
                }
            }
        }
    }

    fn reap_one(&mut self, pid: i32) {
        if !self.processes.is_launched(pid) {
            // A launcher's last words, or the name of a process that we do not know yet.
            self.read_results();
        }
        if self.agent.is(pid) {
            // What it had asked for before it died is asked for.
            while let Some(received) = self.agent.receive() {
                self.obey(received);
            }
        }
        let end = match wait::reap(pid) {
            Ok(Some(end)) => end,
            Ok(None) => return,
            Err(error) => {
                warn!("reap {pid}: {error}");
                return;
            }
        };
        let now = self.clock.now();
        if self.agent.is(pid) {
            let orders = self.agent.exited(end, now);
            self.follow(orders);
        } else if self.supervisor.is(pid) {
            self.supervisor.exited(end, now);
        } else if self.launches.is_launcher(pid) {
            remember(Moment::LauncherExited, pid, end.status());
            let others = Others {
                agent: &self.agent,
                processes: &self.processes,
                supervisor: &self.supervisor,
            };
            let reports = self.launches.launcher_exited(pid, end, now, &others);
            self.report_all(reports);
        } else {
            match self.processes.exited(pid, end.status(), clocks::realtime()) {
                Reported::Exit(exit) => {
                    remember(Moment::ProcessExited, pid, end.status());
                    self.agent.send(&ToAgent::Exited(exit), Vec::new());
                }
                Reported::Forgotten => remember(Moment::ProcessExited, pid, end.status()),
                Reported::Unknown => {
                    debug!("orphan {pid} {end}");
                    remember(Moment::OrphanReaped, pid, end.status());
                    self.launches.stranger_exited(pid);
                }
            }
        }
    }

    fn tick(&mut self) {
        let now = self.clock.now();
        let others =
            Others { agent: &self.agent, processes: &self.processes, supervisor: &self.supervisor };
        let reports = self.launches.tick(now, &others);
        self.report_all(reports);
        let orders = self.agent.tick(now);
        self.follow(orders);
        self.supervisor.tick(now);
        let answers = self.supervisor.answers(now);
        self.tell_of_supervisor(answers);
        if self.supervisor.is_down() {
            self.go_on_ending(shutdown::Event::Done(Step::Supervisor));
        }
        self.go_on_ending(shutdown::Event::TimerFired);
    }

    fn follow(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Greet => self.greet(),
                Order::GiveUp(why) => epitaph::fatal(format_args!("agent: {why}")),
            }
        }
    }

    /// Tells a new agent what there is; what it does not read at once waits in the queue.
    fn greet(&mut self) {
        let generation = self.agent.generation();
        let mut stamps = self.stamps.list();
        stamps.push((Phase::AgentForked, clocks::boottime_us()));
        // A range of its own for each agent: a number that the agent before has recorded, but not
        // yet used, must not be used for something else.
        let first_request = u64::from(generation) << 32;
        let boot_complete = self.rest.is_none();
        let welcome = ToAgent::Welcome { generation, first_request, boot_complete, stamps };
        self.agent.send(&welcome, self.listeners.to_vec());
        for (key, kept) in self.keep.iter() {
            for part in kept.chunks(KEPT_PER_MESSAGE) {
                let (names, fds) = part.iter().cloned().unzip();
                self.agent.send(&ToAgent::Kept { key: key.to_owned(), names }, fds);
            }
        }
        for (handle, process) in self.processes.iter() {
            let (message, fds) = launched(handle, process);
            self.agent.send(&message, fds);
        }
        for message in std::mem::take(&mut self.untold) {
            self.agent.send(&message, Vec::new());
        }
        for (request, target) in self.launches.unreported() {
            let target = target.clone();
            self.agent.send(&ToAgent::Launching { request, target }, Vec::new());
        }
        for exit in self.processes.unacknowledged() {
            self.agent.send(&ToAgent::Exited(exit.clone()), Vec::new());
        }
        if let Some(ending) = &self.ending {
            self.agent.send(&shutting_down(ending), Vec::new());
        }
        self.agent.send(&ToAgent::Caught, Vec::new());
        self.agent.greeted();
    }

    fn report_all(&mut self, reports: Vec<Report>) {
        for report in reports {
            self.report(report);
        }
    }

    fn report(&mut self, report: Report) {
        let Report { request, target, result } = report;
        match result {
            Ended::Launched { pid, pidfd, master } => {
                let held = Held { pidfd: Rc::new(pidfd), master: master.map(Rc::new) };
                let process = Process { request, target, pid, held };
                let (message, fds) = {
                    // The name comes from the table, so the message is made from what is in it.
                    let handle = self.processes.launched(process);
                    match self.processes.get(handle) {
                        Some(process) => launched(handle, process),
                        None => return,
                    }
                };
                self.agent.send(&message, fds);
            }
            Ended::Done => self.tell(ToAgent::Done { request, target }),
            Ended::Failed(failure, reason) => {
                if failure != Failure::Runtime {
                    warn!(container = %target.container, exec = %target.exec, "launch: {reason}");
                }
                self.tell(ToAgent::LaunchFailed { request, target, failure, reason });
            }
        }
    }

    fn tell(&mut self, message: ToAgent) {
        if self.agent.is_listening() {
            self.agent.send(&message, Vec::new());
        } else {
            self.untold.push(message);
        }
    }

    /// Starts the supervisor, and keeps the read end of its output for every agent.
    fn supervise(&mut self, fds: Vec<OwnedFd>) {
        if self.supervisor.is_begun() {
            return;
        }
        let Ok([read, write]) = <[OwnedFd; 2]>::try_from(fds) else {
            error!("the supervisor's output is not a pipe");
            return;
        };
        let names = vec!["output".to_owned()];
        match self.keep.add(SUPERVISOR_KEY.to_owned(), names, vec![Rc::new(read)]) {
            Ok(()) => self.supervisor.begin(write, self.clock.now()),
            Err(refusal) => error!("the supervisor's output is not kept: {refusal}"),
        }
    }

    fn tell_of_supervisor(&mut self, answers: impl IntoIterator<Item = supervisor::Answer>) {
        for (request, answer) in answers {
            self.agent.send(&ToAgent::Supervisor { request, answer }, Vec::new());
        }
    }

    fn shut_down(&mut self, restart: bool, grace: Option<Duration>, why: &str) {
        if self.ending.is_some() {
            return;
        }
        info!("shutting down: {why}");
        remember(Moment::PowerOff, 0, u32::from(restart));
        let grace = grace.unwrap_or(self.patience.grace);
        self.ending = Some(Ending::new(restart, Patience { grace, ..self.patience }));
        self.go_on_ending(shutdown::Event::Asked);
    }

    fn go_on_ending(&mut self, event: shutdown::Event<Step>) {
        let (Some(ending), now) = (&mut self.ending, self.clock.now()) else { return };
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in ending.handle(event, now) {
                match action {
                    // One that is not there yet is told when it comes.
                    shutdown::Action::Begin(Step::Agent) => {
                        self.agent.send(&shutting_down(ending), Vec::new());
                    }
                    shutdown::Action::Begin(Step::Supervisor) => {
                        self.supervisor.end(now);
                        if self.supervisor.is_down() {
                            events.push(shutdown::Event::Done(Step::Supervisor));
                        }
                    }
                    // The report names it.
                    shutdown::Action::Abandon(_) => {}
                    // From here on nobody is served, see below.
                    shutdown::Action::Begin(_) | shutdown::Action::End => {}
                }
            }
        }
        if !matches!(ending.current(), Some(Step::Agent | Step::Supervisor))
            && let Some(ending) = self.ending.take()
        {
            power::finish(ending, &mut self.clock);
        }
    }
}

fn shutting_down(ending: &Ending) -> ToAgent {
    ToAgent::ShuttingDown { grace_ms: u64::try_from(ending.grace.as_millis()).unwrap_or(u64::MAX) }
}

fn launched(handle: u64, process: &Process<Held>) -> (ToAgent, Vec<Rc<OwnedFd>>) {
    let message = ToAgent::Launched {
        request: process.request,
        target: process.target.clone(),
        process: handle,
        pid: process.pid,
    };
    let Held { pidfd, master } = &process.held;
    (message, [Some(pidfd), master.as_ref()].into_iter().flatten().cloned().collect())
}
