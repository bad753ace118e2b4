//! The life of a process: one state machine, a pure function of (state, event).
//!
//! Promises: the same answer for the same pair; a refused pair changes nothing and says why.
//! Never: does I/O, knows a container's other processes (`exit_order` does), keeps time.
//!
//! ```text
//! Creating --Launched--> Created --StartAsked--> Starting --StartSent--> Running <--+
//!    |                      |                      |                     |          | Thawed
//!    | LaunchFailed         | Exited               | StartSent, when     |     Pausing --Froze--> Paused
//!    v                      v                      v it exited meanwhile v          |             |
//! Deleted <--CleanedUp-- Deleting <--DeleteAsked-- Stopped <--Drained-- Draining <--+--- Exited --+
//! ```
//!
//! The whole table. A row is a state, a column an event; a cell is the next state (`=` for the
//! same) and after a slash the actions; a lower-case word is a refusal ([`Refusal`]); `-` is an
//! event that means nothing (any more) there and is ignored.
//!
//! | | Creating | Created | Starting | Running | Pausing | Paused | Draining | Stopped | Deleting | Deleted |
//! |---|---|---|---|---|---|---|---|---|---|---|
//! | Launched | Created/PublishCreate | - | - | - | - | - | - | - | - | - |
//! | LaunchFailed | Deleted | - | - | - | - | - | - | - | - | - |
//! | StartAsked | gone | Starting/SendStart | cannot | cannot | cannot | cannot | cannot | cannot | gone | gone |
//! | StartSent | - | - | Running/PublishStart, or Draining/PublishStart,Drain | - | - | - | - | - | - | - |
//! | StartFailed | - | - | Created, or Draining/Drain | - | - | - | - | - | - | - |
//! | PauseAsked | gone | cannot | cannot | Pausing/Freeze | cannot | cannot | cannot | cannot | gone | gone |
//! | Froze | - | - | - | - | Paused/PublishPaused | - | - | - | - | - |
//! | FreezeFailed | - | - | - | - | Running/Thaw | - | - | - | - | - |
//! | ResumeAsked | gone | cannot | cannot | cannot | cannot | =/Thaw | cannot | cannot | gone | gone |
//! | Thawed | - | - | - | - | - | Running/PublishResumed | - | - | - | - |
//! | KillAsked | gone | =/Signal | =/Signal | =/Signal | =/Signal | =/Signal | finished | finished | gone | gone |
//! | Exited | - | Draining/Drain | = (held) | Draining/Drain | Draining/Drain | Draining/Drain | - | - | - | - |
//! | Drained | - | - | - | - | - | - | Stopped/PublishExit | - | - | - |
//! | DeleteAsked | gone | =/Kill | cannot | cannot | cannot | cannot | =/AwaitExit | Deleting/CleanUp | gone | gone |
//! | CleanedUp | - | - | - | - | - | - | - | - | Deleted/PublishDelete | - |
//! | CleanUpFailed | - | - | - | - | - | - | - | - | Stopped | - |
//!
//! An exec has another beginning, since its process is made by its Start, and then the same life:
//!
//! ```text
//! Added --StartAsked--> Launching --Launched--> Running ...
//!   | DeleteAsked          | LaunchFailed
//!   v                      v
//! Deleted <--DeleteAsked-- Failed
//! ```
//!
//! | | Added | Launching | Failed |
//! |---|---|---|---|
//! | Launched | - | Running/PublishStart | - |
//! | LaunchFailed | - | Failed/Cancel | - |
//! | StartAsked | Launching/SendStart | cannot | cannot |
//! | PauseAsked, ResumeAsked | cannot | cannot | cannot |
//! | KillAsked | not started | not started | finished |
//! | DeleteAsked | Deleted/Cancel,CleanUp | cannot | Deleted/CleanUp |
//! | all others | - | - | - |
//!
//! Two rules of the world outside are in it: TaskStart comes before TaskExit, so an exit that is
//! seen while a start is under way is held; and what the process wrote comes before TaskExit, so
//! the exit is published on `Drained` only.

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exited {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// CLOCK_REALTIME, seconds.
    pub seconds: i64,
    /// CLOCK_REALTIME, nanoseconds.
    pub nanos: u32,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// An exec that waits for its start; there is no process yet.
    Added,
    /// An exec whose start is under way.
    Launching,
    /// An exec whose start failed; there never was a process.
    Failed,
    /// Its launch is under way; for the host it does not exist yet.
    Creating,
    /// It waits for its start.
    Created {
        /// In the root pid namespace.
        pid: u32,
    },
    /// Its start is under way.
    Starting {
        /// In the root pid namespace.
        pid: u32,
        /// It has ended meanwhile; held until the start is answered.
        exit: Option<Exited>,
    },
    /// It runs.
    Running {
        /// In the root pid namespace.
        pid: u32,
    },
    /// Its cgroup is being frozen.
    Pausing {
        /// In the root pid namespace.
        pid: u32,
    },
    /// Its cgroup is frozen.
    Paused {
        /// In the root pid namespace.
        pid: u32,
    },
    /// It has ended; its output is being handed over.
    Draining {
        /// In the root pid namespace, before it ended.
        pid: u32,
        /// How it ended.
        exit: Exited,
    },
    /// It has ended and the host was told.
    Stopped {
        /// In the root pid namespace, before it ended.
        pid: u32,
        /// How it ended.
        exit: Exited,
    },
    /// What it leaves is being removed.
    Deleting {
        /// In the root pid namespace, before it ended.
        pid: u32,
        /// How it ended.
        exit: Exited,
    },
    /// Nothing of it is left.
    Deleted,
}

