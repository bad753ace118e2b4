//! What of a container and its processes outlives the agent: files that are replaced as a whole,
//! and a page of numbers for each process, which holds whatever changes in its life.
//!
//! Owns: `<containers>/<id>/` and in it `execs/<exec>/`, from before anything else of a container is made until nothing else
//! of it is left.
//! Promises: a record is the old one or the new one, never half of either; an exit that was noted
//! is found by the next agent, and noting it needs no room anywhere.
//! Never: holds what init knows better (whether a launch succeeded, the pid) or what the kernel
//! knows (what is mounted).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::series::Series;
use crate::agent::id::ExecId;
use crate::agent::lock;
use crate::agent::process::lifecycle::Exited;
use crate::agent::stdio::output::Counter;
use crate::link::codec;
use crate::link::message::RequestId;
use crate::sys::numbers::Numbers;

/// What the next agent needs to know of a container, beside what [`ProcessRecord`] says of its
/// init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The namespace of the request that made it.
    pub namespace: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where its rootfs mounts are, below the bundle, in the order in which they are made.
    pub places: Vec<PathBuf>,
    /// Whether start needs libcontainer.
    pub poststart: bool,
    /// Whether delete needs libcontainer.
    pub poststop: bool,
    /// What further processes of it are to be like.
    pub habits: Habits,
}

/// What all processes of a container have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Habits {
    /// Owner of their pipes: user.
    pub io_uid: u32,
    /// Owner of their pipes: group.
    pub io_gid: u32,
    /// They may make AF_VSOCK sockets.
    pub allow_vsock: bool,
    /// They keep the session keyring that they are started with.
    pub no_new_keyring: bool,
    /// They are not in a pid namespace of their own, so the kernel does not end them with the init.
    pub shared_pids: bool,
    /// CLONE_NEW*: the namespaces that the config names, which an exec joins.
    pub namespaces: i32,
    /// The execution domain that the config names.
    pub personality: Option<u32>,
}

/// What the next agent needs to know of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// As requested.
    pub stdin: String,
    /// As requested.
    pub stdout: String,
    /// As requested.
    pub stderr: String,
    /// As requested.
    pub terminal: bool,
    /// In the page, as all that follows: the request under which init was asked to launch it; 0: it was not.
    #[serde(skip)]
    pub request: RequestId,
    /// It was told to start, or is about to be: telling an init twice does no harm.
    #[serde(skip)]
    pub started: bool,
    /// How it ended, and the pid it had.
    #[serde(skip)]
    pub exit: Option<(u32, Exited)>,
}

/// A record could not be saved or read: the state's tmpfs is full, or broken.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {path}")]
pub struct RecordError {
    /// What was tried.
    pub verb: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

const NUMBERS: &str = "numbers";
/// Execs, a directory each, below their container's.
const EXECS: &str = "execs";

/// What is kept in a file of its own, in the container's or exec's directory.
pub trait Saved: Serialize + serde::de::DeserializeOwned {
    /// The file's name.
    const FILE: &'static str;

    /// Puts it where there is none. One that is left half written is as good as none: what it
    /// stands for is not begun before.
    fn save_first(&self, directory: &Path) -> Result<(), RecordError> {
        let path = directory.join(Self::FILE);
        let failed = |source| RecordError { verb: "save", path: path.clone(), source };
        let bytes = codec::encode_file(self).map_err(|error| failed(io::Error::other(error)))?;
        fs::write(&path, bytes).map_err(failed)
    }

    /// Puts it in place of the one before.
    fn save(&self, directory: &Path) -> Result<(), RecordError> {
        let (path, new) =
            (directory.join(Self::FILE), directory.join(format!("{}.new", Self::FILE)));
        let failed = |source| RecordError { verb: "save", path: path.clone(), source };
        let bytes = codec::encode_file(self).map_err(|error| failed(io::Error::other(error)))?;
        fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path)).map_err(failed)
    }

    /// The last one saved.
    fn load(directory: &Path) -> Result<Self, RecordError> {
        let path = directory.join(Self::FILE);
        let failed = |source| RecordError { verb: "read", path: path.clone(), source };
        let bytes = fs::read(&path).map_err(failed)?;
        codec::decode(&bytes).map_err(|error| failed(io::Error::other(error)))
    }
}

/// A record in memory and on disk, changed in both or in neither.
#[derive(Debug)]
pub struct Recorded<R> {
    /// Where it is saved.
    directory: PathBuf,
    record: Mutex<R>,
}

