//! Heartbeats: whether the agent still answers.
//!
//! A beat is due every `interval`. It asks the agent, unless the beat before is still unanswered;
//! then it is a miss as well. So many misses in a row, and the agent is wedged.
//!
//! Promises: the same calls give the same answers; on a [`super::clock::Clock`], a paused VM
//! misses one beat at most.
//! Never: reads a clock, sends anything.

use std::time::Duration;

/// One agent's heart.
#[derive(Debug)]
pub struct Heartbeat {
    interval: Duration,
    limit: u32,
    due: Duration,
    beat: u64,
    unanswered: u32,
}

/// What a due beat asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Ask the agent.
    Ping(u64),
    /// It has not answered for too long.
    Wedged,
}

impl Heartbeat {
    /// The first beat is due after one interval.
    pub fn new(now: Duration, interval: Duration, limit: u32) -> Heartbeat {
        Heartbeat { interval, limit, due: now + interval, beat: 0, unanswered: 0 }
    }

    /// When the next beat is due.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// To be called when time has passed.
    pub fn tick(&mut self, now: Duration) -> Option<Beat> {
        if now < self.due {
            return None;
        }
        self.due = now + self.interval;
        if self.unanswered >= self.limit {
            return Some(Beat::Wedged);
        }
        self.unanswered += 1;
        self.beat += 1;
        Some(Beat::Ping(self.beat))
    }

    /// The agent answered. Any answer shows that it lives; one to an older beat is late, and late
    /// is not wedged.
    pub fn answered(&mut self, beat: u64) {
        if beat <= self.beat {
            self.unanswered = u32::try_from(self.beat - beat).unwrap_or(u32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn five_unanswered_beats_are_too_many() {
        let mut heart = Heartbeat::new(Duration::ZERO, SECOND * 2, 5);
        let beats: Vec<_> = (1..=6).map(|turn| heart.tick(SECOND * 2 * turn).unwrap()).collect();
        assert_eq!(beats[..5], [1, 2, 3, 4, 5].map(Beat::Ping));
        assert_eq!(beats[5], Beat::Wedged);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut heart = Heartbeat::new(Duration::ZERO, SECOND, 5);
        assert_eq!(heart.tick(SECOND / 2), None);
        assert_eq!(heart.tick(SECOND), Some(Beat::Ping(1)));
        assert_eq!(heart.tick(SECOND), None);
    }

    proptest! {
        /// The model: the beat of the last answer; wedged exactly when `limit` beats came since.
        #[test]
        fn wedged_exactly_after_that_many_beats_without_an_answer(
            limit in 1u32..6,
            lags in proptest::collection::vec(proptest::option::of(0u64..4), 1..60),
        ) {
            let mut heart = Heartbeat::new(Duration::ZERO, SECOND, limit);
            let (mut beat, mut answered, mut now) = (0u64, 0u64, Duration::ZERO);
            for lag in lags {
                now += SECOND;
                let expected = if beat - answered >= u64::from(limit) {
                    Beat::Wedged
                } else {
                    beat += 1;
                    Beat::Ping(beat)
                };
                prop_assert_eq!(heart.tick(now), Some(expected));
                if let Some(lag) = lag {
                    answered = beat.saturating_sub(lag);
                    heart.answered(answered);
                }
            }
        }
    }
}
