//! Asks the running kernel for what its configuration would say, where there is none to read.
//! Promises: nothing is opened for writing, mounted or made. Never: guesses; what no file tells is not known.

use std::fs;
use std::path::Path;

use super::Found;

/// How the kernel can be asked for an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A filesystem of this name is in /proc/filesystems.
    Filesystem(&'static str),
    /// There is such a path.
    Path(&'static str),
    /// There is no such path.
    NoPath(&'static str),
    /// A cgroup controller of this name can be had.
    Controller(&'static str),
    /// There is no way.
    None,
}

/// Finds out.
pub fn ask(probe: Probe) -> Found {
    let has = |there: bool| if there { Found::Good } else { Found::Lacking("is not there") };
    match probe {
        Probe::Filesystem(name) => match fs::read_to_string("/proc/filesystems") {
            Ok(list) => has(list.lines().any(|line| line.split('\t').next_back() == Some(name))),
            Err(_) => Found::Unknown,
        },
        Probe::Path(path) => has(Path::new(path).exists()),
        Probe::NoPath(path) if Path::new(path).exists() => Found::Lacking("is there"),
        Probe::NoPath(_) => Found::Good,
        Probe::Controller(name) => match fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
            Ok(list) => has(list.split_whitespace().any(|controller| controller == name)),
            Err(_) => Found::Unknown,
        },
        Probe::None => Found::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_linux_has_is_found_and_what_none_has_is_not() {
        assert_eq!(ask(Probe::Filesystem("proc")), Found::Good);
        assert_eq!(ask(Probe::Filesystem("no-such")), Found::Lacking("is not there"));
        assert_eq!(ask(Probe::Path("/proc/self/ns/uts")), Found::Good);
        assert_eq!(ask(Probe::Path("/proc/no-such")), Found::Lacking("is not there"));
        assert_eq!(ask(Probe::NoPath("/proc/no-such")), Found::Good);
        assert_eq!(ask(Probe::None), Found::Unknown);
    }
}
