//! How what a host asked for and what a process gets meet: pipes, and what is at their other ends.
//!
//! Owns: while a process is being made, its pipes and the ends that its URIs name.
//! Promises: a process gets pipes (never a socket, which could not be opened as /dev/stdout), owned
//! by whom the host says; equal URIs for stdout and stderr are one pipe; a stream is claimed once
//! though several URIs name it.
//! Never: moves a byte.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, Uid};
use tracing::debug;
use vminitd_protocol::handshake::StreamId;

use super::end::End;
use super::input::Source;
use super::output::{Loss, Sink};
use super::uri::{Program, Uri};
use crate::agent::errors::RpcError;
use crate::limits::OUTPUT_PIPE_BYTES;
use crate::link::message::FdRole;
use crate::sys::splice::{pipe, set_room};

/// A process's three URIs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uris {
    /// Of fd 0.
    pub stdin: Uri,
    /// Of fd 1.
    pub stdout: Uri,
    /// Of fd 2.
    pub stderr: Uri,
}

/// What the URIs name, opened.
#[derive(Debug)]
pub struct Ends {
    /// Where stdin comes from.
    pub stdin: Option<Source>,
    /// Where stdout goes.
    pub stdout: Option<Sink>,
    /// Where stderr goes; None also when that is where stdout goes.
    pub stderr: Option<Sink>,
    /// Programs that take the output, to be started.
    pub loggers: Vec<Logger>,
}

/// A program that takes output, and what it is to read.
#[derive(Debug)]
pub struct Logger {
    /// Which program.
    pub program: Program,
    /// Read end of what stdout is moved to.
    pub stdout: Option<OwnedFd>,
    /// Read end of what stderr is moved to.
    pub stderr: Option<OwnedFd>,
}

/// The agent's ends of a process's pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    /// Write end of stdin's.
    pub stdin: Option<OwnedFd>,
    /// Read end of stdout's.
    pub stdout: Option<OwnedFd>,
    /// Read end of stderr's, unless it is stdout's.
    pub stderr: Option<OwnedFd>,
    /// With a terminal: write end of stdout's, for what the process writes.
    pub console_out: Option<OwnedFd>,
    /// With a terminal: read end of stdin's, for what the process is to read.
    pub console_in: Option<OwnedFd>,
    /// In a new agent: what stdin comes from, if that is in the guest.
    pub stdin_from: Option<OwnedFd>,
    /// In a new agent: what stdout goes to, if that is in the guest.
    pub stdout_to: Option<OwnedFd>,
    /// In a new agent: what stderr goes to, if that is in the guest.
    pub stderr_to: Option<OwnedFd>,
}

/// The process's ends.
pub type ProcessFds = Vec<(FdRole, OwnedFd)>;

