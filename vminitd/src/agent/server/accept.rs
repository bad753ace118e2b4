//! An accept loop over a listener that init opened.
//!
//! Promises: only the host gets through (vsock peer CID 2; a local socket file is guarded by its
//! permissions); an accept that fails neither ends the loop nor makes it spin; a caller who is
//! refused costs no log line, since anybody in the guest could fill the log that way.
//! Never: reads from a connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tracing::{debug, warn};
use vminitd_protocol::ports::HOST_CID;

use crate::limits::ACCEPT_PAUSE;
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::fcntl::set_nonblocking;
use crate::sys::stream_socket::{Peer, accept};

/// A listener that only the host can reach.
#[derive(Debug)]
pub struct HostListener {
    listener: AsyncOwnedFd,
    name: &'static str,
}

impl HostListener {
    /// Takes a listening socket over; the name is for the log.
    pub fn new(listener: OwnedFd, name: &'static str) -> io::Result<Self> {
        set_nonblocking(listener.as_fd())?;
        Ok(Self { listener: AsyncOwnedFd::new(listener)?, name })
    }

    /// The next connection of the host's, non-blocking. Never fails: what goes wrong is waited out.
    pub async fn next(&self) -> OwnedFd {
        let mut failing = false;
        loop {
            match self.try_next().await {
                Ok((connection, peer)) if from_host(peer) => return connection,
                Ok((_refused, peer)) => {
                    debug!(listener = self.name, ?peer, "refused a peer that is not the host");
                }
                // The caller has given up already; the next one may not have.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // EMFILE and its like pass when something else is closed; asking again at once
                    // would only keep that from happening.
                    if !failing {
                        warn!(listener = self.name, %error, "accept failed; trying again");
                    }
                    failing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn try_next(&self) -> io::Result<(OwnedFd, Peer)> {
        self.listener.async_io(tokio::io::Interest::READABLE, |fd| accept(fd.as_fd())).await
    }
}

fn from_host(peer: Peer) -> bool {
    match peer {
        Peer::Vsock { cid, port: _ } => cid == HOST_CID,
        Peer::Unix => true,
        Peer::Other => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_and_local_socket_files_get_through() {
        assert!(from_host(Peer::Vsock { cid: 2, port: 5 }));
        assert!(from_host(Peer::Unix));
        // The guest itself, by its own CID and by loopback's.
        for cid in [0, 1, 3, u32::MAX] {
            assert!(!from_host(Peer::Vsock { cid, port: 5 }));
        }
        assert!(!from_host(Peer::Other));
    }
}
