//! A vsock connection to the guest, as a stream of tokio's.
//!
//! Owns: our end, and what tells its giver that the connection is over, which goes with the last half (on macOS the
//! connection lives in vminit-vmm as an object that must be let go).
//! Promises: each direction ends on its own: [`AsyncWriteExt::shutdown`](tokio::io::AsyncWriteExt::shutdown) is the
//! end that the guest reads, and leaves the other direction open.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A connection to the guest.
#[derive(Debug)]
pub struct GuestStream {
    stream: UnixStream,
    release: Released,
}

/// The reading half of a [`GuestStream`].
#[derive(Debug)]
pub struct GuestReader {
    half: OwnedReadHalf,
    _release: Released,
}

/// The writing half of a [`GuestStream`]. Dropping it ends this direction.
#[derive(Debug)]
pub struct GuestWriter {
    half: OwnedWriteHalf,
    _release: Released,
}

/// Keeps a connection until it is dropped, for a stream that was taken out of its [`GuestStream`].
#[derive(Clone, Debug)]
pub struct Released(#[expect(dead_code, reason = "what counts is its drop")] Arc<dyn Keeps>);

/// Something whose drop says that a connection is over.
trait Keeps: Send + Sync + std::fmt::Debug {}

impl<T: Send + Sync + std::fmt::Debug> Keeps for T {}

impl GuestStream {
    /// `release` is dropped with the last half.
    pub(crate) fn new(
        fd: OwnedFd,
        release: impl Send + Sync + std::fmt::Debug + 'static,
    ) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, release: Released(Arc::new(release)) })
    }

    /// Takes it out of the runtime: a blocking stream for a thread, and what must live as long as that.
    pub fn into_blocking(self) -> io::Result<(std::os::unix::net::UnixStream, Released)> {
        let stream = self.stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok((stream, self.release))
    }

    /// Parts it into two halves that may live in different tasks.
    pub fn into_split(self) -> (GuestReader, GuestWriter) {
        let (reader, writer) = self.stream.into_split();
        let reader = GuestReader { half: reader, _release: self.release.clone() };
        (reader, GuestWriter { half: writer, _release: self.release })
    }
}

macro_rules! reads {
    ($type:ty, $field:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.$field).poll_read(cx, buf)
            }
        }
    };
}

macro_rules! writes {
    ($type:ty, $field:ident) => {
        impl AsyncWrite for $type {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.$field).poll_write(cx, buf)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.$field).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.$field).poll_shutdown(cx)
            }
        }
    };
}

reads!(GuestStream, stream);
writes!(GuestStream, stream);
reads!(GuestReader, half);
writes!(GuestWriter, half);