/// Who owns a process's pipes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// A pipe.
    #[error("make a pipe for stdio")]
    Pipe(#[source] io::Error),
    /// A named pipe or file of the guest.
    #[error("open {path} for stdio")]
    Open {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Uris {
    /// Reads them as they stand in a request.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str) -> Result<Self, RpcError> {
        let stdin = match Uri::parse(stdin)? {
            Uri::Binary(_) => return Err(RpcError::Scheme("binary for stdin".to_owned())),
            stdin => stdin,
        };
        Ok(Self { stdin, stdout: Uri::parse(stdout)?, stderr: Uri::parse(stderr)? })
    }

    /// Those of a process with a terminal: it has no stderr of its own, whatever the request says.
    pub fn parse_terminal(stdin: &str, stdout: &str) -> Result<Self, RpcError> {
        Self::parse(stdin, stdout, "")
    }

    /// The streams that they name, each once.
    pub fn streams(&self) -> Vec<StreamId> {
        let mut ids = Vec::new();
        for uri in [&self.stdin, &self.stdout, &self.stderr] {
            if let Uri::Stream(id, _) = uri
                && !ids.contains(id)
            {
                ids.push(id.clone());
            }
        }
        ids
    }

    /// Opens what they name; `claimed` has the ends of [`Self::streams`].
    pub fn open(&self, claimed: &HashMap<StreamId, Arc<End>>) -> Result<Ends, WiringError> {
        let stdin = open_source(&self.stdin, claimed)?;
        let (stdout, for_stdout) = open_sink(&self.stdout, claimed)?;
        let (stderr, for_stderr) = match self.merged() {
            true => (None, None),
            false => open_sink(&self.stderr, claimed)?,
        };
        let logger =
            |program: &Program, stdout, stderr| Logger { program: program.clone(), stdout, stderr };
        let loggers = match (&self.stdout, &self.stderr) {
            (Uri::Binary(one), Uri::Binary(other)) if one == other => {
                vec![logger(one, for_stdout, for_stderr)]
            }
            (stdout, stderr) => {
                let mut loggers = vec![];
                if let Uri::Binary(program) = stdout {
                    loggers.push(logger(program, for_stdout, None));
                }
                if let Uri::Binary(program) = stderr {
                    loggers.push(logger(program, None, for_stderr));
                }
                loggers
            }
        };
        Ok(Ends { stdin, stdout, stderr, loggers })
    }

    /// The same in a new agent: what is in the guest was kept, and is not opened again; where nothing
    /// was kept, it has ended.
    pub fn reopen(
        &self,
        claimed: &HashMap<StreamId, Arc<End>>,
        pipes: &mut Pipes,
    ) -> io::Result<Ends> {
        let sink = |uri: &Uri, kept: Option<OwnedFd>| {
            Ok::<_, io::Error>(match (uri, kept) {
                (Uri::Null, _) => None,
                (Uri::Stream(id, loss), _) => Some(Sink::Stream(claimed.get(id).cloned(), *loss)),
                (_, Some(kept)) => Some(Sink::File(End::new(kept)?)),
                (_, None) => Some(Sink::Stream(None, Loss::Discard)),
            })
        };
        let stdin = match (&self.stdin, pipes.stdin_from.take()) {
            (Uri::Null, _) => None,
            (Uri::Stream(id, loss), _) => Some(Source::Stream(claimed.get(id).cloned(), *loss)),
            (_, Some(kept)) => Some(source(End::new(kept)?)),
            (_, None) => Some(Source::Stream(None, Loss::Discard)),
        };
        let stdout = sink(&self.stdout, pipes.stdout_to.take())?;
        let stderr = match self.merged() {
            true => None,
            false => sink(&self.stderr, pipes.stderr_to.take())?,
        };
        Ok(Ends { stdin, stdout, stderr, loggers: vec![] })
    }

    /// Makes the pipes of all that is not /dev/null.
    pub fn make_pipes(&self, owner: Owner) -> Result<(Pipes, ProcessFds), WiringError> {
        let (mut pipes, mut fds) = (Pipes::default(), ProcessFds::new());
        if self.stdin != Uri::Null {
            let (read, write) = make_pipe(owner)?;
            pipes.stdin = Some(write);
            fds.push((FdRole::Stdin, read));
        }
        if self.stdout != Uri::Null {
            let (read, write) = make_output_pipe(owner)?;
            pipes.stdout = Some(read);
            if self.merged() {
                fds.push((FdRole::Stderr, write.try_clone().map_err(WiringError::Pipe)?));
            }
            fds.push((FdRole::Stdout, write));
        }
        if self.stderr != Uri::Null && !self.merged() {
            let (read, write) = make_output_pipe(owner)?;
            pipes.stderr = Some(read);
            fds.push((FdRole::Stderr, write));
        }
        Ok((pipes, fds))
    }

    /// Makes the pipes beside a terminal. What the process writes is taken from it also when nobody
    /// wants it: a terminal that nobody reads stops its process.
    pub fn make_console_pipes(&self) -> Result<Pipes, WiringError> {
        let mut pipes = Pipes::default();
        let (read, write) = pipe().map_err(WiringError::Pipe)?;
        (pipes.stdout, pipes.console_out) = (Some(read), Some(write));
        if self.stdin != Uri::Null {
            let (read, write) = pipe().map_err(WiringError::Pipe)?;
            (pipes.console_in, pipes.stdin) = (Some(read), Some(write));
        }
        Ok(pipes)
    }

    /// stdout and stderr are one: one pipe, so that the order of the process's writes is kept.
    pub fn merged(&self) -> bool {
        match (&self.stdout, &self.stderr) {
            (Uri::Stream(stdout, _), Uri::Stream(stderr, _)) => stdout == stderr,
            // One program, but it tells the two apart.
            (Uri::Binary(_), Uri::Binary(_)) => false,
            (stdout, stderr) => stdout == stderr,
        }
    }
}

fn make_output_pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd), WiringError> {
    let (read, write) = make_pipe(owner)?;
    if let Err(error) = set_room(write.as_fd(), OUTPUT_PIPE_BYTES) {
        debug!(%error, "an output's pipe stays small");
    }
    Ok((read, write))
}