/// What happened, or what somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The launcher made the process.
    Launched {
        /// In the root pid namespace.
        pid: u32,
    },
    /// There will be no process.
    LaunchFailed,
    /// A Start came.
    StartAsked,
    /// The process was told to go on.
    StartSent,
    /// The process could not be told, or its hooks failed.
    StartFailed,
    /// A Pause came.
    PauseAsked,
    /// The cgroup is frozen.
    Froze,
    /// The cgroup did not freeze.
    FreezeFailed,
    /// A Resume came.
    ResumeAsked,
    /// The cgroup runs again.
    Thawed,
    /// A Kill came.
    KillAsked,
    /// init reported its exit, and that is recorded.
    Exited(Exited),
    /// What it had written is handed over (or there was no progress for too long).
    Drained,
    /// A Delete came.
    DeleteAsked,
    /// Nothing is left of it.
    CleanedUp,
    /// Something could not be removed.
    CleanUpFailed,
}

/// What the driver is to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish that it was created.
    PublishCreate,
    /// Tell it to go on; report StartSent or StartFailed. An exec: launch it; report Launched or
    /// LaunchFailed.
    SendStart,
    /// Publish that it was started.
    PublishStart,
    /// Freeze its cgroup; report Froze or FreezeFailed.
    Freeze,
    /// Thaw its cgroup; report Thawed.
    Thaw,
    /// Publish that it was paused.
    PublishPaused,
    /// Publish that it was resumed.
    PublishResumed,
    /// Deliver the signal.
    Signal,
    /// Hand its output over; report Drained.
    Drain,
    /// Tell the container's exit order, which publishes and wakes those that wait.
    PublishExit,
    /// There will be no process: tell the exit order and those that wait.
    Cancel,
    /// SIGKILL it, wait until it is stopped, and ask for the delete again.
    Kill,
    /// Wait until it is stopped, and ask for the delete again.
    AwaitExit,
    /// Remove what it leaves; report CleanedUp or CleanUpFailed.
    CleanUp,
    /// Publish that it was deleted.
    PublishDelete,
}

/// Why a request does not fit the state. The texts are matched on by hosts, see `errors.rs`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It was deleted, or is not there yet.
    #[error("container not created: not found")]
    Gone,
    /// It has exited.
    #[error("process already finished: not found")]
    Finished,
    /// An exec that was not started.
    #[error("process not created: failed precondition")]
    NotStarted,
    /// An exec's container has no init to join any more.
    #[error("container {container} init process is not running: failed precondition")]
    InitGone {
        /// The container.
        container: String,
    },
    /// A container that nothing can join now.
    #[error("cannot exec in a {state} state")]
    CannotExec {
        /// What the container is.
        state: &'static str,
    },
    /// The state and the request do not fit.
    #[error("cannot {verb} a {state} process")]
    Cannot {
        /// What was asked for.
        verb: &'static str,
        /// What the process is.
        state: &'static str,
    },
}

