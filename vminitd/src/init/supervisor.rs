//! The injected supervisor as a process: started, watched, started again, stopped.
//!
//! Owns: its pid, the write end of its output's pipe, its cgroup, and who waits for its end.
//! Promises: at most one at a time; it is stopped by SIGTERM and, when its grace is over, by SIGKILL
//! for all that is in its cgroup; an agent's death changes nothing here.
//! Never: decides when ([`supervisor_monitor`] does), reads what it writes, waits for it, or looks
//! whether there is one: the agent does, which then says [`ToInit::Supervise`].
//!
//! [`ToInit::Supervise`]: crate::link::message::ToInit::Supervise

use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use supervisor_monitor::{Action, Event, Monitor, Policy, Refusal, State, Status};
use tracing::{error, info, warn};

use super::epitaph::{Moment, remember};
use super::supervisor_program;
use crate::link::message::{RequestId, SupervisorOrder, SupervisorStatus};
use crate::paths;
use crate::sys::clone::{self, Forked};
use crate::sys::pidfd;
use crate::sys::wait::End;

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    monitor: Monitor,
    /// Write end of its output; there from [`Supervisor::begin`] on.
    output: Option<OwnedFd>,
    /// Made for the first process; every one is born in it.
    cgroup: Option<OwnedFd>,
    process: Option<Process>,
    last_exit: Option<u32>,
    /// Requests to stop, answered when it is down.
    stopping: Vec<RequestId>,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

/// What an asker is told.
pub type Answer = (RequestId, Result<SupervisorStatus, String>);

impl Supervisor {
    /// None, and none wanted. `haste` divides the times of the restart rule.
    pub fn new(haste: NonZeroU32) -> Supervisor {
        Supervisor {
            monitor: Monitor::new(Policy::SUPERVISOR.scaled_down(haste)),
            output: None,
            cgroup: None,
            process: None,
            last_exit: None,
            stopping: Vec::new(),
        }
    }

    /// Whether [`Supervisor::begin`] was called.
    pub fn is_begun(&self) -> bool {
        self.output.is_some()
    }

    /// Starts it for the first time.
    pub fn begin(&mut self, output: OwnedFd, now: Duration) {
        self.output = Some(output);
        let _ = self.tell(Event::StartRequested, now);
    }

    /// Whether it is this child.
    pub fn is(&self, pid: i32) -> bool {
        self.process.as_ref().is_some_and(|process| process.pid == pid)
    }

    /// Whether there is no process and none to come.
    pub fn is_down(&self) -> bool {
        self.monitor.state().is_down()
    }

    /// Does as asked. None: the answer comes out of [`Supervisor::answers`].
    pub fn order(
        &mut self,
        request: RequestId,
        order: SupervisorOrder,
        now: Duration,
    ) -> Option<Answer> {
        let event = match order {
            SupervisorOrder::Status => return Some((request, Ok(self.status(now)))),
            SupervisorOrder::Start if !self.is_begun() => {
                return Some((request, Err("there is none".to_owned())));
            }
            SupervisorOrder::Start => Event::StartRequested,
            SupervisorOrder::Stop => Event::StopRequested,
        };
        match self.tell(event, now) {
            // A stop that is under way already is one to wait for, too.
            Ok(()) | Err(Refusal::BeingStopped) if order == SupervisorOrder::Stop => {
                self.stopping.push(request);
                None
            }
            // What is asked for is so already.
            Ok(()) | Err(Refusal::AlreadyStarted | Refusal::AlreadyDown) => {
                Some((request, Ok(self.status(now))))
            }
            Err(refusal) => Some((request, Err(refusal.to_string()))),
        }
    }

    /// Stops it for good, because the VM ends.
    pub fn end(&mut self, now: Duration) {
        // Refused when it is down, or being stopped.
        let _ = self.tell(Event::StopRequested, now);
    }

    /// It was reaped.
    pub fn exited(&mut self, end: End, now: Duration) {
        let Some(process) = self.process.take() else { return };
        remember(Moment::SupervisorExited, process.pid, end.status());
        self.last_exit = Some(end.status());
        // It is gone if the process has removed it itself.
        let _ = std::fs::remove_file(paths::SUPERVISOR_PID);
        let _ = self.tell(Event::Exited, now);
        match self.monitor.state() {
            State::Backoff { restart_at } => {
                let wait = restart_at.saturating_sub(now);
                warn!("the supervisor {end}: started again in {wait:?}");
            }
            _ => info!("the supervisor {end}"),
        }
    }

    /// Looks at the times.
    pub fn tick(&mut self, now: Duration) {
        if self.monitor.next_timer().is_some_and(|at| now >= at) {
            let _ = self.tell(Event::TimerFired, now);
        }
    }

    /// When [`Supervisor::tick`] has something to do.
    pub fn next_tick(&self) -> Option<Duration> {
        self.monitor.next_timer()
    }

    /// Answers to stops, once it is down.
    pub fn answers(&mut self, now: Duration) -> Vec<Answer> {
        if self.stopping.is_empty() || !self.is_down() {
            return Vec::new();
        }
        let status = self.status(now);
        self.stopping.drain(..).map(|request| (request, Ok(status.clone()))).collect()
    }

    fn status(&self, now: Duration) -> SupervisorStatus {
        let Status { state, restarts, in_a_row: _, next_restart } = self.monitor.status(now);
        SupervisorStatus {
            state: state.to_owned(),
            pid: self.process.as_ref().map(|process| process.pid),
            restarts,
            next_restart_ms: next_restart
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            last_exit: self.last_exit,
        }
    }

    /// An error changes nothing.
    fn tell(&mut self, event: Event, now: Duration) -> Result<(), Refusal> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.monitor.handle(event, now)? {
                match action {
                    Action::Spawn => match self.spawn() {
                        Ok(()) => events.push(Event::Spawned),
                        Err(error) => {
                            error!("start the supervisor: {error}");
                            events.push(Event::SpawnFailed);
                        }
                    },
                    // The loop asks `next_tick` instead.
                    Action::ArmTimer(_) => {}
                    Action::SignalTerm => self.signal(libc::SIGTERM),
                    Action::SignalKill => self.kill(),
                    Action::ReportGivenUp { why } => error!("the supervisor stays down: {why}"),
                }
            }
        }
        Ok(())
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        let output = self.output.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        let cgroup = match self.cgroup.take() {
            Some(cgroup) => cgroup,
            None => supervisor_program::make_cgroup()?,
        };
        let cgroup = self.cgroup.insert(cgroup);
        match clone::fork(Some(cgroup.as_fd()))? {
            Forked::Child => supervisor_program::exec(output),
            Forked::Parent { pid, pidfd } => {
                remember(
                    Moment::SupervisorForked,
                    pid,
                    self.monitor.status(Duration::ZERO).restarts,
                );
                info!("supervisor started as process {pid}");
                self.process = Some(Process { pid, pidfd });
                Ok(())
            }
        }
    }

    fn signal(&self, signal: i32) {
        if let Some(process) = &self.process {
            // ESRCH: it has just died.
            let _ = pidfd::send_signal(process.pidfd.as_fd(), signal);
        }
    }

    fn kill(&self) {
        warn!("the supervisor does not end on SIGTERM: killed");
        self.signal(libc::SIGKILL);
        if let Err(error) = std::fs::write(format!("{}/cgroup.kill", paths::CGROUP_SUPERVISOR), "1")
        {
            warn!("kill what the supervisor has started: {error}");
        }
    }
}
