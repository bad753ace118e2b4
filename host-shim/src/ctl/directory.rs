//! The directory of running VMs.
//!
//! Promises: whoever holds `lock` lives, who does not is dead: the kernel lets go of it with the process. All looking
//! and changing happens under `.lock`, so that a name is never given twice nor a new directory taken for a dead one.
//! Never: removes what it has not made: a directory without `lock` goes only when it is empty.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::socket_path;
use crate::vm::VmName;

/// A VM could not be given a directory, or be found.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory for all cannot be made or used. The caller's environment's fault.
    #[error(
        "cannot use {path:?} for running VMs; XDG_RUNTIME_DIR may name another directory for it"
    )]
    Base {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Another VM has that name. The caller's fault.
    #[error("a VM named {name} runs already (pid {pid}); give another name, or end that one")]
    InUse {
        /// The name.
        name: VmName,
        /// The process that runs it, as it says.
        pid: String,
    },
    /// The VM's own directory cannot be filled.
    #[error("make {path:?}")]
    Make {
        /// What was to be made.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No VM has that name. The caller's fault.
    #[error("no VM named {name} runs; {}", others(.running))]
    NoSuch {
        /// The name.
        name: VmName,
        /// What runs.
        running: Vec<VmName>,
    },
    /// No VM runs. The caller's fault.
    #[error("no VM runs; start one: vminitctl run --name NAME --rootfs DIR -- CMD")]
    None,
    /// Several run, and none was named. The caller's fault.
    #[error("several VMs run ({}); say which one: --name {}", list(.running), .running[0])]
    Several {
        /// What runs.
        running: Vec<VmName>,
    },
}

fn list(names: &[VmName]) -> String {
    names.iter().map(VmName::as_str).collect::<Vec<_>>().join(", ")
}

fn others(names: &[VmName]) -> String {
    match names {
        [] => "none runs at all".to_owned(),
        names => format!("running: {}", list(names)),
    }
}

/// A VM's own directory. Dropping it removes the directory with all that is in it.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Says that we live.
    _lock: Flock<File>,
}

/// A VM that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: VmName,
    /// Its directory.
    pub path: PathBuf,
}

/// Takes `name` for a VM of this process, and removes what dead ones have left. The listener is its ctl.sock.
pub fn claim(name: &VmName) -> Result<(Claim, UnixListener), DirectoryError> {
    claim_in(&base_path(), name)
}

/// The VMs that run, by name.
pub fn running() -> Result<Vec<Found>, DirectoryError> {
    running_in(&base_path())
}

/// The VM of that name; without one, the only one that runs.
pub fn find(name: Option<&VmName>) -> Result<Found, DirectoryError> {
    find_in(&base_path(), name)
}

fn base_path() -> PathBuf {
    let set =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    set.unwrap_or_else(|| "/run".into()).join("vminitd")
}

pub(super) fn claim_in(
    base: &Path,
    name: &VmName,
) -> Result<(Claim, UnixListener), DirectoryError> {
    let path = base.join(name.as_str());
    let socket = path.join("ctl.sock");
    let _base = Base::open(base)?;
    if sweep(base)?.iter().any(|found| found.name == *name) {
        let pid = std::fs::read_to_string(path.join("lock")).unwrap_or_default();
        return Err(DirectoryError::InUse { name: name.clone(), pid: pid.trim().to_owned() });
    }
    let fail = |source| DirectoryError::Make { path: path.clone(), source };
    DirBuilder::new().mode(0o700).create(&path).map_err(fail)?;
    match fill(&path, &socket) {
        // Not before: dropping a Claim waits for the lock that we hold.
        Ok((lock, listener)) => Ok((Claim { path, _lock: lock }, listener)),
        Err(source) => {
            let _ = std::fs::remove_dir_all(&path);
            Err(fail(source))
        }
    }
}

fn fill(path: &Path, socket: &Path) -> io::Result<(Flock<File>, UnixListener)> {
    let lock = private(&path.join("lock"))?;
    let mut lock =
        Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    writeln!(lock, "{}", std::process::id())?;
    let listener = socket_path::bind(socket)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok((lock, listener))
}

pub(super) fn running_in(base: &Path) -> Result<Vec<Found>, DirectoryError> {
    if !base.exists() {
        return Ok(Vec::new());
    }
    let _base = Base::open(base)?;
    sweep(base)
}

pub(super) fn find_in(base: &Path, name: Option<&VmName>) -> Result<Found, DirectoryError> {
    let mut running = running_in(base)?;
    let names = |running: &[Found]| running.iter().map(|found| found.name.clone()).collect();
    match name {
        Some(name) => match running.iter().find(|found| found.name == *name) {
            Some(found) => Ok(found.clone()),
            None => Err(DirectoryError::NoSuch { name: name.clone(), running: names(&running) }),
        },
        None if running.len() > 1 => Err(DirectoryError::Several { running: names(&running) }),
        None => running.pop().ok_or(DirectoryError::None),
    }
}

impl Claim {
    /// A file of this VM's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Under the lock for all: somebody may take the name as soon as the directory is gone.
        let _base = self.path.parent().map(Base::open);
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Found {
    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("ctl.sock")
    }
}

/// The directory for all, made if need be, and locked as long as this lives.
struct Base {
    _lock: Flock<File>,
}

impl Base {
    fn open(path: &Path) -> Result<Self, DirectoryError> {
        let fail = |source| DirectoryError::Base { path: path.to_owned(), source };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
            _ => {}
        }
        let mut lock = private(&path.join(".lock")).map_err(fail)?;
        loop {
            lock = match Flock::lock(lock, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err((lock, Errno::EINTR)) => lock,
                Err((_, errno)) => return Err(fail(errno.into())),
            };
        }
    }
}

/// Removes what dead VMs have left; returns those that live, by name.
fn sweep(base: &Path) -> Result<Vec<Found>, DirectoryError> {
    let fail = |source| DirectoryError::Base { path: base.to_owned(), source };
    let mut living = Vec::new();
    for entry in std::fs::read_dir(base).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name =
            path.file_name().and_then(|name| VmName::try_from(name.to_str()?.to_owned()).ok());
        let Some(name) = name.filter(|_| path.is_dir()) else { continue };
        match state(&path) {
            State::Lives => living.push(Found { name, path }),
            // What cannot be removed is somebody else's, or goes another time.
            State::Dead => drop(std::fs::remove_dir_all(&path)),
            State::NeverBegun => drop(std::fs::remove_dir(&path)),
        }
    }
    living.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(living)
}

enum State {
    Lives,
    Dead,
    /// Its process died before it made a lock, or it is none of ours.
    NeverBegun,
}

fn state(path: &Path) -> State {
    let Ok(lock) = File::open(path.join("lock")) else { return State::NeverBegun };
    match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
        Ok(_) => State::Dead,
        Err(_) => State::Lives,
    }
}

fn private(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