fn make_pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd), WiringError> {
    let (read, write) = pipe().map_err(WiringError::Pipe)?;
    // Both ends are one inode, which is what the process sees as /proc/self/fd/N.
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    nix::unistd::fchown(read.as_raw_fd(), Some(uid), Some(gid))
        .map_err(|errno| WiringError::Pipe(errno.into()))?;
    Ok((read, write))
}

impl Pipes {
    /// The read ends, which are needed until the process is deleted, by name.
    pub fn read_ends(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        let named =
            [(STDOUT, &self.stdout), (STDERR, &self.stderr), (CONSOLE_IN, &self.console_in)];
        named.into_iter().filter_map(|(name, fd)| Some((name.to_owned(), fd.as_ref()?.as_fd())))
    }

    /// From what was kept, by name; other names are ignored.
    pub fn from_kept(kept: impl IntoIterator<Item = (String, OwnedFd)>) -> Self {
        let mut pipes = Self::default();
        for (name, fd) in kept {
            match &*name {
                STDIN => pipes.stdin = Some(fd),
                STDOUT => pipes.stdout = Some(fd),
                STDERR => pipes.stderr = Some(fd),
                CONSOLE => pipes.console_out = Some(fd),
                CONSOLE_IN => pipes.console_in = Some(fd),
                STDIN_FROM => pipes.stdin_from = Some(fd),
                STDOUT_TO => pipes.stdout_to = Some(fd),
                STDERR_TO => pipes.stderr_to = Some(fd),
                _ => {}
            }
        }
        pipes
    }
}

/// Under which name the write end of stdin's pipe is kept.
pub const STDIN: &str = "stdin";
/// Under which name the write end of the pipe behind a terminal is kept.
pub const CONSOLE: &str = "console";
/// Under which name what stdin comes from is kept, if that is in the guest.
pub const STDIN_FROM: &str = "stdin-from";
/// Under which name what stdout goes to is kept, if that is in the guest.
pub const STDOUT_TO: &str = "stdout-to";
/// Under which name what stderr goes to is kept, if that is in the guest.
pub const STDERR_TO: &str = "stderr-to";
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const CONSOLE_IN: &str = "console-in";

fn open_source(
    uri: &Uri,
    claimed: &HashMap<StreamId, Arc<End>>,
) -> Result<Option<Source>, WiringError> {
    let path = match uri {
        Uri::Null => return Ok(None),
        Uri::Stream(id, loss) => {
            return Ok(Some(Source::Stream(claimed.get(id).cloned(), *loss)));
        }
        Uri::Fifo(path) | Uri::File(path) => path,
        // Nothing comes from there, and parsing has refused it.
        Uri::Binary(_) => return Ok(None),
    };
    let file = open(path, OpenOptions::new().read(true))?;
    Ok(Some(source(end_of(path, file)?)))
}

/// A path may name a file or a named pipe, whatever the URI says.
fn source(end: End) -> Source {
    match end {
        End::Polled(_) => Source::Fifo(Arc::new(end)),
        End::Plain(_) => Source::File(Arc::new(end)),
    }
}

