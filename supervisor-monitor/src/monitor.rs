//! The state machine: facts and times in, orders out.
//! Promises: an exit that nobody asked for is answered by exactly one of `Spawn`, `ArmTimer` and `ReportGivenUp`;
//! a refused event changes nothing.
//! Never: trusts a timer. What counts is `now`, so an early one is armed again and a stale one does nothing.

use alloc::collections::VecDeque;
use core::{array, iter, time::Duration};

use crate::policy::{GaveUp, Limit, Policy, Reset};

/// One supervised process, seen through its restart rule.
///
/// The driver tells each fact to [`handle`](Self::handle), in the order in which they happened and with the time (since any
/// fixed point of a monotonic clock), and does the [`Actions`] in theirs before it tells the next fact. `Spawn` is answered by
/// `Spawned` or `SpawnFailed`, a `Spawned` process some day by `Exited`. A driver with a poll loop may ignore
/// [`Action::ArmTimer`] and take [`next_timer`](Self::next_timer) as its timeout instead.
///
/// ```text
///  Idle ──start──> Starting ──spawned──> Running ──serving──> Serving
///                   ^    │                  │                    │
///                   │    └── spawn failed ──┴─────── exited ─────┤
///                   ├──timer── Backoff <── a wait ───────────────┤
///                   └────────── no wait (the agent's first) ─────┤
///  GivenUp <─────────────────── past the limit ──────────────────┘
///
///  Running, Serving ──stop──> Stopping ──grace over──> Killed ──exited──> Stopped ──start──> Starting
/// ```
///
/// The whole table. `fail` is what an exit does that nobody asked for: `Backoff`, `Starting` or `GivenUp`, by the policy.
/// `-` is accepted and does nothing; in quotes stands the [`Refusal`].
///
/// | state | StartRequested | Spawned | SpawnFailed | Serving | Exited | TimerFired | StopRequested |
/// |---|---|---|---|---|---|---|---|
/// | `Idle` | `Starting`: Spawn | "no order" | "no order" | "no process" | "no process" | - | "down" |
/// | `Starting` | "started" | `Running` | fail | "no process" | fail | - | `StartCancelled` |
/// | `StartCancelled` | "stopping" | `Stopping`: Term, ArmTimer | `Stopped` | "no process" | `Stopped` | - | "stopping" |
/// | `Running` | "started" | "no order" | "no order" | `Serving` | fail | - | `Stopping`: Term, ArmTimer |
/// | `Serving` | "started" | "no order" | "no order" | - | fail | - | `Stopping`: Term, ArmTimer |
/// | `Backoff` | "started" | "no order" | "no order" | "no process" | "no process" | due: `Starting`: Spawn; early: ArmTimer | `Stopped` |
/// | `Stopping` | "stopping" | "no order" | "no order" | - | `Stopped` | due: `Killed`: Kill; early: ArmTimer | "stopping" |
/// | `Killed` | "stopping" | "no order" | "no order" | - | `Stopped` | - | "stopping" |
/// | `GivenUp` | `Starting`: Spawn | "no order" | "no order" | "no process" | "no process" | - | "down" |
/// | `Stopped` | `Starting`: Spawn | "no order" | "no order" | "no process" | "no process" | - | "down" |
///
/// An exit during `Starting` is one that overtook the driver's `Spawned`. It is taken, since a fact that is told once only
/// must not be lost; the late `Spawned` is then refused.
#[derive(Clone, Debug)]
pub struct Monitor {
    policy: Policy,
    state: State,
    /// Restarts since a start was requested.
    restarts: u32,
    /// Restarts since a start was requested or the policy's reset: picks the wait.
    row: u32,
    /// Starts since one last served.
    unserved: u32,
    /// When the latest restarts were ordered, oldest first; as many as the policy's window allows, none without a window.
    stamps: VecDeque<Duration>,
}

