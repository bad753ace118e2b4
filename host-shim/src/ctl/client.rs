//! The end of ctl.sock that is another program's: it dials the guest of a VM which somebody else runs.
//!
//! Promises: what it gives is what the VM's own process has: a connection of one's own, that ends on its own.
//! Never: waits for a VM that is gone: a socket on which nobody listens says so.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::net::UnixStream;
use vminitd_protocol::pb::vminitd::ctl::v1 as pb;

use crate::guest::Dial;
use crate::limits::MAX_PROCESS_JSON_BYTES;
use crate::socket_path;
use crate::sys::scm;
use crate::vm::Arch;
use crate::vmm::GuestStream;
use crate::vmm::frame::{Decoder, encode};

/// A running VM's control socket.
#[derive(Clone, Debug)]
pub struct Control {
    socket: PathBuf,
}

/// What runs in a VM.
#[derive(Clone, Debug)]
pub struct Description {
    /// The process that runs the VM.
    pub pid: u32,
    /// The container's id in the guest; empty as long as the VM boots and the container is made.
    pub container: String,
    /// JSON of the container's OCI process.
    pub process: Vec<u8>,
    /// The guest's architecture.
    pub arch: Arch,
}

/// A VM could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens: it has ended, or is about to.
    #[error("the VM has ended")]
    Gone(#[source] io::Error),
    /// The socket cannot be used, for example because it is another user's.
    #[error("control socket {path:?}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The VM's process says no.
    #[error("{text}")]
    Refused {
        /// Which sort of no.
        code: pb::ErrorCode,
        /// Its words.
        text: String,
    },
    /// The VM's process answers something else than was asked.
    #[error("control socket {path:?} gave no answer that makes sense")]
    Answer {
        /// The socket.
        path: PathBuf,
    },
}

impl Control {
    /// The VM whose socket this is.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// What runs in it. `when_started` waits until the container has been started.
    pub async fn describe(&self, when_started: bool) -> Result<Description, ControlError> {
        let describe = pb::request::Kind::Describe(pb::Describe { when_started });
        match self.ask(describe).await? {
            (pb::answer::Kind::Described(told), Some(fd), _) => {
                let process = read(&File::from(fd)).map_err(|source| self.io(source))?;
                let arch = told.arch.parse().unwrap_or_default();
                Ok(Description { pid: told.pid, container: told.container, process, arch })
            }
            _ => Err(ControlError::Answer { path: self.socket.clone() }),
        }
    }

    /// Waits until it has ended, and says how: a reason, and what is known of it.
    pub async fn ended(&self) -> Result<(String, String), ControlError> {
        match self.ask(pb::request::Kind::AwaitEnd(pb::AwaitEnd {})).await? {
            (pb::answer::Kind::Ended(ended), ..) => Ok((ended.reason, ended.detail)),
            _ => Err(ControlError::Answer { path: self.socket.clone() }),
        }
    }

    /// Has it ended without asking the guest.
    pub async fn kill(&self) -> Result<(), ControlError> {
        match self.ask(pb::request::Kind::Kill(pb::Kill {})).await? {
            (pb::answer::Kind::Killed(_), ..) => Ok(()),
            _ => Err(ControlError::Answer { path: self.socket.clone() }),
        }
    }

    /// Takes part in a process's streams; see ctl.proto for what is on the socket.
    pub async fn attach(
        &self,
        container: &str,
        exec: &str,
    ) -> Result<(pb::Attached, OwnedFd), ControlError> {
        let wanted = pb::Attach { container: container.to_owned(), exec: exec.to_owned() };
        match self.ask(pb::request::Kind::Attach(wanted)).await? {
            (pb::answer::Kind::Attached(attached), Some(fd), _) => Ok((attached, fd)),
            _ => Err(ControlError::Answer { path: self.socket.clone() }),
        }
    }

    async fn connect(&self, port: u32) -> Result<GuestStream, ControlError> {
        match self.ask(pb::request::Kind::Connect(pb::Connect { port })).await? {
            // The socket to the VM's process is what tells it that the stream is over.
            (pb::answer::Kind::Connected(_), Some(fd), socket) => {
                GuestStream::new(fd, socket).map_err(|source| self.io(source))
            }
            _ => Err(ControlError::Answer { path: self.socket.clone() }),
        }
    }

    async fn ask(
        &self,
        kind: pb::request::Kind,
    ) -> Result<(pb::answer::Kind, Option<OwnedFd>, UnixStream), ControlError> {
        let socket = socket_path::connect_async(&self.socket).await.map_err(|error| match error
            .kind()
        {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::Gone(error),
            _ => self.io(error),
        })?;
        let mut request = pb::Request { fds: 0, kind: Some(kind) };
        let answer = converse(&socket, &encode(&mut request, 0)).await;
        match answer.map_err(ControlError::Gone)? {
            (pb::Answer { kind: Some(pb::answer::Kind::Error(error)), .. }, _) => {
                Err(ControlError::Refused { code: error.code(), text: error.text })
            }
            (pb::Answer { kind: Some(kind), .. }, fd) => Ok((kind, fd, socket)),
            (pb::Answer { kind: None, .. }, _) => {
                Err(ControlError::Answer { path: self.socket.clone() })
            }
        }
    }

    fn io(&self, source: io::Error) -> ControlError {
        ControlError::Io { path: self.socket.clone(), source }
    }
}

#[async_trait]
impl Dial for Control {
    async fn dial(&self, port: u32) -> io::Result<GuestStream> {
        self.connect(port).await.map_err(|error| {
            let kind = match &error {
                ControlError::Gone(_) => io::ErrorKind::NotConnected,
                ControlError::Refused { code: pb::ErrorCode::Gone, .. } => {
                    io::ErrorKind::NotConnected
                }
                ControlError::Refused { code: pb::ErrorCode::Refused, .. } => {
                    io::ErrorKind::ConnectionRefused
                }
                _ => io::ErrorKind::Other,
            };
            io::Error::new(kind, error)
        })
    }
}

async fn converse(
    socket: &UnixStream,
    mut request: &[u8],
) -> io::Result<(pb::Answer, Option<OwnedFd>)> {
    while !request.is_empty() {
        let sent =
            socket.async_io(Interest::WRITABLE, || scm::send(socket.as_fd(), request, &[])).await?;
        request = &request[sent..];
    }
    let mut decoder = Decoder::<pb::Answer, OwnedFd>::default();
    let mut buffer = [0; 4096];
    loop {
        let mut fds = Vec::new();
        let read = socket
            .async_io(Interest::READABLE, || scm::receive(socket.as_fd(), &mut buffer, &mut fds))
            .await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decoder.handle(&buffer[..read], fds);
        if let Some((answer, mut fds)) = decoder.poll().map_err(io::Error::other)? {
            return Ok((answer, fds.pop()));
        }
    }
}

/// The whole file, wherever another reader of the same description has got to.
fn read(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > MAX_PROCESS_JSON_BYTES {
        return Err(io::Error::other(format!(
            "the container's process has {length} bytes of JSON"
        )));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
