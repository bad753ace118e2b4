//! A process's stdin: from its source to its pipe, until somebody ends it.
//!
//! Owns: nothing of the pipe, whose write end the caller closes when [`Input::run`] returns.
//! Promises: ends on the source's end, on `CloseIO` once what had arrived is delivered, and when
//! the process no longer reads; everything that came before the end is in the pipe by then; the
//! source can be changed at any time, and the count says what came from the old one.
//! Never: holds a byte in memory, or reads what the process will not take.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tracing::debug;

use super::end::{End, move_some};
use super::output::{Counter, Loss};
use crate::agent::profile::CloseIo;
use crate::limits::FIFO_PAUSE;
use crate::sys::splice::readiness;
use crate::sys::stream_socket::peer_is_gone;

/// Why stdin ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The host half-closed or closed its stream; or the file or named pipe has ended.
    Source,
    /// The host's stream is lost.
    Broken,
    /// `CloseIO`.
    Closed,
    /// The process closed its end, or is gone.
    Reader,
}

/// Where stdin comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A stream of the host. None when it is lost already.
    Stream(Option<Arc<End>>, Loss),
    /// A file.
    File(Arc<End>),
    /// A named pipe: it is at its end only after a writer has been there.
    Fifo(Arc<End>),
}

impl Source {
    fn end(&self) -> Option<&End> {
        match self {
            Self::Stream(end, _) => end.as_deref(),
            Self::File(end) | Self::Fifo(end) => Some(end),
        }
    }

    /// Whether the host may come back with another stream. A stream whose host has gone altogether
    /// reads like one that was half-closed; a host that wants to come back ends input by a half-close
    /// or by `CloseIO`, and keeps the connection.
    fn may_come_back(&self, ended: Ended) -> bool {
        let Self::Stream(end, Loss::Keep) = self else { return false };
        match ended {
            Ended::Broken => true,
            Ended::Source => end.as_ref().is_none_or(|end| peer_is_gone(end.as_fd())),
            Ended::Closed | Ended::Reader => false,
        }
    }
}

/// A process's stdin. [`Input::run`] moves; the rest may be asked meanwhile.
pub struct Input {
    source: watch::Sender<Source>,
    counter: Arc<dyn Counter>,
    ended: AtomicBool,
}

impl Input {
    /// One that comes from there at first.
    pub fn new(source: Source, counter: Arc<dyn Counter>) -> Arc<Self> {
        let ended = AtomicBool::new(false);
        Arc::new(Self { source: watch::Sender::new(source), counter, ended })
    }

    /// From now on it comes from there; what the old source still holds is not read.
    pub fn attach(&self, source: Source) {
        self.source.send_replace(source);
    }

    /// Bytes that are in the process's pipe, or were.
    pub fn moved(&self) -> u64 {
        self.counter.bytes().load(Ordering::Relaxed)
    }

    /// Nothing is taken any more.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Moves until the end. `closing` becomes true with the first `CloseIO`.
    pub async fn run(&self, pipe: &End, closing: watch::Receiver<bool>, how: CloseIo) -> Ended {
        let mut sources = self.source.subscribe();
        let ended = loop {
            let source = sources.borrow_and_update().clone();
            let ended = tokio::select! {
                // First, so that nothing more is read from a source that was replaced. The sender
                // is in `self`.
                biased;
                _ = sources.changed() => continue,
                ended = self.run_one(&source, pipe, closing.clone(), how) => ended,
            };
            if !source.may_come_back(ended) {
                break ended;
            }
            debug!("a process's stdin waits for another stream");
            let mut closing = closing.clone();
            tokio::select! {
                _ = sources.changed() => {}
                _ = closing.wait_for(|closing| *closing) => break Ended::Closed,
            }
        };
        self.ended.store(true, Ordering::Relaxed);
        ended
    }

