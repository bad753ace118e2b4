//! A process's terminal: moves bytes between the pty's master and two pipes.
//!
//! ```text
//! process <-> slave | master --splice--> pipe --output.rs--> host
//!                            <--splice-- pipe <--input.rs--- host
//! ```
//!
//! The pipes are there because splice(2) wants one on either side, and because what lies in them
//! outlives the agent (init has copies of their ends).
//!
//! Owns: the master; the pipes' ends while it moves.
//! Promises: what the process wrote before its exit is in the pipe once [`Terminal::hand_over`] says
//! so; the end of input ends nothing but input.
//! Never: holds a byte in memory, or looks at one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

use super::end::{End, move_some};
use crate::sys::splice::readiness;
use crate::sys::terminal::{Size, set_size};

/// See the module.
#[derive(Debug)]
pub struct Terminal {
    master: End,
    /// Nobody has the slave open any more, and all that was written to it is out.
    hung_up: AtomicBool,
    /// Fires on each move from the master, and on its end.
    progress: Notify,
}

impl Terminal {
    /// Takes the master over.
    pub fn new(master: OwnedFd) -> io::Result<Arc<Self>> {
        let master = End::new(master)?;
        Ok(Arc::new(Self { master, hung_up: AtomicBool::new(false), progress: Notify::new() }))
    }

    /// Moves what the process writes, until nobody has the slave open; then the caller closes the
    /// pipe.
    pub async fn run_output(&self, pipe: &End) {
        loop {
            match move_some(&self.master, pipe).await {
                Ok(1..) => self.progress.notify_waiters(),
                // EIO is how a master says that the last slave was closed.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Ok(0) => break,
                Err(error) => {
                    debug!(%error, "a terminal's output broke");
                    break;
                }
            }
        }
        self.hung_up.store(true, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// Moves what the host sends, until the pipe's end or the terminal's.
    pub async fn run_input(&self, pipe: &End) {
        while let Ok(1..) = move_some(pipe, &self.master).await {}
    }

    /// Returns when all that was written to the slave before the call is in the pipe, or when
    /// nothing moved for as long as `patience` (false).
    pub async fn hand_over(&self, patience: Duration) -> bool {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            // poll(2) of a master pushes what is still on its way through the line discipline.
            let waiting = readiness(self.master.as_fd()).is_ok_and(|now| now.readable);
            if self.hung_up.load(Ordering::Relaxed) || !waiting {
                return true;
            }
            if tokio::time::timeout(patience, progress).await.is_err() {
                return false;
            }
        }
    }

    /// Sets the size.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        set_size(self.master.as_fd(), size)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;
    use crate::sys::splice::pipe;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    fn pty() -> (Arc<Terminal>, File) {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut raw = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
        (Terminal::new(pty.master).unwrap(), pty.slave.into())
    }

    #[test]
    fn all_that_was_written_before_the_last_close_arrives() {
        block_on(async {
            let (terminal, mut slave) = pty();
            let (read, write) = pipe().unwrap();
            let pipe = End::new(write).unwrap();
            let mover = tokio::spawn({
                let terminal = terminal.clone();
                async move { terminal.run_output(&pipe).await }
            });
            let reader = tokio::task::spawn_blocking(move || {
                let mut got = Vec::new();
                File::from(read).read_to_end(&mut got).unwrap();
                got
            });
            let bytes: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
            let sent = bytes.clone();
            let writer = tokio::task::spawn_blocking(move || {
                slave.write_all(&sent).unwrap();
            });
            writer.await.unwrap();
            assert!(terminal.hand_over(Duration::from_secs(10)).await);
            mover.await.unwrap();
            assert_eq!(reader.await.unwrap(), bytes);
        });
    }

    #[test]
    fn input_ends_and_the_terminal_lives_on() {
        block_on(async {
            let (terminal, mut slave) = pty();
            let (read, write) = pipe().unwrap();
            File::from(write).write_all(b"typed\n").unwrap();
            terminal.run_input(&End::new(read).unwrap()).await;
            let mut got = [0; 6];
            slave.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"typed\n");
            slave.write_all(b"answer").unwrap();
            let (read, write) = pipe().unwrap();
            let pipe = End::new(write).unwrap();
            tokio::spawn(async move { terminal.run_output(&pipe).await });
            let mut got = [0; 6];
            let read = tokio::task::spawn_blocking(move || {
                File::from(read).read_exact(&mut got).unwrap();
                got
            });
            assert_eq!(&read.await.unwrap(), b"answer");
        });
    }
}
