//! Random lives under random news, beside a witness that knows the rules in another form.
//! How it proves its point: the witness keeps the whole history since a start was requested (the monitor: ten times at most),
//! takes its waits from a table, and judges each answer. Timers fire early, late, twice and for nothing; events come that cannot be.

use std::time::Duration;

use proptest::prelude::*;
use supervisor_monitor::{Action, Event, GaveUp, Monitor, Policy, Refusal, State};

const EVENTS: [Event; 7] = [
    Event::StartRequested,
    Event::Spawned,
    Event::SpawnFailed,
    Event::Serving,
    Event::Exited,
    Event::TimerFired,
    Event::StopRequested,
];

/// One of the two rules, written down as a list of waits.
#[derive(Clone, Copy)]
struct Rule {
    policy: Policy,
    waits_ms: &'static [u64],
    /// Forgives: having said that it serves, or having run this long.
    stable: Option<Duration>,
    /// At most that many restarts in that time; else ten starts without serving.
    window: Option<Duration>,
}

const AGENT: Rule = Rule {
    policy: Policy::AGENT,
    waits_ms: &[0, 100, 200, 400, 800, 1600, 3200, 5000],
    stable: None,
    window: None,
};

const SUPERVISOR: Rule = Rule {
    policy: Policy::SUPERVISOR,
    waits_ms: &[1000, 2000, 4000, 8000, 16_000, 30_000],
    stable: Some(Duration::from_secs(300)),
    window: Some(Duration::from_secs(300)),
};

/// For both rules.
const TEN: usize = 10;
const GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
enum Step {
    /// Any event, likely or not.
    Any { event: Event, wait: Duration },
    /// The timer that is armed, so much late.
    Timer { late: Duration },
    /// What a process may do next, whatever the state is.
    Crash { after: Duration, serves: bool, spawns: bool },
}

fn wait() -> impl Strategy<Value = Duration> {
    let ms = prop_oneof![
        4 => Just(0),
        4 => 0u64..200,
        4 => 200u64..40_000,
        2 => 290_000u64..310_000,
        1 => 0u64..4_000_000,
    ];
    ms.prop_map(Duration::from_millis)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (proptest::sample::select(&EVENTS[..]), wait()).prop_map(|(event, wait)| Step::Any { event, wait }),
        4 => prop_oneof![3 => Just(Duration::ZERO), 1 => wait()].prop_map(|late| Step::Timer { late }),
        6 => (prop_oneof![2 => Just(Duration::ZERO), 1 => wait()], prop::bool::weighted(0.1), prop::bool::weighted(0.8))
            .prop_map(|(after, serves, spawns)| Step::Crash { after, serves, spawns }),
    ]
}

/// What the process is, by what was ordered and told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Process {
    None,
    Ordered,
    Alive { since: Duration },
}

struct Witness {
    rule: Rule,
    process: Process,
    /// A stop was asked for, and no start since.
    stopped: bool,
    given_up: bool,
    /// Restart that was promised.
    due: Option<Duration>,
    kill_due: Option<Duration>,
    /// Since a start was requested: all restarts, and how many of them are forgiven.
    restarts: Vec<Duration>,
    forgiven: usize,
    unserved: usize,
}