/// Where the process is. A time is one that was, or will be, `now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Never asked to start.
    Idle,
    /// Ordered; waits for `Spawned` or `SpawnFailed`.
    Starting,
    /// A stop came before `Spawned` or `SpawnFailed`, for which it still waits.
    StartCancelled,
    /// Alive.
    Running {
        /// When it was spawned.
        since: Duration,
    },
    /// Alive, and has said that it serves.
    Serving {
        /// When it was spawned.
        since: Duration,
    },
    /// Down until the time comes.
    Backoff {
        /// When it is to be spawned.
        restart_at: Duration,
    },
    /// Sent SIGTERM; waits for its exit.
    Stopping {
        /// When patience ends.
        kill_at: Duration,
    },
    /// Sent SIGKILL; waits for its exit.
    Killed,
    /// Past the limit; down until a start is requested.
    GivenUp {
        /// Which limit.
        why: GaveUp,
    },
    /// Down by request.
    Stopped,
}

/// A fact that the driver tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    StartRequested,
    /// The order to spawn was followed; there is a process now.
    Spawned,
    /// The order to spawn failed; there is no process. Counts like a crash.
    SpawnFailed,
    /// The process said that it serves.
    Serving,
    /// The process is gone, however it ended.
    Exited,
    /// A timer fired; any, at any time.
    TimerFired,
    /// Somebody wants it to be down.
    StopRequested,
}

/// An order to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the process, and tell how that went.
    Spawn,
    /// Tell `TimerFired` at this time; replaces the timer armed before.
    ArmTimer(Duration),
    /// Send SIGTERM.
    SignalTerm,
    /// Send SIGKILL.
    SignalKill,
    /// Say, once, that it stays down.
    ReportGivenUp {
        /// Which limit; prints as the message.
        why: GaveUp,
    },
}

/// Why an event does not fit the state. Nothing has changed; a person who asked is told, a driver that erred is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A start of what is up, or will be by itself.
    #[error("it is started already")]
    AlreadyStarted,
    /// A start or a stop while a stop is under way.
    #[error("it is being stopped")]
    BeingStopped,
    /// A stop of what is down and stays down.
    #[error("it is down already")]
    AlreadyDown,
    /// The outcome of an order that was not given.
    #[error("no start was ordered")]
    NoSpawnOrdered,
    /// News of a process that does not exist.
    #[error("there is no process")]
    NoProcess,
}

/// What [`Monitor::status`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Name of the state.
    pub state: &'static str,
    /// Restarts since a start was last requested.
    pub restarts: u32,
    /// Restarts since the policy last forgave; what the next wait grows from.
    pub in_a_row: u32,
    /// Time until the next restart, in `Backoff`; zero when it is overdue.
    pub next_restart: Option<Duration>,
}

/// Up to two orders, to be followed in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "orders are there to be followed"]
pub struct Actions([Option<Action>; 2]);

