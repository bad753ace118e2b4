//! Processes: what was launched, how it ended, and who has been told.
//!
//! Owns: for each launched process its name and what is held for it (pidfd, pty master), and the
//! exits that the agent has not acknowledged.
//! Promises: each process's exit is reported once, numbered in the order of death, and kept over
//! any number of agents until one acknowledges it. A pid names a process only from its launch to
//! its exit, so a recycled pid never meets a dead process's record.
//! Never: touches the system; exits and launches are told to it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::link::message::{Exit, ProcessHandle, RequestId, Target};

/// The table. `H` is what is held for each process.
#[derive(Debug)]
pub struct Processes<H> {
    next_handle: ProcessHandle,
    next_exit: u64,
    known: BTreeMap<ProcessHandle, Process<H>>,
    /// Of those that live, forgotten ones too: their exit is nobody else's.
    alive: HashMap<i32, ProcessHandle>,
    unacknowledged: VecDeque<Exit>,
}

/// A launched process that nobody has told init to forget.
#[derive(Debug)]
pub struct Process<H> {
    /// The request that launched it.
    pub request: RequestId,
    /// Which container's or exec's.
    pub target: Target,
    /// In the root pid namespace.
    pub pid: i32,
    /// Closed when it is forgotten.
    pub held: H,
}

/// Whose exit it was.
#[derive(Debug, PartialEq, Eq)]
pub enum Reported {
    /// A launched process's; the agent is to be told.
    Exit(Exit),
    /// A launched process's that the agent has told to forget.
    Forgotten,
    /// None that was launched.
    Unknown,
}

impl<H> Processes<H> {
    /// None yet.
    pub fn new() -> Processes<H> {
        Processes {
            next_handle: 1,
            next_exit: 1,
            known: BTreeMap::new(),
            alive: HashMap::new(),
            unacknowledged: VecDeque::new(),
        }
    }

    /// A launcher named its process, which has not been reaped.
    pub fn launched(&mut self, process: Process<H>) -> ProcessHandle {
        let handle = self.next_handle;
        self.next_handle += 1;
        self.alive.insert(process.pid, handle);
        self.known.insert(handle, process);
        handle
    }

    /// Whether an exit with this pid is that of a launched process.
    pub fn is_launched(&self, pid: i32) -> bool {
        self.alive.contains_key(&pid)
    }

    /// A child was reaped.
    pub fn exited(&mut self, pid: i32, status: u32, at: (i64, u32)) -> Reported {
        let Some(process) = self.alive.remove(&pid) else { return Reported::Unknown };
        if !self.known.contains_key(&process) {
            return Reported::Forgotten;
        }
        let exit = Exit { number: self.next_exit, process, pid, status, at };
        self.next_exit += 1;
        self.unacknowledged.push_back(exit.clone());
        Reported::Exit(exit)
    }

    /// The agent has recorded all exits up to this number.
    pub fn acknowledge(&mut self, number: u64) {
        while self.unacknowledged.front().is_some_and(|exit| exit.number <= number) {
            self.unacknowledged.pop_front();
        }
    }

    /// The agent no longer wants to hear of it. Returns what was held.
    pub fn forget(&mut self, handle: ProcessHandle) -> Option<H> {
        self.unacknowledged.retain(|exit| exit.process != handle);
        self.known.remove(&handle).map(|process| process.held)
    }

    /// One that is not forgotten.
    pub fn get(&self, handle: ProcessHandle) -> Option<&Process<H>> {
        self.known.get(&handle)
    }

    /// All that is not forgotten, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessHandle, &Process<H>)> {
        self.known.iter().map(|(handle, process)| (*handle, process))
    }

    /// The exits that the next agent has to be told, in order.
    pub fn unacknowledged(&self) -> impl Iterator<Item = &Exit> {
        self.unacknowledged.iter()
    }
}

