//! Launchers: forked, listened to, killed when late, cleaned up after.
//!
//! Owns: each launcher until it is reaped and its report made, its result socket and its cgroup.
//! Promises: every request gets one report, in [`Report`]'s terms, whoever the agent is by then.
//! Never: blocks; decides ([`launch_state`](super::launch_state) does); talks to the agent.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tracing::{debug, warn};

use super::epitaph::{Moment, remember};
use super::launch_cgroup::{LaunchCgroup, Pool};
use super::launch_state::{Action, Event, State};
use super::strays;
use crate::launcher::outcome::Outcome;
use crate::launcher::scratch::{self, Scratch};
use crate::launcher::{self, Needs, Order};
use crate::limits::{CLEANING, CLEANING_LOOK, LAUNCHES, REASON_BYTES, SPARE_KEPT};
use crate::link::codec;
use crate::link::message::{Failure, Launch, RequestId, Target};
use crate::sys::clone::{self, Forked};
use crate::sys::wait::End;
use crate::sys::{pidfd, seqpacket};

/// All launches that are not over.
#[derive(Debug)]
pub struct Launches {
    under_way: Vec<UnderWay>,
    cgroups: Pool,
    /// A launcher that was forked ahead.
    spare: Option<Spare>,
    /// For results. Here, since clearing it anew would cost more than the call that fills it.
    buffer: Box<[u8]>,
}

impl Default for Launches {
    fn default() -> Self {
        let buffer = vec![0; RESULT_BYTES].into_boxed_slice();
        Launches { under_way: Vec::new(), cgroups: Pool::default(), spare: None, buffer }
    }
}

/// The end of a launch.
#[derive(Debug)]
pub struct Report {
    /// The request.
    pub request: RequestId,
    /// What was to be launched.
    pub target: Target,
    /// How it went.
    pub result: Ended,
}

/// How a launch ended.
#[derive(Debug)]
pub enum Ended {
    /// There is a process; it cannot have been reaped yet.
    Launched {
        /// In the root pid namespace.
        pid: i32,
        /// The process.
        pidfd: OwnedFd,
        /// Its pty's master, if it has a terminal.
        master: Option<OwnedFd>,
    },
    /// The job that makes no process is done.
    Done,
    /// There is nothing.
    Failed(Failure, String),
}

#[derive(Debug)]
struct UnderWay {
    request: RequestId,
    target: Target,
    state: State,
    /// The launcher's pid until it is reaped.
    pid: Option<i32>,
    /// It has a directory that it removes at its end.
    has_scratch: bool,
    pidfd: OwnedFd,
    /// Non-blocking; init's end.
    result: OwnedFd,
    /// It has said what it has to say, or ended: what comes next is its exit, of which a signal tells.
    heard: bool,
    /// When [`Event::Deadline`] comes; in `Cleaning`, when [`Event::Overdue`] does.
    deadline: Duration,
    cgroup: Option<LaunchCgroup>,
    /// Killed, and not yet reaped.
    strays: BTreeSet<i32>,
    /// Of a process that was reported: on its way to [`Ended::Launched`].
    master: Option<OwnedFd>,
}

/// A launcher that waits for its order.
#[derive(Debug)]
struct Spare {
    launcher: Launcher,
    /// CLONE_NEW*: what it has made of its own.
    namespaces: i32,
    /// It ends then, if nobody has needed it.
    until: Duration,
}

/// A launcher, as it was forked.
#[derive(Debug)]
struct Launcher {
    pid: i32,
    pidfd: OwnedFd,
    result: OwnedFd,
    cgroup: Option<LaunchCgroup>,
}

impl Launches {
    /// A launch is near: its launcher is forked ahead and does its first acts, while the host
    /// and the agent do what comes before the launch.
    ///
    /// `namespaces` (CLONE_NEW*) are made by it, too.
    pub fn expect(&mut self, namespaces: i32, now: Duration) {
        if self.spare.is_some() {
            return;
        }
        match self.fork(None, namespaces) {
            Ok(launcher) => {
                self.spare = Some(Spare { launcher, namespaces, until: now + SPARE_KEPT });
            }
            // Then the launch itself says why.
            Err(reason) => debug!("no launcher ahead: {reason}"),
        }
    }