impl<R: Saved + Clone> Recorded<R> {
    /// One that is saved, or will be with its first change.
    pub fn new(directory: PathBuf, record: R) -> Self {
        Self { directory, record: Mutex::new(record) }
    }

    /// As it is now.
    pub fn get(&self) -> R {
        lock(&self.record).clone()
    }

    /// Looks at a part of it.
    pub fn look<T>(&self, part: impl FnOnce(&R) -> T) -> T {
        part(&lock(&self.record))
    }

    /// Changes what is not in the file.
    pub fn note(&self, change: impl FnOnce(&mut R)) {
        change(&mut lock(&self.record));
    }

    /// Changes it. On failure the old one stands, here and on disk.
    pub fn update(&self, change: impl FnOnce(&mut R)) -> Result<(), RecordError> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed);
        changed.save(&self.directory)?;
        *record = changed;
        Ok(())
    }
}

impl Saved for Record {
    const FILE: &'static str = "container";
}

impl Saved for ProcessRecord {
    const FILE: &'static str = "process";
}

/// All that is kept of a process.
pub fn load_process(directory: &Path) -> Result<ProcessRecord, RecordError> {
    let mut record = ProcessRecord::load(directory)?;
    Counters::open(directory)?.recall(&mut record);
    Ok(record)
}

/// Where an exec's record is, below its container's.
pub fn exec_directory(container: &Path, exec: &ExecId) -> PathBuf {
    container.join(EXECS).join(exec.as_str())
}

/// The execs of which there is a record.
pub fn execs(container: &Path) -> Vec<ExecId> {
    let entries = fs::read_dir(container.join(EXECS)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| ExecId::try_from(&*entry.file_name().to_string_lossy()).ok())
        .collect()
}

/// Makes the directory for a new record.
pub fn make_directory(directory: &Path) -> Result<(), RecordError> {
    fs::create_dir_all(directory).map_err(|source| RecordError {
        verb: "make",
        path: directory.to_owned(),
        source,
    })
}

/// Removes a record. One that is not there is fine.
pub fn remove_directory(directory: &Path) -> Result<(), RecordError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| RecordError {
            verb: "remove",
            path: directory.to_owned(),
            source,
        }),
    }
}

/// A process's counters.
#[derive(Clone, Debug)]
pub struct Counters(Arc<Numbers>);

/// What a counter of a process counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Bytes that have left the pipe of stdout.
    Stdout,
    /// Bytes that have left the pipe of stderr.
    Stderr,
    /// Of these, what had when the exit was published.
    StdoutAtExit,
    /// The same of stderr.
    StderrAtExit,
    /// Bytes that have come into the pipe of stdin.
    Stdin,
}

/// An event that is published once in a process's life, whichever agent does it: where
/// [`Hub::publish_once`](crate::agent::events::hub::Hub::publish_once) notes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// TaskCreate.
    Created,
    /// TaskStart.
    Started,
    /// TaskExit.
    Exited,
    /// TaskDelete.
    Deleted,
}

/// Events that a container publishes again and again, in the counters of its init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurring {
    /// TaskOOM.
    OutOfMemory,
    /// TaskPaused and TaskResumed, in turn.
    PausedOrResumed,
}

/// What must not be forgotten because an agent died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// `CloseIO` was called.
    StdinClosing,
}

impl Counters {
    /// Those in the container's directory; new ones are 0.
    pub fn open(directory: &Path) -> Result<Self, RecordError> {
        let path = directory.join(NUMBERS);
        let numbers =
            Numbers::open(&path).map_err(|source| RecordError { verb: "open", path, source })?;
        Ok(Self(Arc::new(numbers)))
    }

    /// One of the counters.
    pub fn get(&self, count: Count) -> &AtomicU64 {
        self.0.get(count as usize)
    }

    /// One of the counters, to be counted with.
    pub fn counter(&self, count: Count) -> Arc<dyn Counter> {
        Arc::new(OneOf { counters: self.clone(), count })
    }

    /// One of the marks.
    pub fn mark(&self, mark: Mark) -> &AtomicU64 {
        self.0.get(MARKS + mark as usize)
    }