impl Witness {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            process: Process::None,
            stopped: true,
            given_up: false,
            due: None,
            kill_due: None,
            restarts: vec![],
            forgiven: 0,
            unserved: 0,
        }
    }

    /// Whether the event can be at all.
    fn accepts(&self, event: Event) -> bool {
        let down = self.process == Process::None && self.due.is_none();
        match event {
            Event::StartRequested => down,
            Event::StopRequested => !down && !self.stopped,
            Event::Spawned | Event::SpawnFailed => self.process == Process::Ordered,
            Event::Serving => matches!(self.process, Process::Alive { .. }),
            Event::Exited => self.process != Process::None,
            Event::TimerFired => true,
        }
    }

    /// What must be answered.
    fn expect(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::StartRequested => {
                let rule = self.rule;
                *self = Self {
                    stopped: false,
                    unserved: 1,
                    process: Process::Ordered,
                    ..Self::new(rule)
                };
                vec![Action::Spawn]
            }
            Event::Spawned => {
                self.process = Process::Alive { since: now };
                if self.stopped { self.terminate(now) } else { vec![] }
            }
            Event::SpawnFailed | Event::Exited => self.ended(now),
            Event::Serving => {
                if !self.stopped {
                    self.unserved = 0;
                    if self.rule.stable.is_none() {
                        self.forgiven = self.restarts.len();
                    }
                }
                vec![]
            }
            Event::TimerFired => self.timer(now),
            Event::StopRequested => {
                self.stopped = true;
                self.due = None;
                match self.process {
                    Process::Alive { .. } => self.terminate(now),
                    Process::None | Process::Ordered => vec![],
                }
            }
        }
    }

    fn terminate(&mut self, now: Duration) -> Vec<Action> {
        self.kill_due = Some(now + GRACE);
        vec![Action::SignalTerm, Action::ArmTimer(now + GRACE)]
    }

    fn timer(&mut self, now: Duration) -> Vec<Action> {
        if let Some(due) = self.due {
            if now < due {
                return vec![Action::ArmTimer(due)];
            }
            return self.restart(now);
        }
        match self.kill_due {
            Some(due) if now < due => vec![Action::ArmTimer(due)],
            Some(_) => {
                self.kill_due = None;
                vec![Action::SignalKill]
            }
            None => vec![],
        }
    }

    fn restart(&mut self, now: Duration) -> Vec<Action> {
        self.due = None;
        self.restarts.push(now);
        self.unserved += 1;
        self.process = Process::Ordered;
        vec![Action::Spawn]
    }

    fn ended(&mut self, now: Duration) -> Vec<Action> {
        let ran = match self.process {
            Process::Alive { since } => now - since,
            Process::None | Process::Ordered => Duration::ZERO,
        };
        self.process = Process::None;
        self.kill_due = None;
        if self.stopped {
            return vec![];
        }
        if self.rule.stable.is_some_and(|stable| ran >= stable) {
            self.forgiven = self.restarts.len();
        }
        let row = self.restarts.len() - self.forgiven;
        let waits = self.rule.waits_ms;
        let wait = Duration::from_millis(waits[row.min(waits.len() - 1)]);
        let why = match self.rule.window {
            None if self.unserved == TEN => Some(GaveUp::NeverServed { starts: TEN as u32 }),
            None => None,
            Some(window) => {
                let recent = self.restarts.iter().filter(|at| **at + window > now + wait);
                let restarts = TEN as u32;
                (recent.count() == TEN).then_some(GaveUp::TooManyRestarts { restarts, window })
            }
        };
        if let Some(why) = why {
            self.given_up = true;
            return vec![Action::ReportGivenUp { why }];
        }
        if wait.is_zero() {
            return self.restart(now);
        }
        self.due = Some(now + wait);
        vec![Action::ArmTimer(now + wait)]
    }
}

struct World {
    monitor: Monitor,
    witness: Witness,
    now: Duration,
}

impl World {
    fn tell(&mut self, event: Event) -> Result<(), TestCaseError> {
        let before = self.monitor.state();
        let accepted = self.witness.accepts(event);
        let answer = self.monitor.handle(event, self.now);
        match answer {
            Ok(actions) => {
                prop_assert!(accepted, "{event:?} in {before:?} was taken");
                let actions: Vec<_> = actions.into_iter().collect();
                let expected = self.witness.expect(event, self.now);
                prop_assert_eq!(actions, expected, "{:?} in {:?} at {:?}", event, before, self.now);
            }
            Err(reason) => {
                prop_assert!(!accepted, "{event:?} in {before:?} was refused: {reason}");
                prop_assert_eq!(self.monitor.state(), before);
            }
        }
        self.check()
    }

