//! A connection's socket as ttrpc wants it, and a way to learn that the connection has ended.
//!
//! Promises: every [`Gone`] of a connection resolves when its socket is closed.
//! Never: buffers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::agent::lock;
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::stream_socket::{receive, send, shutdown_write, unsent_bytes};

/// A stream socket. ttrpc drops it when either side has ended the connection.
#[derive(Debug)]
pub struct RpcSocket {
    fd: Arc<AsyncOwnedFd>,
    /// Dropped with the socket, which is what [`Gone`] waits for.
    _alive: watch::Sender<()>,
}

/// The end of a connection, for what must not outlive it.
#[derive(Clone, Debug)]
pub struct Gone {
    alive: watch::Receiver<()>,
    fd: Weak<AsyncOwnedFd>,
}

/// The connections that are open, for those who ask about all of them.
#[derive(Debug, Default)]
pub struct Connections(Mutex<Vec<Weak<AsyncOwnedFd>>>);

impl Connections {
    /// One more. Those that have ended are forgotten.
    pub fn note(&self, connection: &Gone) {
        let mut all = lock(&self.0);
        all.retain(|fd| fd.strong_count() > 0);
        all.push(connection.fd.clone());
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.0).iter().filter(|fd| fd.strong_count() > 0).count()
    }

    /// Bytes that were written to them and that the host has not taken yet.
    pub fn unsent(&self) -> u64 {
        let all = lock(&self.0);
        // A socket that cannot say has nothing to wait for.
        all.iter().filter_map(Weak::upgrade).map(|fd| unsent_bytes(fd.as_fd()).unwrap_or(0)).sum()
    }
}

impl Gone {
    /// Returns when the connection has ended.
    pub async fn wait(mut self) {
        // Nothing is ever sent: only the sender's end makes this return.
        while self.alive.changed().await.is_ok() {}
    }
}

impl RpcSocket {
    /// Takes a connected, non-blocking socket over.
    pub fn new(fd: OwnedFd) -> io::Result<(Self, Gone)> {
        let (alive, gone) = watch::channel(());
        let fd = Arc::new(AsyncOwnedFd::new(fd)?);
        let gone = Gone { alive: gone, fd: Arc::downgrade(&fd) };
        Ok((Self { fd, _alive: alive }, gone))
    }
}

impl AsyncRead for RpcSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match ready.try_io(|fd| receive(fd.as_fd(), unfilled)) {
                Ok(Ok(bytes)) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for RpcSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(context))?;
            match ready.try_io(|fd| send(fd.as_fd(), bytes)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown_write(self.fd.as_fd()))
    }
}
