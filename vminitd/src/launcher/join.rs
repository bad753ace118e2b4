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

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::prctl;
use nix::sys::stat::{Mode, fchmod, fstat, makedev, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, execve, fchown, setgroups, setresgid, setresuid, setsid};

use super::confined::{self, Confined};
use super::executor::find;
use crate::link::confinement::Confinement;
use crate::link::exec_program::{ExecProgram, ExecProgramError};
use crate::paths;
use crate::sys::clone::{self, Forked};
use crate::sys::{capabilities, descriptors, process, terminal};

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The agent's file.
    #[error(transparent)]
    Program(#[from] ExecProgramError),
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
    /// The execution domain of the container, if its config names one.
    pub personality: Option<u32>,
    /// What to run.
    pub program: ExecProgram,
    /// What it may do.
    pub confinement: Confinement,
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
        if let Some(score) = self.program.oom_score_adj {
            std::fs::write(paths::OWN_OOM_SCORE_ADJ, score.to_string())
                .map_err(step("set oom_score_adj"))?;
        }
        let cgroup = File::open(Path::new(paths::CGROUP_CONTAINERS).join(self.container))
            .map_err(step("open the container's cgroup"))?;
        let guests_null = null().map_err(step("open /dev/null"))?;
        pin(&self.program.cpus_before).map_err(step("set the CPUs"))?;

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
        let prepared = self.prepare(null, terminal, reporter);
        let (path, args, env) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => return reason,
        };
        let Err(errno) = execve(&path, &args, &env);
        format!("exec {path:?}: {}", errno.desc())
    }

    fn prepare(
        &self,
        null: &File,
        terminal: Option<&OwnedFd>,
        reporter: &PipeWriter,
    ) -> Result<(CString, Vec<CString>, Vec<CString>), String> {
        let ExecProgram { args, env, uid, gid, groups, cwd, .. } = &self.program;
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
                let (owner, group) = (Uid::from_raw(*uid), None::<Gid>);
                let _ = fchown(terminal.as_raw_fd(), Some(owner), group);
                let _ = fchmod(terminal.as_raw_fd(), Mode::from_bits_truncate(0o620));
                install([terminal.as_fd(); 3])
            }
            None => install(
                self.stdio.each_ref().map(|fd| fd.as_ref().map_or(null.as_fd(), AsFd::as_fd)),
            ),
        }
        .map_err(|error| said("set up stdio", error))?;
        descriptors::close_all_but(&mut [0, 1, 2, reporter.as_raw_fd()])
            .map_err(|error| said("close the launcher's descriptors", error))?;
        self.limit()?;
        // Before the user is set, who may not reach it perhaps, as other runtimes do.
        let entered = enter(cwd);
        if !groups.is_empty() {
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            setgroups(&groups).map_err(|errno| said("set the groups", errno))?;
        }
        prctl::set_keepcaps(true).map_err(|errno| said("keep capabilities", errno))?;
        let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
        setresgid(gid, gid, gid).map_err(|errno| said("set the group", errno))?;
        setresuid(uid, uid, uid).map_err(|errno| said("set the user", errno))?;
        capabilities::raise().map_err(|error| said("raise capabilities", error))?;
        match entered {
            Err(Errno::EPERM | Errno::EACCES) => enter(cwd),
            entered => entered,
        }
        .map_err(|errno| said("change to the working directory", errno))?;
        // A directory outside of the root has no path.
        nix::unistd::getcwd().map_err(|errno| said("look for the working directory", errno))?;

        let limits =
            Confined { no_new_privileges: self.program.no_new_privileges, has_start_hooks: false };
        let text = |error: confined::ConfinedError| error.to_string();
        confined::before_start(&self.confinement, limits).map_err(text)?;
        let path = find(args, env)?;
        let words = |words: &[String]| -> Result<Vec<CString>, String> {
            let word = |word: &String| CString::new(word.as_str());
            words.iter().map(word).collect::<Result<_, _>>().map_err(|error| error.to_string())
        };
        let (args, env) = (words(args)?, words(&environment(env, uid.as_raw()))?);
        let path =
            CString::new(path.into_os_string().into_encoded_bytes()).map_err(|e| e.to_string())?;
        confined::before_program(&self.confinement, limits).map_err(text)?;
        Ok((path, args, env))
    }

    /// What the process may use, and when it runs.
    fn limit(&self) -> Result<(), String> {
        let program = &self.program;
        pin(&program.cpus).map_err(|errno| said("set the CPUs", errno))?;
        if let Some(priority) = program.io_priority {
            process::set_io_priority(priority)
                .map_err(|error| said("set the I/O priority", error))?;
        }
        if let Some(scheduling) = program.scheduling {
            process::set_scheduling(scheduling)
                .map_err(|error| said("set the scheduler", error))?;
        }
        for (resource, soft, hard) in &program.limits {
            process::set_limit(*resource, *soft, *hard)
                .map_err(|error| said("set a resource limit", error))?;
        }
        if let Some(domain) = self.personality {
            process::set_personality(domain).map_err(|error| said("set the personality", error))?;
        }
        if let Some(mask) = program.umask {
            umask(Mode::from_bits_truncate(mask));
        }
        if program.no_new_privileges {
            prctl::set_no_new_privs().map_err(|errno| said("set no_new_privs", errno))?;
        }
        Ok(())
    }
}

