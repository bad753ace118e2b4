//! Where a shim listens: a socket of its own below /run, named by whom it serves.
//!
//! Promises: the same containerd, namespace and container (or pod) always mean the same path, and it fits into an
//! address; a socket that nobody serves any more is replaced. Never: replaces one that is served.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where all shims of containerd listen.
pub const SOCKETS: &str = "/run/containerd/s";

/// The socket of the shim for `group` (a container, or a pod's sandbox).
pub fn socket_path(directory: &Path, address: &str, namespace: &str, group: &str) -> PathBuf {
    // A path below the address, as others name theirs.
    let named = Path::new(address).join(namespace).join(group);
    let digest = Sha256::digest(named.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(hex)
}

/// What became of the attempt to listen.
pub enum Bound {
    /// It is ours.
    New(UnixListener),
    /// Another shim serves it.
    Served,
}

/// Listens there, unless somebody does.
pub fn bind(path: &Path) -> io::Result<Bound> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
    }
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(Bound::Served);
            }
            std::fs::remove_file(path)?;
            private(UnixListener::bind(path)?, path)
        }
        listener => private(listener?, path),
    }
}

fn private(listener: UnixListener, path: &Path) -> io::Result<Bound> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(Bound::New(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_by_all_that_it_serves_and_fits_into_an_address() {
        let of =
            |address, namespace, group| socket_path(Path::new(SOCKETS), address, namespace, group);
        let one = of("/run/containerd/containerd.sock", "default", "c1");
        assert_eq!(one, of("/run/containerd/containerd.sock", "default", "c1"));
        assert_ne!(one, of("/run/containerd/containerd.sock", "default", "c2"));
        assert_ne!(one, of("/run/containerd/containerd.sock", "k8s.io", "c1"));
        assert_ne!(one, of("/run/other.sock", "default", "c1"));
        assert!(one.as_os_str().len() < 104);
    }

    #[test]
    fn one_that_is_served_is_left_and_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/x");
        let Bound::New(listener) = bind(&path).unwrap() else { panic!("nobody else is there") };
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path).unwrap(), Bound::Served));
        drop(listener);
        assert!(matches!(bind(&path).unwrap(), Bound::New(_)));
    }
}
