//! One launch's life as a state machine.
//!
//! ```text
//!             launched, done
//!  Running ------------------> Reported ---- exited ----> (recycled)
//!     |
//!     | failed, deadline, cancelled               clean, overdue
//!     +----------> Failing -- exited --> Cleaning --------------> (reported as failed, recycled)
//!     |                                     ^
//!     +------------- exited ----------------+
//! ```
//!
//! | state | Launched | Done | Failed | Deadline | Cancelled | Exited | Clean | Overdue |
//! |---|---|---|---|---|---|---|---|---|
//! | `Running` | `Reported`: ReportLaunched | `Reported`: ReportDone | `Failing` | `Failing`: Kill | `Failing`: Kill | `Cleaning`: Kill, FindStrays | - | - |
//! | `Reported` | - | - | - | Kill | - | Recycle | - | - |
//! | `Failing` | KillProcess | - | - | Kill | Kill | `Cleaning`: Kill, FindStrays | - | - |
//! | `Cleaning` | KillProcess | - | - | - | - | - | ReportFailed, Recycle | ReportFailed, Recycle |
//!
//! `-` is accepted and does nothing. A launcher that is late is not believed any more: what it
//! says after its deadline or after a cancel is killed, so that the answer stays one and the same.
//!
//! Promises: one report, after which nothing of a failed launch is left (or, past
//! [`Event::Overdue`], after all that could be done was done).
//! Never: touches the system or a clock.

use crate::link::message::Failure;

/// What a launch waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The launcher's result.
    Running,
    /// The launcher's exit; the agent has been told of the success.
    Reported,
    /// The exit of a launcher that failed.
    Failing(Failure, String),
    /// The end of everything that the launcher had started.
    Cleaning(Failure, String),
    /// Nothing: it is over.
    Over,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The launcher says that it made this process.
    Launched(i32),
    /// The launcher says that its job, which makes no process, is done.
    Done,
    /// The launcher says why it failed.
    Failed(String),
    /// The launcher's time is over.
    Deadline,
    /// The agent wants it no more.
    Cancelled,
    /// The launcher was reaped; how it ended.
    Exited(String),
    /// Nothing that it had started is left.
    Clean,
    /// Something that it had started does not die.
    Overdue,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the agent of the process with this pid.
    ReportLaunched(i32),
    /// Tell the agent that the job is done.
    ReportDone,
    /// Tell the agent why there is nothing.
    ReportFailed(Failure, String),
    /// Kill the launcher and all that is in its cgroup.
    Kill,
    /// Kill this process, which comes too late.
    KillProcess(i32),
    /// Kill what the launcher had started and what is not in its cgroup any more.
    FindStrays,
    /// Its cgroup can serve the next launch, as soon as it is empty.
    Recycle,
}

