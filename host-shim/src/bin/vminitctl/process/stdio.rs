//! Our stdin, stdout and stderr, connected to the command's streams.
//!
//! Owns: a thread per stream, because reading a terminal or a pipe of somebody else's can only be done blocking.
//! Promises: the bytes are passed on unchanged; stdin's end is passed on as a half-close.
//! Never: closes an output stream before the command's last byte is out.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use host_shim::guest::{Guest, SteadyGuest, StreamError};
use host_shim::vmm::Released;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Notify, oneshot};

use super::{ProcessError, Target};

/// Bytes per read; a vsock packet's payload.
const CHUNK: usize = 64 << 10;

/// Streams that the guest has registered.
pub struct Stdio {
    target: Target,
    stdin: Option<Stream>,
    stdout: Stream,
    /// None with a terminal: all output is stdout's then.
    stderr: Option<Stream>,
}

/// A blocking stream, and what keeps its connection alive.
type Stream = (UnixStream, Released);

/// Opens the process's streams in the guest; `None` when the agent was lost meanwhile.
pub async fn open(
    guest: &SteadyGuest,
    target: &Target,
    interactive: bool,
    tty: bool,
) -> Result<Option<Stdio>, ProcessError> {
    match try_to_open(&guest.guest().await, target, interactive, tty).await {
        Ok(stdio) => Ok(Some(stdio)),
        Err(ProcessError::Stream(StreamError::Io { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn try_to_open(
    guest: &Guest,
    target: &Target,
    interactive: bool,
    tty: bool,
) -> Result<Stdio, ProcessError> {
    let stdin = match interactive {
        true => Some(stream(guest, target, "stdin").await?),
        false => None,
    };
    let stdout = stream(guest, target, "stdout").await?;
    let stderr = match tty {
        true => None,
        false => Some(stream(guest, target, "stderr").await?),
    };
    Ok(Stdio { target: target.clone(), stdin, stdout, stderr })
}

async fn stream(guest: &Guest, target: &Target, name: &str) -> Result<Stream, ProcessError> {
    let stream = guest.stream(&target.stream(name)).await?;
    stream.into_blocking().map_err(ProcessError::Output)
}

impl Stdio {
    /// For Create.
    pub fn stdin_uri(&self) -> String {
        self.stdin.as_ref().map_or_else(String::new, |_| self.uri("stdin"))
    }

    /// For Create.
    pub fn stdout_uri(&self) -> String {
        self.uri("stdout")
    }

    /// For Create.
    pub fn stderr_uri(&self) -> String {
        self.stderr.as_ref().map_or_else(String::new, |_| self.uri("stderr"))
    }

    fn uri(&self, name: &str) -> String {
        format!("stream://{}", self.target.stream(name))
    }

    /// Starts copying.
    pub fn run(self) -> Running {
        if let Some(stream) = self.stdin {
            std::thread::spawn(move || pump_stdin(stream));
        }
        let reader_gone = Arc::new(Notify::new());
        Running {
            stdout: pump_output(self.stdout, 1, reader_gone.clone()),
            stderr: self.stderr.map(|stderr| pump_output(stderr, 2, reader_gone.clone())),
            reader_gone,
        }
    }
}

/// Streams that are being copied.
pub struct Running {
    stdout: oneshot::Receiver<io::Result<u64>>,
    stderr: Option<oneshot::Receiver<io::Result<u64>>>,
    reader_gone: Arc<Notify>,
}

impl Running {
    /// Returns once nobody reads our stdout or stderr any more.
    pub async fn reader_gone(&self) {
        self.reader_gone.notified().await;
    }

    /// Waits until both streams have ended. The totals are the guest's, to be held against ours.
    pub async fn finish(self, stdout_bytes: u64, stderr_bytes: u64) -> io::Result<()> {
        let stdout = Some((self.stdout, stdout_bytes));
        for (copied, sent) in stdout.into_iter().chain(self.stderr.map(|end| (end, stderr_bytes))) {
            match copied.await.unwrap_or(Ok(0)) {
                Ok(got) if got < sent => {
                    let text = format!("{got} of {sent} bytes arrived");
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, text));
                }
                Ok(_) => {}
                // The reader left of its own will; the command has been told.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn pump_stdin((mut stream, _released): Stream) {
    let mut stdin = borrow(0);
    // Whether our stdin failed or the command closed its own: either way no more input comes.
    let _ = copy(&mut stdin, &mut stream);
    let _ = stream.shutdown(Shutdown::Write);
    // Kept open for reading until the guest closes it, lest the half-close become a reset.
    let _ = stream.read(&mut [0]);
}

fn pump_output(
    (mut stream, released): Stream,
    fd: i32,
    reader_gone: Arc<Notify>,
) -> oneshot::Receiver<io::Result<u64>> {
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || {
        let copied = copy(&mut stream, &mut borrow(fd));
        if matches!(&copied, Err(error) if error.kind() == ErrorKind::BrokenPipe) {
            reader_gone.notify_one();
        }
        drop((stream, released));
        let _ = done.send(copied);
    });
    result
}

/// One of our standard fds, not closed at the end and without std's line buffer.
pub fn borrow(fd: i32) -> Patient<ManuallyDrop<File>> {
    // SAFETY: 0 to 2 are open for the whole life of this process (Rust's start-up sees to it), and ManuallyDrop
    // keeps this File from closing them.
    Patient(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
}

/// A file that blocks, also when somebody who has it from the same shell has made it non-blocking: that is a property
/// of what is open, not of our descriptor, and ours to undo it is not.
pub struct Patient<F>(F);

impl<F> Patient<F>
where
    F: Deref,
    F::Target: AsFd,
{
    fn wait(&self, readiness: PollFlags) -> io::Result<()> {
        let mut waiting = [PollFd::new(self.0.as_fd(), readiness)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl<F> Read for Patient<F>
where
    F: DerefMut,
    F::Target: AsFd + Read,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN)?;
                }
                read => return read,
            }
        }
    }
}

impl<F> Write for Patient<F>
where
    F: DerefMut,
    F::Target: AsFd + Write,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A guest that is gone has no more output; what is missing shows in the totals.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(total),
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..read])?;
        total += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_that_others_made_non_blocking_lose_nothing() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let sent: Vec<u8> = (0..3 << 20).map(|n: u32| n as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || {
            Patient(&mut ours).write_all(&sent).unwrap();
            let mut answer = [0; 2];
            Patient(&mut ours).read_exact(&mut answer).unwrap();
            answer
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        let mut got = vec![0; expected.len()];
        theirs.read_exact(&mut got).unwrap();
        assert!(got == expected);
        theirs.write_all(b"ok").unwrap();
        assert_eq!(&writer.join().unwrap(), b"ok");
    }
}
