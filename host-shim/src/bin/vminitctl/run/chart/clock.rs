//! The guest's clocks, read with ours.
//!
//! Something that carries a stamp of the guest's clock arrives here a little later, never earlier. So it, and what was
//! stamped before it, happened before it arrived: each arrival bounds all earlier stamps, the nearer the better.
//!
//! Tried: one straight line from below through all pairs of stamp and arrival. But the speed of a guest's clock is no
//! constant. An emulated machine's kernel measures the speed of its time-stamp counter when it boots, on a busy host
//! wrongly by tens of percent, and corrects itself a second later; the line was wrong by seconds at the other end.

/// How another clock is read with ours; both in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Stamps in order, each with the best bound that its own arrival and later ones give, less the stamp's share.
    bounds: Vec<(f64, f64)>,
}

/// The least that we take to pass here while a millisecond passes on the other clock. A clock that is faster than that
/// against ours (by two fifths) is read with an error; a value near zero would have no arrival bound any stamp but its
/// own.
const LEAST_SPEED: f64 = 0.7;

impl Reading {
    /// From pairs of (stamp, arrival); `None` without any.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let mut bounds: Vec<(f64, f64)> = pairs.into_iter().collect();
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut best = f64::INFINITY;
        for (stamp, bound) in bounds.iter_mut().rev() {
            best = best.min(*bound - *stamp * LEAST_SPEED);
            *bound = best;
        }
        Some(Self { bounds }).filter(|reading| !reading.bounds.is_empty())
    }

    /// What our clock showed at the other's `stamp`, at the latest.
    pub fn here(&self, stamp: f64) -> f64 {
        let next = self.bounds.partition_point(|(other, _)| *other < stamp);
        match self.bounds.get(next) {
            Some((_, bound)) => bound + stamp * LEAST_SPEED,
            None => {
                let (last, bound) = self.bounds[self.bounds.len() - 1];
                bound + last * LEAST_SPEED + (stamp - last)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model: a clock of a speed of its own, and ways that take their time.
        #[test]
        fn readings_are_in_order_and_between_what_was_and_what_arrived(
            sent in prop::collection::vec((0.0..1e4f64, 0.0..200.0f64), 1..50),
            speed in LEAST_SPEED..1.5f64,
            offset in -1e5..1e5f64,
        ) {
            let truly = |stamp: f64| offset + stamp * speed;
            let pairs: Vec<_> = sent.iter().map(|(stamp, way)| (*stamp, truly(*stamp) + way)).collect();
            let reading = Reading::of(pairs.clone()).unwrap();
            for (stamp, arrival) in &pairs {
                let here = reading.here(*stamp);
                prop_assert!(truly(*stamp) - 1e-6 <= here && here <= arrival + 1e-6);
            }
            let mut stamps: Vec<f64> = (0..100).map(|n| n as f64 * 110.0).collect();
            stamps.extend(sent.iter().map(|(stamp, _)| stamp));
            stamps.sort_by(f64::total_cmp);
            for pair in stamps.windows(2) {
                prop_assert!(reading.here(pair[0]) <= reading.here(pair[1]) + 1e-6);
            }
        }
    }

    #[test]
    fn a_fast_way_corrects_what_came_slowly_just_before() {
        let reading = Reading::of([(0.0, 900.0), (10.0, 120.0), (20.0, 200.0)]).unwrap();
        assert_eq!(reading.here(10.0).round(), 120.0);
        assert_eq!(reading.here(0.0).round(), 113.0);
        assert_eq!(reading.here(20.0).round(), 200.0);
        assert_eq!(reading.here(25.0).round(), 205.0);
        assert_eq!(Reading::of([]), None);
    }
}
