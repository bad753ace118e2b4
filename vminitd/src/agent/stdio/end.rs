//! One end of a move of bytes, and the move itself.
//!
//! Promises: a move that would block sleeps until the end that is in the way is ready, and burns
//! no time meanwhile; a byte is in the source or in the destination, never in this process.
//! Never: gives up by itself, or closes anything.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::limits::SPLICE_BYTES;
use crate::sys::async_fd::AsyncOwnedFd;
use crate::sys::fcntl::{is_pollable, set_nonblocking};
use crate::sys::splice::{readiness, splice};

/// Something that bytes come from or go to. Open as long as this value lives.
#[derive(Debug)]
pub enum End {
    /// A pipe or socket.
    Polled(AsyncOwnedFd),
    /// A file or a device that is always ready, which epoll refuses.
    Plain(OwnedFd),
}

impl End {
    /// Takes a descriptor over and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(fd.as_fd())?;
        if is_pollable(fd.as_fd())? {
            Ok(Self::Polled(AsyncOwnedFd::new(fd)?))
        } else {
            Ok(Self::Plain(fd))
        }
    }

    /// Waits until a read would not block: data, the end or an error.
    pub async fn readable(&self) -> io::Result<()> {
        let Self::Polled(fd) = self else { return Ok(()) };
        loop {
            let mut guard = fd.readable().await?;
            // What the runtime remembers may be stale: it learns of edges only. So the kernel is
            // asked, and the memory cleared if it says no; an edge that comes between the two is
            // still in the epoll queue and sets it again.
            let now = readiness(self.as_fd())?;
            if now.readable || now.hung_up || now.error {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Waits until a write would not block: room or an error.
    pub async fn writable(&self) -> io::Result<()> {
        let Self::Polled(fd) = self else { return Ok(()) };
        loop {
            let mut guard = fd.writable().await?;
            let now = readiness(self.as_fd())?;
            if now.writable || now.hung_up || now.error {
                return Ok(());
            }
            guard.clear_ready();
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Polled(fd) => fd.get_ref().as_fd(),
            Self::Plain(fd) => fd.as_fd(),
        }
    }
}

/// Moves some bytes, at most [`SPLICE_BYTES`]; sleeps until there are some and there is room.
/// `Ok(0)` is the source's end. Dropping the future in between loses nothing.
pub async fn move_some(from: &End, to: &End) -> io::Result<usize> {
    loop {
        match splice(from.as_fd(), to.as_fd(), SPLICE_BYTES) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // EAGAIN does not say which of the two is in the way. The one that is makes us sleep.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                from.readable().await?;
                to.writable().await?;
                // Both ready and still EAGAIN would otherwise be a loop that lets nobody in.
                tokio::task::yield_now().await;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::sys::splice::pipe;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn cpu_time() -> Duration {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Duration::from(time)
    }

    /// The proof that nothing spins: a second in which either side is in the way costs next to no
    /// CPU time.
    #[test]
    fn waiting_on_either_side_costs_no_cpu_time() {
        runtime().block_on(async {
            let (read, write) = pipe().unwrap();
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (from, to) = (End::new(read).unwrap(), End::new(ours.into()).unwrap());
            let mut write = std::fs::File::from(write);

            let before = cpu_time();
            let empty = tokio::time::timeout(Duration::from_millis(500), move_some(&from, &to));
            assert!(empty.await.is_err(), "an empty pipe has nothing to move");
            assert!(cpu_time() - before < Duration::from_millis(100), "spun on an empty pipe");

            let writer = std::thread::spawn(move || {
                let _ = write.write_all(&vec![7; 4 << 20]);
            });
            let before = cpu_time();
            let stuck = async { while move_some(&from, &to).await.unwrap() > 0 {} };
            let stuck = tokio::time::timeout(Duration::from_millis(500), stuck).await;
            assert!(stuck.is_err(), "nobody reads, so the socket must fill up");
            assert!(cpu_time() - before < Duration::from_millis(200), "spun on a full socket");

            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                theirs.read_to_end(&mut got).unwrap();
                got
            });
            while move_some(&from, &to).await.unwrap() > 0 {}
            drop(to);
            writer.join().unwrap();
            assert_eq!(reader.join().unwrap(), vec![7; 4 << 20]);
        });
    }

    #[test]
    fn file_is_written_at_its_offset() {
        runtime().block_on(async {
            let (read, write) = pipe().unwrap();
            std::fs::File::from(write).write_all(b"line\n").unwrap();
            let file = tempfile::NamedTempFile::new().unwrap();
            let to = End::new(file.reopen().unwrap().into()).unwrap();
            assert!(matches!(to, End::Plain(_)));
            let from = End::new(read).unwrap();
            while move_some(&from, &to).await.unwrap() > 0 {}
            assert_eq!(std::fs::read(file.path()).unwrap(), b"line\n");
        });
    }
}