    /// The words of a recurring event.
    pub fn series(&self, of: Recurring) -> Series<'_> {
        let first = SERIES + 3 * of as usize;
        let marks = [self.0.get(first + 1), self.0.get(first + 2)];
        Series { count: self.0.get(first), marks }
    }

    /// Keeps what of a process's record is in the page.
    pub fn keep(&self, record: &ProcessRecord) {
        self.0.get(REQUEST).store(record.request, Relaxed);
        self.0.get(STARTED).store(record.started.into(), Relaxed);
        if let Some((pid, exit)) = record.exit {
            self.0.get(EXIT + 1).store(pid.into(), Relaxed);
            self.0.get(EXIT + 2).store(exit.status.into(), Relaxed);
            self.0.get(EXIT + 3).store(exit.seconds.cast_unsigned(), Relaxed);
            self.0.get(EXIT + 4).store(exit.nanos.into(), Relaxed);
            // Last, so that nobody finds half an exit.
            self.0.get(EXIT).store(1, Release);
        }
    }

    /// Completes a record by what is in the page.
    pub fn recall(&self, record: &mut ProcessRecord) {
        let word = |index| self.0.get(index).load(Relaxed);
        record.request = word(REQUEST);
        record.started = word(STARTED) != 0;
        record.exit = (self.0.get(EXIT).load(Acquire) != 0).then(|| {
            let (status, nanos) = (word(EXIT + 2) as u32, word(EXIT + 4) as u32);
            let exit = Exited { status, seconds: word(EXIT + 3).cast_signed(), nanos };
            (word(EXIT + 1) as u32, exit)
        });
    }

    /// Whether it happened, in this agent's time or before.
    pub fn is_set(&self, flag: Flag) -> bool {
        self.0.get(FLAGS + flag as usize).load(Relaxed) != 0
    }

    /// It happens.
    pub fn set(&self, flag: Flag) {
        self.0.get(FLAGS + flag as usize).store(1, Relaxed);
    }
}

/// Index of the first of the marks behind the counters.
const MARKS: usize = 16;
/// Index of the first of the flags behind the marks.
const FLAGS: usize = 32;
/// Index of the first of the recurring events behind the flags.
const SERIES: usize = 48;

/// Index of [`ProcessRecord::request`].
const REQUEST: usize = 64;
/// Index of [`ProcessRecord::started`].
const STARTED: usize = 65;
/// Index of whether there is an exit; the exit follows.
const EXIT: usize = 66;

struct OneOf {
    counters: Counters,
    count: Count,
}

impl Counter for OneOf {
    fn bytes(&self) -> &AtomicU64 {
        self.counters.get(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ProcessRecord {
        ProcessRecord {
            stdout: "stream://c1-out".into(),
            request: 7,
            started: true,
            exit: Some((42, Exited { status: 137, seconds: 1, nanos: 2 })),
            ..Default::default()
        }
    }

    #[test]
    fn record_is_read_as_it_was_saved_last() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("c1");
        make_directory(&directory).unwrap();
        let first = ProcessRecord { exit: None, stdout: String::new(), ..record() };
        first.save_first(&directory).unwrap();
        let counters = Counters::open(&directory).unwrap();
        counters.keep(&first);
        assert_eq!(load_process(&directory).unwrap(), first);
        record().save(&directory).unwrap();
        counters.keep(&record());
        assert_eq!(load_process(&directory).unwrap(), record());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "no half-written file is left");
        remove_directory(&directory).unwrap();
        remove_directory(&directory).unwrap();
    }

    #[test]
    fn execs_are_found_by_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(execs(dir.path()), []);
        let exec = ExecId::try_from("e1").unwrap();
        make_directory(&exec_directory(dir.path(), &exec)).unwrap();
        assert_eq!(execs(dir.path()), [exec]);
    }

    #[test]
    fn counters_marks_and_flags_outlive_their_opening() {
        let dir = tempfile::tempdir().unwrap();
        let first = Counters::open(dir.path()).unwrap();
        first.counter(Count::Stderr).bytes().fetch_add(5, Relaxed);
        assert!(!first.is_set(Flag::StdinClosing));
        first.set(Flag::StdinClosing);
        first.mark(Mark::Exited).store(9, Relaxed);
        drop(first);
        let second = Counters::open(dir.path()).unwrap();
        assert_eq!(second.get(Count::Stderr).load(Relaxed), 5);
        assert_eq!(second.get(Count::Stdout).load(Relaxed), 0);
        assert!(second.is_set(Flag::StdinClosing));
        assert_eq!(second.mark(Mark::Exited).load(Relaxed), 9);
        assert_eq!(second.mark(Mark::Started).load(Relaxed), 0);
    }
}
