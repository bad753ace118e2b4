//! init, as the agent sees it: requests and their answers, exits, safe keeping.
//!
//! Owns: the agent's end of the link, who waits for which answer, and for each launched process the
//! place where its exit is found.
//! Promises: an exit that comes before anybody asks for it is found waiting; init is told that an
//! exit is recorded only when it and all before it are.
//! Never: knows what a container is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

use super::lock;
use crate::limits::KEPT_PER_MESSAGE;
use crate::link::agent::{Link, LinkError};
use crate::link::message::{
    Exit, Failure, Launch, ProcessHandle, RequestId, SupervisorOrder, SupervisorStatus, Target,
    ToAgent, ToInit,
};

/// The agent's side of the conversation with init.
pub struct InitClient {
    link: Link,
    next_request: AtomicU64,
    waiting: Mutex<HashMap<RequestId, oneshot::Sender<Answer>>>,
    exits: Mutex<Exits>,
    boot_complete: watch::Sender<bool>,
    /// The keys under which something is kept, so that nobody asks about any other.
    kept: Mutex<HashSet<String>>,
}

/// A process that a launcher made.
#[derive(Debug)]
pub struct Launched {
    /// init's name for it.
    pub process: ProcessHandle,
    /// In the root pid namespace.
    pub pid: u32,
    /// To signal it by.
    pub pidfd: OwnedFd,
    /// The master of its pty, if it has a terminal. init keeps it too.
    pub master: Option<OwnedFd>,
    /// Where its exit is found.
    pub exit: ExitSlot,
}

/// Where the exit of one process is found, once init has reported it.
#[derive(Clone, Debug)]
pub struct ExitSlot(watch::Receiver<Option<Exit>>);

/// Why there is no process.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct LaunchError {
    /// Whose fault.
    pub failure: Failure,
    /// The launcher's whole cause chain.
    pub reason: String,
}

/// How a launch ended.
#[derive(Debug)]
pub enum Outcome {
    /// There is a process.
    Launched(Launched),
    /// The job, which makes no process, is done.
    Done,
    /// There is none, or it is not.
    Failed(LaunchError),
}

/// The end of a launch that an agent before this one asked for.
#[derive(Debug)]
pub struct Inherited {
    /// The number of that request.
    pub request: RequestId,
    /// What was to be launched.
    pub target: Target,
    /// How it went.
    pub outcome: Outcome,
}

/// What only the agent as a whole can act on.
#[derive(Debug)]
pub enum Notice {
    /// A launch of an agent before this one has ended.
    Inherited(Inherited),
    /// The VM ends.
    ShuttingDown {
        /// What containers get between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u64,
    },
}

enum Answer {
    Launch(Outcome),
    Released,
    Supervisor(Result<SupervisorStatus, String>),
}