    async fn run_one(
        &self,
        source: &Source,
        pipe: &End,
        mut closing: watch::Receiver<bool>,
        how: CloseIo,
    ) -> Ended {
        let CloseIo::OnceQuiet(quiet) = how;
        let Some(from) = source.end() else { return Ended::Broken };
        loop {
            let closed = *closing.borrow_and_update();
            let moved = tokio::select! {
                moved = move_some(from, pipe) => moved,
                () = tokio::time::sleep(quiet), if closed => {
                    // Quiet is a source without data, not a process that is slow to take it.
                    match readiness(from.as_fd()) {
                        Ok(now) if now.readable => continue,
                        _ => return Ended::Closed,
                    }
                }
                changed = closing.changed(), if !closed => match changed {
                    Ok(()) => continue,
                    Err(_) => return Ended::Closed,
                },
            };
            match moved {
                Ok(0) if starting(source) => source_starts(from).await,
                Ok(0) => return Ended::Source,
                Ok(bytes) => {
                    self.counter.bytes().fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ended::Reader,
                Err(error) => {
                    debug!(%error, "a process's stdin broke");
                    return Ended::Broken;
                }
            }
        }
    }
}

/// A named pipe that nobody has opened for writing yet: it reads as ended, but is not hung up.
fn starting(source: &Source) -> bool {
    match source {
        Source::Stream(..) | Source::File(_) => false,
        Source::Fifo(end) => readiness(end.as_fd()).is_ok_and(|now| !now.hung_up),
    }
}

async fn source_starts(source: &End) {
    // Without this pause a writer that opened and has written nothing would make a busy loop.
    tokio::time::sleep(FIFO_PAUSE).await;
    let _ = source.readable().await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sys::splice::pipe;

    const HOW: CloseIo = CloseIo::OnceQuiet(Duration::from_millis(100));

    struct Setup {
        host: UnixStream,
        process: std::fs::File,
        close: watch::Sender<bool>,
        input: Arc<Input>,
        ended: tokio::task::JoinHandle<Ended>,
    }

    fn start_with(loss: Loss) -> Setup {
        let (ours, host) = UnixStream::pair().unwrap();
        let (read, write) = pipe().unwrap();
        let source = Source::Stream(Some(Arc::new(End::new(ours.into()).unwrap())), loss);
        let pipe = End::new(write).unwrap();
        let (close, closing) = watch::channel(false);
        let input = input(source);
        let running = input.clone();
        let ended = tokio::spawn(async move { running.run(&pipe, closing, HOW).await });
        Setup { host, process: read.into(), close, input, ended }
    }

    fn input(source: Source) -> Arc<Input> {
        Input::new(source, Arc::new(std::sync::atomic::AtomicU64::new(0)))
    }

    fn start() -> Setup {
        start_with(Loss::Discard)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    async fn all(mut process: std::fs::File) -> Vec<u8> {
        let read = tokio::task::spawn_blocking(move || {
            let mut got = Vec::new();
            process.read_to_end(&mut got).unwrap();
            got
        });
        read.await.unwrap()
    }

    #[test]
    fn half_close_of_the_host_ends_stdin_after_all_bytes() {
        block_on(async {
            let mut setup = start();
            let reading = tokio::spawn(all(setup.process));
            let sender = tokio::task::spawn_blocking(move || {
                setup.host.write_all(&vec![9; 3 << 20]).unwrap();
                setup.host.shutdown(Shutdown::Write).unwrap();
                setup.host
            });
            assert_eq!(setup.ended.await.unwrap(), Ended::Source);
            assert_eq!(reading.await.unwrap(), vec![9; 3 << 20]);
            drop(sender.await.unwrap());
        });
    }

    #[test]
    fn close_io_ends_stdin_after_what_had_arrived() {
        block_on(async {
            let mut setup = start();
            setup.host.write_all(b"last words").unwrap();
            setup.close.send(true).unwrap();
            assert_eq!(setup.ended.await.unwrap(), Ended::Closed);
            assert_eq!(all(setup.process).await, b"last words");
        });
    }

    #[test]
    fn close_io_waits_for_a_process_that_reads_late() {
        block_on(async {
            let mut setup = start();
            setup.host.set_nonblocking(true).unwrap();
            let mut sent = 0;
            // More than the pipe holds: the rest waits in the socket.
            while let Ok(n @ 1..) = setup.host.write(&[3; 1 << 14]) {
                sent += n;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(sent > 1 << 16);
            setup.close.send(true).unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
            assert!(!setup.ended.is_finished());
            assert_eq!(all(setup.process).await.len(), sent);
            assert_eq!(setup.ended.await.unwrap(), Ended::Closed);
        });
    }

    #[test]
    fn process_that_closes_its_stdin_ends_it() {
        block_on(async {
            let mut setup = start();
            drop(setup.process);
            setup.host.write_all(b"x").unwrap();
            assert_eq!(setup.ended.await.unwrap(), Ended::Reader);
        });
    }

    #[test]
    fn named_pipe_ends_after_its_first_writer_and_not_before() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("fifo");
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            let fifo = std::os::unix::fs::OpenOptionsExt::custom_flags(
                std::fs::OpenOptions::new().read(true),
                libc::O_NONBLOCK,
            )
            .open(&path)
            .unwrap();
            let source = Source::Fifo(Arc::new(End::new(fifo.into()).unwrap()));
            let (read, write) = pipe().unwrap();
            let pipe = End::new(write).unwrap();
            let (_close, closing) = watch::channel(false);
            let begun = Instant::now();
            let input = input(source);
            let ended = tokio::spawn(async move { input.run(&pipe, closing, HOW).await });
            tokio::time::sleep(Duration::from_millis(150)).await;
            std::fs::write(&path, b"late writer").unwrap();
            assert_eq!(ended.await.unwrap(), Ended::Source);
            assert!(begun.elapsed() >= Duration::from_millis(150));
            assert_eq!(all(read.into()).await, b"late writer");
        });
    }

    #[test]
    fn stdin_of_a_lost_host_goes_on_with_the_next_stream_where_the_count_says() {
        block_on(async {
            let mut setup = start_with(Loss::Keep);
            setup.host.write_all(b"one ").unwrap();
            while setup.input.moved() < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(setup.host);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!setup.ended.is_finished());
            let (ours, mut host) = UnixStream::pair().unwrap();
            let end = Arc::new(End::new(ours.into()).unwrap());
            setup.input.attach(Source::Stream(Some(end), Loss::Keep));
            host.write_all(b"two").unwrap();
            host.shutdown(Shutdown::Write).unwrap();
            assert_eq!(setup.ended.await.unwrap(), Ended::Source);
            assert_eq!(all(setup.process).await, b"one two");
            assert_eq!((setup.input.moved(), setup.input.has_ended()), (7, true));
        });
    }

    #[test]
    fn close_io_ends_a_stdin_that_waits_for_its_host() {
        block_on(async {
            let setup = start_with(Loss::Keep);
            drop(setup.host);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!setup.ended.is_finished());
            setup.close.send(true).unwrap();
            assert_eq!(setup.ended.await.unwrap(), Ended::Closed);
        });
    }
}
