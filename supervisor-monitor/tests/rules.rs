//! The two rules, as whoever wrote them down would check them: a process that behaves so, and what becomes of it.
//! How it proves its point: a driver with a made-up clock that jumps to whatever happens next.

use std::{num::NonZeroU32, time::Duration};

use supervisor_monitor::{Action, Event, GaveUp, Limit, Monitor, Policy, Refusal, Reset, State};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// What the process does each time it is spawned.
#[derive(Clone, Copy)]
enum Life {
    CannotBeExecuted,
    Exits { after: Duration },
    ServesAndExits { after: Duration },
}

struct Driver {
    monitor: Monitor,
    now: Duration,
    /// When `Spawn` was ordered.
    spawned: Vec<Duration>,
    reports: Vec<(Duration, GaveUp)>,
}

impl Driver {
    fn new(policy: Policy) -> Self {
        let monitor = Monitor::new(policy);
        // Not zero: the clock's origin must not matter.
        Self { monitor, now: s(12_345), spawned: vec![], reports: vec![] }
    }

    fn tell(&mut self, event: Event) -> Result<Vec<Action>, Refusal> {
        let actions: Vec<_> = self.monitor.handle(event, self.now)?.into_iter().collect();
        for action in &actions {
            match action {
                Action::Spawn => self.spawned.push(self.now),
                Action::ReportGivenUp { why } => self.reports.push((self.now, *why)),
                Action::ArmTimer(_) | Action::SignalTerm | Action::SignalKill => {}
            }
        }
        Ok(actions)
    }

    fn must(&mut self, event: Event) -> Vec<Action> {
        self.tell(event).unwrap_or_else(|refusal| panic!("{event:?}: {refusal}"))
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// From `Starting` to the next `Starting`, or to where it stays down.
    fn live(&mut self, life: Life) {
        match life {
            Life::CannotBeExecuted => {
                self.must(Event::SpawnFailed);
            }
            Life::Exits { after } => {
                self.must(Event::Spawned);
                self.wait(after);
                self.must(Event::Exited);
            }
            Life::ServesAndExits { after } => {
                self.must(Event::Spawned);
                self.must(Event::Serving);
                self.wait(after);
                self.must(Event::Exited);
            }
        }
        if let Some(at) = self.monitor.next_timer() {
            self.now = at;
            self.must(Event::TimerFired);
        }
    }

    /// The same life `times` times over; the waits between an end and the next start.
    fn waits(&mut self, life: Life, times: usize) -> Vec<Duration> {
        let after = match life {
            Life::CannotBeExecuted => Duration::ZERO,
            Life::Exits { after } | Life::ServesAndExits { after } => after,
        };
        let from = self.spawned.len() - 1;
        (0..times).for_each(|_| self.live(life));
        self.spawned[from..].windows(2).map(|pair| pair[1] - pair[0] - after).collect()
    }
}

fn started(policy: Policy) -> Driver {
    let mut driver = Driver::new(policy);
    assert_eq!(driver.must(Event::StartRequested), [Action::Spawn]);
    driver
}

#[test]
fn agent_that_never_serves_is_started_ten_times() {
    for life in
        [Life::CannotBeExecuted, Life::Exits { after: ms(20) }, Life::Exits { after: s(3600) }]
    {
        let mut driver = started(Policy::AGENT);
        let waits = driver.waits(life, 10);
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000].map(ms);
        assert_eq!(waits, expected);
        assert_eq!(driver.spawned.len(), 10);
        let why = GaveUp::NeverServed { starts: 10 };
        assert_eq!(driver.monitor.state(), State::GivenUp { why });
        assert_eq!(driver.reports, [(driver.now, why)]);
        assert_eq!(why.to_string(), "gave up after 10 starts in a row that never served");
    }
}

#[test]
fn agent_that_serves_is_restarted_at_once_for_ever() {
    let mut driver = started(Policy::AGENT);
    let waits = driver.waits(Life::ServesAndExits { after: ms(1) }, 10_000);
    assert_eq!(waits, vec![Duration::ZERO; 10_000]);
    assert!(driver.reports.is_empty());
}

