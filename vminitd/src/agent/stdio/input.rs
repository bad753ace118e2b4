//! A process's stdin: from its source to its pipe, until somebody ends it.
//!
//! Owns: the write end of the pipe, which the caller closes when [`run`] returns.
//! Promises: ends on the source's end, on `CloseIO` once what had arrived is delivered, and when
//! the process no longer reads; everything that came before the end is in the pipe by then.
//! Never: holds a byte in memory, or reads what the process will not take.

use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::debug;

use super::end::{End, move_some};
use crate::agent::profile::CloseIo;
use crate::limits::FIFO_PAUSE;
use crate::sys::splice::readiness;

/// Why stdin ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The host half-closed, closed or lost its stream.
    Source,
    /// `CloseIO`.
    Closed,
    /// The process closed its end, or is gone.
    Reader,
}

/// Where stdin comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A stream of the host, or a file.
    Stream(Arc<End>),
    /// A named pipe: it is at its end only after a writer has been there.
    Fifo(Arc<End>),
}

impl Source {
    fn end(&self) -> &End {
        match self {
            Self::Stream(end) | Self::Fifo(end) => end,
        }
    }
}

/// Moves until the end. `closing` becomes true with the first `CloseIO`.
pub async fn run(
    source: &Source,
    pipe: &End,
    mut closing: watch::Receiver<bool>,
    how: CloseIo,
) -> Ended {
    let CloseIo::OnceQuiet(quiet) = how;
    loop {
        let closed = *closing.borrow_and_update();
        let moved = tokio::select! {
            moved = move_some(source.end(), pipe) => moved,
            () = tokio::time::sleep(quiet), if closed => {
                // Quiet is a source without data, not a process that is slow to take it.
                match readiness(source.end().as_fd()) {
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
            Ok(0) if starting(source) => source_starts(source).await,
            Ok(0) => return Ended::Source,
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => return Ended::Reader,
            Err(error) => {
                debug!(%error, "a process's stdin broke");
                return Ended::Source;
            }
        }
    }
}

/// A named pipe that nobody has opened for writing yet: it reads as ended, but is not hung up.
fn starting(source: &Source) -> bool {
    match source {
        Source::Stream(_) => false,
        Source::Fifo(end) => readiness(end.as_fd()).is_ok_and(|now| !now.hung_up),
    }
}

async fn source_starts(source: &Source) {
    // Without this pause a writer that opened and has written nothing would make a busy loop.
    tokio::time::sleep(FIFO_PAUSE).await;
    let _ = source.end().readable().await;
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
        ended: tokio::task::JoinHandle<Ended>,
    }

    fn start() -> Setup {
        let (ours, host) = UnixStream::pair().unwrap();
        let (read, write) = pipe().unwrap();
        let source = Source::Stream(Arc::new(End::new(ours.into()).unwrap()));
        let pipe = End::new(write).unwrap();
        let (close, closing) = watch::channel(false);
        let ended = tokio::spawn(async move { run(&source, &pipe, closing, HOW).await });
        Setup { host, process: read.into(), close, ended }
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
            let ended = tokio::spawn(async move { run(&source, &pipe, closing, HOW).await });
            tokio::time::sleep(Duration::from_millis(150)).await;
            std::fs::write(&path, b"late writer").unwrap();
            assert_eq!(ended.await.unwrap(), Ended::Source);
            assert!(begun.elapsed() >= Duration::from_millis(150));
            assert_eq!(all(read.into()).await, b"late writer");
        });
    }
}
