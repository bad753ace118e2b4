//! A container's cgroup: made before its launch, emptied and removed after its end.
//!
//! Owns: nothing; a [`Cgroup`] is a path below the one subtree of containers.
//! Promises: waits for what the kernel reports (`cgroup.events`), never polls; removal takes the
//! whole subtree along, since a container with a cgroup namespace makes children.
//! Never: signals a process that is not in the subtree.

pub mod apply;
pub mod devices;
pub mod guard;
pub mod io_cost;
pub mod plan;
pub mod stats;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use self::guard::Guard;
use self::stats::Figures;
use crate::paths::PROC;
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::pidfd;

/// What failed, and on which file. The guest's fault, or the kernel's answer to the host's wish.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no such cgroup.
    #[error("cgroup {0} does not exist")]
    Absent(PathBuf),
    /// Reading or writing one of its files, or making or removing a directory.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It did not happen in time.
    #[error("cgroup {path} is not {state} after {seconds} s")]
    Late {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for.
        state: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// A resource cannot be expressed.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The kernel refused a resource.
    #[error(transparent)]
    Refused(#[from] apply::Refused),
    /// Weights for disks.
    #[error("blockIO.weight: let disks go by weight")]
    IoCost(#[source] io::Error),
    /// The device rules.
    #[error(transparent)]
    Devices(#[from] guard::GuardError),
}

/// A container's cgroup.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The one at this path; nothing is made.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, if it is not there.
    pub fn create(&self) -> Result<(), CgroupError> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(|source| self.failed("create", "", source)),
        }
    }

    /// Makes it with these resources, and with device rules in any case, before anything runs in
    /// it. What fails leaves it half made, for [`Self::remove`].
    pub fn set_up(
        &self,
        guard: &Guard,
        resources: Option<&LinuxResources>,
    ) -> Result<(), CgroupError> {
        let plan = resources.map(plan::plan).transpose()?.unwrap_or_default();
        let rules = resources.and_then(|resources| resources.devices().as_deref());
        let program = guard.program(rules.unwrap_or_default())?;
        self.create()?;
        prepare(&plan)?;
        let _kept = apply::apply(&self.path, &plan)?;
        Ok(program.attach(&self.path)?)
    }

    /// Changes its resources, all of them or none. Device rules, if there are any, take the place
    /// of those before. Can take the kernel a while.
    pub fn update(&self, guard: &Guard, resources: &LinuxResources) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Err(CgroupError::Absent(self.path.clone()));
        }
        let plan = plan::plan(resources)?;
        let rules = resources.devices().as_deref().filter(|rules| !rules.is_empty());
        let program = rules.map(|rules| guard.program(rules)).transpose()?;
        prepare(&plan)?;
        let mut applied = apply::apply(&self.path, &plan)?;
        if let Some(program) = program
            && let Err(error) = program.attach(&self.path)
        {
            applied.undo();
            return Err(error.into());
        }
        Ok(())
    }

    /// The pids in the whole subtree.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in subtree(&self.path) {
            let path = directory.join("cgroup.procs");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // A child that its container has just removed.
                Err(error) if directory != self.path && gone(&error) => continue,
                Err(error) => return Err(self.failed("read", "cgroup.procs", error)),
            };
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        Ok(pids)
    }

    /// SIGKILLs everything in the subtree, frozen or not.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Sends a signal to every process of the subtree; returns how many got it.
    pub fn signal(&self, signal: i32) -> Result<usize, CgroupError> {
        let mut reached = 0;
        for pid in self.pids()? {
            let Ok(process) = pidfd::open(pid) else { continue };
            // The pid may have gone and come back in between; a pidfd of a process that is in the
            // subtree now cannot become another's.
            if self.contains(pid) && pidfd::send_signal(process.as_fd(), signal).is_ok() {
                reached += 1;
            }
        }
        Ok(reached)
    }

    /// Stops the subtree; returns when it stands still.
    pub async fn freeze(&self, patience: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        self.wait_for("frozen", "1", "frozen", patience).await
    }

    /// Lets the subtree run again; returns when it does.
    pub async fn thaw(&self, patience: Duration) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")?;
        self.wait_for("frozen", "0", "thawed", patience).await
    }

    /// Whether it stands still.
    pub fn is_frozen(&self) -> bool {
        self.event("frozen").is_ok_and(|value| value == "1")
    }

    /// Whether it was told to stand still, and may not have done so yet.
    pub fn is_freezing(&self) -> bool {
        self.read("cgroup.freeze").is_ok_and(|value| value.trim() == "1")
    }

    /// Lets the subtree run again, without waiting until it does.
    pub fn let_run(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")
    }

    /// How often the kernel killed for lack of memory in the subtree since it was made: processes,
    /// or, where they go as a group (`memory.oom.group`), groups.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let text = self.read("memory.events")?;
        let figures = Figures::of(&text);
        let kills = figures.get("oom_kill");
        if kills == 0 {
            return Ok(0);
        }
        let group = self.read("memory.oom.group").is_ok_and(|group| group.trim() == "1");
        // The first of a group is counted a moment before its group is.
        Ok(if group { figures.get("oom_group_kill").max(1) } else { kills })
    }

    /// One of its files, to be waited for until it changes: every change is a wake-up with
    /// [`Interest::PRIORITY`](tokio::io::Interest::PRIORITY), and there may be others.
    pub fn watch(&self, file: &'static str) -> Result<AsyncOwnedFd, CgroupError> {
        fs::File::open(self.path.join(file))
            .and_then(|file| AsyncOwnedFd::for_changes(OwnedFd::from(file)))
            .map_err(|source| self.failed("watch", file, source))
    }

    /// Returns when no process is left in the subtree.
    pub async fn wait_empty(&self, patience: Duration) -> Result<(), CgroupError> {
        self.wait_for("populated", "0", "empty", patience).await
    }

    /// Removes it if nothing is left in it, and says whether it is gone.
    pub fn remove_if_empty(&self) -> bool {
        match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Removes the empty subtree, leaves first. One that is not there is fine.
    pub fn remove(&self) -> Result<(), CgroupError> {
        // To look for children costs more than to remove what has none.
        if self.remove_if_empty() {
            return Ok(());
        }
        for directory in subtree(&self.path).iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(|source| CgroupError::Io {
                    verb: "remove",
                    path: directory.clone(),
                    source,
                })?,
            }
        }
        Ok(())
    }

    fn contains(&self, pid: u32) -> bool {
        // "0::/containers/x/child": relative to the hierarchy's root.
        let text = fs::read_to_string(Path::new(PROC).join(pid.to_string()).join("cgroup"))
            .unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix("0::/"));
        found.is_some_and(|below| {
            self.path.ancestors().any(|root| root.join(below).starts_with(&self.path))
        })
    }

    async fn wait_for(
        &self,
        key: &'static str,
        value: &'static str,
        state: &'static str,
        patience: Duration,
    ) -> Result<(), CgroupError> {
        let late =
            || CgroupError::Late { path: self.path.clone(), state, seconds: patience.as_secs() };
        tokio::time::timeout(patience, self.reaches(key, value)).await.map_err(|_| late())?
    }

    async fn reaches(&self, key: &str, value: &str) -> Result<(), CgroupError> {
        if self.event(key)? == value {
            return Ok(());
        }
        let failed = |source| self.failed("watch", "cgroup.events", source);
        let watch = self.watch("cgroup.events")?;
        // Read after the registration: a change in between would not be reported again.
        while self.event(key)? != value {
            let ready = watch.ready(tokio::io::Interest::PRIORITY).await;
            ready.map_err(failed)?.clear_ready();
        }
        Ok(())
    }

    fn event(&self, key: &str) -> Result<String, CgroupError> {
        let text = self.read("cgroup.events")?;
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Ok(found.unwrap_or_default().to_owned())
    }

    fn read(&self, file: &'static str) -> Result<String, CgroupError> {
        fs::read_to_string(self.path.join(file)).map_err(|source| self.failed("read", file, source))
    }

    fn write(&self, file: &'static str, value: &str) -> Result<(), CgroupError> {
        // Without O_CREAT: a file that a controller does not offer must be an error, and so it is.
        fs::OpenOptions::new()
            .write(true)
            .open(self.path.join(file))
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|source| self.failed("write", file, source))
    }

    fn failed(&self, verb: &'static str, file: &str, source: io::Error) -> CgroupError {
        if gone(&source) && !self.path.exists() {
            return CgroupError::Absent(self.path.clone());
        }
        let path = if file.is_empty() { self.path.clone() } else { self.path.join(file) };
        CgroupError::Io { verb, path, source }
    }
}

