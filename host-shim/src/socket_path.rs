//! Unix sockets whose paths are longer than an address may be: a bundle of containerd's has up to 150 bytes.
//!
//! A long path is reached through a link in a directory of our own, which is gone at once: neither the descriptor's
//! name in /proc (Linux only) nor another working directory (the whole process's) is needed. The same limit, the lower
//! one of macOS, is kept on every system, so that what a Mac needs is done and tested everywhere.
//!
//! Never: leaves a link behind.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::limits::MAX_SOCKET_PATH_BYTES;

/// The name of the link to a socket's directory, within ours.
const LINK: &str = "d";

/// A path that fits an address, as long as this lives.
#[derive(Debug)]
pub struct Short {
    path: PathBuf,
    _link: Option<TempDir>,
}

impl Short {
    /// Another path to the socket at `path`, or the same when it is short. Its directory must exist.
    pub fn of(path: &Path) -> io::Result<Self> {
        if fits(path) {
            return Ok(Self { path: path.to_owned(), _link: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let within = |temporary: &Path| -> io::Result<Self> {
            let link = tempfile::Builder::new().prefix("v").tempdir_in(temporary)?;
            let path = link.path().join(LINK).join(name);
            if !fits(&path) {
                let text = format!("{path:?} is longer than {MAX_SOCKET_PATH_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            std::os::unix::fs::symlink(std::path::absolute(directory)?, link.path().join(LINK))?;
            Ok(Self { path, _link: Some(link) })
        };
        // TMPDIR of a Mac has some 50 bytes, and may be anything.
        within(&std::env::temp_dir()).or_else(|_| within(Path::new("/tmp")))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Listens at `path`, however long it is.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(Short::of(path)?.path())
}

/// Connects to `path`, however long it is.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Short::of(path)?.path())
}

/// The same, for the runtime.
pub async fn connect_async(path: &Path) -> io::Result<tokio::net::UnixStream> {
    let short = Short::of(path)?;
    tokio::net::UnixStream::connect(short.path()).await
}

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_socket_is_served_and_reached_at_the_limit_and_beyond_it() {
        let base = tempfile::tempdir().unwrap();
        for length in [MAX_SOCKET_PATH_BYTES, MAX_SOCKET_PATH_BYTES + 1, 150, 1000] {
            let mut directory = base.path().join(length.to_string());
            // Names have a limit of their own.
            while directory.as_os_str().len() + 9 < length {
                let left = length - directory.as_os_str().len() - 9;
                directory.push("d".repeat(left.clamp(2, 200) - 1));
            }
            std::fs::create_dir_all(&directory).unwrap();
            let path = directory.join("ctl.sock");
            let listener = bind(&path).unwrap();
            assert!(path.exists(), "{path:?}");
            let mut client = connect(&path).unwrap();
            client.write_all(b"x").unwrap();
            drop(client);
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "x");
        }
    }

    #[test]
    fn a_short_path_leaves_nothing_behind() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("d".repeat(150));
        std::fs::create_dir(&long).unwrap();
        let short = Short::of(&long.join("s")).unwrap();
        let link = short.path().to_owned();
        assert!(fits(&link) && link.parent().unwrap().is_dir());
        drop(short);
        assert!(std::fs::symlink_metadata(link.parent().unwrap()).is_err());
        assert!(std::fs::symlink_metadata(link.parent().unwrap().parent().unwrap()).is_err());
    }

    #[test]
    fn a_name_that_fits_nowhere_is_refused() {
        let error = Short::of(&Path::new("/x").join("n".repeat(200))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
