//! What a named pipe can tell: poll(2).

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How many bytes lie in it, unread: at the end that writes, nothing tells that here, so it may always be some.
pub fn unread(_fifo: &impl AsFd) -> io::Result<usize> {
    Ok(1)
}

/// Whether anybody has it open for reading. `fifo` must be open for writing only.
pub fn has_reader(fifo: &impl AsFd) -> io::Result<bool> {
    let mut asked = [PollFd::new(fifo.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO)?;
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    Ok(!asked[0].revents().is_some_and(|events| events.intersects(gone)))
}
