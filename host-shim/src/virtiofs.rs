//! Shared directories and files: a virtiofsd per share.
//!
//! Owns: nothing; [`serve`] hands over the process and the socket that QEMU is to have.
//! Promises: no socket has a path; the daemon sees nothing of the host but its directory, as far as the system lets
//! us (see [`Sandbox`]), and of a single file nothing beside it; it holds no file handles, and ends with QEMU, which holds its only connection, or with us.
//! Never: writes below a share that is read-only, whatever the guest asks for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::container::FILE_IN_SHARE;
use crate::qemu::process::Process;
use crate::sys::{hidden_socket, lone_file};
use crate::vm::Share;

/// How a virtiofsd is kept from the rest of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Namespaces of its own, and a root that is the share. Without root: in a user namespace.
    Namespace,
    /// chroot: root without the right to make namespaces, as in a container.
    Chroot,
    /// Its seccomp filter only: neither root nor allowed to make user namespaces.
    None,
}

impl Sandbox {
    /// The best that this process can have. `may_unshare` says whether namespaces can be made.
    pub fn best(root: bool, may_unshare: bool) -> Self {
        match (root, may_unshare) {
            (_, true) => Self::Namespace,
            (true, false) => Self::Chroot,
            (false, false) => Self::None,
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Chroot => "chroot",
            Self::None => "none",
        }
    }
}

/// A share that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The path of a share is none that can be shared. The owner's fault.
    #[error("share {tag:?}: {path:?} is neither a directory nor a file")]
    Kind {
        /// The share.
        tag: String,
        /// Its path.
        path: PathBuf,
    },
    /// A single file cannot be shown without what lies beside it: neither root nor allowed to make namespaces.
    #[error(
        "share {tag:?}: {path:?} is a file, and this system allows no mount namespace to share it alone; share its directory"
    )]
    NoNamespace {
        /// The share.
        tag: String,
        /// Its path.
        path: PathBuf,
    },
    /// No socket, or no process.
    #[error("share {tag:?}: start {program:?}")]
    Start {
        /// The share.
        tag: String,
        /// The virtiofsd.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Starts `program` for `share`, and gives the socket over which a VM mounts it. `ended` is called when the daemon
/// has ended.
pub fn serve(
    program: &Path,
    share: &Share,
    sandbox: Sandbox,
    ended: impl FnOnce() + Send + 'static,
) -> Result<(Process, OwnedFd), ShareError> {
    let tag = || share.tag.to_string();
    let is_file = share.path.is_file();
    if !is_file && !share.path.is_dir() {
        return Err(ShareError::Kind { tag: tag(), path: share.path.clone() });
    }
    if is_file && sandbox != Sandbox::Namespace {
        return Err(ShareError::NoNamespace { tag: tag(), path: share.path.clone() });
    }
    let error = |source| ShareError::Start { tag: tag(), program: program.to_owned(), source };
    let (listener, client) = hidden_socket::connected_listener().map_err(error)?;
    let shown = if is_file { Path::new(lone_file::DIRECTORY) } else { &share.path };
    let mut command = command(program, share, shown, sandbox, listener.as_raw_fd());
    if is_file {
        lone_file::show(&mut command, &share.path, FILE_IN_SHARE).map_err(error)?;
    }
    let name = format!("virtiofsd of share {}", share.tag);
    let process = Process::start(name, &mut command, &[listener.as_fd()], ended).map_err(error)?;
    Ok((process, client))
}

fn command(
    program: &Path,
    share: &Share,
    directory: &Path,
    sandbox: Sandbox,
    listener: i32,
) -> Command {
    let mut command = Command::new(program);
    command.arg("--shared-dir").arg(directory);
    command.arg(format!("--fd={listener}"));
    command.arg(format!("--sandbox={}", sandbox.argument()));
    // Without it, files with capabilities (ping) would have none in the guest.
    command.arg("--xattr");
    // File handles would need CAP_DAC_READ_SEARCH, which opens every file of the filesystem.
    command.arg("--inode-file-handles=never");
    command.arg("--log-level=warn");
    if share.read_only {
        command.arg("--readonly");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(read_only: bool) -> Share {
        Share { tag: "rootfs".parse().unwrap(), path: "/a dir".into(), read_only }
    }

    #[test]
    fn the_best_sandbox_is_what_the_process_can_have() {
        assert_eq!(Sandbox::best(true, true), Sandbox::Namespace);
        assert_eq!(Sandbox::best(false, true), Sandbox::Namespace);
        assert_eq!(Sandbox::best(true, false), Sandbox::Chroot);
        assert_eq!(Sandbox::best(false, false), Sandbox::None);
    }

    #[test]
    fn only_a_read_only_share_is_served_read_only() {
        let has = |read_only| {
            let share = share(read_only);
            let command = command(Path::new("v"), &share, &share.path, Sandbox::Chroot, 7);
            command.get_args().any(|arg| arg == "--readonly")
        };
        assert!(has(true) && !has(false));
    }

    #[test]
    fn what_cannot_be_shared_is_refused_by_name() {
        let refused = |path: &Path| {
            let share = Share { path: path.to_owned(), ..share(true) };
            serve(Path::new("virtiofsd"), &share, Sandbox::None, || ()).unwrap_err().to_string()
        };
        let text = "share \"rootfs\": \"/a dir\" is neither a directory nor a file";
        assert_eq!(refused(Path::new("/a dir")), text);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(refused(file.path()).contains("share its directory"));
    }
}
