//! Carries a plan out on a cgroup.
//!
//! Promises: on a failure every file is as it was before, as far as the kernel lets us, and the
//! error says what is not; values that are valid in one order only (a burst and its quota, a weight
//! and the idle class) are found that order.
//! Never: makes a file: one that no controller offers is an error.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::plan::{How, Write};

/// The kernel refused a write.
#[derive(Debug, thiserror::Error)]
#[error("{field}: write {value:?} to {file}{}", still(.left))]
pub struct Refused {
    /// The field, as it stands in the spec.
    pub field: &'static str,
    /// What was written.
    pub value: String,
    /// Where.
    pub file: String,
    /// Files that could not be put back as they were.
    pub left: Vec<String>,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

fn still(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!(" ({} stay changed)", left.join(", ")) }
}

/// What was done, and can be undone.
#[derive(Debug)]
#[must_use = "to be kept or undone"]
pub struct Applied {
    path: PathBuf,
    done: Vec<Undo>,
}

/// How to put one file back.
#[derive(Debug)]
struct Undo {
    file: String,
    lines: Vec<String>,
}

/// Carries a plan out on the cgroup at `path`.
pub fn apply(path: &Path, plan: &[Write]) -> Result<Applied, Refused> {
    let mut applied = Applied { path: path.to_owned(), done: vec![] };
    let mut later = vec![];
    for write in plan {
        match applied.carry_out(write) {
            Err(error) if needs_another_first(write, &error) => later.push(write),
            done => applied.unless(write, done)?,
        }
    }
    for write in later {
        let done = applied.carry_out(write);
        applied.unless(write, done)?;
    }
    Ok(applied)
}

/// Such a refusal may be one of the order only: a quota below the burst that is still there, or a
/// weight while the group is still idle.
fn needs_another_first(write: &Write, error: &io::Error) -> bool {
    write.file.starts_with("cpu.") && error.raw_os_error() == Some(libc::EINVAL)
}

impl Applied {
    /// Puts everything back; returns the files with which that did not work.
    pub fn undo(&mut self) -> Vec<String> {
        let mut left = vec![];
        let mut later = vec![];
        for undo in std::mem::take(&mut self.done).into_iter().rev() {
            if self.put_back(&undo).is_err() {
                later.push(undo);
            }
        }
        for undo in later {
            if self.put_back(&undo).is_err() && !left.contains(&undo.file) {
                left.push(undo.file);
            }
        }
        left
    }

    fn put_back(&self, undo: &Undo) -> io::Result<()> {
        undo.lines.iter().try_for_each(|line| put(&self.path.join(&undo.file), line))
    }

    fn unless(&mut self, write: &Write, done: io::Result<()>) -> Result<(), Refused> {
        done.map_err(|source| Refused {
            field: write.field,
            value: write.value.clone(),
            file: write.file.clone(),
            left: self.undo(),
            source,
        })
    }

    fn carry_out(&mut self, write: &Write) -> io::Result<()> {
        let file = self.path.join(&write.file);
        match write.how {
            How::Plain => self.change(&write.file, &write.value),
            How::UnlessAbsent => match self.change(&write.file, &write.value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            },
            How::KeepFirstWord => {
                let current = fs::read_to_string(&file)?;
                let first = current.split_whitespace().next().unwrap_or("max");
                self.change(&write.file, &format!("{first} {}", write.value))
            }
            How::BlockWeight => {
                const BFQ: &str = "io.bfq.weight";
                if self.path.join(BFQ).exists() {
                    return self.change(BFQ, &write.value);
                }
                let (device, weight) = match write.value.rsplit_once(' ') {
                    Some((device, weight)) => (format!("{device} "), weight),
                    None => (String::new(), &*write.value),
                };
                let weight: u64 = weight.parse().map_err(io::Error::other)?;
                let weight = 1 + weight.saturating_sub(10) * 9999 / 990;
                self.change(&write.file, &format!("{device}{weight}"))
            }
            How::Check => {
                let current = fs::read_to_string(&file)?;
                let (current, limit) = (current.trim().parse::<u64>(), write.value.parse::<u64>());
                match (current, limit) {
                    (Ok(current), Ok(limit)) if current > limit => Err(io::Error::other(format!(
                        "{current} bytes are in use already (checkBeforeUpdate)"
                    ))),
                    _ => Ok(()),
                }
            }
        }
    }

    fn change(&mut self, file: &str, value: &str) -> io::Result<()> {
        let path = self.path.join(file);
        // A file that can only be written (memory.reclaim) has nothing to go back to.
        let before = fs::read_to_string(&path).ok();
        put(&path, value)?;
        if let Some(before) = before {
            self.done.push(Undo { file: file.to_owned(), lines: undo_lines(file, value, &before) });
        }
        Ok(())
    }
}

/// What to write to a file so that it is again as it was `before` `written` was written to it.
fn undo_lines(file: &str, written: &str, before: &str) -> Vec<String> {
    // What a key without a line stands for, in files with a line per device or resource.
    let unset = match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "io.latency" => "target=0",
        "rdma.max" => "hca_handle=max hca_object=max",
        "misc.max" => "max",
        "io.weight" | "io.bfq.weight" => "default",
        // An empty write would be none at all.
        _ => return vec![format!("{}\n", before.trim_end())],
    };
    let key = match written.split_once(' ') {
        Some((key, _)) => key,
        // A weight alone is that of all devices without one of their own.
        None => "default",
    };
    let line = before.lines().find(|line| line.split(' ').next() == Some(key));
    vec![line.map_or_else(|| format!("{key} {unset}"), str::to_owned)]
}

