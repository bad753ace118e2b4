//! The supervisor's log: from its pipe into a file that is replaced when it is large.
//!
//! Owns: the file, and the bytes of a line that is not yet shown.
//! Promises: a byte is in the pipe or in the file, never in this process alone, so that an agent that
//! is killed loses none; a log that cannot be written holds up nobody: the bytes are discarded, and
//! that is said once; at most two files of [`SUPERVISOR_LOG_BYTES`].
//! Never: ends while the supervisor may still write.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{debug, warn};

use crate::agent::stdio::end::End;
use crate::agent::var;
use crate::limits::{SPLICE_BYTES, SPLICES_PER_TURN, SUPERVISOR_LINE_BYTES, SUPERVISOR_LOG_BYTES};
use crate::paths;
use crate::sys::splice::splice;

/// What moves the output.
pub struct Pump {
    pipe: Arc<End>,
    log: Log,
}

impl Pump {
    /// Takes the pipe's read end. `show`: every line also goes into our own log.
    pub fn new(pipe: OwnedFd, show: bool) -> io::Result<Pump> {
        let log = Log::new(paths::SUPERVISOR_LOG.into(), paths::SUPERVISOR_OLD_LOG.into(), show);
        Ok(Pump { pipe: Arc::new(End::new(pipe)?), log })
    }

    /// Moves until nobody can write any more, which is when init has gone.
    pub async fn run(self) {
        let Pump { pipe, mut log } = self;
        loop {
            if let Err(error) = pipe.readable().await {
                warn!(%error, "the supervisor's output is not taken");
                return;
            }
            let from = pipe.clone();
            // A file may be on a disk.
            let turn = tokio::task::spawn_blocking(move || {
                let more = log.take(&from);
                (log, more)
            });
            match turn.await {
                Ok((back, true)) => log = back,
                Ok((_, false)) | Err(_) => return,
            }
        }
    }
}

/// The file.
struct Log {
    path: PathBuf,
    old_path: PathBuf,
    show: bool,
    /// Bytes of a line whose end has not come.
    line: Vec<u8>,
    /// The file and its length.
    open: Option<(File, u64)>,
    /// That it cannot be written was said.
    complained: bool,
}

impl Log {
    fn new(path: PathBuf, old_path: PathBuf, show: bool) -> Log {
        Log { path, old_path, show, line: Vec::new(), open: None, complained: false }
    }

