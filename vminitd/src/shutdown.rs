//! The order of an end: which step comes when, and what becomes of one that hangs.
//!
//! ```text
//!             Asked            Done(step), TimerFired          of the last step
//! Waiting ------------> Doing ------------------------> Doing ... ------------> Over
//!           Begin(first)        [Abandon(step)] Begin(next)    [Abandon] End
//! ```
//!
//! A step that is not done at its deadline is abandoned: the next one begins, and what the first may
//! still do is of no interest. All other pairs of state and event change nothing: a second Asked, a
//! Done that comes late or early, a timer that fires too soon.
//!
//! init and the agent each have one: init's first step is all that the agent does.
//!
//! Promises: the same events give the same actions; every step begins once, in the order given, and
//! none before the one in front of it was done or abandoned; End comes once, at the latest after
//! all deadlines together.
//! Never: reads a clock, or does a step.

use std::time::Duration;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<S> {
    /// Somebody wants the end.
    Asked,
    /// A step came to its end.
    Done(S),
    /// Time has passed.
    TimerFired,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<S> {
    /// Begin this step.
    Begin(S),
    /// Wait no longer for this step, and say so.
    Abandon(S),
    /// No step is left.
    End,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Doing { index: usize, until: Duration },
    Over,
}

/// Steps, each with the time that it may take.
#[derive(Debug)]
pub struct Sequence<S> {
    steps: Vec<(S, Duration)>,
    state: State,
}

impl<S: Copy + PartialEq> Sequence<S> {
    /// Waits for [`Event::Asked`].
    pub fn new(steps: Vec<(S, Duration)>) -> Self {
        Self { steps, state: State::Waiting }
    }

    /// Takes an event at a time of the caller's clock.
    pub fn handle(&mut self, event: Event<S>, now: Duration) -> Vec<Action<S>> {
        let done = match (self.state, event) {
            (State::Waiting, Event::Asked) => return self.begin(0, now),
            (State::Doing { index, .. }, Event::Done(step)) if self.steps[index].0 == step => {
                return self.begin(index + 1, now);
            }
            (State::Doing { index, until }, Event::TimerFired) if now >= until => index,
            (State::Waiting, Event::Done(_) | Event::TimerFired)
            | (State::Doing { .. }, Event::Asked | Event::Done(_) | Event::TimerFired)
            | (State::Over, Event::Asked | Event::Done(_) | Event::TimerFired) => return vec![],
        };
        let mut actions = vec![Action::Abandon(self.steps[done].0)];
        actions.extend(self.begin(done + 1, now));
        actions
    }

    /// When a TimerFired is due.
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Doing { until, .. } => Some(until),
            State::Waiting | State::Over => None,
        }
    }

    /// What is being done.
    pub fn current(&self) -> Option<S> {
        match self.state {
            State::Doing { index, .. } => Some(self.steps[index].0),
            State::Waiting | State::Over => None,
        }
    }

    fn begin(&mut self, index: usize, now: Duration) -> Vec<Action<S>> {
        match self.steps.get(index) {
            Some(&(step, limit)) => {
                self.state = State::Doing { index, until: now + limit };
                vec![Action::Begin(step)]
            }
            None => {
                self.state = State::Over;
                vec![Action::End]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Move {
        Ask,
        Done(u8),
        Wait(u64),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            1 => Just(Move::Ask),
            3 => (0u8..6).prop_map(Move::Done),
            3 => (0u64..8).prop_map(Move::Wait),
        ];
        proptest::collection::vec(one, 0..60)
    }

    proptest! {
        /// The model: a queue of (step, limit). Asked starts it; the head leaves when it is done or
        /// when its time is up, and then the next one's time begins.
        #[test]
        fn steps_begin_once_in_order_and_one_that_hangs_is_abandoned_at_its_deadline(
            limits in proptest::collection::vec(0u64..10, 0..6),
            moves in moves(),
        ) {
            let second = Duration::from_secs;
            let steps = limits.iter().zip(0u8..).map(|(limit, step)| (step, second(*limit)));
            let mut sequence = Sequence::new(steps.clone().collect());
            let mut queue: std::collections::VecDeque<(u8, Duration)> = steps.collect();
            let (mut asked, mut over, mut since, mut now) = (false, false, second(0), second(0));
            for made in moves {
                let (event, leaves) = match made {
                    Move::Ask => (Event::Asked, false),
                    Move::Done(step) => {
                        (Event::Done(step), queue.front().is_some_and(|head| head.0 == step))
                    }
                    Move::Wait(seconds) => {
                        now += second(seconds);
                        let up = queue.front().is_some_and(|head| now >= since + head.1);
                        (Event::TimerFired, up)
                    }
                };
                let mut expected = vec![];
                let begins = if asked && !over && leaves {
                    let (head, _) = queue.pop_front().unwrap();
                    if event == Event::TimerFired {
                        expected.push(Action::Abandon(head));
                    }
                    true
                } else {
                    let first = !asked && event == Event::Asked;
                    asked |= first;
                    first
                };
                if begins {
                    since = now;
                    over = queue.is_empty();
                    expected.push(queue.front().map_or(Action::End, |head| Action::Begin(head.0)));
                }
                prop_assert_eq!(sequence.handle(event, now), expected);
                let doing = asked && !over;
                prop_assert_eq!(sequence.current(), queue.front().filter(|_| doing).map(|h| h.0));
                let due = queue.front().filter(|_| doing).map(|head| since + head.1);
                prop_assert_eq!(sequence.deadline(), due);
            }
        }

        /// Whatever hangs, the end comes when all deadlines are over.
        #[test]
        fn end_comes_though_every_step_hangs(limits in proptest::collection::vec(0u64..10, 0..6)) {
            let steps = limits.iter().zip(0u8..).map(|(limit, step)| (step, Duration::from_secs(*limit)));
            let mut sequence = Sequence::new(steps.collect());
            let mut actions = sequence.handle(Event::Asked, Duration::ZERO);
            while let Some(due) = sequence.deadline() {
                actions.extend(sequence.handle(Event::TimerFired, due));
                prop_assert!(due <= Duration::from_secs(limits.iter().sum()));
            }
            let ends = actions.iter().filter(|action| **action == Action::End).count();
            let given_up = actions.iter().filter(|action| matches!(action, Action::Abandon(_))).count();
            prop_assert_eq!((ends, given_up), (1, limits.len()));
        }
    }
}
