//! The VM's end as init orders it: the steps, how long each may take, and what is left behind.
//!
//! ```text
//! Agent       containers, their output and filesystems, events, replies: the agent's own steps
//! Supervisor  SIGTERM, grace, SIGKILL, as its own rule has it
//! Processes   SIGKILL to all that still runs, and their reaping
//! Unmount     what is not a view of the kernel's memory, last mount first
//! Sync        sync(2)
//! Flush       each writable disk's own cache
//! ```
//!
//! The first two are done by the loop; from Processes on nothing but [`super::power`] runs.
//!
//! Owns: the order, and the lines of the stop report.
//! Promises: what a report says is bounded; a step that is given up is named in it.
//! Never: does a step.

use std::time::Duration;

use crate::limits::{REPORT_LINE_BYTES, REPORT_LINES, STOP_STEPS_BY_AGENT, TERM_TO_KILL};
use crate::log;
use crate::shutdown::{Action, Event, Sequence};
use crate::sys::clock;

/// What the end consists of, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All that the agent does.
    Agent,
    /// The injected supervisor is down.
    Supervisor,
    /// Nothing runs any more but init.
    Processes,
    /// No filesystem is mounted that holds data.
    Unmount,
    /// What the kernel holds back is written.
    Sync,
    /// What disks hold back is written.
    Flush,
}

/// How patient an end is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a container's SIGTERM to its SIGKILL.
    pub grace: Duration,
    /// For each step to come to its end.
    pub step: Duration,
}

/// An end under way.
#[derive(Debug)]
pub struct Ending {
    /// Restart instead of power-off.
    pub restart: bool,
    /// What containers get.
    pub grace: Duration,
    sequence: Sequence<Step>,
    step: Duration,
    began_us: u64,
    left: Vec<String>,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Agent => "agent",
            Step::Supervisor => "supervisor",
            Step::Processes => "processes",
            Step::Unmount => "unmount",
            Step::Sync => "sync",
            Step::Flush => "flush",
        }
    }
}

impl Ending {
    /// One that waits to be asked.
    pub fn new(restart: bool, patience: Patience) -> Ending {
        let Patience { grace, step } = patience;
        let steps = vec![
            (Step::Agent, grace + step * STOP_STEPS_BY_AGENT),
            (Step::Supervisor, TERM_TO_KILL + step),
            (Step::Processes, step / 2),
            (Step::Unmount, step),
            (Step::Sync, step),
            (Step::Flush, step),
        ];
        let sequence = Sequence::new(steps);
        Ending { restart, grace, sequence, step, began_us: clock::boottime_us(), left: Vec::new() }
    }

    /// Takes an event at a time of init's clock; what is given up is noted.
    pub fn handle(&mut self, event: Event<Step>, now: Duration) -> Vec<Action<Step>> {
        let given_up = self.sequence.current();
        let actions = self.sequence.handle(event, now);
        for action in &actions {
            if let (Action::Abandon(step), Some(_)) = (action, given_up) {
                self.left(format!("step {} given up", step.name()));
            }
        }
        actions
    }

    /// What is being done.
    pub fn current(&self) -> Option<Step> {
        self.sequence.current()
    }

    /// When it is given up.
    pub fn deadline(&self) -> Option<Duration> {
        self.sequence.deadline()
    }

    /// Something was still dirty or busy.
    pub fn left(&mut self, what: impl AsRef<str>) {
        if self.left.len() >= REPORT_LINES {
            return;
        }
        let plain = what.as_ref().chars().map(|c| if c.is_control() || c == ';' { ' ' } else { c });
        let mut line = String::new();
        for character in plain {
            if line.len() + character.len_utf8() > REPORT_LINE_BYTES {
                break;
            }
            line.push(character);
        }
        self.left.push(line);
    }

    /// The stop report, on the console.
    pub fn report(&self) {
        let millis = clock::boottime_us().saturating_sub(self.began_us) / 1000;
        let end = if self.restart { "reboot" } else { "power-off" };
        let left = match self.left.is_empty() {
            true => "nothing left".to_owned(),
            false => format!("left: {}", self.left.join("; ")),
        };
        log::to_console(&format!("vminitd: stop report: {end} after {millis} ms, {left}"));
    }

    /// How long one of several things in a step may take: half of what is left of the step's time,
    /// so that one that hangs leaves some to those behind it.
    pub fn share_of_step(&self, now: Duration) -> Duration {
        let rest = self.deadline().map_or(self.step, |deadline| deadline.saturating_sub(now));
        rest / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending() -> Ending {
        Ending::new(false, Patience { grace: Duration::ZERO, step: Duration::from_secs(4) })
    }

    #[test]
    fn what_is_left_is_bounded_and_stays_one_line() {
        let mut ending = ending();
        ending.left("a\nb;c");
        ending.left("é".repeat(1000));
        for _ in 0..1000 {
            ending.left("x");
        }
        assert_eq!(ending.left[0], "a b c");
        assert!(ending.left[1].len() <= REPORT_LINE_BYTES);
        assert_eq!(ending.left.len(), REPORT_LINES);
    }

    #[test]
    fn step_that_is_given_up_is_named() {
        let mut ending = ending();
        ending.handle(Event::Asked, Duration::ZERO);
        ending.handle(Event::Done(Step::Agent), Duration::ZERO);
        ending.handle(Event::Done(Step::Supervisor), Duration::ZERO);
        assert_eq!(ending.share_of_step(Duration::from_secs(1)), Duration::from_millis(500));
        let due = ending.deadline().unwrap();
        ending.handle(Event::TimerFired, due);
        assert_eq!(ending.left, ["step processes given up"]);
        assert_eq!(ending.current(), Some(Step::Unmount));
    }
}
