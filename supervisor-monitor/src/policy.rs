//! The parameters of a restart rule, and the two rules that we run.
//! Promises: arithmetic on times saturates, so no parameter and no time can make PID 1 panic.

use core::{fmt, num::NonZeroU32, time::Duration};

/// A restart rule: how long to wait, when to forget past failures, when to stop trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Wait before the first restart of a row.
    pub first_delay: Duration,
    /// Wait before the second restart of a row; doubles with each further one.
    pub second_delay: Duration,
    /// No wait is longer than this.
    pub longest_delay: Duration,
    /// What ends a row: the next failure is the first again.
    pub reset: Reset,
    /// When to stay down.
    pub limit: Limit,
    /// From SIGTERM to SIGKILL when a stop was requested.
    pub grace: Duration,
}

/// What makes a row of failures forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The process said that it serves.
    Serving,
    /// The process ran this long before it ended.
    StableRun(Duration),
}

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many starts in a row, the first included, none of which came to serve.
    StartsWithoutServing(u32),
    /// More than `restarts` restarts within `window`, wherever the window is laid.
    RestartsWithin {
        /// That many are still allowed. Only so many times are remembered.
        restarts: u32,
        /// Length of the sliding window.
        window: Duration,
    },
}

/// Why a process stays down; the text is the one error that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// See [`Limit::StartsWithoutServing`].
    NeverServed {
        /// Starts that were tried.
        starts: u32,
    },
    /// See [`Limit::RestartsWithin`].
    TooManyRestarts {
        /// Restarts that were tried in the window.
        restarts: u32,
        /// Length of the window.
        window: Duration,
    },
}

impl Policy {
    /// The agent's rule: at once, then 100 ms doubling to 5 s; serving resets; ten starts in a row that never serve are the end.
    /// However often an agent dies that did serve, it is started again.
    pub const AGENT: Self = Self {
        first_delay: Duration::ZERO,
        second_delay: Duration::from_millis(100),
        longest_delay: Duration::from_secs(5),
        reset: Reset::Serving,
        limit: Limit::StartsWithoutServing(10),
        grace: Duration::from_secs(10),
    };

    /// The injected supervisor's rule: 1, 2, 4, 8, 16, 30, 30 ... s; at most 10 restarts in 5 min; 5 min of running reset.
    pub const SUPERVISOR: Self = Self {
        first_delay: Duration::from_secs(1),
        second_delay: Duration::from_secs(2),
        longest_delay: Duration::from_secs(30),
        reset: Reset::StableRun(Duration::from_secs(300)),
        limit: Limit::RestartsWithin { restarts: 10, window: Duration::from_secs(300) },
        grace: Duration::from_secs(10),
    };

    /// The same rule with every time divided by `divisor` (counts stay), so that a test need not wait for minutes.
    #[must_use]
    pub fn scaled_down(self, divisor: NonZeroU32) -> Self {
        let short = |time: Duration| time / divisor.get();
        Self {
            first_delay: short(self.first_delay),
            second_delay: short(self.second_delay),
            longest_delay: short(self.longest_delay),
            reset: match self.reset {
                Reset::Serving => Reset::Serving,
                Reset::StableRun(time) => Reset::StableRun(short(time)),
            },
            limit: match self.limit {
                Limit::StartsWithoutServing(starts) => Limit::StartsWithoutServing(starts),
                Limit::RestartsWithin { restarts, window } => {
                    Limit::RestartsWithin { restarts, window: short(window) }
                }
            },
            grace: short(self.grace),
        }
    }

    /// The wait before the next restart when `restarts` of this row were done already.
    #[must_use]
    pub fn delay(&self, restarts: u32) -> Duration {
        let Some(doublings) = restarts.checked_sub(1) else {
            return self.first_delay.min(self.longest_delay);
        };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.second_delay.saturating_mul(factor).min(self.longest_delay)
    }
}

impl fmt::Display for GaveUp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverServed { starts } => {
                write!(out, "gave up after {starts} starts in a row that never served")
            }
            Self::TooManyRestarts { restarts, window } => {
                write!(out, "gave up after {restarts} restarts within {window:?}")
            }
        }
    }
}