/// What a plan needs of the kernel beyond the cgroup.
fn prepare(plan: &[plan::Write]) -> Result<(), CgroupError> {
    if plan.iter().any(|write| write.how == plan::How::BlockWeight) {
        io_cost::turn_on().map_err(CgroupError::IoCost)?;
    }
    Ok(())
}

/// ENODEV is what an open file of a removed cgroup says.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The directory and all below it, parents before children.
fn subtree(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        let children = fs::read_dir(directory).into_iter().flatten().flatten();
        let directories: Vec<PathBuf> = children
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(directories);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    /// A cgroup on this machine's cgroup v2 mount, removed with its processes on drop.
    struct Setup(Cgroup);

    impl Setup {
        /// None where there is no cgroup v2 to write to: said, and counted as passed.
        fn new(name: &str) -> Option<Self> {
            let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                .iter()
                .map(Path::new)
                .find(|root| root.join("cgroup.procs").exists());
            let Some(root) = root else {
                eprintln!("skipped: no cgroup v2 here");
                return None;
            };
            let path = root.join(format!("vminitd-test-{}-{name}", std::process::id()));
            let cgroup = Cgroup::at(path);
            if let Err(error) = cgroup.create() {
                eprintln!("skipped: {error}");
                return None;
            }
            Some(Self(cgroup))
        }

        fn sleeper(&self, below: &str) -> Child {
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            let procs = self.0.path().join(below).join("cgroup.procs");
            fs::write(procs, child.id().to_string()).unwrap();
            child
        }
    }

    impl Drop for Setup {
        fn drop(&mut self) {
            let _ = self.0.kill();
            for _ in 0..100 {
                if self.0.remove().is_ok() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn kill_reaches_children_and_the_end_is_noticed() {
        let Some(setup) = Setup::new("kill") else { return };
        fs::create_dir(setup.0.path().join("child")).unwrap();
        let (mut first, mut second) = (setup.sleeper(""), setup.sleeper("child"));
        let mut pids = setup.0.pids().unwrap();
        pids.sort_unstable();
        let mut expected = [first.id(), second.id()];
        expected.sort_unstable();
        assert_eq!(pids, expected);
        block_on(async {
            setup.0.kill().unwrap();
            let reaped = tokio::task::spawn_blocking(move || {
                (first.wait().unwrap().signal(), second.wait().unwrap().signal())
            });
            setup.0.wait_empty(PATIENCE).await.unwrap();
            assert_eq!(reaped.await.unwrap(), (Some(9), Some(9)));
        });
        setup.0.remove().unwrap();
        assert!(!setup.0.path().exists());
        setup.0.remove().unwrap();
        assert!(matches!(setup.0.pids(), Err(CgroupError::Absent(_))));
    }

    #[test]
    fn signal_reaches_each_process_and_no_other() {
        let Some(setup) = Setup::new("signal") else { return };
        let mut outside = Command::new("sleep").arg("600").spawn().unwrap();
        let mut inside = setup.sleeper("");
        assert_eq!(setup.0.signal(libc::SIGTERM).unwrap(), 1);
        assert_eq!(inside.wait().unwrap().signal(), Some(libc::SIGTERM));
        assert!(outside.try_wait().unwrap().is_none());
        outside.kill().unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn freeze_and_thaw_return_when_the_kernel_says_so() {
        let Some(setup) = Setup::new("freeze") else { return };
        let mut child = setup.sleeper("");
        block_on(async {
            setup.0.freeze(PATIENCE).await.unwrap();
            assert_eq!(setup.0.event("frozen").unwrap(), "1");
            setup.0.thaw(PATIENCE).await.unwrap();
            assert_eq!(setup.0.event("frozen").unwrap(), "0");
            let late = setup.0.wait_empty(Duration::from_millis(50)).await.unwrap_err();
            assert!(late.to_string().contains("is not empty after"), "{late}");
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