impl<H> Default for Processes<H> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(pid: i32) -> Process<i32> {
        let target = Target { container: format!("c{pid}"), exec: String::new() };
        Process { request: 1, target, pid, held: pid }
    }

    #[test]
    fn exit_of_a_recycled_pid_is_the_new_processs() {
        let mut processes = Processes::new();
        let first = processes.launched(process(7));
        processes.exited(7, 0, (0, 0));
        assert_eq!(processes.exited(7, 0, (0, 0)), Reported::Unknown);
        let second = processes.launched(process(7));
        assert_ne!(first, second);
        let Reported::Exit(exit) = processes.exited(7, 3, (0, 0)) else { panic!("not reported") };
        assert_eq!((exit.process, exit.number, exit.status), (second, 2, 3));
    }

    #[test]
    fn forgotten_process_exits_unheard() {
        let mut processes = Processes::new();
        let handle = processes.launched(process(7));
        assert_eq!(processes.forget(handle), Some(7));
        assert!(processes.is_launched(7));
        assert_eq!(processes.exited(7, 0, (0, 0)), Reported::Forgotten);
        assert_eq!(processes.unacknowledged().count(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Launch(i32),
        Exit(i32),
        Acknowledge(u64),
        Forget(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..6i32).prop_map(Step::Launch),
            (1..6i32).prop_map(Step::Exit),
            (0..20u64).prop_map(Step::Acknowledge),
            (0..20u64).prop_map(Step::Forget),
        ]
    }

    proptest! {
        /// The model: a list of all processes ever, each with its three facts.
        #[test]
        fn every_exit_is_kept_until_acknowledged_or_forgotten(steps in proptest::collection::vec(step(), 0..200)) {
            #[derive(Default)]
            struct Life { handle: u64, pid: i32, exit: Option<u64>, dead: bool, forgotten: bool }
            let mut lives: Vec<Life> = Vec::new();
            let (mut deaths, mut acknowledged) = (0, 0);
            let mut processes = Processes::new();
            for step in steps {
                match step {
                    Step::Launch(pid) => {
                        // The kernel gives no pid twice while its process is not reaped.
                        if !lives.iter().any(|life| life.pid == pid && !life.dead) {
                            let handle = processes.launched(process(pid));
                            lives.push(Life { handle, pid, ..Life::default() });
                        }
                    }
                    Step::Exit(pid) => {
                        let reported = processes.exited(pid, 0, (0, 0));
                        match lives.iter_mut().find(|life| life.pid == pid && !life.dead) {
                            None => prop_assert_eq!(reported, Reported::Unknown),
                            Some(life) => {
                                life.dead = true;
                                if life.forgotten {
                                    prop_assert_eq!(reported, Reported::Forgotten);
                                } else {
                                    deaths += 1;
                                    life.exit = Some(deaths);
                                    let is_it = matches!(reported, Reported::Exit(exit)
                                        if exit.number == deaths && exit.process == life.handle);
                                    prop_assert!(is_it);
                                }
                            }
                        }
                    }
                    Step::Acknowledge(number) => {
                        acknowledged = acknowledged.max(number.min(deaths));
                        processes.acknowledge(number.min(deaths));
                    }
                    Step::Forget(handle) => {
                        processes.forget(handle);
                        for life in lives.iter_mut().filter(|life| life.handle == handle) {
                            life.forgotten = true;
                        }
                    }
                }
                let mut open: Vec<u64> = lives
                    .iter()
                    .filter(|life| !life.forgotten)
                    .filter_map(|life| life.exit)
                    .filter(|number| *number > acknowledged)
                    .collect();
                open.sort_unstable();
                let told: Vec<u64> = processes.unacknowledged().map(|exit| exit.number).collect();
                prop_assert_eq!(told, open);
                let known = lives.iter().filter(|life| !life.forgotten).count();
                prop_assert_eq!(processes.iter().count(), known);
            }
        }
    }
}
