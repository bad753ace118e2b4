//! A process's stdout or stderr: from its pipe to its sink, until every writer has closed.
//!
//! Owns: the read end of the pipe, and while it feeds it, the sink.
//! Promises: bytes arrive in the order in which they were written; the count is what has left the
//! pipe; the sink can be changed at any time, and no byte is lost between the two or told twice; one
//! that breaks never blocks the process, from then on its output is discarded (the host has gone
//! away, and a process that writes to nobody is to go on as with /dev/null), unless the host has
//! said that it will come back ([`Loss::Keep`]).
//! Never: holds a byte in memory, or closes the sink's socket (Delete does).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::end::{End, move_some};
use crate::limits::SPLICES_PER_TURN;
use crate::paths;
use crate::sys::splice::readable_bytes;
use crate::sys::stream_socket::{shutdown_write, unsent_bytes};

/// What becomes of a process's stdio while the stream behind it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// Output is discarded, input ends.
    #[default]
    Discard,
    /// Everything stays where it is until another stream is attached.
    Keep,
}

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// A stream of the host: half-closed at the output's end, closed by Delete. None when it is lost
    /// already.
    Stream(Option<Arc<End>>, Loss),
    /// A file, a named pipe or the pipe of a program; closed at the output's end.
    File(End),
}

impl Sink {
    fn end(&self) -> Option<&End> {
        match self {
            Self::Stream(end, _) => end.as_deref(),
            Self::File(end) => Some(end),
        }
    }

    fn loss(&self) -> Loss {
        match self {
            Self::Stream(_, loss) => *loss,
            Self::File(_) => Loss::Discard,
        }
    }

    fn done(&self) {
        if let Self::Stream(Some(end), _) = self
            && let Err(error) = shutdown_write(end.as_fd())
        {
            debug!(%error, "half-close of a stream failed: the host has gone");
        }
    }
}

/// What is left of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: its end was told, and the host has all of it.
    None,
    /// So many bytes, which nobody takes: its stream is lost.
    Stays(u64),
    /// So many bytes, or its end, are on their way.
    Moves(u64),
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
    sink: watch::Sender<Arc<Sink>>,
    counter: Arc<dyn Counter>,
    /// Every writer has closed and the sink has all of it.
    ended: AtomicBool,
    /// Fires on each move and on the end.
    progress: Notify,
}