fn put(file: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(file)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use oci_spec::runtime::LinuxResources;
    use proptest::prelude::*;

    use super::super::plan::plan;
    use super::*;

    /// A directory stands in for the kernel's: the files' contents are what is asserted.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (file, content) in files {
                fs::write(dir.path().join(file), content).unwrap();
            }
            Self(dir)
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.0.path().join(file)).unwrap()
        }

        fn run(&self, json: &str) -> Result<Applied, Refused> {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            apply(self.0.path(), &plan(&resources).unwrap())
        }
    }

    #[test]
    fn writes_go_to_files_that_exist_and_a_missing_one_is_named() {
        let files = Files::new(&[
            ("memory.max", "max"),
            ("memory.current", "5000"),
            ("cpu.max", "7000 100000"),
            ("io.weight", ""),
        ]);
        // No memory.swap.max here: a kernel without swap.
        let _ = files.run(r#"{"memory":{"limit":1000,"swap":1000}}"#).unwrap();
        assert_eq!(files.read("memory.max"), "1000");
        let _ = files.run(r#"{"cpu":{"period":50000}}"#).unwrap();
        assert_eq!(files.read("cpu.max"), "7000 50000");
        let _ = files.run(r#"{"blockIO":{"weight":1000}}"#).unwrap();
        assert_eq!(files.read("io.weight"), "10000");
        let _ = files
            .run(r#"{"blockIO":{"weightDevice":[{"major":8,"minor":1,"weight":10}]}}"#)
            .unwrap();
        assert_eq!(files.read("io.weight"), "8:1 1");
        let error = files.run(r#"{"pids":{"limit":7}}"#).unwrap_err();
        assert_eq!(error.to_string(), "pids.limit: write \"7\" to pids.max");
        let error = files.run(r#"{"memory":{"limit":999,"checkBeforeUpdate":true}}"#).unwrap_err();
        assert!(error.to_string().contains("memory.limit"), "{error}");
        assert_eq!(files.read("memory.max"), "1000");
    }

    #[test]
    fn failure_half_way_leaves_every_file_as_it_was() {
        let files = Files::new(&[
            ("memory.max", "max\n"),
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "\n"),
        ]);
        let wish =
            r#"{"memory":{"limit":1000},"cpu":{"quota":5000,"cpus":"0"},"pids":{"limit":7}}"#;
        let error = files.run(wish).unwrap_err();
        assert_eq!((error.field, &*error.file, error.left.len()), ("pids.limit", "pids.max", 0));
        assert_eq!(files.read("memory.max"), "max\n");
        assert_eq!(files.read("cpu.max"), "max 100000\n");
        assert_eq!(files.read("cpuset.cpus"), "\n");
    }

    #[test]
    fn what_was_applied_can_be_undone_later() {
        let files = Files::new(&[("memory.max", "max\n"), ("pids.max", "9\n")]);
        let mut applied = files.run(r#"{"memory":{"limit":1000},"pids":{"limit":7}}"#).unwrap();
        assert_eq!((&*files.read("memory.max"), &*files.read("pids.max")), ("1000", "7"));
        assert_eq!(applied.undo(), [] as [&str; 0]);
        assert_eq!((&*files.read("memory.max"), &*files.read("pids.max")), ("max\n", "9\n"));
    }

    /// The model of the kernel's io.max: a line per device with a limit, and a write changes the
    /// keys that it names.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct IoMax(BTreeMap<String, BTreeMap<String, String>>);

    impl IoMax {
        fn write(&mut self, line: &str) {
            let mut words = line.split(' ');
            let device = words.next().unwrap().to_owned();
            let limits = self.0.entry(device.clone()).or_default();
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                match value {
                    "max" => limits.remove(key),
                    _ => limits.insert(key.to_owned(), value.to_owned()),
                };
            }
            if limits.is_empty() {
                self.0.remove(&device);
            }
        }

        fn text(&self) -> String {
            let line = |(device, limits): (&String, &BTreeMap<String, String>)| {
                let words = ["rbps", "wbps", "riops", "wiops"]
                    .map(|key| format!("{key}={}", limits.get(key).map_or("max", |limit| limit)));
                format!("{device} {}\n", words.join(" "))
            };
            self.0.iter().map(line).collect()
        }
    }

    fn limit() -> impl Strategy<Value = String> {
        let key = prop_oneof![Just("rbps"), Just("wbps"), Just("riops"), Just("wiops")];
        (0..3u8, key, proptest::option::of(1..9u8)).prop_map(|(device, key, limit)| {
            let limit = limit.map_or("max".to_owned(), |limit| limit.to_string());
            format!("8:{device} {key}={limit}")
        })
    }

    proptest! {
        #[test]
        fn limits_per_device_are_undone_to_what_they_were(
            before in proptest::collection::vec(limit(), 0..8),
            written in proptest::collection::vec(limit(), 0..8),
        ) {
            let mut file = IoMax::default();
            before.iter().for_each(|line| file.write(line));
            let start = file.clone();
            let mut undo = vec![];
            for line in &written {
                undo.push(undo_lines("io.max", line, &file.text()));
                file.write(line);
            }
            undo.into_iter().rev().flatten().for_each(|line| file.write(&line));
            prop_assert_eq!(file, start);
        }
    }

    #[test]
    fn weights_are_undone_for_all_devices_and_for_one() {
        let before = "default 100\n8:0 50\n";
        assert_eq!(undo_lines("io.weight", "700", before), ["default 100"]);
        assert_eq!(undo_lines("io.weight", "8:0 7", before), ["8:0 50"]);
        assert_eq!(undo_lines("io.weight", "8:1 7", before), ["8:1 default"]);
        assert_eq!(undo_lines("cpuset.cpus", "0", "\n"), ["\n"]);
    }
}
