//! The stream port: handshakes, side by side.
//!
//! Owns: the connections whose handshake is under way, each by a task of one set.
//! Promises: a silent client costs its own connection after a deadline and nobody anything else;
//! nothing past the id is read; a stream is registered before its ack is sent, so the host may use
//! it at once.
//! Never: more handshakes than the limit at once; further connections wait in the backlog.
//!
//! A stream goes into safe keeping after its ack. The other way round, an agent that dies between
//! the two would leave a host that waits for an ack which will never come; this way its connection
//! closes, and it opens the stream again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::{debug, warn};
use vminitd_protocol::handshake::{
    Acceptor, HandshakeError, StreamId, encode_duplicate, encode_id,
};

use super::end::End;
use super::streams::{Refused, Streams};
use crate::agent::init_client::InitClient;
use crate::agent::server::accept::HostListener;
use crate::limits::{STREAM_HANDSHAKE, STREAM_HANDSHAKES};
use crate::link::agent::LinkError;
use crate::sys::stream_socket::{receive, send};

/// What a handshake can fail of. Always the peer's doing, or the link's end.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("stream handshake")]
    Protocol(#[from] HandshakeError),
    #[error("stream handshake")]
    Io(#[from] io::Error),
    #[error("stream {0} is open already")]
    Duplicate(StreamId),
    #[error("too many streams that nobody claims: stream {0} refused")]
    Full(StreamId),
    #[error("keep stream")]
    Link(#[from] LinkError),
}

/// Takes streams until dropped.
pub async fn serve(listener: HostListener, streams: Arc<Streams>, init: Arc<InitClient>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.next(), if handshakes.len() < STREAM_HANDSHAKES => {
                handshakes.spawn(handshake(connection, streams.clone(), init.clone()));
            }
            Some(_ended) = handshakes.join_next() => {}
        }
    }
}

async fn handshake(connection: OwnedFd, streams: Arc<Streams>, init: Arc<InitClient>) {
    let done = tokio::time::timeout(STREAM_HANDSHAKE, open(connection, &streams, &init)).await;
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error @ Failed::Full(_))) => warn!(%error, "stream refused"),
        Ok(Err(error)) => debug!(error = %crate::chain(&error), "stream refused"),
        Err(_) => debug!("a stream's handshake took too long: closed"),
    }
}

async fn open(connection: OwnedFd, streams: &Streams, init: &InitClient) -> Result<(), Failed> {
    let end = Arc::new(End::new(connection)?);
    let id = read_id(&end).await?;
    if let Err(error) = register(&id, &end, streams, init).await {
        if let Failed::Duplicate(_) = error {
            write_all(&end, &encode_duplicate(&id)).await?;
        }
        return Err(error);
    }
    // From here on the stream is somebody's: this task's deadline must not leave half of it. The
    // ack fits into any fresh socket, so nothing below waits for the host.
    if let Err(error) = write_all(&end, &encode_id(&id)).await {
        streams.forget(&id);
        return Err(error.into());
    }
    init.keep(kept_key(&id), vec!["stream".to_owned()], &[end.as_fd()]).await?;
    Ok(())
}

async fn register(
    id: &StreamId,
    end: &Arc<End>,
    streams: &Streams,
    init: &InitClient,
) -> Result<(), Failed> {
    let in_the_way = match streams.register(id, end.clone()) {
        Ok(()) => return Ok(()),
        Err(Refused::Dead) => id.clone(),
        Err(Refused::Full { evict: Some(oldest) }) => oldest,
        Err(Refused::Duplicate) => return Err(Failed::Duplicate(id.clone())),
        Err(Refused::Full { evict: None }) => return Err(Failed::Full(id.clone())),
    };
    let Some(dead) = streams.claim(&in_the_way) else {
        return Err(Failed::Duplicate(id.clone()));
    };
    close(&in_the_way, Some(dead), streams, init).await?;
    streams.register(id, end.clone()).map_err(|_| Failed::Duplicate(id.clone()))
}

/// Closes a stream that was claimed: init's copy first, then ours, then its id is free.
pub async fn close(
    id: &StreamId,
    end: Option<Arc<End>>,
    streams: &Streams,
    init: &InitClient,
) -> Result<(), LinkError> {
    let released = init.release(kept_key(id)).await;
    drop(end);
    streams.forget(id);
    released
}

/// Under which key init keeps a stream.
pub fn kept_key(id: &StreamId) -> String {
    format!("{KEPT_PREFIX}{id}")
}

/// The id of a stream that init kept under this key; None for another key.
pub fn kept_id(key: &str) -> Option<StreamId> {
    StreamId::try_from(key.strip_prefix(KEPT_PREFIX)?.to_owned()).ok()
}

const KEPT_PREFIX: &str = "stream/";