#[test]
fn agent_that_serves_at_the_tenth_start_has_ten_more() {
    let mut driver = started(Policy::AGENT);
    driver.waits(Life::CannotBeExecuted, 9);
    driver.live(Life::ServesAndExits { after: ms(5) });
    assert_eq!(driver.monitor.state(), State::Starting);
    let waits = driver.waits(Life::CannotBeExecuted, 10);
    assert_eq!(
        waits,
        [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000].map(ms),
        "the first was at once"
    );
    assert!(matches!(driver.monitor.state(), State::GivenUp { .. }));
}

#[test]
fn supervisor_that_crashes_at_once_backs_off_and_stays_down_after_ten_restarts() {
    for life in [Life::CannotBeExecuted, Life::Exits { after: ms(20) }] {
        let mut driver = started(Policy::SUPERVISOR);
        let waits = driver.waits(life, 11);
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30, 30, 30].map(s));
        let why = GaveUp::TooManyRestarts { restarts: 10, window: s(300) };
        assert_eq!(driver.monitor.state(), State::GivenUp { why });
        assert_eq!(driver.reports, [(driver.now, why)]);
        assert_eq!(why.to_string(), "gave up after 10 restarts within 300s");
        driver.wait(s(1_000_000));
        assert_eq!(driver.must(Event::TimerFired), []);
        assert!(driver.monitor.state().is_down());
    }
}

/// Ten waits after the first restart are 210 s; with ten runs of 9 s between them, the window has slid past the first.
#[test]
fn window_slides() {
    let mut driver = started(Policy::SUPERVISOR);
    let waits = driver.waits(Life::Exits { after: s(9) }, 1000);
    assert_eq!(waits[..7], [1, 2, 4, 8, 16, 30, 30].map(s));
    assert_eq!(waits[7..], [s(30); 993]);

    let mut driver = started(Policy::SUPERVISOR);
    assert_eq!(driver.waits(Life::Exits { after: s(9) - Duration::from_nanos(1) }, 11).len(), 10);
    assert!(matches!(driver.monitor.state(), State::GivenUp { .. }));
}

#[test]
fn supervisor_that_runs_five_minutes_is_forgiven() {
    let mut driver = started(Policy::SUPERVISOR);
    driver.waits(Life::CannotBeExecuted, 10);
    assert_eq!(driver.waits(Life::Exits { after: s(300) }, 2), [1, 1].map(s));
    let waits = driver.waits(Life::CannotBeExecuted, 10);
    assert_eq!(waits.len(), 9, "of ten restarts, one came right after the stable run");
}

#[test]
fn supervisor_that_runs_a_little_less_is_not() {
    let mut driver = started(Policy::SUPERVISOR);
    driver.waits(Life::CannotBeExecuted, 3);
    assert_eq!(driver.waits(Life::Exits { after: s(300) - ms(1) }, 2), [8, 16].map(s));
}

#[test]
fn serving_does_not_forgive_a_supervisor() {
    let mut driver = started(Policy::SUPERVISOR);
    assert_eq!(driver.waits(Life::ServesAndExits { after: s(1) }, 3), [1, 2, 4].map(s));
}

#[test]
fn given_up_starts_afresh_by_request() {
    for policy in [Policy::AGENT, Policy::SUPERVISOR] {
        let mut driver = started(policy);
        while driver.reports.is_empty() {
            driver.live(Life::CannotBeExecuted);
        }
        assert_eq!(driver.tell(Event::StopRequested), Err(Refusal::AlreadyDown));
        let before = driver.spawned.len();
        assert_eq!(driver.must(Event::StartRequested), [Action::Spawn]);
        assert_eq!(driver.monitor.status(driver.now).restarts, 0);
        while driver.reports.len() == 1 {
            driver.live(Life::CannotBeExecuted);
        }
        assert_eq!(driver.spawned.len(), 2 * before);
    }
}

#[test]
fn stop_terminates_then_kills_after_the_grace() {
    let mut driver = started(Policy::SUPERVISOR);
    driver.must(Event::Spawned);
    let kill_at = driver.now + s(10);
    assert_eq!(driver.must(Event::StopRequested), [Action::SignalTerm, Action::ArmTimer(kill_at)]);
    assert_eq!(driver.monitor.next_timer(), Some(kill_at));
    assert_eq!(driver.tell(Event::StartRequested), Err(Refusal::BeingStopped));
    driver.now = kill_at - ms(1);
    assert_eq!(driver.must(Event::TimerFired), [Action::ArmTimer(kill_at)]);
    driver.now = kill_at;
    assert_eq!(driver.must(Event::TimerFired), [Action::SignalKill]);
    assert_eq!(driver.must(Event::TimerFired), []);
    assert!(!driver.monitor.state().is_down());
    assert_eq!(driver.must(Event::Exited), []);
    assert_eq!(driver.monitor.state(), State::Stopped);
    assert_eq!(driver.must(Event::StartRequested), [Action::Spawn]);
}

