//! Holes in files: SEEK_DATA and SEEK_HOLE of lseek(2).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The next piece of data from `at` on: its begin and its end, in bytes. Moves the file's offset.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file.as_raw_fd(), at, whence).map(|place| place as u64)
    };
    let begin = match seek(at, Whence::SeekData) {
        Ok(begin) => begin,
        // Nothing but a hole up to the end.
        Err(Errno::ENXIO) => return Ok(None),
        // A device, or a filesystem that knows no holes.
        Err(Errno::EINVAL) => {
            let end = seek(0, Whence::SeekEnd)?;
            return Ok((at < end).then_some((at, end)));
        }
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some((begin, seek(begin, Whence::SeekHole)?)))
}
