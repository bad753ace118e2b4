//! A process's stdio: containerd's FIFOs on one side, the guest's streams on the other.
//!
//! ```text
//! client --> FIFO --> pump_input --> stream --> guest --> process
//! client <-- FIFO <-- pump_output <-- stream <-- guest <-- process
//! ```
//!
//! Owns: the FIFOs, the streams and a task for each direction; all go with [`Stdio`].
//! Promises: no open waits for the other side; a reader that leaves neither ends the process nor loses a byte (it
//! waits, once the FIFO is full, for the next reader); input ends when CloseIO was called and nobody holds the FIFO open
//! for writing; an output FIFO closes when all of the output is in it and somebody can read it.
//! Never: looks at what is said.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use host_shim::guest::{Guest, StreamError};
use host_shim::sys::fifo;
use host_shim::vmm::{GuestReader, GuestStream, GuestWriter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::logger::Program;
use super::process::lock;
use super::tap::{STDERR, STDOUT, Tap};

/// Bytes that are moved at once.
const CHUNK: usize = 32 << 10;

/// How long output may make no progress until what waits for it goes on without.
const STUCK: Duration = Duration::from_secs(10);

/// How long the end of an output is not told while nobody can read what lies in its FIFO. A client opens its end beside
/// its calls, and one that is not open when Delete is answered is given up, with all that was written for it.
const READER_GRACE: Duration = Duration::from_secs(1);

/// Between two looks at a FIFO that nobody reads.
const READER_PAUSE: Duration = Duration::from_millis(100);

/// What containerd says about a process's stdio.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// URI, or path of a FIFO; empty: none.
    pub stdin: String,
    /// The same.
    pub stdout: String,
    /// The same. Of no meaning with a terminal.
    pub stderr: String,
    /// All is one terminal's.
    pub terminal: bool,
    /// Whose it is, for a program that takes output.
    pub container: String,
    /// The same.
    pub namespace: String,
}

/// The same for the guest.
#[derive(Clone, Debug, Default)]
pub struct Uris {
    /// Empty, or `stream://`.
    pub stdin: String,
    /// The same.
    pub stdout: String,
    /// The same.
    pub stderr: String,
}

/// One end that containerd names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Null,
    Fifo(PathBuf),
    File(PathBuf),
    Program(Program),
}

/// Stdio cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A URI of another kind. The client's fault.
    #[error("unsupported STDIO scheme {0}")]
    Scheme(String),
    /// A path that is not there, or no FIFO.
    #[error("open {path:?}")]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The guest takes no stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl StdioError {
    /// Whether it may do with the next agent.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Stream(StreamError::Io { .. } | StreamError::Dial(_)))
    }
}

/// A process's stdio, connected.
#[derive(Debug, Default)]
pub struct Stdio {
    input: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    tap: Tap,
}

#[derive(Debug)]
struct Input {
    path: PathBuf,
    /// What others than the FIFO's writers say.
    typed: mpsc::Sender<Vec<u8>>,
    state: Mutex<InputState>,
}

/// Input begins with the process: a client that is told of the process only later, by the answer to its Create or Exec,
/// would otherwise come to the end of short input before it can call CloseIO.
#[derive(Debug)]
enum InputState {
    /// For Start.
    Waiting {
        stream: Option<(GuestStream, mpsc::Receiver<Vec<u8>>)>,
        /// CloseIO was called already.
        closed: bool,
    },
    /// The FIFO is open.
    Running {
        /// Our own writer, which keeps the input from ending when a client leaves; CloseIO drops it.
        held: Option<File>,
        pump: JoinHandle<()>,
    },
}

#[derive(Debug)]
struct Output {
    progress: watch::Receiver<Progress>,
    pump: JoinHandle<()>,
}

/// How far an output has come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Bytes handed over.
    bytes: u64,
    /// There will be no more.
    ended: bool,
}