/// The next state and what is to be done, or why not.
pub fn step(state: State, event: Event) -> Result<(State, Vec<Action>), Refusal> {
    use Action as A;
    use Event as E;
    use State as S;
    let cannot = |verb| Err(Refusal::Cannot { verb, state: name(state) });
    let ignored = Ok((state, vec![]));
    match event {
        E::Launched { pid } => match state {
            S::Creating => Ok((S::Created { pid }, vec![A::PublishCreate])),
            S::Launching => Ok((S::Running { pid }, vec![A::PublishStart])),
            S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Failed => ignored,
        },
        E::LaunchFailed => match state {
            S::Creating => Ok((S::Deleted, vec![])),
            S::Launching => Ok((S::Failed, vec![A::Cancel])),
            S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Failed => ignored,
        },
        E::StartAsked => match state {
            S::Created { pid } => Ok((S::Starting { pid, exit: None }, vec![A::SendStart])),
            S::Added => Ok((S::Launching, vec![A::SendStart])),
            S::Launching | S::Failed => cannot("start"),
            S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. } => cannot("start"),
            S::Creating | S::Deleting { .. } | S::Deleted => Err(Refusal::Gone),
        },
        E::StartSent => match state {
            S::Starting { pid, exit: None } => Ok((S::Running { pid }, vec![A::PublishStart])),
            S::Starting { pid, exit: Some(exit) } => {
                Ok((S::Draining { pid, exit }, vec![A::PublishStart, A::Drain]))
            }
            S::Creating
            | S::Created { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::StartFailed => match state {
            S::Starting { pid, exit: None } => Ok((S::Created { pid }, vec![])),
            S::Starting { pid, exit: Some(exit) } => {
                Ok((S::Draining { pid, exit }, vec![A::Drain]))
            }
            S::Creating
            | S::Created { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::PauseAsked => match state {
            S::Running { pid } => Ok((S::Pausing { pid }, vec![A::Freeze])),
            S::Added | S::Launching | S::Failed => cannot("pause"),
            S::Created { .. }
            | S::Starting { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. } => cannot("pause"),
            S::Creating | S::Deleting { .. } | S::Deleted => Err(Refusal::Gone),
        },
        E::Froze => match state {
            S::Pausing { pid } => Ok((S::Paused { pid }, vec![A::PublishPaused])),
            S::Creating
            | S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::FreezeFailed => match state {
            S::Pausing { pid } => Ok((S::Running { pid }, vec![A::Thaw])),
            S::Creating
            | S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::ResumeAsked => match state {
            S::Paused { .. } => Ok((state, vec![A::Thaw])),
            S::Added | S::Launching | S::Failed => cannot("resume"),
            S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Draining { .. }
            | S::Stopped { .. } => cannot("resume"),
            S::Creating | S::Deleting { .. } | S::Deleted => Err(Refusal::Gone),
        },
        E::Thawed => match state {
            S::Paused { pid } => Ok((S::Running { pid }, vec![A::PublishResumed])),
            S::Creating
            | S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::KillAsked => match state {
            S::Added | S::Launching => Err(Refusal::NotStarted),
            S::Failed => Err(Refusal::Finished),
            S::Created { .. }
            | S::Starting { exit: None, .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. } => Ok((state, vec![A::Signal])),
            S::Starting { exit: Some(_), .. } | S::Draining { .. } | S::Stopped { .. } => {
                Err(Refusal::Finished)
            }
            S::Creating | S::Deleting { .. } | S::Deleted => Err(Refusal::Gone),
        },
        E::Exited(exit) => match state {
            S::Created { pid } | S::Running { pid } | S::Pausing { pid } | S::Paused { pid } => {
                Ok((S::Draining { pid, exit }, vec![A::Drain]))
            }
            S::Starting { pid, exit: None } => Ok((S::Starting { pid, exit: Some(exit) }, vec![])),
            S::Creating
            | S::Starting { exit: Some(_), .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::Drained => match state {
            S::Draining { pid, exit } => Ok((S::Stopped { pid, exit }, vec![A::PublishExit])),
            S::Creating
            | S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Stopped { .. }
            | S::Deleting { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::DeleteAsked => match state {
            S::Added => Ok((S::Deleted, vec![A::Cancel, A::CleanUp])),
            S::Failed => Ok((S::Deleted, vec![A::CleanUp])),
            S::Launching => cannot("delete"),
            S::Created { .. } => Ok((state, vec![A::Kill])),
            S::Draining { .. } => Ok((state, vec![A::AwaitExit])),
            S::Stopped { pid, exit } => Ok((S::Deleting { pid, exit }, vec![A::CleanUp])),
            S::Starting { .. } | S::Running { .. } | S::Pausing { .. } | S::Paused { .. } => {
                cannot("delete")
            }
            S::Creating | S::Deleting { .. } | S::Deleted => Err(Refusal::Gone),
        },
        E::CleanedUp => match state {
            S::Deleting { .. } => Ok((S::Deleted, vec![A::PublishDelete])),
            S::Creating
            | S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
        E::CleanUpFailed => match state {
            S::Deleting { pid, exit } => Ok((S::Stopped { pid, exit }, vec![])),
            S::Creating
            | S::Created { .. }
            | S::Starting { .. }
            | S::Running { .. }
            | S::Pausing { .. }
            | S::Paused { .. }
            | S::Draining { .. }
            | S::Stopped { .. }
            | S::Deleted
            | S::Added
            | S::Launching
            | S::Failed => ignored,
        },
    }
}

impl State {
    /// The pid, once there is one; also after the exit.
    pub fn pid(self) -> Option<u32> {
        match self {
            Self::Created { pid }
            | Self::Starting { pid, .. }
            | Self::Running { pid }
            | Self::Pausing { pid }
            | Self::Paused { pid }
            | Self::Draining { pid, .. }
            | Self::Stopped { pid, .. }
            | Self::Deleting { pid, .. } => Some(pid),
            Self::Added | Self::Launching | Self::Failed | Self::Creating | Self::Deleted => None,
        }
    }

    /// How it ended, once that is known.
    pub fn exit(self) -> Option<Exited> {
        match self {
            Self::Draining { exit, .. }
            | Self::Stopped { exit, .. }
            | Self::Deleting { exit, .. } => Some(exit),
            Self::Starting { exit, .. } => exit,
            Self::Added
            | Self::Launching
            | Self::Failed
            | Self::Creating
            | Self::Created { .. }
            | Self::Running { .. }
            | Self::Pausing { .. }
            | Self::Paused { .. }
            | Self::Deleted => None,
        }
    }

    /// Whether hosts see it at all.
    pub fn visible(self) -> bool {
        match self {
            Self::Creating | Self::Deleting { .. } | Self::Deleted => false,
            Self::Added
            | Self::Launching
            | Self::Failed
            | Self::Created { .. }
            | Self::Starting { .. }
            | Self::Running { .. }
            | Self::Pausing { .. }
            | Self::Paused { .. }
            | Self::Draining { .. }
            | Self::Stopped { .. } => true,
        }
    }
}

/// What a host calls the state.
fn name(state: State) -> &'static str {
    match state {
        State::Creating => "creating",
        State::Added | State::Created { .. } => "created",
        // A second Start is told what it would be told a moment later.
        State::Launching | State::Starting { .. } | State::Running { .. } => "running",
        State::Pausing { .. } | State::Paused { .. } => "paused",
        State::Failed | State::Draining { .. } | State::Stopped { .. } => "stopped",
        State::Deleting { .. } | State::Deleted => "deleted",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXIT: Exited = Exited { status: 3, seconds: 1, nanos: 2 };

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Launched { pid: 7 }),
            Just(Event::LaunchFailed),
            Just(Event::StartAsked),
            Just(Event::StartSent),
            Just(Event::StartFailed),
            Just(Event::PauseAsked),
            Just(Event::Froze),
            Just(Event::FreezeFailed),
            Just(Event::ResumeAsked),
            Just(Event::Thawed),
            Just(Event::KillAsked),
            Just(Event::Exited(EXIT)),
            Just(Event::Drained),
            Just(Event::DeleteAsked),
            Just(Event::CleanedUp),
            Just(Event::CleanUpFailed),
        ]
    }

    /// The model: what an observer outside knows, without the machine's states.
    #[derive(Default)]
    struct Seen {
        published: Vec<&'static str>,
        launched: bool,
        exited: bool,
        start_under_way: bool,
    }

    impl Seen {
        fn count(&self, what: &str) -> usize {
            self.published.iter().filter(|p| **p == what).count()
        }

        fn place(&self, what: &str) -> Option<usize> {
            self.published.iter().position(|p| *p == what)
        }
    }

    proptest! {
        /// Whatever comes in whatever order: every event of a life is published at most once and
        /// in the order that hosts rely on.
        #[test]
        fn any_interleaving_publishes_in_order(
            exec: bool, script in proptest::collection::vec(events(), 0..60),
        ) {
            let first = if exec { State::Added } else { State::Creating };
            let (mut state, mut seen) = (first, Seen::default());
            for event in script {
                let before = state;
                let actions = match step(state, event) {
                    Ok((next, actions)) => { state = next; actions }
                    Err(_) => { prop_assert_eq!(state, before); continue }
                };
                match event {
                    Event::Launched { .. } if before == State::Creating || before == State::Launching => {
                        seen.launched = true;
                        seen.start_under_way = false;
                    }
                    Event::LaunchFailed => seen.start_under_way = false,
                    Event::Exited(_) if seen.launched => seen.exited = true,
                    Event::StartAsked => seen.start_under_way = true,
                    Event::StartSent | Event::StartFailed => seen.start_under_way = false,
                    _ => {}
                }
                for action in actions {
                    match action {
                        Action::PublishCreate => seen.published.push("create"),
                        Action::PublishStart => seen.published.push("start"),
                        Action::PublishPaused => seen.published.push("paused"),
                        Action::PublishResumed => seen.published.push("resumed"),
                        Action::PublishExit => {
                            prop_assert!(seen.exited && !seen.start_under_way);
                            seen.published.push("exit");
                        }
                        Action::PublishDelete => seen.published.push("delete"),
                        Action::Signal => prop_assert!(seen.launched && !seen.exited),
                        Action::SendStart if exec => prop_assert!(!seen.launched),
                        Action::SendStart | Action::Freeze | Action::Kill => {
                            prop_assert!(seen.launched && !seen.exited);
                        }
                        Action::CleanUp => prop_assert_eq!(seen.count("exit"), usize::from(seen.launched)),
                        Action::Cancel => prop_assert!(exec && !seen.launched),
                        Action::Thaw | Action::Drain | Action::AwaitExit => {}
                    }
                }
            }
            for once in ["create", "start", "exit", "delete"] {
                prop_assert!(seen.count(once) <= 1, "{once} twice");
            }
            let order = ["create", "start", "exit", "delete"];
            let places: Vec<_> = order.iter().filter_map(|what| seen.place(what)).collect();
            prop_assert!(places.is_sorted(), "{:?}", seen.published);
            if seen.place("start").is_some() && !exec {
                prop_assert!(seen.place("create").is_some());
            }
            if seen.place("exit").is_some() && exec {
                prop_assert!(seen.place("start").is_some());
            }
            for pair in seen.published.windows(2) {
                prop_assert!(pair[0] != pair[1], "{:?}", seen.published);
            }
        }

        /// From wherever a process is, the world can always bring it to its end.
        #[test]
        fn every_state_leads_to_deleted(
            exec: bool, script in proptest::collection::vec(events(), 0..60),
        ) {
            let mut state = if exec { State::Added } else { State::Creating };
            for event in script {
                if let Ok((next, _)) = step(state, event) {
                    state = next;
                }
            }
            if state == State::Creating || state == State::Launching {
                state = step(state, Event::LaunchFailed).unwrap().0;
            }
            for event in [
                Event::Exited(EXIT), Event::StartSent, Event::Drained, Event::DeleteAsked, Event::CleanedUp,
            ] {
                if let Ok((next, _)) = step(state, event) {
                    state = next;
                }
            }
            prop_assert_eq!(state, State::Deleted);
        }
    }

    #[test]
    fn exit_during_start_is_published_after_the_start() {
        let state = State::Starting { pid: 7, exit: None };
        let (state, actions) = step(state, Event::Exited(EXIT)).unwrap();
        assert_eq!(actions, []);
        let (state, actions) = step(state, Event::StartSent).unwrap();
        assert_eq!(state, State::Draining { pid: 7, exit: EXIT });
        assert_eq!(actions, [Action::PublishStart, Action::Drain]);
    }

    #[test]
    fn refusals_have_the_texts_that_hosts_match_on() {
        let running = State::Running { pid: 7 };
        let text = |state, event| step(state, event).unwrap_err().to_string();
        assert_eq!(text(running, Event::StartAsked), "cannot start a running process");
        assert_eq!(text(running, Event::DeleteAsked), "cannot delete a running process");
        let stopped = State::Stopped { pid: 7, exit: EXIT };
        assert_eq!(text(stopped, Event::KillAsked), "process already finished: not found");
        assert_eq!(text(stopped, Event::StartAsked), "cannot start a stopped process");
        assert_eq!(text(State::Deleted, Event::DeleteAsked), "container not created: not found");
        assert_eq!(text(State::Creating, Event::KillAsked), "container not created: not found");
    }
}
