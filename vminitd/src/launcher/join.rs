//! An exec: a further process in a running container.
//!
//! ```text
//! launcher: reads, opens ---> joins the namespaces ---> clones into the cgroup ---> waits for exec
//!                                                        |
//! child:                     cgroup namespace, session, stdio, limits, user, confinement, exec
//! ```
//!
//! Ours and not libcontainer's, which reads the container's whole config and state again, goes
//! through two more processes, and leaves the user namespace out.
//!
//! Promises: the process is in the container's cgroup from its first moment; what it inherits of
//! ours is closed before anything of the container's is looked at; an error up to the exec is the
//! launch's, and then there is no process.
//! Never: opens a path of the container's before it is in the container's mount namespace, or one
//! of the guest's afterwards.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::{Mode, fchmod};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, fchown, setsid};

use super::settle::{Ready, Settle, install, is_null, null, pin, said};
use crate::link::left::LeftError;
use crate::paths;
use crate::sys::clone::{self, Forked};
use crate::sys::terminal;

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The agent's file.
    #[error(transparent)]
    Program(#[from] LeftError),
    /// A step of the launcher's.
    #[error("{what}")]
    Step {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What the process said before it ended.
    #[error("{0}")]
    Child(String),
    /// The agent sent no descriptor of the container's init.
    #[error("there is no init to join")]
    NoInit,
}

/// What is joined, by whom.
pub struct Join<'a> {
    /// The container's id.
    pub container: &'a str,
    /// Its init.
    pub init: OwnedFd,
    /// CLONE_NEW*: the namespaces that the container's config names.
    pub namespaces: i32,
    /// What to run, and what it may do.
    pub settle: Settle,
    /// Its descriptors 0 to 2; None is the container's /dev/null. Without a meaning if there is a
    /// terminal.
    pub stdio: [Option<OwnedFd>; 3],
    /// It gets a pty.
    pub terminal: bool,
}

/// Adds to a kernel's answer what was tried.
fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JoinError {
    move |source| JoinError::Step { what, source: source.into() }
}

impl Join<'_> {
    /// Returns the pid of the process, which runs its program, and the master of its pty.
    pub fn launch(self) -> Result<(i32, Option<OwnedFd>), JoinError> {
        // What can read this process's memory or descriptors could read the guest's.
        prctl::set_dumpable(false).map_err(step("become undumpable"))?;
        self.settle.set_oom_score().map_err(step("set oom_score_adj"))?;
        let cgroup = File::open(Path::new(paths::CGROUP_CONTAINERS).join(self.container))
            .map_err(step("open the container's cgroup"))?;
        let guests_null = null().map_err(step("open /dev/null"))?;
        pin(&self.settle.program.cpus_before).map_err(step("set the CPUs"))?;

        self.join().map_err(step("join the container's namespaces"))?;
        // From here on every path is the container's.
        let null = match null() {
            Ok(own) if is_null(&own) => own,
            _ => guests_null,
        };
        let pty = match self.terminal {
            true => {
                Some(terminal::open_pty(Path::new(paths::PTMX)).map_err(step("open /dev/ptmx"))?)
            }
            false => None,
        };
        let (mut report, reporter) = io::pipe().map_err(step("make a pipe"))?;
        match clone::fork(Some(cgroup.as_fd())).map_err(step("make the process"))? {
            Forked::Child => {
                let terminal = pty.as_ref().map(|(_, terminal)| terminal);
                let error = self.become_it(&null, terminal, &reporter);
                // Nobody reads it any more if that fails.
                let _ = (&reporter).write_all(error.as_bytes());
                clone::exit_now(1)
            }
            Forked::Parent { pid, .. } => {
                drop(reporter);
                let mut said = Vec::new();
                report.read_to_end(&mut said).map_err(step("hear of the process"))?;
                if said.is_empty() {
                    return Ok((pid, pty.map(|(master, _)| master)));
                }
                let _ = waitpid(Pid::from_raw(pid), None);
                Err(JoinError::Child(String::from_utf8_lossy(&said).into_owned()))
            }
        }
    }

    /// Joins all namespaces but the cgroup's, from which one does not get into another cgroup.
    fn join(&self) -> Result<(), Errno> {
        let all = CloneFlags::from_bits_retain(self.namespaces) - CloneFlags::CLONE_NEWCGROUP;
        match setns(&self.init, all) {
            // Its user namespace is the one that we are in, perhaps: joining that is refused.
            Err(Errno::EINVAL) if all.contains(CloneFlags::CLONE_NEWUSER) => {
                setns(&self.init, all - CloneFlags::CLONE_NEWUSER)
            }
            joined => joined,
        }
    }

    /// The child's part. Returns only if it fails: with the reason.
    fn become_it(&self, null: &File, terminal: Option<&OwnedFd>, reporter: &PipeWriter) -> String {
        match self.prepare(null, terminal, reporter).and_then(Ready::execute) {
            Ok(never) => match never {},
            Err(reason) => reason,
        }
    }

    fn prepare(
        &self,
        null: &File,
        terminal: Option<&OwnedFd>,
        reporter: &PipeWriter,
    ) -> Result<Ready<'_>, String> {
        if self.namespaces & libc::CLONE_NEWCGROUP != 0 {
            setns(&self.init, CloneFlags::CLONE_NEWCGROUP)
                .map_err(|errno| said("join the container's cgroup namespace", errno))?;
        }
        setsid().map_err(|errno| said("make a session", errno))?;
        match terminal {
            Some(terminal) => {
                terminal::make_controlling(terminal.as_fd())
                    .map_err(|error| said("take the terminal", error))?;
                // Best effort: it may be read and written through the descriptors in any case.
                let (owner, group) = (Uid::from_raw(self.settle.program.uid), None::<Gid>);
                let _ = fchown(terminal.as_raw_fd(), Some(owner), group);
                let _ = fchmod(terminal.as_raw_fd(), Mode::from_bits_truncate(0o620));
                install([terminal.as_fd(); 3])
            }
            None => install(
                self.stdio.each_ref().map(|fd| fd.as_ref().map_or(null.as_fd(), AsFd::as_fd)),
            ),
        }
        .map_err(|error| said("set up stdio", error))?;
        self.settle.prepare(&[reporter.as_raw_fd()])
    }
}
