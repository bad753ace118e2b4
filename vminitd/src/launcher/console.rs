//! The way of a pty's master from the container's init to us.
//!
//! libcontainer connects to a socket with a path and has the container's init send the master
//! there. The launcher is the one who listens: the master waits in the connection until create has
//! succeeded, and then goes to init, which keeps it.
//!
//! Owns: the listening socket; its path goes with the launcher's directory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::scratch::Scratch;
use crate::sys::seqpacket;

/// Why there is no pty.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The place where the master arrives.
    #[error("listen for the terminal on {0}")]
    Listen(PathBuf, #[source] io::Error),
    /// It did not arrive.
    #[error("receive the terminal")]
    Receive(#[source] io::Error),
    /// libcontainer reported success without it.
    #[error("the container's init sent no terminal")]
    Missing,
}

/// A place where a master arrives.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// Makes the place.
    pub fn listen(scratch: &Scratch) -> Result<Console, ConsoleError> {
        let path = scratch.path().join("console");
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Console { path, listener }),
            Err(error) => Err(ConsoleError::Listen(path, error)),
        }
    }

    /// For libcontainer.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The master, after libcontainer has succeeded: it has arrived by then, so nothing is waited
    /// for.
    pub fn take(self) -> Result<OwnedFd, ConsoleError> {
        self.listener.set_nonblocking(true).map_err(ConsoleError::Receive)?;
        let (connection, _) = self.listener.accept().map_err(ConsoleError::Receive)?;
        connection.set_nonblocking(true).map_err(ConsoleError::Receive)?;
        let mut name = [0; 4096];
        let datagram =
            seqpacket::receive(connection.as_fd(), &mut name).map_err(ConsoleError::Receive)?;
        datagram.fds.into_iter().next().ok_or(ConsoleError::Missing)
    }
}
