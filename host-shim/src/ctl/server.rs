//! The end of ctl.sock that is the VM's.
//!
//! Owns: each client's connection, and what must live as long as a stream that was handed to it.
//! Promises: a client that is slow, silent or talks nonsense disturbs neither the VM nor another client; our own copy
//! of a stream is closed before the client hears of it, so that the client's close is the guest's end of file.
//! Never: reads or writes a stream that it hands on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, timeout};
use vminitd_protocol::pb::vminitd::ctl::v1 as pb;

use crate::guest::Dial;
use crate::limits::{CONTROL_REQUEST_TIMEOUT, MAX_CONTROL_CLIENTS};
use crate::sys::scm;
use crate::vm::Arch;
use crate::vmm::frame::{Decoder, encode};
use crate::vmm::{Exited, Released};

/// After a failed accept (no descriptor left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Streams that a client may take part in.
pub struct Participation {
    /// See `Attached` in ctl.proto.
    pub attached: pb::Attached,
    /// The client's end of them.
    pub stream: OwnedFd,
}

/// Whoever owns the streams of a VM's containers, and lets others take part.
#[async_trait]
pub trait Attach: Send + Sync {
    /// Begins it; an error is for people.
    async fn attach(&self, wanted: &pb::Attach) -> Result<Participation, String>;
}

/// What a client may ask about.
pub struct About {
    /// JSON of the container's OCI process.
    pub process: File,
    /// The guest's architecture.
    pub arch: Arch,
    /// The container's id in the guest, once it has been started.
    pub container: watch::Receiver<Option<String>>,
    /// How the VM ended, once it has.
    pub ended: watch::Receiver<Option<Exited>>,
    /// Fires when a client wants the VM killed.
    pub kill: Arc<Notify>,
    /// Absent where the owner's own terminal is the only one.
    pub attach: Option<Arc<dyn Attach>>,
}

/// Serves clients until it is dropped.
pub async fn serve(listener: UnixListener, dial: Arc<dyn Dial>, about: About) {
    let about = Arc::new(about);
    let places = Arc::new(Semaphore::new(MAX_CONTROL_CLIENTS));
    loop {
        let place = places.clone().acquire_owned().await.expect("nobody closes it");
        let Ok((client, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (dial, about) = (dial.clone(), about.clone());
        tokio::spawn(async move {
            // A client that is not heard out has left, or never was one of ours.
            let _ = converse(client, dial, &about).await;
            drop(place);
        });
    }
}

async fn converse(client: UnixStream, dial: Arc<dyn Dial>, about: &About) -> io::Result<()> {
    let request = timeout(CONTROL_REQUEST_TIMEOUT, receive(&client)).await??;
    let (answer, fds, released) = tokio::select! {
        answer = answer(request, &*dial, about) => answer?,
        // Whoever waits for a container to be started may give up.
        _ = closed(&client) => return Ok(()),
    };
    send(&client, answer, fds).await?;
    if let Some(released) = released {
        closed(&client).await;
        drop(released);
    }
    Ok(())
}

type Answer = (pb::Answer, Vec<OwnedFd>, Option<Released>);

async fn answer(request: pb::Request, dial: &dyn Dial, about: &About) -> io::Result<Answer> {
    let (kind, fds, released) = match request.kind {
        Some(pb::request::Kind::Connect(pb::Connect { port })) => match dial.dial(port).await {
            Ok(stream) => {
                let (stream, released) = stream.into_blocking()?;
                let connected = pb::answer::Kind::Connected(pb::Connected {});
                (connected, vec![OwnedFd::from(stream)], Some(released))
            }
            Err(error) => (refusal(&error), Vec::new(), None),
        },
        Some(pb::request::Kind::Describe(pb::Describe { when_started })) => {
            let mut container = about.container.clone();
            if when_started && container.wait_for(Option::is_some).await.is_err() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let described = pb::Described {
                pid: std::process::id(),
                container: container.borrow().clone().unwrap_or_default(),
                arch: about.arch.to_string(),
            };
            let process = about.process.try_clone()?;
            (pb::answer::Kind::Described(described), vec![process.into()], None)
        }
        Some(pb::request::Kind::AwaitEnd(pb::AwaitEnd {})) => {
            let mut ended = about.ended.clone();
            let Ok(exited) = ended.wait_for(Option::is_some).await.map(|exited| exited.clone())
            else {
                return Err(io::ErrorKind::ConnectionAborted.into());
            };
            let (reason, detail) =
                exited.map(|exited| (exited.reason.to_string(), exited.detail)).unwrap_or_default();
            (pb::answer::Kind::Ended(pb::Ended { reason, detail }), Vec::new(), None)
        }
        Some(pb::request::Kind::Kill(pb::Kill {})) => {
            about.kill.notify_one();
            (pb::answer::Kind::Killed(pb::Killed {}), Vec::new(), None)
        }
        Some(pb::request::Kind::Attach(wanted)) => {
            let begun = match &about.attach {
                Some(owner) => owner.attach(&wanted).await,
                None => Err("who runs this VM has its streams to himself".to_owned()),
            };
            match begun {
                Ok(Participation { attached, stream }) => {
                    (pb::answer::Kind::Attached(attached), vec![stream], None)
                }
                Err(text) => {
                    let error = pb::Error { code: pb::ErrorCode::Refused.into(), text };
                    (pb::answer::Kind::Error(error), Vec::new(), None)
                }
            }
        }
        None => {
            let text =
                "unknown request; is this vminitctl older than the one that asks?".to_owned();
            let error = pb::Error { code: pb::ErrorCode::Invalid.into(), text };
            (pb::answer::Kind::Error(error), Vec::new(), None)
        }
    };
    Ok((pb::Answer { fds: 0, kind: Some(kind) }, fds, released))
}

fn refusal(error: &io::Error) -> pb::answer::Kind {
    let code = match error.kind() {
        io::ErrorKind::ConnectionRefused => pb::ErrorCode::Refused,
        io::ErrorKind::NotConnected => pb::ErrorCode::Gone,
        _ => pb::ErrorCode::Failed,
    };
    pb::answer::Kind::Error(pb::Error { code: code.into(), text: error.to_string() })
}

async fn receive(client: &UnixStream) -> io::Result<pb::Request> {
    let mut decoder = Decoder::<pb::Request, OwnedFd>::default();
    let mut buffer = [0; 256];
    loop {
        let mut fds = Vec::new();
        let read = client
            .async_io(Interest::READABLE, || scm::receive(client.as_fd(), &mut buffer, &mut fds))
            .await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decoder.handle(&buffer[..read], fds);
        if let Some((request, _)) = decoder.poll().map_err(io::Error::other)? {
            return Ok(request);
        }
    }
}

async fn send(client: &UnixStream, mut answer: pb::Answer, fds: Vec<OwnedFd>) -> io::Result<()> {
    let frame = encode(&mut answer, fds.len());
    let mut rest = &frame[..];
    let mut riding: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    while !rest.is_empty() {
        let sent = client
            .async_io(Interest::WRITABLE, || scm::send(client.as_fd(), rest, &riding))
            .await?;
        rest = &rest[sent..];
        riding.clear();
    }
    Ok(())
}

/// Returns when the client has closed its end. What it says until then is nothing that we know.
async fn closed(client: &UnixStream) {
    let mut buffer = [0; 256];
    while client.readable().await.is_ok() {
        match client.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
