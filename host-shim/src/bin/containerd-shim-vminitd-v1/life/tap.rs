//! Others who take part in a process's streams: they see what it writes, beside those whose streams they are, and write
//! its input. It is what `vminitctl attach` does.
//!
//! Promises: nobody who takes part takes anything away or holds anybody up: who is too slow is told how much went by;
//! an exit comes after the output before it. Never: keeps output for who is not there.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use host_shim::ctl::{Attach, Participation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};
use vminitd_protocol::pb::vminitd::ctl::v1 as pb;

use super::process::Process;
use super::shim::Shim;

/// Pieces of output that somebody may be behind.
const PIECES: usize = 64;

/// Bytes of input that are taken at once.
const INPUT_BYTES: usize = 4096;

/// Kinds of pieces, see ctl.proto.
pub const STDOUT: u8 = 1;
/// The same.
pub const STDERR: u8 = 2;
const EXIT: u8 = 3;
const MISSED: u8 = 4;

/// Something that a process has written.
#[derive(Clone, Debug)]
pub struct Piece {
    kind: u8,
    bytes: Arc<[u8]>,
}

/// Where others see it.
#[derive(Clone, Debug)]
pub struct Tap(broadcast::Sender<Piece>);

impl Default for Tap {
    fn default() -> Self {
        Self(broadcast::Sender::new(PIECES))
    }
}

impl Tap {
    /// Shows `bytes` to whoever is there now.
    pub fn show(&self, kind: u8, bytes: &[u8]) {
        if self.0.receiver_count() > 0 {
            // The last one may leave at this moment.
            let _ = self.0.send(Piece { kind, bytes: bytes.into() });
        }
    }

    /// What is shown from now on.
    pub fn pieces(&self) -> broadcast::Receiver<Piece> {
        self.0.subscribe()
    }
}

/// A shim that lets others take part.
pub struct Participants(pub Weak<Shim>);

#[async_trait]
impl Attach for Participants {
    async fn attach(&self, wanted: &pb::Attach) -> Result<Participation, String> {
        let shim = self.0.upgrade().ok_or("the shim is about to end")?;
        let id = match wanted.container.as_str() {
            "" => {
                let first = shim.sandbox.get().and_then(|vm| vm.started.borrow().clone());
                first.ok_or("no container has been started yet")?
            }
            id => id.to_owned(),
        };
        let (_, process) =
            shim.process(&id, &wanted.exec).map_err(|error| format!("{id}: {error}"))?;
        let stdio = process.stdio();
        let tap = stdio.tap().ok_or_else(|| {
            format!("{id} was started with its output thrown away: there is nothing to attach to")
        })?;
        let pieces = tap.pieces();
        let input = stdio.typing();
        let pair = std::os::unix::net::UnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
        });
        let (ours, stream) = pair.map_err(|error| error.to_string())?;
        let terminal = process.wish.terminal;
        let attached = pb::Attached { container: id, terminal, input: input.is_some() };
        tokio::spawn(async move {
            // A client that is not there any more needs nothing.
            let _ = take_part(&process, pieces, input, ours).await;
        });
        Ok(Participation { attached, stream })
    }
}

async fn take_part(
    process: &Process,
    mut pieces: broadcast::Receiver<Piece>,
    mut input: Option<mpsc::Sender<Vec<u8>>>,
    stream: UnixStream,
) -> std::io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let typed = async {
        let mut buffer = vec![0; INPUT_BYTES];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            // Input that has ended takes no more.
            if let Some(sender) = &input
                && sender.send(buffer[..read].to_vec()).await.is_err()
            {
                input = None;
            }
        }
    };
    let shown = async {
        loop {
            let (piece, ended) = tokio::select! {
                piece = pieces.recv() => (piece.map_err(missed), None),
                // What it wrote was shown before its exit was known: it is all there.
                exit = process.exited() => (pieces.try_recv().map_err(missed_now), Some(exit)),
            };
            match (piece, ended) {
                (Ok(Piece { kind, bytes }), _) => write(&mut to, kind, &bytes).await?,
                (Err(Some(missed)), _) => write(&mut to, MISSED, &missed.to_be_bytes()).await?,
                (Err(None), Some(exit)) => {
                    return write(&mut to, EXIT, &exit.status.to_be_bytes()).await;
                }
                (Err(None), None) => return Ok(()),
            }
        }
    };
    tokio::select! {
        left = typed => left,
        ended = shown => ended,
    }
}

/// How many pieces went by; `None`: there are no more.
fn missed(error: broadcast::error::RecvError) -> Option<u64> {
    match error {
        broadcast::error::RecvError::Lagged(missed) => Some(missed),
        broadcast::error::RecvError::Closed => None,
    }
}

/// The same.
fn missed_now(error: broadcast::error::TryRecvError) -> Option<u64> {
    match error {
        broadcast::error::TryRecvError::Lagged(missed) => Some(missed),
        _ => None,
    }
}

async fn write(
    to: &mut (impl AsyncWriteExt + Unpin),
    kind: u8,
    bytes: &[u8],
) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?.to_be_bytes();
    to.write_all(&[&[kind], &length[..], bytes].concat()).await
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::protocol::delete::Exit;

    #[test]
    fn who_is_too_slow_holds_nobody_up_and_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tap = Tap::default();
            // Nobody is there: nothing is kept.
            tap.show(STDOUT, b"before");
            let (ours, theirs) = UnixStream::pair().unwrap();
            let process = Process::new(String::new(), Default::default(), Default::default());
            let pieces = tap.pieces();
            for number in 0..PIECES + 6 {
                tap.show(STDERR, number.to_string().as_bytes());
            }
            process.set_exit(Exit { pid: 1, status: 7, seconds: 0, nanos: 0 });
            let (sender, mut input) = mpsc::channel(1);
            let mut theirs = theirs.into_std().unwrap();
            std::io::Write::write_all(&mut theirs, b"typed").unwrap();
            take_part(&process, pieces, Some(sender), ours).await.unwrap();
            theirs.set_nonblocking(false).unwrap();
            let mut got = Vec::new();
            // Input that nobody has taken makes the end a reset; what was written comes before.
            let _ = theirs.read_to_end(&mut got);
            // Whichever of the two is looked at first, the exit is the last.
            assert!(got.ends_with(&[EXIT, 0, 0, 0, 4, 0, 0, 0, 7]), "{got:?}");
            let last = (PIECES + 5).to_string();
            let at = got.len() - 9 - last.len();
            assert_eq!(&got[at..at + last.len()], last.as_bytes());
            assert!(!got.windows(6).any(|bytes| bytes == b"before"));
            if let Ok(typed) = input.try_recv() {
                assert_eq!(typed, b"typed");
            }
        });
    }
}