fn said(what: &str, error: impl Into<io::Error>) -> String {
    format!("{what}: {}", error.into())
}

fn null() -> io::Result<File> {
    File::options().read(true).write(true).open(paths::NULL)
}

fn is_null(file: &File) -> bool {
    let stat = fstat(file.as_raw_fd());
    stat.is_ok_and(|stat| {
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(1, 3)
    })
}

/// Makes them the descriptors 0 to 2. None of them is one of these numbers.
fn install(stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    for (number, fd) in (0..).zip(stdio) {
        descriptors::install(fd, number)?;
    }
    Ok(())
}

fn pin(cpus: &[usize]) -> Result<(), Errno> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

fn enter(cwd: &Path) -> Result<(), Errno> {
    if cwd.as_os_str().is_empty() { Ok(()) } else { nix::unistd::chdir(cwd) }
}

/// As the process is to have it: each name once, the last one's value, and a HOME.
fn environment(wanted: &[String], uid: u32) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut environment: Vec<String> = Vec::with_capacity(wanted.len() + 1);
    for variable in wanted.iter().filter(|variable| variable.contains('=')) {
        let of_name = name(variable);
        match environment.iter_mut().find(|known| name(known) == of_name) {
            Some(known) => known.clone_from(variable),
            None => environment.push(variable.clone()),
        }
    }
    if !environment.iter().any(|variable| variable.len() > 5 && variable.starts_with("HOME=")) {
        let users = std::fs::read_to_string(paths::PASSWD).unwrap_or_default();
        if let Some(home) = home(&users, uid) {
            environment.retain(|variable| variable != "HOME=");
            environment.push(format!("HOME={home}"));
        }
    }
    environment
}

/// The home directory of a user, see passwd(5). By hand: the C library's way would load what the
/// container's nsswitch.conf names.
fn home(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_it = fields.get(2).and_then(|id| id.parse().ok()) == Some(uid);
        fields.get(5).copied().filter(|_| is_it)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_has_each_name_once_and_a_home_only_if_there_is_one() {
        let wanted = ["A=1", "B", "HOME=/mine", "A=2"].map(str::to_owned);
        assert_eq!(environment(&wanted, 0), ["A=2", "HOME=/mine"]);
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:7:7::/nowhere:/bin/false\nshort:x:8\n";
        assert_eq!(home(users, 7), Some("/nowhere"));
        assert_eq!(home(users, 8), None);
        assert_eq!(home(users, 9), None);
    }
}
