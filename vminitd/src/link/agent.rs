//! The agent's end of the link, for tokio.
//!
//! Owns: the agent's end of the socketpair.
//! Promises: [`Link::send`] and [`Link::recv`] may be used at the same time from different tasks,
//! and are cancel safe: a datagram was sent or received as a whole, or not at all.
//! Never: queues; a full socket is waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use super::codec::{self, CodecError};
use super::message::{ToAgent, ToInit};
use crate::limits::{LINK_MESSAGE_BYTES, LINK_MESSAGE_FDS};
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::{fcntl, seqpacket};

/// Why the link failed. Without it the agent is no use: it ends, and init starts another.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// init has closed its end; it is about to kill this agent.
    #[error("init has closed the link")]
    Closed,
    /// The socket itself failed.
    #[error("link to init")]
    Socket(#[source] io::Error),
    /// A message that is none.
    #[error("link to init")]
    Codec(#[from] CodecError),
    /// The process has no room for the descriptors that came along.
    #[error("descriptors from init were lost")]
    FdsLost,
    /// More descriptors than a message can carry.
    #[error("{0} descriptors are too many for one message to init")]
    TooManyFds(usize),
}

/// The agent's end.
#[derive(Debug)]
pub struct Link {
    socket: AsyncOwnedFd,
    /// Only ever locked between two system calls that do not block.
    buffer: Mutex<Box<[u8]>>,
}

impl Link {
    /// Takes the agent's end; makes it non-blocking and close-on-exec. Needs a tokio runtime.
    pub fn new(socket: OwnedFd) -> Result<Link, LinkError> {
        fcntl::set_nonblocking(socket.as_fd()).map_err(LinkError::Socket)?;
        fcntl::set_cloexec(socket.as_fd()).map_err(LinkError::Socket)?;
        Ok(Link {
            socket: AsyncOwnedFd::new(socket).map_err(LinkError::Socket)?,
            buffer: Mutex::new(vec![0; LINK_MESSAGE_BYTES].into_boxed_slice()),
        })
    }

    /// Sends one message; `fds` are duplicated into init, the caller keeps its own.
    pub async fn send(&self, message: &ToInit, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        if fds.len() > LINK_MESSAGE_FDS {
            return Err(LinkError::TooManyFds(fds.len()));
        }
        let bytes = codec::encode(message)?;
        loop {
            let mut ready = self.socket.writable().await.map_err(LinkError::Socket)?;
            match ready.try_io(|socket| seqpacket::send(socket.get_ref().as_fd(), &bytes, fds)) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => return Err(failed(error)),
                Err(_would_block) => {}
            }
        }
    }

    /// The next message and the descriptors that came along.
    pub async fn recv(&self) -> Result<(ToAgent, Vec<OwnedFd>), LinkError> {
        loop {
            let mut ready = self.socket.readable().await.map_err(LinkError::Socket)?;
            let mut buffer = self.buffer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match ready.try_io(|socket| seqpacket::receive(socket.get_ref().as_fd(), &mut buffer)) {
                Ok(Ok(datagram)) => {
                    if datagram.fds_lost {
                        return Err(LinkError::FdsLost);
                    }
                    if datagram.bytes == 0 {
                        return Err(LinkError::Closed);
                    }
                    let message = codec::decode(&buffer[..datagram.bytes])?;
                    return Ok((message, datagram.fds));
                }
                Ok(Err(error)) => return Err(failed(error)),
                Err(_would_block) => {}
            }
        }
    }
}

fn failed(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Socket(error),
    }
}
