//! The last steps of a process on its way to its program, the same for a container's init and an
//! exec: limits, user, working directory, confinement.
//!
//! ```text
//! closes what is ours -> limits -> directory -> groups, user -> capabilities -> finds its program
//!                                                                  (waits) -> filter -> program
//! ```
//!
//! Runs in the process itself, which is in its namespaces and has its root.
//! Promises: what was inherited of ours is closed first; nothing is executed if a step fails.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::stat::{Mode, fstat, makedev, umask};
use nix::unistd::{Gid, Pid, Uid, execve, setgroups, setresgid, setresuid};

use super::confined::{self, Confined};
use super::executor::find;
use crate::link::confinement::Confinement;
use crate::link::exec_program::ExecProgram;
use crate::paths;
use crate::sys::{capabilities, descriptors, process};

/// What a process becomes.
pub struct Settle {
    /// What it runs.
    pub program: ExecProgram,
    /// The execution domain, see personality(2).
    pub personality: Option<u32>,
    /// What it may do.
    pub confinement: Confinement,
}

/// A process that has only to execute its program.
pub struct Ready<'a> {
    settle: &'a Settle,
    limits: Confined,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Ready<'_> {
    /// Returns only if it fails: with the reason.
    pub fn execute(self) -> Result<Infallible, String> {
        confined::before_program(&self.settle.confinement, self.limits)
            .map_err(|error| error.to_string())?;
        let Err(errno) = execve(&self.path, &self.args, &self.env);
        Err(format!("exec {:?}: {}", self.path, errno.desc()))
    }
}

impl Settle {
    /// To be done where /proc is still the guest's.
    pub fn set_oom_score(&self) -> io::Result<()> {
        match self.program.oom_score_adj {
            Some(score) => std::fs::write(paths::OWN_OOM_SCORE_ADJ, score.to_string()),
            None => Ok(()),
        }
    }

    /// All but the program itself. Descriptors 0 to 2 and `others` stay open.
    pub fn prepare(&self, others: &[RawFd]) -> Result<Ready<'_>, String> {
        let ExecProgram { args, env, uid, gid, groups, cwd, .. } = &self.program;
        let mut kept = vec![0, 1, 2];
        kept.extend(others);
        descriptors::close_all_but(&mut kept)
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
        Ok(Ready { settle: self, limits, path, args, env })
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

/// An error of the process's, as it tells it.
pub fn said(what: &str, error: impl Into<io::Error>) -> String {
    format!("{what}: {}", error.into())
}

/// What nothing comes from, at the path where it is.
pub fn null() -> io::Result<File> {
    File::options().read(true).write(true).open(paths::NULL)
}

/// Whether it is what it should be.
pub fn is_null(file: &File) -> bool {
    let stat = fstat(file.as_raw_fd());
    stat.is_ok_and(|stat| {
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(1, 3)
    })
}

/// Makes them the descriptors 0 to 2. None of them is one of these numbers.
pub fn install(stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    for (number, fd) in (0..).zip(stdio) {
        descriptors::install(fd, number)?;
    }
    Ok(())
}

/// Runs on these CPUs only, if there are any.
pub fn pin(cpus: &[usize]) -> Result<(), Errno> {
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