    /// Forks a launcher, or takes the one that was forked ahead. An error is the request's report: nothing was started.
    pub fn start(
        &mut self,
        request: RequestId,
        launch: Launch,
        fds: Vec<OwnedFd>,
        now: Duration,
    ) -> Result<(), Report> {
        let target = launch.target.clone();
        let has_scratch = Scratch::is_needed(&launch.job);
        let deadline = now + Duration::from_millis(launch.deadline_ms);
        match self.launcher(launch, fds) {
            Ok(Launcher { pid, pidfd, result, cgroup }) => {
                remember(Moment::LauncherForked, pid, request as u32);
                self.under_way.push(UnderWay {
                    request,
                    target,
                    state: State::Running,
                    pid: Some(pid),
                    has_scratch,
                    pidfd,
                    result,
                    heard: false,
                    deadline,
                    cgroup,
                    strays: BTreeSet::new(),
                    master: None,
                });
                Ok(())
            }
            Err(reason) => {
                let result = Ended::Failed(Failure::Fork, reason);
                Err(Report { request, target, result })
            }
        }
    }

    fn launcher(&mut self, launch: Launch, fds: Vec<OwnedFd>) -> Result<Launcher, String> {
        if fds.len() != launch.fds.len() {
            return Err(format!("{} descriptors for {} roles", fds.len(), launch.fds.len()));
        }
        if Needs::of(&launch.job) == Needs::USUAL
            && self.under_way.len() < LAUNCHES
            && let ahead = launch.job.ahead()
            && let Some(Spare { launcher, .. }) =
                self.spare.take_if(|spare| spare.namespaces & !ahead == 0)
        {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let ordered = codec::encode(&launch)
                .map_err(std::io::Error::other)
                .and_then(|bytes| seqpacket::send(launcher.result.as_fd(), &bytes, &fds));
            match ordered {
                Ok(()) => return Ok(launcher),
                Err(error) => {
                    debug!("the launcher that was forked ahead is no use: {error}");
                    self.dismiss(launcher);
                }
            }
        }
        self.fork(Some((launch, fds)), 0)
    }

    /// Ends one that is not needed. Nobody waits for it: it is reaped as a stranger.
    fn dismiss(&mut self, launcher: Launcher) {
        let _ = pidfd::send_signal(launcher.pidfd.as_fd(), libc::SIGKILL);
        if let Some(cgroup) = launcher.cgroup {
            self.cgroups.give_back(cgroup);
        }
    }

    fn fork(
        &mut self,
        launch: Option<(Launch, Vec<OwnedFd>)>,
        ahead: i32,
    ) -> Result<Launcher, String> {
        if self.under_way.len() >= LAUNCHES {
            return Err(format!("{LAUNCHES} launches are under way already"));
        }
        let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
        let (ours, theirs) =
            seqpacket::pair(false).map_err(|error| failed("make a result socket", error))?;
        crate::sys::fcntl::set_nonblocking(ours.as_fd())
            .map_err(|error| failed("make a result socket", error))?;
        let cgroup = self.cgroups.take();
        match clone::fork(cgroup.as_ref().map(LaunchCgroup::as_fd)) {
            Ok(Forked::Child) => launcher::run(Order { launch, result: theirs, ahead }),
            Ok(Forked::Parent { pid, pidfd }) => Ok(Launcher { pid, pidfd, result: ours, cgroup }),
            Err(error) => {
                if let Some(cgroup) = cgroup {
                    self.cgroups.give_back(cgroup);
                }
                Err(failed("fork a launcher", error))
            }
        }
    }

    /// The agent wants it no more.
    pub fn cancel(&mut self, request: RequestId, now: Duration, host: &impl Known) -> Vec<Report> {
        self.tell(|launch| launch.request == request, Event::Cancelled, now, host)
    }

