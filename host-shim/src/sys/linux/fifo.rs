//! What a named pipe can tell: FIONREAD in ioctl_pipe(2), POLLERR in poll(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::numbered::check;

/// How many bytes lie in it, unread.
pub fn unread(fifo: &impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to which the pointer is; the fd is borrowed, so it is open.
    check(unsafe { libc::ioctl(fifo.as_fd().as_raw_fd(), libc::FIONREAD, &mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Whether anybody has it open for reading. `fifo` must be open for writing only.
pub fn has_reader(fifo: &impl AsFd) -> io::Result<bool> {
    let mut asked = [PollFd::new(fifo.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO)?;
    Ok(!asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_pipe_tells_what_lies_in_it_and_whether_it_is_read() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"12345").unwrap();
        assert_eq!(unread(&writer).unwrap(), 5);
        assert!(has_reader(&writer).unwrap());
        reader.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(unread(&writer).unwrap(), 3);
        drop(reader);
        assert!(!has_reader(&writer).unwrap());
        assert!(unread(&File::open("/dev/null").unwrap()).is_err());
    }
}