    /// What holds after each event.
    fn check(&self) -> Result<(), TestCaseError> {
        let (monitor, witness) = (&self.monitor, &self.witness);
        prop_assert_eq!(monitor.next_timer(), witness.due.or(witness.kill_due));
        let given_up = matches!(monitor.state(), State::GivenUp { .. });
        prop_assert_eq!(given_up, witness.given_up);
        let down = witness.process == Process::None && witness.due.is_none();
        prop_assert_eq!(monitor.state().is_down(), down);
        let status = monitor.status(self.now);
        prop_assert_eq!(status.restarts as usize, witness.restarts.len());
        // The promise itself, over the whole history: any eleven restarts span the window at least.
        if let Some(window) = witness.rule.window {
            for eleven in witness.restarts.windows(TEN + 1) {
                prop_assert!(eleven[TEN] - eleven[0] >= window, "{eleven:?}");
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Any { event, wait } => {
                self.now += wait;
                self.tell(event)
            }
            Step::Timer { late } => {
                self.now = self.monitor.next_timer().unwrap_or(self.now).max(self.now) + late;
                self.tell(Event::TimerFired)
            }
            Step::Crash { after, serves, spawns } => {
                if !spawns {
                    return self.tell(Event::SpawnFailed);
                }
                self.tell(Event::Spawned)?;
                if serves {
                    self.tell(Event::Serving)?;
                }
                self.now += after;
                self.tell(Event::Exited)
            }
        }
    }
}

fn run(rule: Rule, steps: &[Step]) -> Result<World, TestCaseError> {
    let monitor = Monitor::new(rule.policy);
    let mut world = World { monitor, witness: Witness::new(rule), now: Duration::from_secs(7) };
    world.tell(Event::StartRequested)?;
    for step in steps {
        world.step(step)?;
    }
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agent_rule_holds_for_any_history(steps in prop::collection::vec(step(), 0..120)) {
        run(AGENT, &steps)?;
    }

    #[test]
    fn supervisor_rule_holds_for_any_history(steps in prop::collection::vec(step(), 0..120)) {
        run(SUPERVISOR, &steps)?;
    }

    #[test]
    fn given_up_is_final_until_a_start_is_requested(news in prop::collection::vec((1usize..7, wait()), 0..60)) {
        for rule in [AGENT, SUPERVISOR] {
            let crash = Step::Crash { after: Duration::ZERO, serves: false, spawns: true };
            let steps = vec![[crash, Step::Timer { late: Duration::ZERO }]; 11].concat();
            let mut world = run(rule, &steps)?;
            let end = world.monitor.state();
            let given_up = matches!(end, State::GivenUp { .. });
            prop_assert!(given_up, "{end:?}");
            for (event, wait) in &news {
                world.now += *wait;
                // 1..7: all but StartRequested.
                let answer = world.monitor.handle(EVENTS[*event], world.now);
                prop_assert_eq!(answer.map(|actions| actions.into_iter().count()).unwrap_or(0), 0);
                prop_assert_eq!(world.monitor.state(), end);
            }
            world.tell(Event::StartRequested)?;
        }
    }
}

/// The table in the monitor's doc, cell by cell: whether the pair is taken, and if not, why.
#[test]
fn table_is_as_documented() {
    use {Event as E, Refusal as R};
    /// A state's name, the events that lead there, and what each of EVENTS is answered with there; `None`: it is taken.
    type Row = (&'static str, &'static [Event], [Option<Refusal>; 7]);

    let order = Some(R::NoSpawnOrdered);
    let process = Some(R::NoProcess);
    let up = Some(R::AlreadyStarted);
    let stopping = Some(R::BeingStopped);
    let down = Some(R::AlreadyDown);
    let table: [Row; 10] = [
        ("Idle", &[], [None, order, order, process, process, None, down]),
        ("Starting", &[E::StartRequested], [up, None, None, process, None, None, None]),
        (
            "StartCancelled",
            &[E::StartRequested, E::StopRequested],
            [stopping, None, None, process, None, None, stopping],
        ),
        ("Running", &[E::StartRequested, E::Spawned], [up, order, order, None, None, None, None]),
        (
            "Serving",
            &[E::StartRequested, E::Spawned, E::Serving],
            [up, order, order, None, None, None, None],
        ),
        (
            "Backoff",
            &[E::StartRequested, E::SpawnFailed],
            [up, order, order, process, process, None, None],
        ),
        (
            "Stopping",
            &[E::StartRequested, E::Spawned, E::StopRequested],
            [stopping, order, order, None, None, None, stopping],
        ),
        (
            "Killed",
            &[E::StartRequested, E::Spawned, E::StopRequested, E::TimerFired],
            [stopping, order, order, None, None, None, stopping],
        ),
        ("GivenUp", &[E::StartRequested], [None, order, order, process, process, None, down]),
        (
            "Stopped",
            &[E::StartRequested, E::SpawnFailed, E::StopRequested],
            [None, order, order, process, process, None, down],
        ),
    ];
    for (name, path, answers) in table {
        let mut monitor = Monitor::new(SUPERVISOR.policy);
        let mut now = Duration::ZERO;
        for event in path {
            now = monitor.next_timer().unwrap_or(now);
            let _ = monitor.handle(*event, now).unwrap();
        }
        while name == "GivenUp" && monitor.next_timer().is_none() && !monitor.state().is_down() {
            let _ = monitor.handle(Event::SpawnFailed, now).unwrap();
            if let Some(at) = monitor.next_timer() {
                now = at;
                let _ = monitor.handle(Event::TimerFired, now).unwrap();
            }
        }
        let state = format!("{:?}", monitor.state());
        assert!(state.starts_with(name), "{state} instead of {name}");
        for (event, answer) in EVENTS.into_iter().zip(answers) {
            let told = monitor.clone().handle(event, now);
            assert_eq!(told.err(), answer, "{event:?} in {name}");
        }
    }
}