    /// Reads all results that are there.
    pub fn read_results(&mut self, now: Duration, host: &impl Known) -> Vec<Report> {
        let mut reports = Vec::new();
        for index in 0..self.under_way.len() {
            if let Some(event) = self.under_way[index].read_result(&mut self.buffer) {
                reports.extend(self.handle(index, event, now, host));
            }
        }
        self.drop_finished();
        reports
    }

    /// Whether the child is a launcher.
    pub fn is_launcher(&self, pid: i32) -> bool {
        self.under_way.iter().any(|launch| launch.pid == Some(pid))
    }

    /// A launcher was reaped; its result was read before.
    pub fn launcher_exited(
        &mut self,
        pid: i32,
        end: End,
        now: Duration,
        host: &impl Known,
    ) -> Vec<Report> {
        let Some(index) = self.under_way.iter().position(|launch| launch.pid == Some(pid)) else {
            return Vec::new();
        };
        let launch = &mut self.under_way[index];
        launch.pid = None;
        if launch.has_scratch && end != End::Exited(0) {
            scratch::remove(pid.unsigned_abs());
        }
        let reports = self.handle(index, Event::Exited(end.to_string()), now, host);
        self.drop_finished();
        reports.into_iter().collect()
    }

    /// A child that nobody knows was reaped.
    pub fn stranger_exited(&mut self, pid: i32) {
        for launch in &mut self.under_way {
            launch.strays.remove(&pid);
        }
    }

    /// Looks at deadlines and at what is being cleaned.
    pub fn tick(&mut self, now: Duration, host: &impl Known) -> Vec<Report> {
        if let Some(spare) = self.spare.take_if(|spare| now >= spare.until) {
            self.dismiss(spare.launcher);
        }
        let mut reports = Vec::new();
        for index in 0..self.under_way.len() {
            let launch = &self.under_way[index];
            let cleaning = matches!(launch.state, State::Cleaning(..));
            let event = if cleaning && launch.is_clean() {
                Event::Clean
            } else if now >= launch.deadline {
                if cleaning { Event::Overdue } else { Event::Deadline }
            } else {
                continue;
            };
            if event == Event::Deadline {
                // Not again at once, should the kill take its time.
                self.under_way[index].deadline = now + CLEANING;
            }
            reports.extend(self.handle(index, event, now, host));
        }
        self.drop_finished();
        reports
    }

    /// When [`Launches::tick`] has something to do.
    pub fn next_tick(&self, now: Duration) -> Option<Duration> {
        self.under_way
            .iter()
            .map(|launch| match launch.state {
                State::Cleaning(..) => now + CLEANING_LOOK,
                _ => launch.deadline,
            })
            .chain(self.spare.as_ref().map(|spare| spare.until))
            .min()
    }

    /// What is under way and not reported, for a new agent.
    pub fn unreported(&self) -> impl Iterator<Item = (RequestId, &Target)> {
        self.under_way
            .iter()
            .filter(|launch| !matches!(launch.state, State::Reported | State::Over))
            .map(|launch| (launch.request, &launch.target))
    }