#[test]
fn stop_that_is_obeyed_sends_no_kill_and_no_restart() {
    let mut driver = started(Policy::SUPERVISOR);
    driver.must(Event::Spawned);
    driver.must(Event::StopRequested);
    driver.wait(s(1));
    assert_eq!(driver.must(Event::Exited), []);
    driver.wait(s(100));
    assert_eq!(driver.must(Event::TimerFired), []);
    assert_eq!(driver.monitor.state(), State::Stopped);
}

#[test]
fn stop_between_order_and_spawn_is_not_lost() {
    let mut driver = started(Policy::AGENT);
    assert_eq!(driver.must(Event::StopRequested), []);
    let kill_at = driver.now + s(10);
    assert_eq!(driver.must(Event::Spawned), [Action::SignalTerm, Action::ArmTimer(kill_at)]);

    let mut driver = started(Policy::AGENT);
    driver.must(Event::StopRequested);
    assert_eq!(driver.must(Event::SpawnFailed), []);
    assert_eq!(driver.monitor.state(), State::Stopped);
}

#[test]
fn stop_during_back_off_leaves_nothing_to_wait_for() {
    let mut driver = started(Policy::SUPERVISOR);
    driver.must(Event::SpawnFailed);
    assert_eq!(driver.monitor.status(driver.now).next_restart, Some(s(1)));
    assert_eq!(driver.must(Event::StopRequested), []);
    assert_eq!(driver.monitor.next_timer(), None);
    driver.wait(s(2));
    assert_eq!(driver.must(Event::TimerFired), []);
}

#[test]
fn exit_that_overtakes_its_spawned_is_not_lost() {
    let mut driver = started(Policy::SUPERVISOR);
    assert_eq!(driver.must(Event::Exited), [Action::ArmTimer(driver.now + s(1))]);
    assert_eq!(driver.tell(Event::Spawned), Err(Refusal::NoSpawnOrdered));
}

#[test]
fn status_tells_state_restarts_and_next_restart() {
    let mut driver = started(Policy::SUPERVISOR);
    driver.waits(Life::CannotBeExecuted, 3);
    driver.must(Event::SpawnFailed);
    driver.wait(s(3));
    let status = driver.monitor.status(driver.now);
    assert_eq!((status.state, status.restarts, status.in_a_row), ("backoff", 3, 3));
    assert_eq!(status.next_restart, Some(s(5)));
    driver.wait(s(6));
    assert_eq!(driver.monitor.status(driver.now).next_restart, Some(s(0)), "overdue");
    driver.must(Event::TimerFired);
    driver.must(Event::Spawned);
    driver.wait(s(299));
    assert_eq!(driver.monitor.status(driver.now).in_a_row, 4);
    driver.wait(s(1));
    let status = driver.monitor.status(driver.now);
    assert_eq!((status.state, status.restarts, status.in_a_row), ("running", 4, 0));
}

#[test]
fn scaled_rule_keeps_counts_and_shrinks_times() {
    let thousandth = NonZeroU32::new(1000).unwrap();
    let policy = Policy::SUPERVISOR.scaled_down(thousandth);
    assert_eq!(policy.reset, Reset::StableRun(ms(300)));
    assert_eq!(policy.limit, Limit::RestartsWithin { restarts: 10, window: ms(300) });
    assert_eq!(policy.grace, ms(10));
    let waits = started(policy).waits(Life::CannotBeExecuted, 11);
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30, 30, 30].map(ms));
}

#[test]
fn delay_never_overflows() {
    for policy in [Policy::AGENT, Policy::SUPERVISOR] {
        assert_eq!(policy.delay(u32::MAX), policy.longest_delay);
        assert_eq!(policy.delay(33), policy.longest_delay);
    }
    let mut driver = started(Policy::SUPERVISOR);
    driver.now = Duration::MAX;
    driver.must(Event::SpawnFailed);
}
