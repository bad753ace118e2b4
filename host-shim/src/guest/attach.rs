//! A process's streams, for a host that has lost them or was started again.
//!
//! Promises: each new stream comes with the number of its first byte, counted from the process's start, so that a host
//! knows what it has already and what went down with its connection; an agent that is lost meanwhile is not noticed.
//! Never: decides what is to be kept in the guest while nobody is connected; that is said by the URIs of Create and
//! Exec (`stream+keep://`).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use vminitd_protocol::pb::vminitd::v1::{AttachRequest, AttachResponse};

use super::{CallError, Guest, SteadyGuest, StreamError, unlimited};
use crate::vmm::GuestStream;

/// How often it is tried when the agent is lost meanwhile.
const TRIES: usize = 5;

/// Which streams to replace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Which {
    /// Input.
    pub stdin: bool,
    /// Output, and all of a terminal's.
    pub stdout: bool,
    /// The other output.
    pub stderr: bool,
}

/// A stream in place of another.
#[derive(Debug)]
pub struct Attached {
    /// The stream.
    pub stream: GuestStream,
    /// Number of the next byte on it. Of stdin, what follows this is to be sent again; of output, what is missing up to
    /// here had left the guest.
    pub next_byte: u64,
}

/// Streams in place of others.
#[derive(Debug, Default)]
pub struct Streams {
    /// `None` when it was not asked for, or has ended already.
    pub stdin: Option<Attached>,
    /// `None` when it was not asked for. One that has ended gets the end alone.
    pub stdout: Option<Attached>,
    /// The same.
    pub stderr: Option<Attached>,
}

/// Streams could not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A new stream could not be opened.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The guest refuses, for example because the process has no streams; or it is gone.
    #[error("attach streams")]
    Call(#[source] CallError),
    /// The agent was lost under every attempt.
    #[error("the guest's agent was lost {TRIES} times meanwhile")]
    Lost,
}

impl SteadyGuest {
    /// Opens streams and gives them to a process in place of those that it has. `exec` is empty for the container's
    /// own process.
    pub async fn attach(
        &self,
        container: &str,
        exec: &str,
        which: Which,
    ) -> Result<Streams, AttachError> {
        for _ in 0..TRIES {
            match self.try_to_attach(container, exec, which).await {
                // The next agent has let go of streams that were not yet in use, and takes others.
                Err(AttachError::Call(CallError::Lost(_)))
                | Err(AttachError::Stream(StreamError::Io { .. })) => {}
                done => return done,
            }
        }
        Err(AttachError::Lost)
    }

    async fn try_to_attach(
        &self,
        container: &str,
        exec: &str,
        which: Which,
    ) -> Result<Streams, AttachError> {
        let guest = self.guest().await;
        let (stdin, stdin_id) = open(&guest, which.stdin).await?;
        let (stdout, stdout_id) = open(&guest, which.stdout).await?;
        let (stderr, stderr_id) = open(&guest, which.stderr).await?;
        let request = AttachRequest {
            id: container.to_owned(),
            exec_id: exec.to_owned(),
            stdin: stdin_id,
            stdout: stdout_id,
            stderr: stderr_id,
        };
        let attach =
            |guest: Guest| async move { guest.streams().attach(unlimited(), &request).await };
        let told: AttachResponse = self.once(attach).await.map_err(AttachError::Call)?;
        let at = |stream: Option<GuestStream>, next_byte| {
            stream.map(|stream| Attached { stream, next_byte })
        };
        Ok(Streams {
            stdin: at(stdin.filter(|_| !told.stdin_ended), told.stdin_bytes),
            stdout: at(stdout, told.stdout_bytes),
            stderr: at(stderr, told.stderr_bytes),
        })
    }
}

/// A stream and its id; nothing and no id when it is not wanted.
async fn open(guest: &Guest, wanted: bool) -> Result<(Option<GuestStream>, String), StreamError> {
    if !wanted {
        return Ok((None, String::new()));
    }
    // Keys of the system's random numbers: the only ones that std gives out.
    let id = format!("attach-{:016x}", RandomState::new().build_hasher().finish());
    Ok((Some(guest.stream(&id).await?), id))
}