    /// The sockets to poll for results.
    pub fn result_sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.under_way
            .iter()
            .filter(|launch| launch.pid.is_some() && !launch.heard)
            .map(|launch| launch.result.as_fd())
    }

    fn tell(
        &mut self,
        which: impl Fn(&UnderWay) -> bool,
        event: Event,
        now: Duration,
        host: &impl Known,
    ) -> Vec<Report> {
        let mut reports = Vec::new();
        for index in 0..self.under_way.len() {
            if which(&self.under_way[index]) {
                reports.extend(self.handle(index, event.clone(), now, host));
            }
        }
        self.drop_finished();
        reports
    }

    fn handle(
        &mut self,
        index: usize,
        event: Event,
        now: Duration,
        host: &impl Known,
    ) -> Option<Report> {
        let actions = self.under_way[index].state.handle(event);
        let mut report = None;
        for action in actions {
            let launch = &mut self.under_way[index];
            match action {
                Action::ReportLaunched(pid) => report = Some(launch.launched(pid)),
                Action::ReportDone => report = Some(launch.report(Ended::Done)),
                Action::ReportFailed(failure, reason) => {
                    report = Some(launch.report(Ended::Failed(failure, reason)));
                }
                Action::Kill => launch.kill(),
                Action::KillProcess(pid) => launch.kill_process(pid),
                Action::FindStrays => {
                    launch.deadline = now + CLEANING;
                    let spare = self.spare.as_ref().map(|spare| spare.launcher.pid);
                    let under_way = self.under_way.iter().filter_map(|launch| launch.pid);
                    let launchers: Vec<i32> = under_way.chain(spare).collect();
                    let found = strays::find(|pid| launchers.contains(&pid) || host.is_known(pid));
                    for pid in found {
                        self.under_way[index].kill_process(pid);
                    }
                }
                Action::Recycle => {
                    if let Some(cgroup) = launch.cgroup.take() {
                        self.cgroups.give_back(cgroup);
                    }
                }
            }
        }
        report
    }

    fn drop_finished(&mut self) {
        self.under_way.retain(|launch| launch.state != State::Over);
    }
}

/// A reason, and what is around it.
const RESULT_BYTES: usize = REASON_BYTES + 256;

/// Who else is a child of PID 1.
pub trait Known {
    /// Whether it is the agent or a launched process.
    fn is_known(&self, pid: i32) -> bool;
}

impl UnderWay {
    fn read_result(&mut self, buffer: &mut [u8]) -> Option<Event> {
        if self.heard {
            return None;
        }
        // WouldBlock: nothing yet. Anything else, and the end of the file: the launcher's exit
        // will tell.
        let datagram = seqpacket::receive(self.result.as_fd(), buffer).ok()?;
        // Polled no more: between this and its exit the socket is ready all the time.
        self.heard = true;
        if datagram.bytes == 0 {
            return None;
        }
        match codec::decode(&buffer[..datagram.bytes]) {
            Ok(Outcome::Launched { pid }) => {
                self.master = datagram.fds.into_iter().next();
                Some(Event::Launched(pid))
            }
            Ok(Outcome::Done) => Some(Event::Done),
            Ok(Outcome::Failed { reason }) => Some(Event::Failed(reason)),
            Err(error) => Some(Event::Failed(format!("launcher's result: {error}"))),
        }
    }

    fn launched(&mut self, pid: i32) -> Report {
        // Not reaped, because only init reaps it, and after this; so the pid is still its own.
        let opened = u32::try_from(pid).map_err(std::io::Error::other).and_then(pidfd::open);
        let master = self.master.take();
        let result = match opened {
            Ok(pidfd) => Ended::Launched { pid, pidfd, master },
            Err(error) => {
                self.kill_process(pid);
                Ended::Failed(Failure::Fork, format!("pidfd of the process: {error}"))
            }
        };
        self.report(result)
    }

    fn report(&self, result: Ended) -> Report {
        debug!(container = %self.target.container, exec = %self.target.exec, "launch {result}");
        Report { request: self.request, target: self.target.clone(), result }
    }

    fn kill(&mut self) {
        if self.pid.is_some() {
            // ESRCH: it has just died.
            let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    fn kill_process(&mut self, pid: i32) {
        let killed = u32::try_from(pid)
            .map_err(std::io::Error::other)
            .and_then(pidfd::open)
            .and_then(|process| pidfd::send_signal(process.as_fd(), libc::SIGKILL));
        match killed {
            Ok(()) => drop(self.strays.insert(pid)),
            Err(error) => warn!("kill process {pid} of a failed launch: {error}"),
        }
    }

    fn is_clean(&self) -> bool {
        self.strays.is_empty() && self.cgroup.as_ref().is_none_or(LaunchCgroup::is_empty)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Launched { pid, .. } => write!(formatter, "made process {pid}"),
            Ended::Done => write!(formatter, "is done"),
            Ended::Failed(failure, reason) => write!(formatter, "failed ({failure:?}): {reason}"),
        }
    }
}