/// A sink, and what is left for a program to read.
fn open_sink(
    uri: &Uri,
    claimed: &HashMap<StreamId, Arc<End>>,
) -> Result<(Option<Sink>, Option<OwnedFd>), WiringError> {
    let sink = match uri {
        Uri::Null => None,
        Uri::Stream(id, loss) => Some(Sink::Stream(claimed.get(id).cloned(), *loss)),
        Uri::Binary(_) => {
            let (read, write) = pipe().map_err(WiringError::Pipe)?;
            let write = End::new(write).map_err(WiringError::Pipe)?;
            return Ok((Some(Sink::File(write)), Some(read)));
        }
        Uri::Fifo(path) => {
            // Read-write: opening does not wait for a reader, and one that leaves breaks nothing.
            let file = open(path, OpenOptions::new().read(true).write(true))?;
            Some(Sink::File(end_of(path, file)?))
        }
        Uri::File(path) => {
            // Not O_APPEND, which splice refuses.
            let mut file = open(path, OpenOptions::new().write(true).create(true).mode(0o644))?;
            file.seek(SeekFrom::End(0))
                .map_err(|source| WiringError::Open { path: path.clone(), source })?;
            Some(Sink::File(end_of(path, file)?))
        }
    };
    Ok((sink, None))
}

fn open(path: &Path, how: &mut OpenOptions) -> Result<File, WiringError> {
    how.custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| WiringError::Open { path: path.to_owned(), source })
}

fn end_of(path: &Path, file: File) -> Result<End, WiringError> {
    End::new(file.into()).map_err(|source| WiringError::Open { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn null_gets_no_pipe_and_the_others_belong_to_whom_the_host_says() {
        let uris = Uris::parse("", "stream://o", "stream://e").unwrap();
        let owner = Owner { uid: 1000, gid: 1001 };
        let (pipes, fds) = uris.make_pipes(owner).unwrap();
        assert!(pipes.stdin.is_none() && pipes.stdout.is_some() && pipes.stderr.is_some());
        let roles: Vec<_> = fds.iter().map(|(role, _)| *role).collect();
        assert_eq!(roles, [FdRole::Stdout, FdRole::Stderr]);
        for (_, fd) in fds {
            let metadata = File::from(fd).metadata().unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
        }
        let names: Vec<_> = pipes.read_ends().map(|(name, _)| name).collect();
        assert_eq!(names, ["stdout", "stderr"]);
    }

    #[test]
    fn equal_uris_for_stdout_and_stderr_are_one_pipe_that_keeps_the_order() {
        let uris = Uris::parse("", "stream://a", "stream+keep://a").unwrap();
        let (pipes, fds) = uris.make_pipes(Owner::default()).unwrap();
        for role in [FdRole::Stdout, FdRole::Stderr, FdRole::Stdout] {
            let (_, fd) = fds.iter().find(|(other, _)| *other == role).expect("both are there");
            writeln!(File::from(fd.try_clone().unwrap()), "{role:?}").unwrap();
        }
        drop(fds);
        let mut got = String::new();
        File::from(pipes.stdout.unwrap()).read_to_string(&mut got).unwrap();
        assert_eq!(got, "Stdout\nStderr\nStdout\n");
        assert!(pipes.stderr.is_none());
    }

    #[test]
    fn stdin_flows_towards_the_process() {
        let uris = Uris::parse("stream://i", "", "").unwrap();
        let (pipes, mut fds) = uris.make_pipes(Owner::default()).unwrap();
        let (role, theirs) = fds.pop().unwrap();
        assert_eq!(role, FdRole::Stdin);
        File::from(pipes.stdin.unwrap()).write_all(b"in").unwrap();
        let mut got = String::new();
        File::from(theirs).read_to_string(&mut got).unwrap();
        assert_eq!(got, "in");
    }

    #[test]
    fn stream_that_several_uris_name_is_listed_once() {
        let uris = Uris::parse("stream://a", "stream://b", "stream://b").unwrap();
        let ids: Vec<_> = uris.streams().iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn file_is_created_or_written_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "before\n").unwrap();
        let uri = format!("file://{}", path.display());
        let uris = Uris::parse("", &uri, "").unwrap();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(async {
            let ends = uris.open(&HashMap::new()).unwrap();
            let (mut pipes, fds) = uris.make_pipes(Owner::default()).unwrap();
            for (_, fd) in fds {
                File::from(fd).write_all(b"after\n").unwrap();
            }
            let counter = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let (pipe, sink) = (pipes.stdout.take().unwrap(), ends.stdout.unwrap());
            super::super::output::Output::new(pipe, sink, counter).unwrap().run().await;
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }
}