impl Drop for Input {
    fn drop(&mut self) {
        if let InputState::Running { pump, .. } = &*lock(&self.state) {
            pump.abort();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Stdio {
    /// Opens all that `wish` names, and a stream for each.
    pub async fn open(guest: &Guest, wish: &Wish) -> Result<(Self, Uris), StdioError> {
        let (mut stdio, mut uris) = (Self::default(), Uris::default());
        if let End::Fifo(path) = end(&wish.stdin)? {
            let (typed, others) = mpsc::channel(1);
            let stream = Some((open_stream(guest, &mut uris.stdin).await?, others));
            let state = Mutex::new(InputState::Waiting { stream, closed: false });
            stdio.input = Some(Input { path, typed, state });
        }
        let same = wish.stderr == wish.stdout;
        let (stdout, stderr) = match end(&wish.stdout)? {
            // One program, that tells the two apart.
            End::Program(program) => {
                let started = program.start(&wish.container, &wish.namespace).await;
                let (stdout, stderr) = started
                    .map_err(|source| StdioError::Open { path: program.path.clone(), source })?;
                (
                    Some(Sink::Program(stdout)),
                    (same && !wish.terminal).then_some(Sink::Program(stderr)),
                )
            }
            other => (open_output(other)?, None),
        };
        let to_stdout = (STDOUT, stdio.tap.clone());
        let to_stderr = (STDERR, stdio.tap.clone());
        stdio.stdout = output(guest, stdout, &mut uris.stdout, to_stdout).await?;
        if let Some(stderr) = stderr {
            stdio.stderr = output(guest, Some(stderr), &mut uris.stderr, to_stderr).await?;
        } else if !wish.terminal && same {
            uris.stderr.clone_from(&uris.stdout);
        } else if !wish.terminal {
            let sink = match end(&wish.stderr)? {
                End::Program(program) => {
                    let started = program.start(&wish.container, &wish.namespace).await;
                    let (_, stderr) = started.map_err(|source| StdioError::Open {
                        path: program.path.clone(),
                        source,
                    })?;
                    Some(Sink::Program(stderr))
                }
                other => open_output(other)?,
            };
            stdio.stderr = output(guest, sink, &mut uris.stderr, to_stderr).await?;
        }
        Ok((stdio, uris))
    }

    /// Lets input flow, once.
    pub fn begin_input(&self) -> Result<(), StdioError> {
        let Some(Input { path, state, .. }) = &self.input else { return Ok(()) };
        let mut state = lock(state);
        let InputState::Waiting { stream, closed } = &mut *state else { return Ok(()) };
        let (fifo, held) =
            open_input(path).map_err(|source| StdioError::Open { path: path.clone(), source })?;
        let held = (!*closed).then_some(held);
        if let Some((stream, others)) = stream.take() {
            let pump = tokio::spawn(pump_input(fifo, others, stream));
            *state = InputState::Running { held, pump };
        }
        Ok(())
    }

    /// Where its output can be seen; `None` when it is seen by nobody.
    pub fn tap(&self) -> Option<&Tap> {
        (self.stdout.is_some() || self.stderr.is_some()).then_some(&self.tap)
    }

    /// Where its input can be written to beside the FIFO.
    pub fn typing(&self) -> Option<mpsc::Sender<Vec<u8>>> {
        self.input.as_ref().map(|input| input.typed.clone())
    }

    /// Lets the input end when nobody else holds it open.
    pub fn close_stdin(&self) {
        match self.input.as_ref().map(|input| lock(&input.state)).as_deref_mut() {
            Some(InputState::Waiting { closed, .. }) => *closed = true,
            Some(InputState::Running { held, .. }) => *held = None,
            None => {}
        }
    }

    /// Waits until this much of each output was handed over, as long as it makes progress.
    pub async fn handed_over(&self, stdout_bytes: u64, stderr_bytes: u64) {
        for (output, bytes) in [(&self.stdout, stdout_bytes), (&self.stderr, stderr_bytes)] {
            if let Some(output) = output {
                output.reached(|progress| progress.bytes >= bytes).await;
                let got = output.progress.borrow().bytes;
                if got < bytes {
                    tracing::warn!(got, written = bytes, "output is missing, or nobody takes it");
                }
            }
        }
    }

    /// Waits until the outputs have ended, as long as they make progress.
    pub async fn ended(&self) {
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            output.reached(|_| false).await;
        }
    }
}

impl Output {
    async fn reached(&self, enough: impl Fn(&Progress) -> bool) {
        let mut progress = self.progress.clone();
        loop {
            let now = *progress.borrow_and_update();
            if now.ended || enough(&now) {
                return;
            }
            match timeout(STUCK, progress.changed()).await {
                Ok(Ok(())) => {}
                // Nobody reads it, or there is nobody to write it any more.
                Err(_) | Ok(Err(_)) => return,
            }
        }
    }
}

/// What a URI means here.
fn end(uri: &str) -> Result<End, StdioError> {
    if uri.is_empty() {
        return Ok(End::Null);
    }
    let Some((scheme, rest)) = uri.split_once("://") else { return Ok(End::Fifo(uri.into())) };
    let path = rest.split_once('?').map_or(rest, |(path, _)| path);
    match scheme {
        "fifo" => Ok(End::Fifo(path.into())),
        "file" => Ok(End::File(path.into())),
        "binary" => Ok(End::Program(Program::parse(rest))),
        _ => Err(StdioError::Scheme(scheme.to_owned())),
    }
}

/// A stream of its own name.
async fn open_stream(guest: &Guest, uri: &mut String) -> Result<GuestStream, StreamError> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let id = format!("s{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let stream = guest.stream(&id).await?;
    *uri = format!("stream://{id}");
    Ok(stream)
}

fn open_output(end: End) -> Result<Option<Sink>, StdioError> {
    match end {
        End::Null | End::Program(_) => Ok(None),
        End::Fifo(path) => {
            // For reading too: so the open waits for nobody, and a reader that leaves breaks nothing.
            let fifo = open_both(&path)
                .map_err(|source| StdioError::Open { path: path.clone(), source })?;
            Ok(Some(Sink::Fifo { fifo, path }))
        }
        End::File(path) => {
            let open = || {
                path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
                File::options().append(true).create(true).mode(0o644).open(&path)
            };
            let file = open().map_err(|source| StdioError::Open { path: path.clone(), source })?;
            Ok(Some(Sink::File(tokio::fs::File::from_std(file))))
        }
    }
}

async fn output(
    guest: &Guest,
    sink: Option<Sink>,
    uri: &mut String,
    tap: (u8, Tap),
) -> Result<Option<Output>, StdioError> {
    let Some(sink) = sink else { return Ok(None) };
    let (reader, writer) = open_stream(guest, uri).await?.into_split();
    let (sender, progress) = watch::channel(Progress::default());
    let pump = tokio::spawn(pump_output((reader, writer), sink, tap, sender));
    Ok(Some(Output { progress, pump }))
}

fn open_both(path: &Path) -> std::io::Result<pipe::Sender> {
    let both = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    pipe::Sender::from_file(both)
}

fn open_input(path: &Path) -> std::io::Result<(pipe::Receiver, File)> {
    let fifo = pipe::OpenOptions::new().open_receiver(path)?;
    let held = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok((fifo, held))
}

async fn pump_input(
    mut fifo: pipe::Receiver,
    mut others: mpsc::Receiver<Vec<u8>>,
    stream: GuestStream,
) {
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = vec![0; CHUNK];
    loop {
        let said = tokio::select! {
            read = fifo.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(read) => writer.write_all(&buffer[..read]).await,
            },
            // The sender lives as long as this.
            Some(typed) = others.recv() => writer.write_all(&typed).await,
        };
        // A process that has closed its input needs no more of it.
        if said.is_err() {
            break;
        }
    }
    drop((buffer, fifo, others));
    let _ = writer.shutdown().await;
    // Kept open for reading until the guest closes it, lest the half-close become a reset.
    let _ = reader.read(&mut [0]).await;
}

/// Where output goes.
enum Sink {
    Fifo { fifo: pipe::Sender, path: PathBuf },
    File(tokio::fs::File),
    Program(pipe::Sender),
}

async fn pump_output(
    (mut from, _writer): (GuestReader, GuestWriter),
    mut to: Sink,
    (kind, tap): (u8, Tap),
    progress: watch::Sender<Progress>,
) {
    let mut buffer = vec![0; CHUNK];
    let mut lost = false;
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => {
                // With its VM, or with an agent that was replaced.
                tracing::warn!(%error, "an output of the guest broke off");
                break;
            }
        };
        tap.show(kind, &buffer[..read]);
        if !lost {
            let written = match &mut to {
                Sink::Fifo { fifo, .. } => fifo.write_all(&buffer[..read]).await,
                Sink::File(file) => file.write_all(&buffer[..read]).await,
                Sink::Program(pipe) => pipe.write_all(&buffer[..read]).await,
            };
            // A full disk, for a file: the process goes on.
            if let Err(error) = written {
                tracing::warn!(%error, "output is lost from here on");
                lost = true;
            }
        }
        progress.send_modify(|progress| progress.bytes += read as u64);
    }
    drop(buffer);
    match to {
        Sink::Fifo { fifo, path } => end_fifo(fifo, &path, &progress).await,
        Sink::Program(_) => {
            progress.send_modify(|progress| progress.ended = true);
        }
        Sink::File(mut file) => {
            let _ = file.flush().await;
            progress.send_modify(|progress| progress.ended = true);
        }
    }
}

