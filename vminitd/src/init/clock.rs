//! The clock of init's loop: the time that init itself has lived through.
//!
//! A VM may be paused for an hour, and the first thing its PID 1 sees afterwards is a clock that
//! jumped. By that clock the agent has missed 1,800 heartbeats and every launcher is past its
//! deadline, though nobody had a chance to run. So one turn of the loop counts as `longest_step`
//! at most, and the loop never sleeps longer than that: a pause is worth one step.
//!
//! Promises: never runs backwards, never jumps.
//! Never: reads a clock; the loop passes CLOCK_MONOTONIC in.

use std::time::Duration;

/// All deadlines of init are times of this clock.
#[derive(Debug)]
pub struct Clock {
    longest_step: Duration,
    last_reading: Duration,
    now: Duration,
}

impl Clock {
    /// Starts at zero.
    pub fn new(reading: Duration, longest_step: Duration) -> Clock {
        Clock { longest_step, last_reading: reading, now: Duration::ZERO }
    }

    /// Takes a turn's reading of the monotonic clock.
    pub fn advance(&mut self, reading: Duration) {
        let step = reading.saturating_sub(self.last_reading).min(self.longest_step);
        self.last_reading = self.last_reading.max(reading);
        self.now += step;
    }

    /// The time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// How long the loop may sleep when the next deadline is `next`.
    pub fn sleep_until(&self, next: Option<Duration>) -> Duration {
        next.map_or(self.longest_step, |next| next.saturating_sub(self.now).min(self.longest_step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(2);

    #[test]
    fn pause_of_an_hour_counts_as_one_step() {
        let mut clock = Clock::new(Duration::from_secs(10), STEP);
        clock.advance(Duration::from_secs(11));
        clock.advance(Duration::from_secs(3611));
        assert_eq!(clock.now(), Duration::from_secs(3));
    }

    #[test]
    fn reading_that_went_back_is_ignored() {
        let mut clock = Clock::new(Duration::from_secs(10), STEP);
        clock.advance(Duration::from_secs(9));
        clock.advance(Duration::from_secs(11));
        assert_eq!(clock.now(), Duration::from_secs(1));
    }

    #[test]
    fn sleep_is_never_longer_than_a_step() {
        let clock = Clock::new(Duration::ZERO, STEP);
        assert_eq!(clock.sleep_until(None), STEP);
        assert_eq!(clock.sleep_until(Some(Duration::from_secs(60))), STEP);
        assert_eq!(clock.sleep_until(Some(Duration::from_secs(1))), Duration::from_secs(1));
        assert_eq!(clock.sleep_until(Some(Duration::ZERO)), Duration::ZERO);
    }
}
