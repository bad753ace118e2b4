//! The guest's clocks, read with ours.
//!
//! Something that carries a stamp of the guest's clock arrives here a little later, never earlier. And the guest's
//! clock runs at a speed of its own: under emulation its kernel measures the speed wrongly by some percent. So
//! stamps and arrivals are points above a straight line, and the line that is nearest to them from below is what the
//! two clocks have to do with each other; it is wrong by the fastest ways that any of them took.

/// How another clock is read with ours; both in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Ours per other's.
    speed: f64,
    /// What ours shows when the other shows nothing.
    offset: f64,
}

/// A clock that is further off is none that we understand.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.5..=2.0;

impl Reading {
    /// From pairs of (stamp, arrival); `None` without any.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let mut pairs: Vec<(f64, f64)> = pairs.into_iter().collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mean = pairs.iter().map(|(stamp, _)| stamp).sum::<f64>() / pairs.len() as f64;
        // Of all lines below the points, the one that continues the hull's edge at their mean is nearest to all.
        let hull = lower_hull(&pairs);
        let edge = hull.windows(2).find(|edge| edge[1].0 >= mean);
        let speed = edge.map(|edge| (edge[1].1 - edge[0].1) / (edge[1].0 - edge[0].0));
        Self::at_speed(speed.filter(|speed| SPEEDS.contains(speed)).unwrap_or(1.0), pairs)
    }

    /// The same for a clock of the same speed.
    pub fn like(self, pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        Self::at_speed(self.speed, pairs)
    }

    /// The same for another clock of the same machine.
    fn at_speed(speed: f64, pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let offsets = pairs.into_iter().map(|(stamp, arrival)| arrival - stamp * speed);
        Some(Self { speed, offset: offsets.min_by(f64::total_cmp)? })
    }

    /// What our clock showed at the other's `stamp`.
    pub fn here(self, stamp: f64) -> f64 {
        stamp * self.speed + self.offset
    }
}

/// The corners of what lies below all points, which are sorted by their first.
fn lower_hull(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for point in points {
        while let [.., a, b] = hull[..] {
            let turn = (b.0 - a.0) * (point.1 - a.1) - (b.1 - a.1) * (point.0 - a.0);
            if turn > 0.0 {
                break;
            }
            hull.pop();
        }
        // Of points at one moment the earliest arrival counts; it comes last.
        if hull.last().is_some_and(|last| last.0 == point.0) {
            hull.pop();
        }
        hull.push(*point);
    }
    hull
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent() -> impl Strategy<Value = Vec<(f64, f64)>> {
        prop::collection::vec((0.0..1e4f64, 0.0..200.0f64), 1..50)
    }

    proptest! {
        #[test]
        fn nothing_arrives_before_it_was_sent(points in sent(), speed in 0.9..1.1f64) {
            let pairs: Vec<_> = points.iter().map(|(stamp, way)| (*stamp, 77.0 + stamp * speed + way)).collect();
            let reading = Reading::of(pairs.clone()).unwrap();
            for (stamp, arrival) in &pairs {
                prop_assert!(reading.here(*stamp) <= arrival + 1e-6);
            }
            prop_assert!(pairs.iter().any(|(stamp, arrival)| reading.here(*stamp) > arrival - 1e-6));
        }

        #[test]
        fn two_that_took_no_time_tell_all(points in sent(), speed in 0.9..1.1f64, offset in -1e5..1e5f64) {
            let ends = [(-1.0, 0.0), (1e4 + 1.0, 0.0)];
            let pairs = points.iter().chain(&ends).map(|(stamp, way)| (*stamp, offset + stamp * speed + way));
            let reading = Reading::of(pairs).unwrap();
            for stamp in [0.0, 5e3, 2e4] {
                prop_assert!((reading.here(stamp) - (offset + stamp * speed)).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn one_point_is_taken_at_our_own_speed() {
        assert_eq!(Reading::of([(5.0, 8.0)]).unwrap().here(10.0), 13.0);
        assert_eq!(Reading::of([(5.0, 8.0), (5.0, 7.0)]).unwrap().here(10.0), 12.0);
        assert_eq!(Reading::of([]), None);
    }
}
