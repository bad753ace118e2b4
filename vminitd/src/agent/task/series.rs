//! Events of one kind that a container publishes again and again, each once, whichever agent does
//! it: out of memory, and paused and resumed in turn.
//!
//! Owns: three words of the container's counters: how many are published, and two marks of
//! [`Hub::publish_once`](crate::agent::events::hub::Hub::publish_once) that are used in turn.
//! Promises: killed at any instruction, the next agent neither skips one nor publishes it twice.
//!
//! ```text
//! publish under mark[count % 2]      killed before: not counted, published by the next agent
//! clear the other mark               killed here: the mark says that it is published
//! count += 1                         the next one finds its mark cleared
//! ```

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// One container's events of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// How many are published.
    pub count: &'a AtomicU64,
    /// Of the next one, and of the one before or after it.
    pub marks: [&'a AtomicU64; 2],
}

impl Series<'_> {
    /// How many are published.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Publishes the next one, if that has not been done; `publish` does nothing when the mark says
    /// so.
    pub fn publish_next(&self, publish: impl FnOnce(&AtomicU64)) {
        let count = self.count();
        let [this, other] = if count.is_multiple_of(2) { [0, 1] } else { [1, 0] };
        publish(self.marks[this]);
        self.marks[other].store(0, Relaxed);
        self.count.store(count + 1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// The words, and an agent that dies (panics) at a given access to them.
    struct Words {
        words: [AtomicU64; 3],
        published: Cell<u64>,
    }

    /// The same acts as `publish_next`, cut off after `acts` of them. 0 is before the first.
    fn cut_off(words: &Words, acts: usize) {
        let series = words.series();
        let count = series.count();
        let this = usize::from(count % 2 == 1);
        if acts >= 1 {
            words.publish_once(series.marks[this]);
        }
        if acts >= 2 {
            series.marks[1 - this].store(0, Relaxed);
        }
    }

    impl Words {
        fn series(&self) -> Series<'_> {
            Series { count: &self.words[0], marks: [&self.words[1], &self.words[2]] }
        }

        fn publish_once(&self, mark: &AtomicU64) {
            if mark.load(Relaxed) == 0 {
                self.published.set(self.published.get() + 1);
                mark.store(self.published.get(), Relaxed);
            }
        }
    }

    proptest! {
        /// Each event is published once, however often an agent dies half-way before it is.
        #[test]
        fn each_is_published_once(deaths in proptest::collection::vec(
            proptest::collection::vec(0usize..3, 0..4), 0..12,
        )) {
            let words = Words { words: Default::default(), published: Cell::new(0) };
            for (done, deaths) in (1..).zip(&deaths) {
                for acts in deaths {
                    cut_off(&words, *acts);
                }
                words.series().publish_next(|mark| words.publish_once(mark));
                prop_assert_eq!((words.published.get(), words.series().count()), (done, done));
            }
        }
    }
}