impl Output {
    /// Takes the pipe's read end over, and where it goes to at first.
    pub fn new(pipe: OwnedFd, sink: Sink, counter: Arc<dyn Counter>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            pipe: End::new(pipe)?,
            sink: watch::Sender::new(Arc::new(sink)),
            counter,
            ended: AtomicBool::new(false),
            progress: Notify::new(),
        }))
    }

    /// Moves until every writer has closed; then ends the sink.
    pub async fn run(self: Arc<Self>) {
        let mut sinks = self.sink.subscribe();
        loop {
            let sink = sinks.borrow_and_update().clone();
            tokio::select! {
                // First, so that nothing more goes to a sink that was replaced. The sender is in
                // `self`.
                biased;
                _ = sinks.changed() => {}
                () = self.fill(&sink) => {
                    self.ended.store(true, Ordering::Relaxed);
                    self.progress.notify_waiters();
                    sink.done();
                    if matches!(*sink, Sink::File(_)) {
                        // Who reads it sees its end.
                        self.sink.send_replace(Arc::new(Sink::Stream(None, Loss::Discard)));
                    }
                    return;
                }
            }
        }
    }

    /// How far it is, once every writer is gone or about to be.
    pub fn rest(&self) -> Rest {
        let sink = self.sink.borrow().clone();
        let in_pipe = readable_bytes(self.pipe.as_fd()).unwrap_or(0);
        let in_socket = sink.end().and_then(|end| unsent_bytes(end.as_fd()).ok()).unwrap_or(0);
        match (self.ended.load(Ordering::Relaxed), sink.end()) {
            (true, _) if in_socket == 0 => Rest::None,
            (false, None) => Rest::Stays(in_pipe),
            (true | false, _) => Rest::Moves(in_pipe + in_socket),
        }
    }

    /// From now on output goes there. What is in the old sink stays there; the old sink is let go as
    /// soon as the task of [`Self::run`] has its turn.
    pub fn attach(&self, sink: Sink) {
        if self.ended.load(Ordering::Relaxed) {
            sink.done();
        }
        self.sink.send_replace(Arc::new(sink));
    }

    /// Moves until every writer has closed.
    async fn fill(&self, sink: &Sink) {
        let fed = match sink.end() {
            Some(end) => self.feed(end).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        let Err(error) = fed else { return };
        match sink.loss() {
            Loss::Keep => {
                debug!(%error, "a process's output waits for another stream");
                std::future::pending().await
            }
            Loss::Discard => {
                debug!(%error, "a process's output has no reader any more: discarding");
                if let Err(error) = self.discard().await {
                    warn!(%error, "a process's output cannot be discarded");
                }
            }
        }
    }

    /// Whether it goes to a file, named pipe or program of the guest now.
    pub fn goes_into_guest(&self) -> bool {
        matches!(**self.sink.borrow(), Sink::File(_))
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

    fn output_to(sink: Sink) -> (Arc<Output>, std::fs::File) {
        let (read, write) = pipe().unwrap();
        (Output::new(read, sink, Arc::new(AtomicU64::new(0))).unwrap(), write.into())
    }

    fn output(end: Arc<End>) -> (Arc<Output>, std::fs::File) {
        output_to(Sink::Stream(Some(end), Loss::Discard))
    }

    fn stream() -> (Arc<End>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (Arc::new(End::new(ours.into()).unwrap()), theirs)
    }

    #[test]
    fn end_of_output_half_closes_the_stream_and_leaves_its_other_direction() {
        block_on(async {
            let (end, mut host) = stream();
            let (output, mut write) = output(end.clone());
            let pump = tokio::spawn(output.clone().run());
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
            let (end, host) = stream();
            let (output, mut write) = output(end.clone());
            drop(host);
            let pump = tokio::spawn(output.clone().run());
            let writer = tokio::task::spawn_blocking(move || write.write_all(&vec![1; 1 << 20]));
            writer.await.unwrap().unwrap();
            pump.await.unwrap();
            assert_eq!(output.moved(), 1 << 20);
        });
    }

    #[test]
    fn hand_over_waits_for_what_was_written_and_not_for_the_pipes_end() {
        block_on(async {
            let (end, mut host) = stream();
            let (output, mut write) = output(end.clone());
            write.write_all(&[5; 3000]).unwrap();
            tokio::spawn(output.clone().run());
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
            let (end, mut host) = stream();
            let (output, mut write) = output(end.clone());
            tokio::spawn(output.clone().run());
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

    #[test]
    fn output_without_its_stream_waits_for_another_and_loses_nothing() {
        block_on(async {
            let (end, host) = stream();
            let (output, mut write) = output_to(Sink::Stream(Some(end), Loss::Keep));
            let pump = tokio::spawn(output.clone().run());
            write.write_all(b"first").unwrap();
            assert!(output.hand_over(Duration::from_secs(10)).await);
            drop(host);
            let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[1]).collect();
            let expected = sent.clone();
            let writer = tokio::task::spawn_blocking(move || write.write_all(&sent));
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(!writer.is_finished(), "the process waits");
            assert_eq!(output.moved(), 5);
            let (end, mut host) = stream();
            output.attach(Sink::Stream(Some(end), Loss::Keep));
            let reader = tokio::task::spawn_blocking(move || {
                let mut got = Vec::new();
                host.read_to_end(&mut got).unwrap();
                got
            });
            writer.await.unwrap().unwrap();
            pump.await.unwrap();
            assert!(reader.await.unwrap() == expected);
            assert_eq!(output.moved(), 5 + 300_000);
        });
    }

    #[test]
    fn stream_attached_behind_the_end_is_told_the_end() {
        block_on(async {
            let (output, write) = output_to(Sink::Stream(None, Loss::Discard));
            drop(write);
            output.clone().run().await;
            let (end, mut host) = stream();
            output.attach(Sink::Stream(Some(end), Loss::Discard));
            assert_eq!(host.read(&mut [0]).unwrap(), 0);
        });
    }

    /// What happens to an output between two moments.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write(usize),
        Break,
        Attach,
        Turn,
    }

    fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
        use proptest::prelude::*;
        let step = prop_oneof![
            4 => (1..20_000usize).prop_map(Step::Write),
            1 => Just(Step::Break),
            2 => Just(Step::Attach),
            3 => Just(Step::Turn),
        ];
        proptest::collection::vec(step, 0..30)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// The model: one sequence of bytes. Each stream gets a piece of it, and the pieces join: a
        /// stream that is not broken has all of its piece, of a broken one the count tells how far
        /// it went.
        #[test]
        fn streams_that_come_and_go_get_each_byte_once(script in steps()) {
            block_on(async {
                let (read, write) = pipe().unwrap();
                // A page for the rest of each write, beside those for whole ones: 46 of these 64 at most.
                crate::sys::splice::set_room(write.as_fd(), 256 << 10).unwrap();
                let mut write = std::fs::File::from(write);
                let (end, host) = stream();
                let first = Sink::Stream(Some(end), Loss::Keep);
                let output = Output::new(read, first, Arc::new(AtomicU64::new(0))).unwrap();
                let pump = tokio::spawn(output.clone().run());
                let (mut host, mut replaced) = (Some(host), Vec::new());
                let (mut written, mut begins) = (Vec::<u8>::new(), 0u64);
                let check = |mut host: UnixStream, written: &[u8], from: u64, to: u64| {
                    host.set_nonblocking(true).unwrap();
                    let (mut got, mut chunk) = (Vec::new(), [0; 1 << 16]);
                    while let Ok(bytes @ 1..) = host.read(&mut chunk) {
                        got.extend_from_slice(&chunk[..bytes]);
                    }
                    assert!(got == written[from as usize..to as usize], "{from}..{to}");
                };
                for step in script.into_iter().chain([Step::Attach, Step::Turn]) {
                    match step {
                        // Never more than the pipe holds, so that the test needs no threads.
                        Step::Write(bytes)
                            if written.len() as u64 - output.moved() + (bytes as u64) < 60_000 =>
                        {
                            let piece: Vec<u8> = (0..bytes)
                                .map(|at| ((written.len() + at) as u32).to_le_bytes()[1])
                                .collect();
                            write.write_all(&piece).unwrap();
                            written.extend(piece);
                        }
                        Step::Write(_) => {}
                        Step::Break => {
                            if let Some(host) = host.take() {
                                check(host, &written, begins, output.moved());
                                begins = output.moved();
                            }
                        }
                        Step::Attach => {
                            let moved = output.moved();
                            // It lives on, and must get nothing more.
                            replaced.extend(host.take().map(|host| (host, begins, moved)));
                            let (end, other) = stream();
                            output.attach(Sink::Stream(Some(end), Loss::Keep));
                            (host, begins) = (Some(other), moved);
                        }
                        Step::Turn => {
                            for _ in 0..50 {
                                tokio::task::yield_now().await;
                            }
                        }
                    }
                }
                drop(write);
                let host = host.take().unwrap();
                let reader = tokio::task::spawn_blocking(move || {
                    let (mut host, mut got) = (host, Vec::new());
                    host.read_to_end(&mut got).unwrap();
                    got
                });
                pump.await.unwrap();
                assert!(reader.await.unwrap() == written[begins as usize..]);
                for (host, from, to) in replaced {
                    check(host, &written, from, to);
                }
            });
        }
    }
}
