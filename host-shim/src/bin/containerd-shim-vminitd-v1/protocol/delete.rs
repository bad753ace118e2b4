//! `delete`: what is to be done when nobody answers any more. Containerd calls it when a shim died, or never served.
//!
//! Promises: a shim that still runs is ended, with its VM; its socket and cgroups are removed; the exit is the one that
//! the shim has recorded, else that of a killed process. It works without its bundle, which may be gone.
//! Never: touches the shim of a pod for one of its containers.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use prost::Message;
use serde::{Deserialize, Serialize};
use vminitd_protocol::pb::containerd::task::v3::DeleteResponse;
use vminitd_protocol::pb::google::protobuf::Timestamp;

/// The file that a shim holds (flock) as long as it lives; its pid is in it.
pub const LOCK: &str = "shim.pid";
/// Directories of cgroups that go with the shim, a line each.
pub const CGROUPS: &str = "shim.cgroups";
/// What of a network namespace was redirected.
const NETWORK: &str = "shim.network.json";
/// How the container ended.
const EXIT: &str = "shim.exit.json";

/// 128 and SIGKILL: what a process that was killed exits with.
const KILLED: u32 = 137;

/// How long a shim that was asked to end may take; it may have to end a VM.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a container's process ended, as it is recorded.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Exit {
    /// Its pid in the guest.
    pub pid: u32,
    /// Its exit code, or 128 and the signal.
    pub status: u32,
    /// Since 1970.
    pub seconds: i64,
    /// And these.
    pub nanos: i32,
}

/// Does it; returns what to print.
pub fn delete(bundle: &Path) -> Vec<u8> {
    // One thing that fails must not keep the others from being tried, and nobody reads why.
    let _ = end_shim(bundle);
    if bundle.join(LOCK).exists() {
        let _ = remove_socket(bundle);
    }
    #[cfg(target_os = "linux")]
    let _ = restore_network(bundle);
    remove_cgroups(bundle);
    let recorded = std::fs::read(bundle.join(EXIT)).ok();
    let exit = recorded.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_else(killed);
    let exited_at = Timestamp { seconds: exit.seconds, nanos: exit.nanos };
    DeleteResponse { pid: exit.pid, exit_status: exit.status, exited_at: Some(exited_at) }
        .encode_to_vec()
}

/// Keeps an exit for a `delete` that finds no shim.
pub fn record(bundle: &Path, exit: Exit) -> io::Result<()> {
    std::fs::write(bundle.join(EXIT), serde_json::to_vec(&exit)?)
}

/// Interfaces of a network namespace whose packets go to a VM.
#[derive(Debug, Serialize, Deserialize)]
struct Redirected {
    namespace: PathBuf,
    links: Vec<u32>,
}

/// Keeps what is to be undone for a `delete` that finds no shim.
pub fn record_network(bundle: &Path, namespace: &Path, links: &[u32]) -> io::Result<()> {
    let redirected = Redirected { namespace: namespace.to_owned(), links: links.to_owned() };
    std::fs::write(bundle.join(NETWORK), serde_json::to_vec(&redirected)?)
}

/// The taps are gone with their VM; what leads to them goes here. This process stays in the namespace: it is about to end.
#[cfg(target_os = "linux")]
fn restore_network(bundle: &Path) -> io::Result<()> {
    let Redirected { namespace, links } =
        serde_json::from_slice(&std::fs::read(bundle.join(NETWORK))?)?;
    nix::sched::setns(std::fs::File::open(namespace)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    crate::life::give_back(&links)
}

/// The exit of what was killed just now.
pub fn killed() -> Exit {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Exit {
        pid: 0,
        status: KILLED,
        seconds: now.as_secs().cast_signed(),
        nanos: now.subsec_nanos().cast_signed(),
    }
}

fn end_shim(bundle: &Path) -> io::Result<()> {
    let path = bundle.join(LOCK);
    let lives = || -> io::Result<bool> {
        let file = std::fs::File::open(&path)?;
        Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
    };
    if !lives()? {
        return Ok(());
    }
    let pid: i32 = std::fs::read_to_string(&path)?.trim().parse().map_err(io::Error::other)?;
    let pid = nix::unistd::Pid::from_raw(pid);
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGKILL] {
        // It holds the lock, so the pid is its own.
        if !lives()? {
            return Ok(());
        }
        nix::sys::signal::kill(pid, signal)?;
        let until = Instant::now() + PATIENCE;
        while lives()? && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn remove_socket(bundle: &Path) -> io::Result<()> {
    let address = std::fs::read_to_string(bundle.join("address"))?;
    let socket = PathBuf::from(address.trim().trim_start_matches("unix://"));
    // Only what `start` can have made.
    let is_digest = |name: &str| name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit());
    let named = socket.file_name().and_then(|name| name.to_str()).is_some_and(is_digest);
    if named && std::fs::symlink_metadata(&socket)?.file_type().is_socket() {
        std::fs::remove_file(socket)?;
    }
    Ok(())
}

/// They are empty once the shim and what it started are gone.
pub fn remove_cgroups(bundle: &Path) {
    let list = std::fs::read_to_string(bundle.join(CGROUPS)).unwrap_or_default();
    for directory in list.lines().map(Path::new) {
        if directory.starts_with("/sys/fs/cgroup") {
            let until = Instant::now() + Duration::from_secs(1);
            while std::fs::remove_dir(directory)
                .is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
                && Instant::now() < until
            {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_that_was_recorded_is_reported_and_else_a_kill() {
        let bundle = tempfile::tempdir().unwrap();
        let told = || DeleteResponse::decode(&*delete(bundle.path())).unwrap();
        assert_eq!(told().exit_status, KILLED);
        let exit = Exit { pid: 7, status: 3, seconds: 5, nanos: 6 };
        record(bundle.path(), exit).unwrap();
        let DeleteResponse { pid, exit_status, exited_at } = told();
        let Timestamp { seconds, nanos } = exited_at.unwrap();
        assert_eq!((pid, exit_status, seconds, nanos), (7, 3, 5, 6));
    }

    #[test]
    fn a_bundle_that_is_gone_is_no_reason_to_fail() {
        assert!(!delete(Path::new("/nowhere")).is_empty());
    }
}
