//! Safe keeping: descriptors that must outlive the agent.
//!
//! Owns: the descriptors, until they are released.
//! Promises: what was kept is handed out again unchanged and in order; a release closes exactly
//! what its key has.
//! Never: keeps more than [`KEPT_FDS`] descriptors; knows what they are.

use std::collections::BTreeMap;

use crate::limits::{KEPT_FDS, KEPT_NAME_BYTES};

/// Named descriptors by key. `F` is a descriptor.
#[derive(Debug)]
pub struct Keep<F> {
    by_key: BTreeMap<String, Vec<(String, F)>>,
    count: usize,
}

/// Why descriptors were not kept; they are closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The agent's names and descriptors do not match.
    #[error("{names} names for {fds} descriptors under {key:?}")]
    Mismatch {
        /// The key.
        key: String,
        /// Names.
        names: usize,
        /// Descriptors.
        fds: usize,
    },
    /// A key or a name is too long.
    #[error("a name of {0} bytes is too long")]
    NameTooLong(usize),
    /// There are too many.
    #[error("{KEPT_FDS} descriptors are kept already")]
    Full,
}

impl<F> Keep<F> {
    /// Empty.
    pub fn new() -> Keep<F> {
        Keep { by_key: BTreeMap::new(), count: 0 }
    }

    /// Takes descriptors, in addition to those that the key has.
    pub fn add(&mut self, key: String, names: Vec<String>, fds: Vec<F>) -> Result<(), Refusal> {
        if names.len() != fds.len() {
            return Err(Refusal::Mismatch { key, names: names.len(), fds: fds.len() });
        }
        let longest = names.iter().map(String::len).max().unwrap_or(0).max(key.len());
        if longest > KEPT_NAME_BYTES {
            return Err(Refusal::NameTooLong(longest));
        }
        if self.count + fds.len() > KEPT_FDS {
            return Err(Refusal::Full);
        }
        self.count += fds.len();
        self.by_key.entry(key).or_default().extend(names.into_iter().zip(fds));
        Ok(())
    }

    /// Gives up what the key has; dropping it closes it.
    pub fn release(&mut self, key: &str) -> Vec<(String, F)> {
        let released = self.by_key.remove(key).unwrap_or_default();
        self.count -= released.len();
        released
    }

    /// All keys with what they have.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[(String, F)])> {
        self.by_key.iter().map(|(key, kept)| (key.as_str(), kept.as_slice()))
    }
}

impl<F> Default for Keep<F> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_descriptor_that_fits_is_kept_and_the_next_refused() {
        let mut keep = Keep::new();
        for number in 0..KEPT_FDS {
            keep.add(format!("k{number}"), vec!["fd".into()], vec![number]).unwrap();
        }
        assert_eq!(keep.add("more".into(), vec!["fd".into()], vec![0]), Err(Refusal::Full));
        keep.release("k7");
        keep.add("more".into(), vec!["fd".into()], vec![0]).unwrap();
    }

    #[test]
    fn names_must_match_and_be_short() {
        let mut keep = Keep::new();
        let long = "x".repeat(KEPT_NAME_BYTES);
        keep.add(long.clone(), vec![long.clone()], vec![1]).unwrap();
        let longer = format!("{long}x");
        let length = longer.len();
        assert_eq!(keep.add(longer, vec![], vec![]), Err(Refusal::NameTooLong(length)));
        let mismatch = Refusal::Mismatch { key: "a".into(), names: 0, fds: 1 };
        assert_eq!(keep.add("a".into(), vec![], vec![1]), Err(mismatch));
    }

    proptest! {
        /// The model: a flat list of (key, name, descriptor).
        #[test]
        fn what_is_kept_is_handed_out_again(
            steps in proptest::collection::vec((0..4u8, proptest::option::of(0..4usize)), 0..60),
        ) {
            let mut keep = Keep::new();
            let mut model: Vec<(String, String, usize)> = Vec::new();
            let mut next = 0;
            for (key, adds) in steps {
                let key = format!("k{key}");
                match adds {
                    Some(count) => {
                        let fds: Vec<usize> = (next..next + count).collect();
                        next += count;
                        let names: Vec<String> = fds.iter().map(|fd| format!("n{fd}")).collect();
                        model.extend(fds.iter().map(|fd| (key.clone(), format!("n{fd}"), *fd)));
                        keep.add(key, names, fds).unwrap();
                    }
                    None => {
                        let released = keep.release(&key);
                        let expected: Vec<_> = model
                            .extract_if(.., |(of, _, _)| *of == key)
                            .map(|(_, name, fd)| (name, fd))
                            .collect();
                        prop_assert_eq!(released, expected);
                    }
                }
                let mut kept: Vec<_> = keep
                    .iter()
                    .flat_map(|(key, fds)| fds.iter().map(|(name, fd)| (key.to_string(), name.clone(), *fd)))
                    .collect();
                kept.sort_by_key(|(_, _, fd)| *fd);
                prop_assert_eq!(&kept, &model);
            }
        }
    }
}