impl State {
    /// Takes a fact, moves on, and says what is to be done, in this order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        use {Action as A, Event as E, State as S};
        let state = std::mem::replace(self, S::Over);
        let (next, actions) = match (state, event) {
            (S::Running, E::Launched(pid)) => (S::Reported, vec![A::ReportLaunched(pid)]),
            (S::Running, E::Done) => (S::Reported, vec![A::ReportDone]),
            (S::Running, E::Failed(reason)) => (S::Failing(Failure::Runtime, reason), vec![]),
            (S::Running, E::Deadline) => {
                let reason = "launcher was still running at its deadline".to_string();
                (S::Failing(Failure::Deadline, reason), vec![A::Kill])
            }
            (S::Running, E::Cancelled) => {
                (S::Failing(Failure::Cancelled, "launch was cancelled".into()), vec![A::Kill])
            }
            (S::Running, E::Exited(how)) => {
                let reason = format!("launcher {how} without a result");
                (S::Cleaning(Failure::Died, reason), vec![A::Kill, A::FindStrays])
            }

            (S::Reported, E::Exited(_)) => (S::Over, vec![A::Recycle]),
            (S::Reported, E::Deadline) => (S::Reported, vec![A::Kill]),

            (S::Failing(failure, reason), E::Exited(_)) => {
                (S::Cleaning(failure, reason), vec![A::Kill, A::FindStrays])
            }
            (S::Failing(failure, reason), E::Deadline | E::Cancelled) => {
                (S::Failing(failure, reason), vec![A::Kill])
            }
            (state @ (S::Failing(..) | S::Cleaning(..)), E::Launched(pid)) => {
                (state, vec![A::KillProcess(pid)])
            }

            (S::Cleaning(failure, reason), E::Clean | E::Overdue) => {
                (S::Over, vec![A::ReportFailed(failure, reason), A::Recycle])
            }

            (state @ (S::Running | S::Reported | S::Failing(..)), E::Clean | E::Overdue)
            | (state @ (S::Reported | S::Failing(..) | S::Cleaning(..)), E::Done | E::Failed(_))
            | (state @ S::Reported, E::Launched(_) | E::Cancelled)
            | (state @ S::Cleaning(..), E::Deadline | E::Cancelled | E::Exited(_)) => {
                (state, vec![])
            }
            (
                S::Over,
                E::Launched(_)
                | E::Done
                | E::Failed(_)
                | E::Deadline
                | E::Cancelled
                | E::Exited(_)
                | E::Clean
                | E::Overdue,
            ) => (S::Over, vec![]),
        };
        *self = next;
        actions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(events: &[Event]) -> (State, Vec<Action>) {
        let mut state = State::Running;
        let actions = events.iter().flat_map(|event| state.handle(event.clone())).collect();
        (state, actions)
    }

    fn exited() -> Event {
        Event::Exited("exited with 0".into())
    }

    #[test]
    fn success_is_reported_before_the_launcher_has_exited() {
        let (state, actions) = run(&[Event::Launched(7), exited()]);
        assert_eq!(actions, [Action::ReportLaunched(7), Action::Recycle]);
        assert_eq!(state, State::Over);
    }

    #[test]
    fn failure_is_reported_when_nothing_is_left() {
        let (state, actions) = run(&[Event::Failed("no".into()), exited()]);
        assert_eq!(actions, [Action::Kill, Action::FindStrays]);
        let State::Cleaning(..) = state else { panic!("{state:?}") };
        let (_, actions) = run(&[Event::Failed("no".into()), exited(), Event::Clean]);
        assert_eq!(actions[2], Action::ReportFailed(Failure::Runtime, "no".into()));
    }

    #[test]
    fn success_after_the_deadline_is_killed() {
        let (_, actions) = run(&[Event::Deadline, Event::Launched(7), exited(), Event::Clean]);
        assert_eq!(actions[..2], [Action::Kill, Action::KillProcess(7)]);
        assert!(matches!(actions[4], Action::ReportFailed(Failure::Deadline, _)));
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Launched(7)),
            Just(Event::Done),
            Just(Event::Failed("no".into())),
            Just(Event::Deadline),
            Just(Event::Cancelled),
            Just(exited()),
            Just(Event::Clean),
            Just(Event::Overdue),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_there_is_one_report_and_no_process_without_one(
            events in proptest::collection::vec(event(), 0..30),
        ) {
            let (state, actions) = run(&events);
            let reports = actions.iter().filter(|action| matches!(
                action,
                Action::ReportLaunched(_) | Action::ReportDone | Action::ReportFailed(..)
            )).count();
            let ends = actions
                .iter()
                .filter(|action| matches!(action, Action::Recycle))
                .count();
            prop_assert!(reports <= 1 && ends <= 1);
            prop_assert_eq!(ends == 1, state == State::Over);
            if state == State::Over {
                prop_assert_eq!(reports, 1);
            }
            // A failure is never reported while the launcher may still be there.
            let failed = actions.iter().any(|action| matches!(action, Action::ReportFailed(..)));
            prop_assert!(!failed || events.contains(&exited()));
        }
    }
}
