//! The agent as a process: forked, listened to, watched, killed, forked again.
//!
//! It is a fork that executes nothing: what an exec does (unmap, map, the C library's start, the
//! first touch of each page) is half of a start, and would come to the program that is there already.
//!
//! Owns: the agent's pid and init's end of the link to it.
//! Promises: at most one agent; each gets what it needs to go on where the one before stopped.
//! Never: waits for it; decides when to start it ([`supervisor_monitor`] does).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use supervisor_monitor::{Action, Event, GaveUp, Monitor, Policy};
use tracing::{debug, error, info};

use super::epitaph::{Moment, remember};
use super::heartbeat::{Beat, Heartbeat};
use crate::agent;
use crate::config::Config;
use crate::limits::{AGENT_END, AGENT_OOM_SCORE_ADJ, LINK_RETRY};
use crate::link::message::ToAgent;
use crate::link::sync::{Link, Received};
use crate::log::{self, Role};
use crate::paths;
use crate::sys::clone::{self, Forked};
use crate::sys::wait::{self, End};
use crate::sys::{descriptors, pidfd, seqpacket, signals};

/// How an agent is started and watched.
#[derive(Debug)]
pub struct AgentSettings {
    /// Time between two beats.
    pub heartbeat: Duration,
    /// Unanswered beats in a row.
    pub heartbeat_misses: u32,
    /// What the agent is told of how this boot is to go.
    pub config: Config,
}

/// The agent, whether there is one at the moment or not.
#[derive(Debug)]
pub struct Agent {
    settings: AgentSettings,
    monitor: Monitor,
    generation: u32,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    pidfd: OwnedFd,
    link: Link,
    heartbeat: Heartbeat,
    /// SIGKILL was sent, and why; what it still says is heard, nothing is said to it.
    killed: Option<String>,
    /// The link is broken, and why. Mostly the process is just ending by itself, and then its exit
    /// tells more than a kill of ours would.
    broken: Option<String>,
    /// When it is killed because it has not ended by itself.
    end_by: Option<Duration>,
}

impl Process {
    fn is_listening(&self) -> bool {
        self.killed.is_none() && self.broken.is_none()
    }
}

/// What the loop is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// A new agent runs: tell it what there is.
    Greet,
    /// It never came to serve.
    GiveUp(GaveUp),
}

impl Agent {
    /// None runs yet.
    pub fn new(settings: AgentSettings) -> Agent {
        let monitor = Monitor::new(Policy::AGENT);
        Agent { settings, monitor, generation: 0, process: None }
    }

    /// Starts the first one.
    pub fn start(&mut self, now: Duration) -> Vec<Order> {
        self.tell(Event::StartRequested, now)
    }

    /// How many there were, this one included.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Its pid, while there is one.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Whether it is this child.
    pub fn is(&self, pid: i32) -> bool {
        self.process.as_ref().is_some_and(|process| process.pid == pid)
    }

