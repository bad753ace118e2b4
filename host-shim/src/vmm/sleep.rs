//! Whether the machine has slept: its clocks tell.
//!
//! Promises: a sleep shows in the first look after it, once. Never: asks for the time of day, which a person can set.

use std::time::Duration;

use crate::limits::SLEEP_GAP;
use crate::sys::clocks;

/// Compares a clock that stands while the machine sleeps with one that does not.
#[derive(Debug, Default)]
pub struct SleepWatch {
    /// How much more of the second there was at the last look; `None` before the first.
    asleep: Option<Duration>,
}

impl SleepWatch {
    /// Looks at this machine's clocks.
    pub fn has_slept(&mut self) -> bool {
        let (awake, all) = clocks();
        self.slept(awake, all).is_some()
    }

    /// How long the machine has slept since the last look, if it has: `awake` is the time that it was awake, `all`
    /// that with its sleep, both since whenever.
    pub fn slept(&mut self, awake: Duration, all: Duration) -> Option<Duration> {
        // Read one after the other, the clocks may seem to have run backwards a little.
        let asleep = all.saturating_sub(awake);
        let before = *self.asleep.get_or_insert(asleep);
        let gap = asleep.saturating_sub(before);
        if gap < SLEEP_GAP {
            return None;
        }
        self.asleep = Some(asleep);
        Some(gap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sleep_shows_once_and_an_hour_awake_never() {
        let mut watch = SleepWatch::default();
        let at = |seconds| Duration::from_secs(seconds);
        // It was there before us.
        assert_eq!(watch.slept(at(10), at(500)), None);
        assert_eq!(watch.slept(at(3610), at(4100)), None);
        assert_eq!(watch.slept(at(3611), at(4171)), Some(at(70)));
        assert_eq!(watch.slept(at(3612), at(4172)), None);
    }

    #[test]
    fn this_machine_does_not_sleep_while_it_is_looked_at() {
        let mut watch = SleepWatch::default();
        assert!(!(0..1000).any(|_| watch.has_slept()));
    }

    proptest! {
        /// The model: what was told sums up to what was slept, but for naps that are shorter than the gap and have not
        /// yet come together.
        #[test]
        fn what_is_told_is_what_was_slept(steps in proptest::collection::vec((0u64..10_000, prop_oneof![Just(0), 0u64..5_000]), 1..50)) {
            let (mut watch, mut awake, mut slept, mut told) = (SleepWatch::default(), 0, 0, Duration::ZERO);
            watch.slept(Duration::ZERO, Duration::ZERO);
            for (up, down) in steps {
                awake += up;
                slept += down;
                let (awake, all) = (Duration::from_millis(awake), Duration::from_millis(awake + slept));
                told += watch.slept(awake, all).unwrap_or_default();
                let left = Duration::from_millis(slept).checked_sub(told);
                prop_assert!(left.is_some_and(|left| left < SLEEP_GAP));
            }
        }
    }
}
