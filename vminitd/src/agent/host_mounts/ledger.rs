//! Which mounts of the Mount service there are, and which are on their way.
//!
//! ```text
//!            begin               made               leave
//! (nothing) ------> Making{before} ---> There{mount} <----> Leaving{mount}
//!     ^               |                   | stale    stays      |
//!     +---- forget ---+                   +-> Making            |
//!     +---- forget ---------------------------------------------+
//! ```
//!
//! Promises: one entry for a place; an entry is there from before its mount is made until after it
//! is gone, in the order in which they were begun; only one call at a time works on a place.
//! Never: looks at the system: what is mounted where is told to it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::agent::task::record::{RecordError, Saved};
use crate::limits::HOST_MOUNTS;

/// A mount as the host asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its type.
    pub kind: String,
    /// Its source.
    pub source: String,
    /// Its options, in their order.
    pub options: Vec<String>,
}

/// All of them, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    spec: Spec,
    /// Below the guest's root.
    place: PathBuf,
    /// How many of the place's last directories were made for it.
    made: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// It is being made; at its place there was (a part of) this mount before.
    Making { before: u64 },
    /// It is this mount.
    There { mount: u64 },
    /// It is being taken away.
    Leaving { mount: u64 },
}

/// What is to be done for a mount that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Nothing: it is there.
    There,
    /// Nothing: another one is there.
    Another,
    /// Ask again when something has been settled.
    Busy,
    /// Nothing: there are too many.
    Full,
    /// It is to be made; an entry says so.
    Make,
}

/// What is to be done for a mount that is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing: there is none.
    Unknown,
    /// Ask again when something has been settled.
    Busy,
    /// Take this mount away, and then so many of its place's last directories.
    Go {
        /// The mount.
        mount: u64,
        /// Directories.
        made: usize,
    },
}

impl Ledger {
    /// A mount is wanted, and `seen` is the mount that its place is on (or the root of) now; so many
    /// of the place's last directories are missing.
    pub fn begin(&mut self, spec: &Spec, place: &Path, seen: u64, missing: usize) -> Begin {
        let found = self.entries.iter().position(|entry| entry.place == place);
        let mut made = missing;
        if let Some(found) = found {
            let entry = &self.entries[found];
            match entry.state {
                State::There { mount } if mount == seen => {
                    return if entry.spec == *spec { Begin::There } else { Begin::Another };
                }
                // Somebody else has taken it away, but not what it lay on.
                State::There { .. } => made = made.max(self.entries.remove(found).made),
                State::Making { .. } | State::Leaving { .. } => return Begin::Busy,
            }
        }
        if self.entries.len() >= HOST_MOUNTS {
            return Begin::Full;
        }
        let (spec, place) = (spec.clone(), place.to_owned());
        let state = State::Making { before: seen };
        self.entries.push(Entry { spec, place, made, state });
        Begin::Make
    }

    /// The mount that was begun is there, as this one.
    pub fn made(&mut self, place: &Path, mount: u64) {
        if let Some(entry) = self.find(place) {
            entry.state = State::There { mount };
        }
    }

    /// A mount is to go.
    pub fn leave(&mut self, place: &Path) -> Leave {
        let Some(entry) = self.find(place) else { return Leave::Unknown };
        match entry.state {
            State::There { mount } => {
                entry.state = State::Leaving { mount };
                Leave::Go { mount, made: entry.made }
            }
            State::Making { .. } | State::Leaving { .. } => Leave::Busy,
        }
    }

    /// It could not go.
    pub fn stays(&mut self, place: &Path) {
        if let Some(entry) = self.find(place)
            && let State::Leaving { mount } = entry.state
        {
            entry.state = State::There { mount };
        }
    }

    /// It is gone, or never came. Directories that were made for it and that others lie in go with the last of these.
    pub fn forget(&mut self, place: &Path) {
        let Some(found) = self.entries.iter().position(|entry| entry.place == place) else {
            return;
        };
        let gone = self.entries.remove(found);
        let left: Vec<&Path> = gone.place.ancestors().take(gone.made).collect();
        for entry in &mut self.entries {
            // Only what lies right above what was made for this one: what is in between is somebody else's.
            let above = entry.place.ancestors().skip(entry.made);
            entry.made += above.take_while(|directory| left.contains(directory)).count();
        }
    }

    /// Where mounts are, in order.
    pub fn places(&self) -> Vec<PathBuf> {
        self.entries.iter().map(|entry| entry.place.clone()).collect()
    }