    /// Whether one runs that is spoken to.
    pub fn is_listening(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_listening)
    }

    /// Says something to it, if it runs; what it misses, its successor is told.
    pub fn send(&mut self, message: &ToAgent, fds: Vec<Rc<OwnedFd>>) {
        if let Some(process) = self.process.as_mut().filter(|process| process.is_listening())
            && let Err(error) = process.link.send(message, fds)
        {
            process.broken = Some(crate::chain(&error));
        }
    }

    /// The greeting is over: from now on an agent that does not read is a wedged one.
    pub fn greeted(&mut self) {
        if let Some(process) = &mut self.process {
            process.link.limit_queue();
        }
    }

    /// Its next message, if there is one.
    pub fn receive(&mut self) -> Option<Received> {
        let process = self.process.as_mut()?;
        match process.link.receive() {
            Ok(received) => received,
            Err(error) => {
                process.broken.get_or_insert_with(|| crate::chain(&error));
                None
            }
        }
    }

    /// Sends what waits for room.
    pub fn flush(&mut self) {
        if let Some(process) = self.process.as_mut().filter(|process| process.is_listening())
            && let Err(error) = process.link.flush()
        {
            process.broken = Some(crate::chain(&error));
        }
    }

    /// It says that it serves.
    pub fn serves(&mut self, now: Duration) {
        if let Some(process) = &self.process {
            remember(Moment::AgentServes, process.pid, self.generation);
            info!("agent {} serves", self.generation);
            self.tell(Event::Serving, now);
        }
    }

    /// It answered a ping.
    pub fn answered(&mut self, beat: u64) {
        if let Some(process) = &mut self.process {
            process.heartbeat.answered(beat);
        }
    }

    /// Whether it is stopped by a signal, in which case it is killed at once: it would neither
    /// answer nor crash.
    pub fn look_whether_stopped(&mut self) {
        let Some(process) = self.process.as_ref().filter(|process| process.is_listening()) else {
            return;
        };
        // An error means that it is no child any more; then it will be reaped as one that ended.
        if wait::is_stopped(process.pid).unwrap_or(false) {
            self.kill("it was stopped by a signal");
        }
    }

    /// It was reaped; all that it had said was heard before.
    pub fn exited(&mut self, end: End, now: Duration) -> Vec<Order> {
        let Some(process) = self.process.take() else { return Vec::new() };
        remember(Moment::AgentExited, process.pid, end.status());
        match process.killed.as_ref().or(process.broken.as_ref()) {
            Some(why) => error!("agent {} {end}: {why}", self.generation),
            None => error!("agent {} {end}", self.generation),
        }
        self.tell(Event::Exited, now)
    }

    /// Looks at the heartbeat and at the restart's time.
    pub fn tick(&mut self, now: Duration) -> Vec<Order> {
        if let Some(process) = &mut self.process
            && let Some(why) = &process.broken
            && now >= *process.end_by.get_or_insert(now + AGENT_END)
        {
            let why = why.clone();
            self.kill(&why);
        }
        if let Some(process) = self.process.as_mut().filter(|process| process.is_listening()) {
            if process.link.waits_for_memory() {
                self.flush();
            }
            self.beat(now);
        }
        self.tell(Event::TimerFired, now)
    }

    fn beat(&mut self, now: Duration) {
        let Some(process) = &mut self.process else { return };
        match process.heartbeat.tick(now) {
            Some(Beat::Wedged) => self.kill("it does not answer"),
            // A ping behind messages that it does not read would not reach it anyway; the beat
            // counts as unanswered all the same.
            Some(Beat::Ping(_)) if process.link.waits_for_room() => {}
            Some(Beat::Ping(beat)) => self.send(&ToAgent::Ping { beat }, Vec::new()),
            None => {}
        }
    }

    /// When [`Agent::tick`] has something to do.
    pub fn next_tick(&self, now: Duration) -> Option<Duration> {
        let beat =
            self.process.as_ref().filter(|process| process.killed.is_none()).map(|process| {
                match process.end_by {
                    Some(end_by) => end_by,
                    None if process.link.waits_for_memory() => now + LINK_RETRY,
                    None => process.heartbeat.due(),
                }
            });
        [beat, self.monitor.next_timer()].into_iter().flatten().min()
    }

    /// What to poll: the link, and whether it waits for room.
    pub fn link(&self) -> Option<(BorrowedFd<'_>, bool)> {
        let process = self.process.as_ref().filter(|process| process.is_listening())?;
        Some((process.link.as_fd(), process.link.waits_for_room()))
    }

    /// Kills it; its exit starts the next.
    pub fn kill(&mut self, why: &str) {
        let Some(process) = self.process.as_mut().filter(|process| process.killed.is_none()) else {
            return;
        };
        remember(Moment::AgentKilled, process.pid, self.generation);
        process.killed = Some(why.to_owned());
        // ESRCH: it has just died.
        let _ = pidfd::send_signal(process.pidfd.as_fd(), libc::SIGKILL);
    }

    fn tell(&mut self, event: Event, now: Duration) -> Vec<Order> {
        let mut orders = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let actions = match self.monitor.handle(event, now) {
                Ok(actions) => actions,
                Err(refusal) => {
                    debug!("agent's monitor, {event:?}: {refusal}");
                    continue;
                }
            };
            for action in actions {
                match action {
                    Action::Spawn => match self.spawn(now) {
                        Ok(()) => {
                            orders.push(Order::Greet);
                            events.push(Event::Spawned);
                        }
                        Err(error) => {
                            error!("start the agent: {error}");
                            events.push(Event::SpawnFailed);
                        }
                    },
                    Action::ReportGivenUp { why } => orders.push(Order::GiveUp(why)),
                    // The loop asks `next_tick` instead.
                    Action::ArmTimer(_) => {}
                    Action::SignalTerm | Action::SignalKill => self.kill("it is to stop"),
                }
            }
        }
        orders
    }

    fn spawn(&mut self, now: Duration) -> std::io::Result<()> {
        let (ours, theirs) = seqpacket::pair(true)?;
        match clone::fork_whole()? {
            Forked::Child => become_agent(theirs, self.settings.config.clone()),
            Forked::Parent { pid, pidfd } => {
                self.generation += 1;
                remember(Moment::AgentForked, pid, self.generation);
                let AgentSettings { heartbeat, heartbeat_misses, .. } = self.settings;
                self.process = Some(Process {
                    pid,
                    pidfd,
                    link: Link::new(ours),
                    heartbeat: Heartbeat::new(now, heartbeat, heartbeat_misses),
                    killed: None,
                    broken: None,
                    end_by: None,
                });
                Ok(())
            }
        }
    }
}

/// In the fresh fork: the agent's life. What fails before it ends it, and the restart rule decides.
///
/// What of init's lies in this memory is never touched again: the descriptors behind it are closed
/// here, and nothing unwinds past this function.
fn become_agent(link: OwnedFd, config: Config) -> ! {
    // Before all else: from here on a panic is this process's own, and ends no VM.
    log::set_role(Role::Agent);
    let life = || match part_from_init(&link) {
        Ok(()) => agent::run(config, link),
        Err(error) => error!("become the agent: {error}"),
    };
    let status = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(()) => FAILED,
        Err(_) => PANICKED,
    };
    clone::exit_now(status)
}

/// What of PID 1 is not the agent's.
fn part_from_init(link: &OwnedFd) -> std::io::Result<()> {
    // Its name in lists of processes.
    let _ = nix::sys::prctl::set_name(c"vminitd-agent");
    let mut kept = log::descriptors();
    kept.extend([0, 1, 2, link.as_raw_fd()]);
    descriptors::close_all_but(&mut kept)?;
    nix::unistd::setsid()?;
    signals::unblock_all();
    std::fs::write(paths::OWN_OOM_SCORE_ADJ, AGENT_OOM_SCORE_ADJ.to_string())
}

/// The agent's exit codes.
const FAILED: i32 = 1;
const PANICKED: i32 = 101;