    /// Moves what is there, or a turn's worth of it. False at the pipe's end.
    fn take(&mut self, pipe: &End) -> bool {
        for _ in 0..SPLICES_PER_TURN {
            let moved = match self.move_some(pipe) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    if !std::mem::replace(&mut self.complained, true) {
                        let path = self.path.display();
                        warn!(%error, "{path} cannot be written: what the supervisor says is discarded");
                    }
                    self.open = None;
                    discard(pipe)
                }
                moved => moved,
            };
            match moved {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) => {
                    warn!(%error, "the supervisor's output is not taken");
                    return false;
                }
            }
        }
        true
    }

    fn move_some(&mut self, pipe: &End) -> io::Result<usize> {
        let (file, length) = self.file()?;
        let room = usize::try_from(SUPERVISOR_LOG_BYTES - *length).unwrap_or(SPLICE_BYTES);
        let moved = splice(pipe.as_fd(), file.as_fd(), room.min(SPLICE_BYTES))?;
        let began = *length;
        *length += moved as u64;
        self.complained = false;
        if self.show {
            self.show(began, moved);
        }
        Ok(moved)
    }

    /// The file, with room for a byte.
    fn file(&mut self) -> io::Result<&mut (File, u64)> {
        if let Some((file, length)) = &self.open {
            let is_full = *length >= SUPERVISOR_LOG_BYTES;
            if is_full {
                std::fs::rename(&self.path, &self.old_path)?;
            }
            // Somebody who removes it wants a new one.
            if is_full || file.metadata()?.nlink() == 0 {
                self.open = None;
            }
        }
        if self.open.is_none() {
            let mut open = open(&self.path)?;
            if open.1 >= SUPERVISOR_LOG_BYTES {
                // An agent was killed before it could do this.
                std::fs::rename(&self.path, &self.old_path)?;
                open = self::open(&self.path)?;
            }
            self.open = Some(open);
        }
        self.open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Reads back what was moved, and tells the lines.
    fn show(&mut self, began: u64, moved: usize) {
        let mut bytes = vec![0; moved];
        let Some((file, _)) = &self.open else { return };
        if file.read_exact_at(&mut bytes, began).is_err() {
            return;
        }
        for byte in bytes {
            if byte == b'\n' || self.line.len() >= SUPERVISOR_LINE_BYTES {
                debug!("supervisor: {}", String::from_utf8_lossy(&self.line));
                self.line.clear();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }
}

/// The file and its length; positioned at its end, and not O_APPEND, which splice(2) refuses.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o640);
    let open = || options.open(path);
    let mut file = match open() {
        Ok(file) => file,
        Err(_) => {
            var::make_writable()?;
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            open()?
        }
    };
    let length = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    Ok((file, length))
}

fn discard(pipe: &End) -> io::Result<usize> {
    let null = File::options().write(true).open(paths::NULL)?;
    splice(pipe.as_fd(), null.as_fd(), SPLICE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::splice::{pipe, set_room};

    fn setup() -> (tokio::runtime::Runtime, tempfile::TempDir, Log) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let log =
            Log::new(directory.path().join("deep/log"), directory.path().join("deep/old"), false);
        (runtime, directory, log)
    }

    #[test]
    fn log_is_replaced_when_it_is_full_and_no_byte_is_lost_between_the_two() {
        let (runtime, directory, mut log) = setup();
        let _inside = runtime.enter();
        let (read, write) = pipe().unwrap();
        set_room(write.as_fd(), 65536).unwrap();
        let (read, mut write) = (End::new(read).unwrap(), File::from(write));
        let size = SUPERVISOR_LOG_BYTES as usize * 3 / 2;
        let text: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        for (turn, piece) in text.chunks(65536).enumerate() {
            write.write_all(piece).unwrap();
            assert!(log.take(&read));
            if turn % 5 == 0 {
                // Another agent.
                log = Log::new(log.path, log.old_path, false);
            }
        }
        let old = std::fs::read(directory.path().join("deep/old")).unwrap();
        let new = std::fs::read(directory.path().join("deep/log")).unwrap();
        assert_eq!(old.len() as u64, SUPERVISOR_LOG_BYTES);
        assert!([old, new].concat() == text);
        drop(write);
        assert!(!log.take(&read), "the pipe's end is seen");
    }

    #[test]
    fn log_that_cannot_be_written_holds_up_nobody_and_goes_on_when_it_can() {
        let (runtime, directory, mut log) = setup();
        let _inside = runtime.enter();
        let (read, write) = pipe().unwrap();
        let (read, mut write) = (End::new(read).unwrap(), File::from(write));
        // A directory in its place cannot be written, not even by root.
        std::fs::create_dir_all(&log.path).unwrap();
        write.write_all(&[0; 60_000]).unwrap();
        assert!(log.take(&read));
        std::fs::remove_dir(&log.path).unwrap();
        write.write_all(b"again").unwrap();
        assert!(log.take(&read));
        assert_eq!(std::fs::read(directory.path().join("deep/log")).unwrap(), b"again");
    }

    #[test]
    fn log_that_somebody_removes_is_made_anew() {
        let (runtime, _directory, mut log) = setup();
        let _inside = runtime.enter();
        let (read, write) = pipe().unwrap();
        let (read, mut write) = (End::new(read).unwrap(), File::from(write));
        for text in ["one", "two"] {
            write.write_all(text.as_bytes()).unwrap();
            assert!(log.take(&read));
            assert_eq!(std::fs::read_to_string(&log.path).unwrap(), text);
            std::fs::remove_file(&log.path).unwrap();
        }
    }
}
