//! A process's stdout or stderr: from its pipe to its sink, until every writer has closed.
//!
//! Owns: the read end of the pipe, and while it feeds it, the sink.
//! Promises: bytes arrive in the order in which they were written; the count is what has left the
//! pipe; a sink that breaks never blocks the process, from then on its output is discarded (the
//! host has gone away, and a process that writes to nobody is to go on as with /dev/null).
//! Never: holds a byte in memory, or closes the sink's socket (Delete does).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, warn};

use super::end::{End, move_some};
use crate::limits::SPLICES_PER_TURN;
use crate::paths;
use crate::sys::splice::readable_bytes;
use crate::sys::stream_socket::shutdown_write;

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// A stream of the host: half-closed at the output's end, closed by Delete.
    Stream(Arc<End>),
    /// A file or named pipe, closed at the output's end.
    File(End),
}

impl Sink {
    fn end(&self) -> &End {
        match self {
            Self::Stream(end) => end,
            Self::File(end) => end,
        }
    }

    fn done(self) {
        match self {
            Self::Stream(end) => {
                if let Err(error) = shutdown_write(end.as_fd()) {
                    debug!(%error, "half-close of a stream failed: the host has gone");
                }
            }
            Self::File(end) => drop(end),
        }
    }
}

/// Where an output's bytes are counted; lives as long as the process's record.
pub trait Counter: Send + Sync + 'static {
    /// The count.
    fn bytes(&self) -> &AtomicU64;
}

impl Counter for AtomicU64 {
    fn bytes(&self) -> &AtomicU64 {
        self
    }
}

/// One output of a process. [`Output::run`] moves; the rest may be asked meanwhile.
pub struct Output {
    pipe: End,
    counter: Arc<dyn Counter>,
    /// Every writer has closed and the sink has all of it.
    ended: AtomicBool,
    /// Fires on each move and on the end.
    progress: Notify,
}

impl Output {
    /// Takes the pipe's read end over.
    pub fn new(pipe: OwnedFd, counter: Arc<dyn Counter>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            pipe: End::new(pipe)?,
            counter,
            ended: AtomicBool::new(false),
            progress: Notify::new(),
        }))
    }

    /// Moves until every writer has closed; then ends the sink.
    pub async fn run(self: Arc<Self>, sink: Sink) {
        if let Err(error) = self.feed(sink.end()).await {
            debug!(%error, "a process's output has no reader any more: discarding");
            if let Err(error) = self.discard().await {
                warn!(%error, "a process's output cannot be discarded");
            }
        }
        sink.done();
        self.ended.store(true, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// Bytes that have left the pipe.
    pub fn moved(&self) -> u64 {
        self.counter.bytes().load(Ordering::Relaxed)
    }

    /// Returns when all that lies in the pipe now has been handed over, or when nothing moved for
    /// as long as `patience` (false). Does not wait for the pipe's end: a grandchild may hold that.
    pub async fn hand_over(&self, patience: Duration) -> bool {
        let target = self.moved().saturating_add(self.waiting());
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let done = self.ended.load(Ordering::Relaxed)
                || self.moved() >= target
                // The container can read its own pipe; what it took will never come here.
                || self.waiting() == 0;
            if done {
                return true;
            }
            if tokio::time::timeout(patience, progress).await.is_err() {
                return false;
            }
        }
    }

    /// The pipe's read end, for safe keeping.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    fn waiting(&self) -> u64 {
        readable_bytes(self.pipe.as_fd()).unwrap_or(0)
    }

    async fn feed(&self, to: &End) -> io::Result<()> {
        for turn in 1u64.. {
            let bytes = move_some(&self.pipe, to).await?;
            if bytes == 0 {
                break;
            }
            self.counter.bytes().fetch_add(bytes as u64, Ordering::Relaxed);
            self.progress.notify_waiters();
            // A process that writes without end and a host that reads as fast must leave room for
            // everybody else on this thread.
            if turn.is_multiple_of(SPLICES_PER_TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn discard(&self) -> io::Result<()> {
        let null = OpenOptions::new().write(true).open(paths::NULL)?;
        self.feed(&End::new(null.into())?).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::splice::pipe;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    fn output() -> (Arc<Output>, std::fs::File) {
        let (read, write) = pipe().unwrap();
        (Output::new(read, Arc::new(AtomicU64::new(0))).unwrap(), write.into())
    }

    fn stream() -> (Arc<End>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (Arc::new(End::new(ours.into()).unwrap()), theirs)
    }

    #[test]
    fn end_of_output_half_closes_the_stream_and_leaves_its_other_direction() {
        block_on(async {
            let (output, mut write) = output();
            let (end, mut host) = stream();
            let pump = tokio::spawn(output.clone().run(Sink::Stream(end.clone())));
            write.write_all(b"bye").unwrap();
            drop(write);
            pump.await.unwrap();
            let mut got = String::new();
            host.read_to_string(&mut got).unwrap();
            assert_eq!((got.as_str(), output.moved()), ("bye", 3));
            host.write_all(b"still there").unwrap();
            assert_eq!(readable_bytes(end.as_fd()).unwrap(), 11);
        });
    }

    #[test]
    fn output_goes_on_when_the_host_has_gone_away() {
        block_on(async {
            let (output, mut write) = output();
            let (end, host) = stream();
            drop(host);
            let pump = tokio::spawn(output.clone().run(Sink::Stream(end)));
            let writer = tokio::task::spawn_blocking(move || write.write_all(&vec![1; 1 << 20]));
            writer.await.unwrap().unwrap();
            pump.await.unwrap();
            assert_eq!(output.moved(), 1 << 20);
        });
    }

    #[test]
    fn hand_over_waits_for_what_was_written_and_not_for_the_pipes_end() {
        block_on(async {
            let (output, mut write) = output();
            write.write_all(&[5; 3000]).unwrap();
            let (end, mut host) = stream();
            tokio::spawn(output.clone().run(Sink::Stream(end)));
            assert!(output.hand_over(Duration::from_secs(10)).await);
            assert_eq!(output.moved(), 3000);
            let mut got = [0; 3000];
            host.read_exact(&mut got).unwrap();
            drop(write);
        });
    }

    #[test]
    fn hand_over_gives_up_without_progress_and_not_while_there_is_some() {
        block_on(async {
            let (output, mut write) = output();
            let (end, mut host) = stream();
            tokio::spawn(output.clone().run(Sink::Stream(end)));
            // More than the socket takes, so that the rest stays in the pipe.
            let writer = tokio::task::spawn_blocking(move || {
                write.write_all(&vec![1; 1 << 20]).unwrap();
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!output.hand_over(Duration::from_millis(200)).await);
            let slow_host = std::thread::spawn(move || {
                let mut chunk = [0; 1 << 15];
                while let Ok(1..) = host.read(&mut chunk) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            assert!(output.hand_over(Duration::from_secs(2)).await);
            writer.await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(output.moved(), 1 << 20);
            slow_host.join().unwrap();
        });
    }
}
