//! Filters that were compiled before.
//!
//! Owns: the last [`SECCOMP_PROFILES`] profiles and their programs. Containers of one host mostly
//! share one profile.
//! Promises: a profile that compares equal gets the program that it got before.
//! Never: holds its lock while something is compiled, so two at once may compile the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxSeccomp;

use super::seccomp::{self, SeccompError};
use crate::limits::SECCOMP_PROFILES;
use crate::link::confinement::Filter;

/// See the module.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    profile: LinuxSeccomp,
    filter: Arc<Filter>,
}

impl Cache {
    /// The program for a profile; see [`seccomp::compile`]. For a thread that may block: some milliseconds.
    pub fn filter(&self, profile: LinuxSeccomp) -> Result<Arc<Filter>, SeccompError> {
        if let Some(filter) = self.find(&profile) {
            return Ok(filter);
        }
        let filter = Arc::new(seccomp::compile(&profile)?);
        let mut entries = self.lock();
        entries.insert(0, Entry { profile, filter: filter.clone() });
        entries.truncate(SECCOMP_PROFILES);
        Ok(filter)
    }

    /// What was used last comes first, so that what goes is what was not used for longest.
    fn find(&self, profile: &LinuxSeccomp) -> Option<Arc<Filter>> {
        let mut entries = self.lock();
        let at = entries.iter().position(|entry| entry.profile == *profile)?;
        entries[..=at].rotate_right(1);
        Some(entries[0].filter.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":
                [{{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":{errno}}}]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn equal_profiles_share_a_program_and_others_do_not() {
        let cache = Cache::default();
        let first = cache.filter(profile(1)).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.filter(profile(1)).unwrap()));
        assert_ne!(first, cache.filter(profile(2)).unwrap());
    }

    #[test]
    fn profile_that_was_not_used_for_longest_goes_first() {
        let cache = Cache::default();
        let (kept, gone) = (cache.filter(profile(1)).unwrap(), cache.filter(profile(2)).unwrap());
        for errno in 3..=SECCOMP_PROFILES as u32 + 1 {
            cache.filter(profile(1)).unwrap();
            cache.filter(profile(errno)).unwrap();
        }
        assert_eq!(cache.lock().len(), SECCOMP_PROFILES);
        assert!(Arc::ptr_eq(&kept, &cache.filter(profile(1)).unwrap()));
        assert!(!Arc::ptr_eq(&gone, &cache.filter(profile(2)).unwrap()));
    }
}
