//! What a launcher does before anything else, so that nothing of PID 1 reaches a container.
//!
//! The order matters: descriptors first, since a container that waits in `created` would hold a
//! copy of each (no end of file for other containers' stdin, no SIGPIPE for their stdout). Signal
//! dispositions need hardly an act: the fork resets handlers, and PID 1 ignores nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::resource::setrlimit;
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;

use super::{Needs, reach_filter};
use crate::limits::CONTAINER_RLIMITS;
use crate::log::{self, Role};
use crate::paths;
use crate::sys::{descriptors, keyring, seccomp, signals};

/// Which act failed; then nothing is launched.
#[derive(Debug, thiserror::Error)]
pub enum FirstActError {
    /// See close_range(2).
    #[error("close the descriptors of PID 1")]
    Close(#[source] io::Error),
    /// See setsid(2).
    #[error("leave the session of PID 1")]
    Session(#[source] Errno),
    /// See proc(5).
    #[error("reset oom_score_adj")]
    OomScore(#[source] io::Error),
    /// See setrlimit(2).
    #[error("reset a resource limit")]
    Limit(#[source] Errno),
    /// See keyctl(2).
    #[error("join a new session keyring")]
    Keyring(#[source] io::Error),
    /// See dup2(2).
    #[error("open the launcher's standard descriptors")]
    Stdio(#[source] io::Error),
    /// See seccomp(2).
    #[error("keep the container from the agent")]
    Filter(#[source] io::Error),
}

/// Performs them all.
pub fn perform(needs: Needs, fds: &[OwnedFd], result: &OwnedFd) -> Result<(), FirstActError> {
    // Before all else: from here on a panic is this process's own, and ends no VM.
    log::set_role(Role::Launcher);
    let mut kept = log::descriptors();
    kept.extend([0, 1, 2, result.as_raw_fd()]);
    kept.extend(fds.iter().map(AsRawFd::as_raw_fd));
    descriptors::close_all_but(&mut kept).map_err(FirstActError::Close)?;
    signals::unblock_all();
    // A hook that ends without reading its standard input must not end the launcher.
    signals::catch_sigpipe();
    // A hook that signals its process group must not signal PID 1.
    setsid().map_err(FirstActError::Session)?;
    std::fs::write(paths::OWN_OOM_SCORE_ADJ, "0").map_err(FirstActError::OomScore)?;
    umask(Mode::from_bits_truncate(0o022));
    for (resource, soft, hard) in CONTAINER_RLIMITS {
        setrlimit(*resource, *soft, *hard).map_err(FirstActError::Limit)?;
    }
    log::keep_library_errors();
    redirect_stdio().map_err(FirstActError::Stdio)?;
    if let Some(allows_vsock) = needs.filter {
        let filter = reach_filter::filter(allows_vsock);
        seccomp::install(&filter, 0).map_err(FirstActError::Filter)?;
    }
    Ok(())
}

/// Gives the launcher a session keyring of its own, unless its job says otherwise.
pub fn new_keyring() -> Result<(), FirstActError> {
    keyring::join_new_session().map_err(FirstActError::Keyring)
}

/// Hooks inherit standard error: what they say goes to the kernel's log. The container's process
/// always gets its own three.
fn redirect_stdio() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    descriptors::install(null.as_fd(), 0)?;
    descriptors::install(null.as_fd(), 1)?;
    match std::fs::File::options().write(true).open(paths::KMSG) {
        Ok(log) => descriptors::install(log.as_fd(), 2),
        Err(_) => descriptors::install(null.as_fd(), 2),
    }
}
