//! A container's init, made as its [`Plan`] says.
//!
//! ```text
//! launcher: reads, joins, opens --> clones into cgroup and namespaces ----> waits to hear of it
//!                                    |                                       ^
//! child:                             root (root.rs), settles (settle.rs) ----+--> waits --> program
//! ```
//!
//! Ours and not libcontainer's, which reads and writes three files of JSON, forks once more, and
//! resolves each path in steps; it is there for what the agent makes no plan of.
//!
//! Promises: the process is in the container's cgroup from its first moment; an error up to where it
//! waits is the launch's, and then there is no process; while it waits it holds nothing of ours but
//! the pipe that it waits on.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, sethostname, setsid};

use super::root;
use super::settle::{Ready, Settle, install, is_null, null, said};
use crate::link::left::LeftError;
use crate::link::plan::Plan;
use crate::paths;
use crate::sys::clone::{self, Forked};
use crate::sys::{descriptors, loopback};

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The agent's file.
    #[error(transparent)]
    Plan(#[from] LeftError),
    /// A step of the launcher's.
    #[error("{what}")]
    Step {
        /// Which.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What the process said before it ended.
    #[error("{0}")]
    Child(String),
}

/// What is made, of what.
pub struct Create<'a> {
    /// The container's id.
    pub container: &'a str,
    /// CLONE_NEW*: what of the plan's namespaces this process is in already.
    pub ahead: i32,
    /// How. Its program is in `settle`.
    pub plan: Plan,
    /// What runs in it.
    pub settle: Settle,
    /// The process's descriptors 0 to 2; None is the container's /dev/null.
    pub stdio: [Option<OwnedFd>; 3],
}

/// What the process says when it waits for its start; an error is any other text.
const WAITS: &[u8] = &[0];

/// Adds to a kernel's answer what was tried.
fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> CreateError {
    move |source| CreateError::Step { what: what.into(), source: source.into() }
}

/// Makes what was planned ahead of a plan: CLONE_NEW* of net, ipc and uts.
pub fn make_ahead(namespaces: i32) -> io::Result<()> {
    if namespaces == 0 {
        return Ok(());
    }
    unshare(CloneFlags::from_bits_retain(namespaces))?;
    raise_loopback(namespaces);
    Ok(())
}

/// A network namespace is born with its loopback interface down; programs expect it up, and other
/// runtimes see to it.
fn raise_loopback(namespaces: i32) {
    if namespaces & libc::CLONE_NEWNET != 0
        && let Err(error) = loopback::up()
    {
        tracing::warn!(%error, "the loopback interface stays down");
    }
}

impl Create<'_> {
    /// Returns the pid of the process, which waits for its start.
    pub fn launch(self) -> Result<i32, CreateError> {
        self.settle.set_oom_score().map_err(step("set oom_score_adj"))?;
        // What can read this process's memory or descriptors could read the guest's.
        prctl::set_dumpable(false).map_err(step("become undumpable"))?;
        let cgroup = File::open(Path::new(paths::CGROUP_CONTAINERS).join(self.container))
            .map_err(step("open the container's cgroup"))?;
        let record = Path::new(paths::CONTAINERS_DIR).join(self.container);
        // Not blocking: there is nobody yet who writes.
        let start = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(record.join(paths::START_PIPE))
            .map_err(step("open the pipe for the start"))?;
        for (kind, path) in &self.plan.joined {
            let name = format!("join the namespace {}", path.display());
            let namespace = File::open(path).map_err(step(&*name))?;
            setns(&namespace, CloneFlags::from_bits_retain(*kind)).map_err(step(name))?;
        }
        // Of the cgroup's, the root is where the process is when it makes it.
        let now = self.plan.new_namespaces & !self.ahead & !libc::CLONE_NEWCGROUP;
        let (mut report, reporter) = io::pipe().map_err(step("make a pipe"))?;
        match clone::fork_into(Some(cgroup.as_fd()), now).map_err(step("make the process"))? {
            Forked::Child => {
                let error = match self.become_it(now, &start, &reporter) {
                    Ok(never) => match never {},
                    Err(reason) => reason,
                };
                // Nobody reads it any more if that fails.
                let _ = (&reporter).write_all(error.as_bytes());
                clone::exit_now(1)
            }
            Forked::Parent { pid, .. } => {
                drop(reporter);
                let mut said = vec![0; 4096];
                let length = report.read(&mut said).map_err(step("hear of the process"))?;
                said.truncate(length);
                if said == WAITS {
                    return Ok(pid);
                }
                let _ = waitpid(Pid::from_raw(pid), None);
                Err(CreateError::Child(match said.is_empty() {
                    true => "the process ended before it could be started".to_owned(),
                    false => String::from_utf8_lossy(&said).into_owned(),
                }))
            }
        }
    }

    /// The child's part. Returns only if it fails: with the reason.
    fn become_it(
        &self,
        made: i32,
        start: &File,
        reporter: &PipeWriter,
    ) -> Result<std::convert::Infallible, String> {
        if self.plan.new_namespaces & libc::CLONE_NEWCGROUP != 0 {
            unshare(CloneFlags::CLONE_NEWCGROUP)
                .map_err(|errno| said("make a cgroup namespace", errno))?;
        }
        setsid().map_err(|errno| said("make a session", errno))?;
        raise_loopback(made);
        self.name().map_err(|error| said("set the host's name", error))?;
        root::make(&self.plan)?;
        // From here on every path is the container's.
        let null = null().map_err(|error| said("open /dev/null", error))?;
        if !is_null(&null) {
            return Err("/dev/null is not what it should be".to_owned());
        }
        install(self.stdio.each_ref().map(|fd| fd.as_ref().map_or(null.as_fd(), AsFd::as_fd)))
            .map_err(|error| said("set up stdio", error))?;
        let ready = self.settle.prepare(&[reporter.as_raw_fd(), start.as_raw_fd()])?;
        { reporter }.write_all(WAITS).map_err(|error| said("say that it waits", error))?;
        descriptors::close_numbers(&[reporter.as_raw_fd()]);
        wait(start).map_err(|error| said("wait for the start", error))?;
        Ready::execute(ready)
    }

    fn name(&self) -> io::Result<()> {
        if let Some(name) = &self.plan.host_name {
            sethostname(name)?;
        }
        if let Some(name) = &self.plan.domain_name {
            std::fs::write(paths::DOMAIN_NAME, name)?;
        }
        Ok(())
    }
}

/// Until somebody writes to the pipe.
fn wait(start: &File) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(start.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            polled => polled?,
        };
        match { start }.read(&mut [0]) {
            // Opened and closed by somebody who died in between: another one will come.
            Ok(0) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(drop),
        }
    }
}