impl InitClient {
    /// Takes over a link on which Welcome was received. `kept` are the keys that agents before have
    /// left.
    pub fn new(
        link: Link,
        first_request: RequestId,
        boot_complete: bool,
        kept: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            link,
            next_request: AtomicU64::new(first_request),
            waiting: Mutex::default(),
            exits: Mutex::default(),
            boot_complete: watch::Sender::new(boot_complete),
            kept: Mutex::new(kept.into_iter().collect()),
        }
    }

    /// Returns when nothing of the boot is left to do. The first agent serves before that; what
    /// uses more than the filesystems that were mounted waits here.
    pub async fn boot_complete(&self) {
        // The sender is in `self`.
        let _ = self.boot_complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// The next thing for the agent as a whole; everything else is handled on the way. Whoever
    /// calls this keeps the link going, pings included.
    pub async fn next_notice(&self) -> Result<Notice, LinkError> {
        loop {
            let (message, fds) = self.link.recv().await?;
            if let Some(notice) = self.handle(message, fds).await? {
                return Ok(notice);
            }
        }
    }

    /// A number for a request; to be recorded before the request is made.
    pub fn next_request(&self) -> RequestId {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// Has something launched, under a number from [`Self::next_request`].
    pub async fn launch(
        &self,
        request: RequestId,
        launch: Launch,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Outcome, LinkError> {
        let answer = self.ask(request);
        self.link.send(&ToInit::Launch { request, launch }, fds).await?;
        match answer.await {
            Ok(Answer::Launch(outcome)) => Ok(outcome),
            Ok(Answer::Released | Answer::Supervisor(_)) | Err(_) => Err(LinkError::Closed),
        }
    }

    /// Tells init that a launch is near, and which namespaces (CLONE_NEW*) to make for it.
    pub async fn expect_launch(&self, namespaces: i32) -> Result<(), LinkError> {
        self.link.send(&ToInit::Expect { namespaces }, &[]).await
    }

    /// Puts duplicates of the fds into safe keeping.
    pub async fn keep(
        &self,
        key: String,
        names: Vec<String>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        lock(&self.kept).insert(key.clone());
        self.link.send(&ToInit::Keep { key, names }, fds).await
    }

    /// Has what is kept closed; returns when it is.
    pub async fn release(&self, key: String) -> Result<(), LinkError> {
        self.release_all([key]).await
    }

    /// The same for several keys, for the price of one wait; of none, if nothing is kept under any.
    pub async fn release_all(
        &self,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<(), LinkError> {
        let keys: Vec<String> = {
            let mut kept = lock(&self.kept);
            keys.into_iter().filter(|key| kept.remove(key)).collect()
        };
        let mut answers = vec![];
        for keys in keys.chunks(KEPT_PER_MESSAGE) {
            let (request, keys) = (self.next_request(), keys.to_vec());
            answers.push(self.ask(request));
            self.link.send(&ToInit::Release { request, keys }, &[]).await?;
        }
        for answer in answers {
            answer.await.map_err(|_| LinkError::Closed)?;
        }
        Ok(())
    }

    /// The process's exit, if any, is no longer of interest.
    pub async fn forget(&self, process: ProcessHandle) -> Result<(), LinkError> {
        let unacknowledged = lock(&self.exits).forget(process);
        if let Some(number) = unacknowledged {
            self.recorded(number).await?;
        }
        self.link.send(&ToInit::Forget { process }, &[]).await
    }

    /// The exit of this number is recorded where the next agent finds it.
    pub async fn recorded(&self, number: u64) -> Result<(), LinkError> {
        let acknowledge = lock(&self.exits).ledger.handle_recorded(number);
        match acknowledge {
            Some(number) => self.link.send(&ToInit::AckExits { number }, &[]).await,
            None => Ok(()),
        }
    }

    fn exit_slot(&self, process: ProcessHandle) -> ExitSlot {
        lock(&self.exits).slot(process)
    }

    /// Ends a launch that is under way; its answer says how that went.
    pub async fn cancel(&self, request: RequestId) -> Result<(), LinkError> {
        self.link.send(&ToInit::CancelLaunch { request }, &[]).await
    }

    /// The agent accepts connections.
    pub async fn serving(&self) -> Result<(), LinkError> {
        self.link.send(&ToInit::Serving, &[]).await
    }

    /// Has the supervisor started and kept running; once in a boot. Its output's pipe: read end, write
    /// end.
    pub async fn supervise(&self, pipe: [BorrowedFd<'_>; 2]) -> Result<(), LinkError> {
        self.link.send(&ToInit::Supervise, &pipe).await
    }

    /// Asks about the supervisor, or for something. The inner error is init's refusal.
    pub async fn supervisor(
        &self,
        order: SupervisorOrder,
    ) -> Result<Result<SupervisorStatus, String>, LinkError> {
        let request = self.next_request();
        let answer = self.ask(request);
        self.link.send(&ToInit::Supervisor { request, order }, &[]).await?;
        match answer.await {
            Ok(Answer::Supervisor(answer)) => Ok(answer),
            Ok(Answer::Released | Answer::Launch(_)) | Err(_) => Err(LinkError::Closed),
        }
    }

    /// Has the VM end; what is then to be done comes as [`Notice::ShuttingDown`].
    pub async fn shut_down(
        &self,
        reboot: bool,
        grace_ms: Option<u64>,
        reason: String,
    ) -> Result<(), LinkError> {
        self.link.send(&ToInit::ShutDown { reboot, grace_ms, reason }, &[]).await
    }

    /// The agent's part of the end is done; what was still dirty or busy.
    pub async fn stopped(&self, left: Vec<String>) -> Result<(), LinkError> {
        self.link.send(&ToInit::Stopped { left }, &[]).await
    }

    /// An exit, as received; also during the handover, before anybody waits.
    pub fn handle_exit(&self, exit: Exit) {
        lock(&self.exits).handle_exit(exit);
    }

    /// Exits of processes that nobody knows count as recorded, once the agent knows all it can.
    pub async fn settle(&self, known: &[ProcessHandle]) -> Result<(), LinkError> {
        let strangers = lock(&self.exits).strangers(known);
        for number in strangers {
            debug!(number, "an exit of a process that no container has");
            self.recorded(number).await?;
        }
        Ok(())
    }

    async fn handle(
        &self,
        message: ToAgent,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Notice>, LinkError> {
        match message {
            ToAgent::Ping { beat } => {
                self.link.send(&ToInit::Pong { beat }, &[]).await?;
                Ok(None)
            }
            ToAgent::Launched { request, target, process, pid } => {
                let outcome = self.launched(process, pid, fds);
                Ok(self.answer_launch(request, target, outcome))
            }
            ToAgent::LaunchFailed { request, target, failure, reason } => {
                let outcome = Outcome::Failed(LaunchError { failure, reason });
                Ok(self.answer_launch(request, target, outcome))
            }
            ToAgent::Done { request, target } => {
                Ok(self.answer_launch(request, target, Outcome::Done))
            }
            ToAgent::Exited(exit) => {
                self.handle_exit(exit);
                Ok(None)
            }
            ToAgent::Released { request } => {
                if let Some(asker) = lock(&self.waiting).remove(&request) {
                    let _ = asker.send(Answer::Released);
                }
                Ok(None)
            }
            ToAgent::Supervisor { request, answer } => {
                // One that an agent before this one has asked for concerns nobody.
                if let Some(asker) = lock(&self.waiting).remove(&request) {
                    let _ = asker.send(Answer::Supervisor(answer));
                }
                Ok(None)
            }
            ToAgent::BootComplete => {
                self.boot_complete.send_replace(true);
                Ok(None)
            }
            ToAgent::ShuttingDown { grace_ms } => Ok(Some(Notice::ShuttingDown { grace_ms })),
            ToAgent::Welcome { .. }
            | ToAgent::Kept { .. }
            | ToAgent::Launching { .. }
            | ToAgent::Caught => {
                warn!("init sent a message of the handover when that was over");
                Ok(None)
            }
        }
    }

    /// What a Launched message holds; also during the handover.
    pub fn launched(&self, process: ProcessHandle, pid: i32, fds: Vec<OwnedFd>) -> Outcome {
        let mut fds = fds.into_iter();
        match (u32::try_from(pid), fds.next()) {
            (Ok(pid), Some(pidfd)) => {
                let exit = self.exit_slot(process);
                Outcome::Launched(Launched { process, pid, pidfd, master: fds.next(), exit })
            }
            _ => Outcome::Failed(LaunchError {
                failure: Failure::Died,
                reason: "init reported a process without its pidfd".to_owned(),
            }),
        }
    }

    fn answer_launch(
        &self,
        request: RequestId,
        target: Target,
        outcome: Outcome,
    ) -> Option<Notice> {
        match lock(&self.waiting).remove(&request) {
            Some(asker) => {
                let _ = asker.send(Answer::Launch(outcome));
                None
            }
            None => Some(Notice::Inherited(Inherited { request, target, outcome })),
        }
    }

    fn ask(&self, request: RequestId) -> oneshot::Receiver<Answer> {
        let (asker, answer) = oneshot::channel();
        lock(&self.waiting).insert(request, asker);
        answer
    }
}

impl ExitSlot {
    /// Returns the exit once there is one.
    pub async fn wait(mut self) -> Result<Exit, LinkError> {
        match self.0.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().ok_or(LinkError::Closed),
            Err(_) => Err(LinkError::Closed),
        }
    }
}

/// Exits by process, and which of them init still keeps.
#[derive(Debug, Default)]
struct Exits {
    slots: HashMap<ProcessHandle, watch::Sender<Option<Exit>>>,
    ledger: Ledger,
}

impl Exits {
    fn slot(&mut self, process: ProcessHandle) -> ExitSlot {
        ExitSlot(self.slots.entry(process).or_default().subscribe())
    }

    fn handle_exit(&mut self, exit: Exit) {
        self.ledger.handle_exit(exit.number);
        self.slots.entry(exit.process).or_default().send_replace(Some(exit));
    }

    /// Returns the number of an exit that came.
    fn forget(&mut self, process: ProcessHandle) -> Option<u64> {
        let slot = self.slots.remove(&process)?;
        let exit = slot.borrow();
        exit.as_ref().map(|exit| exit.number)
    }

    fn strangers(&mut self, known: &[ProcessHandle]) -> Vec<u64> {
        let strangers: Vec<ProcessHandle> =
            self.slots.keys().filter(|process| !known.contains(process)).copied().collect();
        strangers.into_iter().filter_map(|process| self.forget(process)).collect()
    }
}

/// Which exits may be acknowledged: an acknowledgement covers all before it.
#[derive(Debug, Default)]
struct Ledger {
    /// In the order of their numbers; the first is the oldest that is not acknowledged.
    open: VecDeque<(u64, bool)>,
}

impl Ledger {
    fn handle_exit(&mut self, number: u64) {
        self.open.push_back((number, false));
    }

    /// Returns what may be acknowledged now, if that is more than before.
    fn handle_recorded(&mut self, number: u64) -> Option<u64> {
        let entry = self.open.iter_mut().find(|(open, _)| *open == number)?;
        entry.1 = true;
        let mut acknowledge = None;
        while let Some((number, true)) = self.open.front() {
            acknowledge = Some(*number);
            self.open.pop_front();
        }
        acknowledge
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model: a set of recorded numbers; what is acknowledged is its gapless beginning.
        #[test]
        fn acknowledgement_never_covers_an_exit_that_is_not_recorded(
            count in 1u64..20, first in 1u64..1000, order in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let mut ledger = Ledger::default();
            let numbers: Vec<u64> = (first..first + count).collect();
            numbers.iter().for_each(|number| ledger.handle_exit(*number));
            let (mut recorded, mut acknowledged) = (vec![], first - 1);
            for index in order {
                let number = *index.get(&numbers);
                if let Some(up_to) = ledger.handle_recorded(number) {
                    prop_assert!(up_to > acknowledged);
                    acknowledged = up_to;
                }
                recorded.push(number);
                let gapless = numbers.iter().take_while(|n| recorded.contains(n)).last();
                prop_assert_eq!(acknowledged, gapless.copied().unwrap_or(first - 1));
            }
        }
    }

    fn exit(number: u64, process: ProcessHandle) -> Exit {
        Exit { number, process, pid: 7, status: 0, at: (1, 2) }
    }

    #[test]
    fn exit_that_comes_before_anybody_asks_is_found_waiting() {
        let mut exits = Exits::default();
        exits.handle_exit(exit(1, 5));
        let slot = exits.slot(5);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let found = builder.build().unwrap().block_on(slot.wait()).unwrap();
        assert_eq!(found, exit(1, 5));
    }

    #[test]
    fn exits_of_strangers_do_not_hold_back_the_acknowledgement() {
        let mut exits = Exits::default();
        exits.handle_exit(exit(1, 5));
        exits.handle_exit(exit(2, 6));
        assert_eq!(exits.strangers(&[6]), [1]);
        assert_eq!(exits.ledger.handle_recorded(2), None);
        assert_eq!(exits.ledger.handle_recorded(1), Some(2));
    }
}