async fn read_id(end: &End) -> Result<StreamId, Failed> {
    let mut acceptor = Acceptor::new();
    let mut buffer = [0; 1024];
    loop {
        let wanted = acceptor.wants().min(buffer.len());
        match receive(end.as_fd(), &mut buffer[..wanted]) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(bytes) => {
                if let Some(id) = acceptor.handle_bytes(&buffer[..bytes])? {
                    return Ok(id);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => end.readable().await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn write_all(end: &End, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(end.as_fd(), bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => end.writable().await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use super::*;
    use crate::link::agent::Link;
    use crate::link::codec;
    use crate::link::message::ToInit;
    use crate::sys::seqpacket;

    struct Setup {
        path: std::path::PathBuf,
        streams: Arc<Streams>,
        init: OwnedFd,
        _dir: tempfile::TempDir,
        _server: tokio::task::JoinHandle<()>,
    }

    fn setup() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams");
        let listener = UnixListener::bind(&path).unwrap();
        let listener = HostListener::new(listener.into(), "streams").unwrap();
        let (ours, init) = seqpacket::pair(false).unwrap();
        let client = Arc::new(InitClient::new(Link::new(ours).unwrap(), 1, true, []));
        let streams = Arc::new(Streams::default());
        let _server = tokio::spawn(serve(listener, streams.clone(), client));
        Setup { path, streams, init, _dir: dir, _server }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    }

    fn id(name: &str) -> StreamId {
        StreamId::try_from(name.to_owned()).unwrap()
    }

    fn dial(path: &std::path::Path, bytes: &[u8], answer: usize) -> (UnixStream, Vec<u8>) {
        let mut host = UnixStream::connect(path).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        host.write_all(bytes).unwrap();
        let mut got = vec![0; answer];
        host.read_exact(&mut got).unwrap();
        (host, got)
    }

    async fn dialled(path: &std::path::Path, bytes: &[u8], answer: usize) -> (UnixStream, Vec<u8>) {
        let (path, bytes) = (path.to_owned(), bytes.to_vec());
        tokio::task::spawn_blocking(move || dial(&path, &bytes, answer)).await.unwrap()
    }

    #[test]
    fn ack_echoes_the_id_and_leaves_the_data_in_the_socket() {
        block_on(async {
            let setup = setup();
            let hello = encode_id(&id("c1-stdin"));
            let sent = [&hello[..], b"early data"].concat();
            let (_host, ack) = dialled(&setup.path, &sent, hello.len()).await;
            assert_eq!(ack, hello);
            let end = setup.streams.claim(&id("c1-stdin")).expect("registered before the ack");
            let mut data = [0; 64];
            let length = receive(end.as_fd(), &mut data).unwrap();
            assert_eq!(&data[..length], b"early data");
            let mut message = [0; 4096];
            let kept = seqpacket::receive(setup.init.as_fd(), &mut message).unwrap();
            let text: ToInit = codec::decode(&message[..kept.bytes]).unwrap();
            assert!(matches!(text, ToInit::Keep { key, .. } if key == "stream/c1-stdin"));
            assert_eq!(kept.fds.len(), 1);
        });
    }

    #[test]
    fn duplicate_gets_the_text_that_hosts_match_on_and_the_first_stays() {
        block_on(async {
            let setup = setup();
            let hello = encode_id(&id("a"));
            let (_first, _) = dialled(&setup.path, &hello, hello.len()).await;
            let refusal = encode_duplicate(&id("a"));
            let (mut second, got) = dialled(&setup.path, &hello, refusal.len()).await;
            assert_eq!(got, refusal);
            let end = tokio::task::spawn_blocking(move || second.read(&mut [0; 1]).unwrap());
            assert_eq!(end.await.unwrap(), 0, "the refused connection is closed");
            assert!(setup.streams.claim(&id("a")).is_some());
        });
    }

    #[test]
    fn silent_and_garbling_clients_hold_up_nobody() {
        block_on(async {
            let setup = setup();
            let _silent: Vec<UnixStream> =
                (0..20).map(|_| UnixStream::connect(&setup.path).unwrap()).collect();
            let (path, garbage) = (setup.path.clone(), [0xff; 64]);
            let mut garbling = UnixStream::connect(&path).unwrap();
            garbling.write_all(&garbage).unwrap();
            let hello = encode_id(&id("a"));
            let served = dialled(&setup.path, &hello, hello.len());
            tokio::time::timeout(Duration::from_secs(2), served).await.expect("held up");
            let closed = tokio::task::spawn_blocking(move || garbling.read(&mut [0; 1]));
            // Closed with its bytes unread, which a local socket reports as a reset.
            assert!(!matches!(closed.await.unwrap(), Ok(1..)));
        });
    }
}
