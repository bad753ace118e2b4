//! The supervisor's program: what a fresh fork of init does until it is one.
//!
//! The program is its VM's owner's, so it is trusted with the VM. It shall not hurt the agent by
//! accident: it lives in a cgroup of its own with the containers' limits, dies before the agent when
//! memory is short, and starts as a fresh process does: no descriptors but its three, no blocked or
//! ignored signals, a session and a keyring of its own.
//!
//! Promises: the pid file names the process before its program runs.
//! Never: runs in init itself, but for [`make_cgroup`].

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use nix::sys::resource::setrlimit;
use nix::sys::stat::{Mode, umask};
use tracing::{error, warn};

use crate::limits::CONTAINER_RLIMITS;
use crate::log::{self, Role};
use crate::paths;
use crate::sys::fsmount::is_mount_root;
use crate::sys::{clone, descriptors, keyring, signals};

/// Shells' status for a program that is there and cannot be executed.
const CANNOT_EXECUTE: i32 = 126;
/// Shells' status for a program that is not there.
const NOT_FOUND: i32 = 127;

/// What the containers may take together, the supervisor may take too: the rest is the agent's.
const LIMITS: &[&str] = &["memory.max", "pids.max"];

/// The cgroup for it, open.
pub fn make_cgroup() -> io::Result<OwnedFd> {
    match fs::create_dir(paths::CGROUP_SUPERVISOR) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for limit in LIMITS {
        let copied = fs::read_to_string(format!("{}/{limit}", paths::CGROUP_CONTAINERS))
            .and_then(|value| fs::write(format!("{}/{limit}", paths::CGROUP_SUPERVISOR), value));
        if let Err(error) = copied {
            warn!("limit {limit} of the supervisor: {error}");
        }
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let opened = File::options().read(true).custom_flags(flags).open(paths::CGROUP_SUPERVISOR)?;
    Ok(opened.into())
}

/// In the fresh fork. What fails here is an exit like any other, and the restart rule decides.
pub fn exec(output: &OwnedFd) -> ! {
    // Before all else: from here on a panic is this process's own, and ends no VM.
    log::set_role(Role::Launcher);
    let status = match become_it(output) {
        Ok(never) => match never {},
        Err((what, error)) => {
            error!("supervisor: {what}: {error}");
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE }
        }
    };
    clone::exit_now(status)
}

enum Never {}

fn become_it(output: &OwnedFd) -> Result<Never, (String, io::Error)> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| (what, error)
    };
    let null = File::options().read(true).open(paths::NULL).map_err(failed("open /dev/null"))?;
    for (fd, number) in [(null.as_fd(), 0), (output.as_fd(), 1), (output.as_fd(), 2)] {
        descriptors::install(fd, number).map_err(failed("set up its output"))?;
    }
    let mut kept = log::descriptors();
    kept.extend([0, 1, 2]);
    // `null` and `output` are closed under their owners' feet; this process never drops them.
    std::mem::forget(null);
    descriptors::close_all_but(&mut kept).map_err(failed("close the descriptors of PID 1"))?;
    signals::unblock_all();
    nix::unistd::setsid().map_err(io::Error::from).map_err(failed("leave PID 1's session"))?;
    fs::write(paths::OWN_OOM_SCORE_ADJ, "0").map_err(failed("reset oom_score_adj"))?;
    umask(Mode::from_bits_truncate(0o022));
    for (resource, soft, hard) in CONTAINER_RLIMITS {
        setrlimit(*resource, *soft, *hard)
            .map_err(io::Error::from)
            .map_err(failed("reset a resource limit"))?;
    }
    keyring::join_new_session().map_err(failed("join a new session keyring"))?;
    leave_pid().map_err(failed(paths::SUPERVISOR_PID))?;

    let path = paths::SUPERVISOR_PROGRAMS.iter().find(|path| fs::metadata(path).is_ok());
    let path = *path.unwrap_or(&paths::SUPERVISOR_PROGRAMS[0]);
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(0o755)) {
        warn!("make {path} executable: {error}");
    }
    let program = CString::new(path).map_err(io::Error::other).map_err(failed(path))?;
    let environment = environment().map_err(failed("its environment"))?;
    let arguments = [program.as_c_str()];
    let Err(errno) = nix::unistd::execve(&program, &arguments, &environment);
    Err((format!("execute {path}"), errno.into()))
}

/// Whoever reads the file finds a whole number.
fn leave_pid() -> io::Result<()> {
    let new = format!("{}.new", paths::SUPERVISOR_PID);
    fs::write(&new, format!("{}\n", std::process::id()))?;
    fs::rename(&new, paths::SUPERVISOR_PID)
}

fn environment() -> io::Result<Vec<CString>> {
    let fixed = paths::ENVIRONMENT.iter().map(|(name, value)| format!("{name}={value}"));
    let root = overlay_root().map(|root| format!("SPINBOX_OVERLAY_ROOT={root}"));
    fixed.chain(root).map(|entry| CString::new(entry).map_err(io::Error::other)).collect()
}

/// The root filesystem of the container that was there first, if one is mounted.
///
/// Looked for here and not told by the agent: what is mounted now is what counts, whichever agent
/// mounted it.
fn overlay_root() -> Option<String> {
    let mut bundles: Vec<_> = fs::read_dir(paths::BUNDLES_DIR)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.created().ok()?, entry.path())))
        .collect();
    bundles.sort();
    let mut roots = bundles.into_iter().map(|(_, bundle)| bundle.join("rootfs"));
    roots.find(|root| is_mount_root(root))?.into_os_string().into_string().ok()
}