impl Monitor {
    /// A process that nobody has asked for yet. The only allocation: the times of as many restarts as the window allows.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let kept = match policy.limit {
            Limit::StartsWithoutServing(_) => 0,
            Limit::RestartsWithin { restarts, .. } => restarts as usize,
        };
        Self {
            policy,
            state: State::Idle,
            restarts: 0,
            row: 0,
            unserved: 0,
            stamps: VecDeque::with_capacity(kept),
        }
    }

    /// Takes a fact, returns what is to be done about it.
    ///
    /// # Errors
    /// The reason why the event cannot be at this point; the state is what it was.
    pub fn handle(&mut self, event: Event, now: Duration) -> Result<Actions, Refusal> {
        use {Event as E, State as S};
        match (self.state, event) {
            (S::Idle | S::GivenUp { .. } | S::Stopped, E::StartRequested) => {
                Ok(self.start_afresh())
            }
            (
                S::Starting | S::Running { .. } | S::Serving { .. } | S::Backoff { .. },
                E::StartRequested,
            ) => Err(Refusal::AlreadyStarted),
            (
                S::StartCancelled | S::Stopping { .. } | S::Killed,
                E::StartRequested | E::StopRequested,
            ) => Err(Refusal::BeingStopped),

            (S::Starting, E::Spawned) => Ok(self.enter(S::Running { since: now })),
            (S::StartCancelled, E::Spawned) => Ok(self.terminate(now)),
            (S::Starting, E::SpawnFailed) => Ok(self.fail(now, now)),
            (S::StartCancelled, E::SpawnFailed) => Ok(self.enter(S::Stopped)),
            (
                S::Idle
                | S::Running { .. }
                | S::Serving { .. }
                | S::Backoff { .. }
                | S::Stopping { .. }
                | S::Killed
                | S::GivenUp { .. }
                | S::Stopped,
                E::Spawned | E::SpawnFailed,
            ) => Err(Refusal::NoSpawnOrdered),

            (S::Running { since }, E::Serving) => Ok(self.serve(since)),
            (S::Serving { .. } | S::Stopping { .. } | S::Killed, E::Serving) => Ok(Actions::none()),
            (S::Starting | S::StartCancelled, E::Serving) => Err(Refusal::NoProcess),

            (S::Starting, E::Exited) => Ok(self.fail(now, now)),
            (S::Running { since } | S::Serving { since }, E::Exited) => Ok(self.fail(since, now)),
            (S::StartCancelled | S::Stopping { .. } | S::Killed, E::Exited) => {
                Ok(self.enter(S::Stopped))
            }
            (
                S::Idle | S::Backoff { .. } | S::GivenUp { .. } | S::Stopped,
                E::Serving | E::Exited,
            ) => Err(Refusal::NoProcess),

            (S::Backoff { restart_at }, E::TimerFired) if now < restart_at => {
                Ok(Actions::one(Action::ArmTimer(restart_at)))
            }
            (S::Backoff { .. }, E::TimerFired) => Ok(self.restart(now)),
            (S::Stopping { kill_at }, E::TimerFired) if now < kill_at => {
                Ok(Actions::one(Action::ArmTimer(kill_at)))
            }
            (S::Stopping { .. }, E::TimerFired) => {
                self.state = S::Killed;
                Ok(Actions::one(Action::SignalKill))
            }
            (
                S::Idle
                | S::Starting
                | S::StartCancelled
                | S::Running { .. }
                | S::Serving { .. }
                | S::Killed
                | S::GivenUp { .. }
                | S::Stopped,
                E::TimerFired,
            ) => Ok(Actions::none()),

            (S::Starting, E::StopRequested) => Ok(self.enter(S::StartCancelled)),
            (S::Running { .. } | S::Serving { .. }, E::StopRequested) => Ok(self.terminate(now)),
            (S::Backoff { .. }, E::StopRequested) => Ok(self.enter(S::Stopped)),
            (S::Idle | S::GivenUp { .. } | S::Stopped, E::StopRequested) => {
                Err(Refusal::AlreadyDown)
            }
        }
    }

    /// When `TimerFired` is to be told next, if at all.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        match self.state {
            State::Backoff { restart_at } => Some(restart_at),
            State::Stopping { kill_at } => Some(kill_at),
            State::Idle
            | State::Starting
            | State::StartCancelled
            | State::Running { .. }
            | State::Serving { .. }
            | State::Killed
            | State::GivenUp { .. }
            | State::Stopped => None,
        }
    }

    /// Where the process is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// What a person asks for.
    #[must_use]
    pub fn status(&self, now: Duration) -> Status {
        let forgiven = self.state.up_since().is_some_and(|since| self.was_stable(since, now));
        Status {
            state: self.state.name(),
            restarts: self.restarts,
            in_a_row: if forgiven { 0 } else { self.row },
            next_restart: match self.state {
                State::Backoff { restart_at } => Some(restart_at.saturating_sub(now)),
                State::Idle
                | State::Starting
                | State::StartCancelled
                | State::Running { .. }
                | State::Serving { .. }
                | State::Stopping { .. }
                | State::Killed
                | State::GivenUp { .. }
                | State::Stopped => None,
            },
        }
    }

    /// A start by request begins with a clean slate.
    fn start_afresh(&mut self) -> Actions {
        self.restarts = 0;
        self.unserved = 0;
        self.forgive();
        self.spawn()
    }

    fn spawn(&mut self) -> Actions {
        self.unserved = self.unserved.saturating_add(1);
        self.state = State::Starting;
        Actions::one(Action::Spawn)
    }

    fn serve(&mut self, since: Duration) -> Actions {
        self.unserved = 0;
        match self.policy.reset {
            Reset::Serving => self.forgive(),
            Reset::StableRun(_) => {}
        }
        self.enter(State::Serving { since })
    }

    /// The process that was up `since` has ended, and nobody asked for that.
    fn fail(&mut self, since: Duration, now: Duration) -> Actions {
        if self.was_stable(since, now) {
            self.forgive();
        }
        let restart_at = now.saturating_add(self.policy.delay(self.row));
        if let Some(why) = self.past_limit(restart_at) {
            self.state = State::GivenUp { why };
            return Actions::one(Action::ReportGivenUp { why });
        }
        if restart_at <= now {
            return self.restart(now);
        }
        self.state = State::Backoff { restart_at };
        Actions::one(Action::ArmTimer(restart_at))
    }

    fn restart(&mut self, now: Duration) -> Actions {
        self.restarts = self.restarts.saturating_add(1);
        self.row = self.row.saturating_add(1);
        match self.policy.limit {
            Limit::StartsWithoutServing(_) => {}
            Limit::RestartsWithin { restarts, .. } => {
                // Older ones than the last `restarts` cannot matter to `past_limit`.
                if self.stamps.len() >= restarts as usize {
                    self.stamps.pop_front();
                }
                self.stamps.push_back(now);
            }
        }
        self.spawn()
    }

    /// Asked when a restart is planned, not when it is due: the error comes with the exit that caused it, and a late timer
    /// only moves the restart away from those before.
    fn past_limit(&self, restart_at: Duration) -> Option<GaveUp> {
        match self.policy.limit {
            Limit::StartsWithoutServing(starts) => {
                (self.unserved >= starts).then_some(GaveUp::NeverServed { starts: self.unserved })
            }
            Limit::RestartsWithin { restarts, window } => {
                let recent =
                    self.stamps.iter().filter(|at| restart_at.saturating_sub(**at) < window);
                (recent.count() >= restarts as usize)
                    .then_some(GaveUp::TooManyRestarts { restarts, window })
            }
        }
    }

    fn was_stable(&self, since: Duration, now: Duration) -> bool {
        match self.policy.reset {
            Reset::Serving => false,
            Reset::StableRun(time) => now.saturating_sub(since) >= time,
        }
    }

    fn forgive(&mut self) {
        self.row = 0;
        self.stamps.clear();
    }

    fn terminate(&mut self, now: Duration) -> Actions {
        let kill_at = now.saturating_add(self.policy.grace);
        self.state = State::Stopping { kill_at };
        Actions([Some(Action::SignalTerm), Some(Action::ArmTimer(kill_at))])
    }

    fn enter(&mut self, state: State) -> Actions {
        self.state = state;
        Actions::none()
    }
}

