//! The environment of this process, see environ(7).

/// Replaces the whole environment.
///
/// To be called while this process has one thread: reading the environment elsewhere at the same
/// time is undefined. PID 1 has never more.
pub fn replace(variables: &[(&str, &str)]) {
    let old: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in old {
        // SAFETY: there is one thread, see above.
        unsafe { std::env::remove_var(name) };
    }
    for (name, value) in variables {
        // SAFETY: there is one thread, see above.
        unsafe { std::env::set_var(name, value) };
    }
}