    /// After an agent's death: what was being made, with what was there before and how many
    /// directories it needed. What was being taken away is there until it is looked for.
    pub fn unsettled(&mut self) -> Vec<(PathBuf, u64, usize)> {
        let mut making = Vec::new();
        for entry in &mut self.entries {
            match entry.state {
                State::Making { before } => making.push((entry.place.clone(), before, entry.made)),
                State::Leaving { mount } => entry.state = State::There { mount },
                State::There { .. } => {}
            }
        }
        making.reverse();
        making
    }

    /// Saves it, or removes what was saved when there is nothing left to tell.
    pub fn keep(&self, directory: &Path) -> Result<(), RecordError> {
        if !self.entries.is_empty() {
            return self.save(directory);
        }
        let path = directory.join(Self::FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(RecordError { verb: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn find(&mut self, place: &Path) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.place == place)
    }
}

impl Saved for Ledger {
    const FILE: &'static str = "mounts.json";
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn spec(kind: u8) -> Spec {
        Spec { kind: kind.to_string(), ..Spec::default() }
    }

    fn place(name: u8) -> PathBuf {
        PathBuf::from(format!("mnt/{name}"))
    }

    #[test]
    fn directories_go_with_the_last_mount_that_lies_in_them() {
        let mut ledger = Ledger::default();
        let places = ["run/x/a", "run/x/b", "run/x/other/c", "elsewhere/d"].map(PathBuf::from);
        // x and a, b, c (somebody else made `other`), elsewhere and d.
        for (place, missing) in places.iter().zip([2, 1, 1, 2]) {
            assert_eq!(ledger.begin(&spec(1), place, 7, missing), Begin::Make);
            ledger.made(place, 8);
        }
        let mut made = |forgotten: usize, left: usize| {
            ledger.forget(&places[forgotten]);
            match ledger.clone().leave(&places[left]) {
                Leave::Go { made, .. } => made,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(made(0, 1), 2, "x goes with b now");
        assert_eq!(made(3, 2), 1, "`other` is no part of it");
        assert_eq!(made(3, 1), 2);
    }

    #[test]
    fn same_mount_is_there_and_another_is_not_made() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.begin(&spec(1), &place(1), 7, 2), Begin::Make);
        assert_eq!(ledger.begin(&spec(1), &place(1), 7, 2), Begin::Busy);
        ledger.made(&place(1), 8);
        assert_eq!(ledger.begin(&spec(1), &place(1), 8, 0), Begin::There);
        assert_eq!(ledger.begin(&spec(2), &place(1), 8, 0), Begin::Another);
        assert_eq!(ledger.begin(&spec(2), &place(1), 7, 0), Begin::Make, "it was taken away");
        assert_eq!(ledger.leave(&place(1)), Leave::Busy);
        ledger.forget(&place(1));
        assert_eq!(ledger.leave(&place(1)), Leave::Unknown);
    }

    #[test]
    fn file_goes_with_the_last_entry() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        ledger.keep(directory.path()).unwrap();
        ledger.begin(&spec(1), &place(1), 0, 0);
        ledger.keep(directory.path()).unwrap();
        assert_eq!(Ledger::load(directory.path()).unwrap(), ledger);
        ledger.forget(&place(1));
        ledger.keep(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn limit_on_mounts_holds() {
        let mut ledger = Ledger::default();
        for count in 0..HOST_MOUNTS {
            let place = PathBuf::from(format!("mnt/{count}"));
            assert_eq!(ledger.begin(&spec(1), &place, 0, 0), Begin::Make);
        }
        assert_eq!(ledger.begin(&spec(1), &place(255).join("x"), 0, 0), Begin::Full);
    }

    /// What happens to a guest of three places.
    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8, u8),
        /// The kernel's part of a begun mount.
        Mount(u8),
        Made(u8),
        Failed(u8),
        Leave(u8),
        /// The kernel's part of a departure.
        Unmount(u8),
        Gone(u8),
        Stays(u8),
        /// Somebody else unmounts it.
        Stolen(u8),
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = 0..3u8;
        prop_oneof![
            4 => (at.clone(), 0..2u8).prop_map(|(at, kind)| Step::Begin(at, kind)),
            4 => at.clone().prop_map(Step::Mount),
            4 => at.clone().prop_map(Step::Made),
            1 => at.clone().prop_map(Step::Failed),
            2 => at.clone().prop_map(Step::Leave),
            2 => at.clone().prop_map(Step::Unmount),
            2 => at.clone().prop_map(Step::Gone),
            1 => at.clone().prop_map(Step::Stays),
            1 => at.prop_map(Step::Stolen),
            1 => Just(Step::Crash),
        ]
    }

    /// The model: what the kernel has at each place, and at what a call is that works on it.
    #[derive(Default)]
    struct Model {
        mounted: HashMap<u8, u64>,
        making: HashMap<u8, u8>,
        there: HashMap<u8, (u8, u64)>,
        leaving: HashMap<u8, (u8, u64)>,
        next: u64,
    }

    const GROUND: u64 = 1;

    proptest! {
        /// Whatever happens in whatever order: no mount is made twice, none is forgotten while it
        /// is there, and after a crash nothing is left of what was not finished.
        #[test]
        fn ledger_knows_every_mount_that_is_there(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut ledger, mut model) = (Ledger::default(), Model { next: 10, ..Model::default() });
            for step in steps {
                match step {
                    Step::Begin(at, kind) => {
                        let seen = model.mounted.get(&at).copied().unwrap_or(GROUND);
                        let wanted = if model.making.contains_key(&at) || model.leaving.contains_key(&at) {
                            Begin::Busy
                        } else if let Some((known, _)) = model.there.get(&at).filter(|(_, id)| *id == seen) {
                            if *known == kind { Begin::There } else { Begin::Another }
                        } else {
                            model.there.remove(&at);
                            model.making.insert(at, kind);
                            Begin::Make
                        };
                        prop_assert_eq!(ledger.begin(&spec(kind), &place(at), seen, 0), wanted);
                    }
                    Step::Mount(at) if model.making.contains_key(&at) && !model.mounted.contains_key(&at) => {
                        model.next += 1;
                        model.mounted.insert(at, model.next);
                    }
                    Step::Made(at) if model.mounted.contains_key(&at) => {
                        if let Some(kind) = model.making.remove(&at) {
                            let id = model.mounted[&at];
                            model.there.insert(at, (kind, id));
                            ledger.made(&place(at), id);
                        }
                    }
                    Step::Failed(at) if model.making.contains_key(&at) && !model.mounted.contains_key(&at) => {
                        model.making.remove(&at);
                        ledger.forget(&place(at));
                    }
                    Step::Leave(at) => {
                        let wanted = if model.making.contains_key(&at) || model.leaving.contains_key(&at) {
                            Leave::Busy
                        } else if let Some((kind, mount)) = model.there.remove(&at) {
                            model.leaving.insert(at, (kind, mount));
                            Leave::Go { mount, made: 0 }
                        } else {
                            Leave::Unknown
                        };
                        prop_assert_eq!(ledger.leave(&place(at)), wanted);
                    }
                    Step::Unmount(at) if model.leaving.contains_key(&at) => {
                        model.mounted.remove(&at);
                    }
                    Step::Gone(at) if !model.mounted.contains_key(&at) && model.leaving.remove(&at).is_some() => {
                        ledger.forget(&place(at));
                    }
                    Step::Stays(at) if model.mounted.contains_key(&at) => {
                        if let Some(entry) = model.leaving.remove(&at) {
                            model.there.insert(at, entry);
                            ledger.stays(&place(at));
                        }
                    }
                    Step::Stolen(at) if model.there.contains_key(&at) => {
                        model.mounted.remove(&at);
                    }
                    Step::Crash => {
                        // What is saved is what a new agent reads.
                        let json = serde_json::to_string(&ledger).unwrap();
                        ledger = serde_json::from_str(&json).unwrap();
                        for (path, before, _) in ledger.unsettled() {
                            let at = (0..3).find(|at| place(*at) == path).unwrap();
                            prop_assert!(model.making.remove(&at).is_some());
                            prop_assert_eq!(before, GROUND);
                            // As `Work::undo`: what is not what was before, is ours.
                            model.mounted.remove(&at);
                            ledger.forget(&path);
                        }
                        prop_assert!(model.making.is_empty());
                        model.there.extend(model.leaving.drain());
                    }
                    _ => {}
                }
                for at in 0..3 {
                    let known = model.making.contains_key(&at)
                        || model.there.contains_key(&at)
                        || model.leaving.contains_key(&at);
                    prop_assert_eq!(ledger.places().contains(&place(at)), known);
                    prop_assert!(known || !model.mounted.contains_key(&at), "a mount is forgotten");
                }
            }
        }
    }
}
