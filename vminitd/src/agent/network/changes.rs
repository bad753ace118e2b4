//! News from the kernel that links came, went, or changed.

use std::io;
use std::os::fd::AsFd;

use netlink::socket;

use crate::sys::async_fd::AsyncOwnedFd;

/// A subscription. What was before it is not told: subscribe, then look.
#[derive(Debug)]
pub struct Changes(AsyncOwnedFd);

impl Changes {
    /// Subscribes.
    pub fn of_links() -> io::Result<Self> {
        Ok(Self(AsyncOwnedFd::new(socket::changes(socket::LINK_CHANGES)?)?))
    }

    /// Returns when something has changed; what it was, whoever asks the kernel sees.
    pub async fn next(&self) -> io::Result<()> {
        let mut buffer = vec![0; netlink::ANSWER_BYTES / 8];
        let mut ready = self.0.readable().await?;
        loop {
            match socket::hear(self.0.get_ref().as_fd(), &mut buffer) {
                // ENOBUFS: more than was kept. All the more has changed.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
