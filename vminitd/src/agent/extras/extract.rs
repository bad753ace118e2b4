//! An extras archive, read from its device and written into the guest.
//!
//! Promises: what is refused is passed over with a message, the rest is written; an archive that is
//! damaged or cut ends there; all of it together takes no more than the room that it was given; each
//! message is one line, and there are no more than [`EXTRAS_MESSAGES`].
//! Never: knows where the archive comes from, or keeps more of a file than a buffer.

use std::io::{self, Read};

use tracing::warn;

use super::place::{Misplaced, Place};
use super::tar::{BLOCK, Entry, Kind, Step, Tar, TarError, is_kept, padding};
use super::write::Writer;
use crate::limits::{EXTRAS_ENTRIES, EXTRAS_MESSAGES};

/// What became of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Entries that were written.
    pub written: u64,
    /// Entries that were refused or failed.
    pub refused: u64,
    /// Why it was not read to its end.
    pub cut: Option<String>,
}

/// Why the archive is not read any further.
#[derive(Debug, thiserror::Error)]
enum CutError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("it ends too early")]
    Truncated,
    #[error("it has more than {EXTRAS_ENTRIES} entries")]
    TooMany,
    #[error("read it")]
    Read(#[source] io::Error),
}

/// Why one entry is not written.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("{0}")]
    Kind(&'static str),
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    #[error("{size} bytes are more than the {room} that are left for extras")]
    Room { size: u64, room: u64 },
    #[error("{0}")]
    Write(#[from] io::Error),
}

/// Extracts all of it; `room` is how many bytes of files it may have.
pub fn extract(archive: impl Read, writer: &mut Writer, room: u64) -> Outcome {
    let mut extraction =
        Extraction { archive, writer, room, outcome: Outcome::default(), tar: Tar::default() };
    if let Err(error) = extraction.run() {
        extraction.outcome.cut = Some(crate::chain(&error));
    }
    extraction.outcome
}

struct Extraction<'a, R> {
    archive: R,
    writer: &'a mut Writer,
    room: u64,
    outcome: Outcome,
    tar: Tar,
}

impl<R: Read> Extraction<'_, R> {
    fn run(&mut self) -> Result<(), CutError> {
        let mut block = [0; BLOCK];
        let mut zeros = 0;
        // One of zeros may be missing, and the device may have more of them.
        while zeros < 2 {
            match self.archive.read_exact(&mut block) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && zeros > 0 => {
                    return Ok(());
                }
                Err(error) => return Err(cut(error)),
            }
            match self.tar.header(&block)? {
                Step::Zero => zeros += 1,
                Step::Meta(size) => self.meta(size)?,
                Step::Entry(entry) => {
                    zeros = 0;
                    self.entry(&entry)?;
                }
            }
        }
        Ok(())
    }

    fn meta(&mut self, size: u64) -> Result<(), CutError> {
        if !is_kept(size) {
            self.skip(size)?;
            return Ok(self.tar.meta(None)?);
        }
        let mut bytes = vec![0; size as usize];
        self.archive.read_exact(&mut bytes).map_err(cut)?;
        self.skip_padding(size)?;
        Ok(self.tar.meta(Some(&bytes))?)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), CutError> {
        if self.outcome.written + self.outcome.refused >= EXTRAS_ENTRIES {
            return Err(CutError::TooMany);
        }
        let mut data = Data { archive: &mut self.archive, left: entry.size };
        let written = write(self.writer, entry, self.room, &mut data);
        let (left, is_whole) = (data.left, data.left == 0);
        match written {
            Ok(()) => {
                self.outcome.written += 1;
                self.room -= entry.size;
            }
            Err(error) => {
                self.outcome.refused += 1;
                if self.outcome.refused <= EXTRAS_MESSAGES {
                    warn!("extras: {:?}: {error}", String::from_utf8_lossy(&entry.name));
                }
                // What failed to be written must not have been a read that did.
                if !is_whole {
                    return self.skip(left).and_then(|()| self.skip_padding(entry.size));
                }
            }
        }
        self.skip_padding(entry.size)
    }

    /// Passes over data and its padding.
    fn skip(&mut self, size: u64) -> Result<(), CutError> {
        let skipped =
            io::copy(&mut (&mut self.archive).take(size), &mut io::sink()).map_err(cut)?;
        if skipped < size { Err(CutError::Truncated) } else { Ok(()) }
    }

    fn skip_padding(&mut self, size: u64) -> Result<(), CutError> {
        self.skip(padding(size))
    }
}

fn cut(error: io::Error) -> CutError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CutError::Truncated,
        _ => CutError::Read(error),
    }
}

fn write<R: Read>(
    writer: &mut Writer,
    entry: &Entry,
    room: u64,
    data: &mut Data<'_, R>,
) -> Result<(), EntryError> {
    if let Kind::Refused(why) = entry.kind {
        return Err(EntryError::Kind(why));
    }
    let place = Place::new(&entry.name)?;
    match &entry.kind {
        Kind::File if entry.size > room => {
            return Err(EntryError::Room { size: entry.size, room });
        }
        Kind::File => writer.file(&place, entry.mode, data)?,
        Kind::Directory => writer.make_directory(&place, entry.mode)?,
        Kind::Symlink(target) => {
            place.may_link_to(target)?;
            writer.symlink(&place, target)?;
        }
        Kind::HardLink(target) => {
            let target = Place::new(target).map_err(|_| Misplaced::Target)?;
            writer.hard_link(&place, &target)?;
        }
        Kind::Refused(why) => return Err(EntryError::Kind(why)),
    }
    Ok(())
}

/// One entry's data. An archive that ends in it is an error, not a short file.
struct Data<'a, R> {
    archive: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.archive.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