impl State {
    /// As `vminitctl supervisor status` prints it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::StartCancelled | Self::Stopping { .. } | Self::Killed => "stopping",
            Self::Running { .. } => "running",
            Self::Serving { .. } => "serving",
            Self::Backoff { .. } => "backoff",
            Self::GivenUp { .. } => "given up",
            Self::Stopped => "stopped",
        }
    }

    /// No process, none ordered, and none to come by itself: a shutdown need not wait any longer.
    #[must_use]
    pub fn is_down(&self) -> bool {
        match self {
            Self::Idle | Self::GivenUp { .. } | Self::Stopped => true,
            Self::Starting
            | Self::StartCancelled
            | Self::Running { .. }
            | Self::Serving { .. }
            | Self::Backoff { .. }
            | Self::Stopping { .. }
            | Self::Killed => false,
        }
    }

    fn up_since(self) -> Option<Duration> {
        match self {
            Self::Running { since } | Self::Serving { since } => Some(since),
            Self::Idle
            | Self::Starting
            | Self::StartCancelled
            | Self::Backoff { .. }
            | Self::Stopping { .. }
            | Self::Killed
            | Self::GivenUp { .. }
            | Self::Stopped => None,
        }
    }
}

impl Actions {
    fn none() -> Self {
        Self::default()
    }

    fn one(action: Action) -> Self {
        Self([Some(action), None])
    }
}

impl IntoIterator for Actions {
    type Item = Action;
    type IntoIter = iter::Flatten<array::IntoIter<Option<Action>, 2>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}