/// Tells that an output has ended, and closes its FIFO as soon as that loses nothing.
async fn end_fifo(fifo: pipe::Sender, path: &Path, progress: &watch::Sender<Progress>) {
    let writer = pipe::OpenOptions::new().open_sender(path).ok();
    drop(fifo);
    if let Some(writer) = &writer {
        let _ = timeout(READER_GRACE, until_readable(writer)).await;
    }
    progress.send_modify(|progress| progress.ended = true);
    if let Some(writer) = &writer {
        until_readable(writer).await;
    }
}

/// Returns when closing loses nothing: all was read, or somebody is there who can. Nothing tells of a reader that
/// comes, so this looks again and again.
async fn until_readable(fifo: &pipe::Sender) {
    while fifo::unread(fifo).is_ok_and(|bytes| bytes > 0)
        && fifo::has_reader(fifo).is_ok_and(|has| !has)
    {
        sleep(READER_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_names_is_understood() {
        assert_eq!(end("").unwrap(), End::Null);
        assert_eq!(end("/run/x/stdout").unwrap(), End::Fifo("/run/x/stdout".into()));
        assert_eq!(end("fifo:///x?a=b").unwrap(), End::Fifo("/x".into()));
        assert_eq!(end("file:///var/log/x").unwrap(), End::File("/var/log/x".into()));
        assert_eq!(end("npipe://x").unwrap_err().to_string(), "unsupported STDIO scheme npipe");
    }

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        (directory, path)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn input_ends_only_when_our_own_writer_is_closed() {
        block_on(async {
            let (_directory, path) = fifo();
            let (mut input, held) = open_input(&path).unwrap();
            let mut client = pipe::OpenOptions::new().open_sender(&path).unwrap();
            client.write_all(b"one").await.unwrap();
            drop(client);
            let mut got = [0; 3];
            input.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"one");
            let end = timeout(Duration::from_millis(50), input.read(&mut got)).await;
            assert!(end.is_err(), "a client that leaves is no end");
            drop(held);
            assert_eq!(input.read(&mut got).await.unwrap(), 0);
        });
    }

    #[test]
    fn end_of_an_output_is_told_when_a_late_reader_has_come() {
        block_on(async {
            let (_directory, path) = fifo();
            let mut ours = open_both(&path).unwrap();
            ours.write_all(b"last words").await.unwrap();
            let (sender, mut progress) = watch::channel(Progress::default());
            let end = end_fifo(ours, &path, &sender);
            let late = async {
                sleep(READER_PAUSE * 2).await;
                assert!(!progress.borrow_and_update().ended, "nobody could have read it");
                let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
                let told = progress.wait_for(|progress| progress.ended);
                timeout(READER_GRACE / 2, told).await.unwrap().unwrap();
                let mut got = String::new();
                reader.read_to_string(&mut got).await.unwrap();
                got
            };
            let ((), got) = tokio::join!(end, late);
            assert_eq!(got, "last words");

            // One that never comes holds nobody up for long.
            let mut ours = open_both(&path).unwrap();
            ours.write_all(b"last words").await.unwrap();
            let (sender, mut progress) = watch::channel(Progress::default());
            let told = progress.wait_for(|progress| progress.ended);
            tokio::select! {
                () = end_fifo(ours, &path, &sender) => panic!("it would be lost"),
                told = timeout(STUCK, told) => drop(told.unwrap().unwrap()),
            }
        });
    }

    #[test]
    fn what_nobody_has_read_waits_for_a_reader() {
        block_on(async {
            let (_directory, path) = fifo();
            let mut ours = open_both(&path).unwrap();
            ours.write_all(b"last words").await.unwrap();
            let writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
            drop(ours);
            let waited = timeout(Duration::from_millis(250), until_readable(&writer)).await;
            assert!(waited.is_err(), "nobody could have read it");
            let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
            timeout(Duration::from_secs(5), until_readable(&writer)).await.unwrap();
            drop(writer);
            let mut got = String::new();
            reader.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "last words");
        });
    }
}
