//! `start`: makes the socket, starts the shim that serves it, and says where that is.
//!
//! ```text
//! containerd --> start: bind the socket --> exec this program again, the socket as its fd 0 --> print its address
//! ```
//!
//! Promises: what is printed is the address and nothing else; the shim is in a session of its own, holds neither our
//! stdout nor any other descriptor, and is killed by the kernel after containerd, not before; a container of a pod gets
//! the shim of its sandbox. Never: waits for a VM.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::address::{self, Bound, SOCKETS, socket_path};
use super::bootstrap::{Given, VERSION_VARIABLE, answer, given};
use super::flags::Flags;

/// Annotations by which containers share a shim: containerd's own, and that of Kubernetes' pods.
pub const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// Bytes of runtime options or parameters; they have some hundred.
const MAX_INPUT_BYTES: u64 = 1 << 20;

/// No shim was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Without an id there is nothing to serve. The caller's fault.
    #[error("no -id was given")]
    NoId,
    /// The bundle's config. The caller's fault.
    #[error("read {path:?}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("listen on {path:?}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The program cannot be started again.
    #[error("start the shim")]
    Spawn(#[source] io::Error),
    /// The bundle cannot be written.
    #[error("write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Does it; returns what to print.
pub fn start(flags: &Flags) -> Result<String, StartError> {
    if flags.id.is_empty() {
        return Err(StartError::NoId);
    }
    let mut input = Vec::new();
    // What cannot be read says nothing.
    let _ = io::stdin().take(MAX_INPUT_BYTES).read_to_end(&mut input);
    let group = group(&flags.bundle, &flags.id)?;
    let given = given(&input, &flags.id, &flags.namespace);
    let directory = match &given {
        Given::Params { socket_directory: Some(directory) } => directory,
        _ => Path::new(SOCKETS),
    };
    let socket = socket_path(directory, &flags.address, &flags.namespace, &group);
    let listen = |source| StartError::Listen { path: socket.clone(), source };
    if let Bound::New(listener) = address::bind(&socket).map_err(listen)? {
        let child = serve(flags, listener.into()).map_err(StartError::Spawn)?;
        // What cannot be set stays as it was.
        let _ = spare(child);
    }
    let address = format!("unix://{}", socket.display());
    let file = flags.bundle.join("address");
    std::fs::write(&file, &address).map_err(|source| StartError::Write { path: file, source })?;
    let setting = std::env::var(VERSION_VARIABLE).ok();
    Ok(answer(&given, setting.as_deref(), &socket.display().to_string()))
}

/// Whose shim it is: the container's own, or its pod's.
fn group(bundle: &Path, id: &str) -> Result<String, StartError> {
    let path = bundle.join("config.json");
    let fail = |source| StartError::Config { path: path.clone(), source };
    let file = std::fs::File::open(&path).map_err(fail)?;
    let config: serde_json::Value =
        serde_json::from_reader(io::BufReader::new(file)).map_err(|error| fail(error.into()))?;
    let annotation = |name: &&str| config["annotations"][*name].as_str();
    let group = GROUPS.iter().find_map(annotation).filter(|group| !group.is_empty());
    Ok(group.unwrap_or(id).to_owned())
}

/// Starts this program again, without an action. std does it by posix_spawn where there is nothing to do between fork
/// and exec; so the shim makes its session by itself.
fn serve(flags: &Flags, listener: OwnedFd) -> io::Result<u32> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("-namespace").arg(&flags.namespace);
    command.arg("-address").arg(&flags.address);
    command.arg("-publish-binary").arg(&flags.publish_binary);
    command.arg("-id").arg(&flags.id);
    if flags.debug {
        command.arg("-debug");
    }
    let child = command
        .current_dir(&flags.bundle)
        .stdin(listener)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child.id())
}

/// A shim is one point more likely to be killed than containerd, whose child we are. proc_pid_oom_score_adj(5).
fn spare(shim: u32) -> io::Result<()> {
    let path = |pid: u32| format!("/proc/{pid}/oom_score_adj");
    let parent = std::fs::read_to_string(path(std::os::unix::process::parent_id()))?;
    let score: i32 = parent.trim().parse().map_err(io::Error::other)?;
    std::fs::write(path(shim), (score + 1).min(1000).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_of(config: &str) -> Result<String, StartError> {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        group(bundle.path(), "c1")
    }

    #[test]
    fn a_container_of_a_pod_has_the_shim_of_its_sandbox() {
        let of =
            |key: &str| group_of(&format!("{{\"annotations\":{{\"{key}\":\"pod\"}}}}")).unwrap();
        assert_eq!(of("io.kubernetes.cri.sandbox-id"), "pod");
        assert_eq!(of("io.containerd.runc.v2.group"), "pod");
        assert_eq!(of("something.else"), "c1");
        assert_eq!(group_of("{}").unwrap(), "c1");
        assert!(group_of("{").is_err());
    }
}
