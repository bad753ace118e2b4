//! A descriptor that tokio watches, see epoll(7).

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A registered descriptor, closed on drop. Deliberately never lends `&mut AsyncFd`: replacing the
/// descriptor inside would leave tokio with a number that is somebody else's.
#[derive(Debug)]
pub struct AsyncOwnedFd(AsyncFd<OwnedFd>);

impl AsyncOwnedFd {
    /// Registers a non-blocking descriptor for reading and writing. Needs a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<AsyncOwnedFd> {
        // SAFETY: the descriptor is owned by the AsyncFd, which nobody can reach mutably, so it
        // stays open and the same until it is deregistered on drop.
        let registered = unsafe { AsyncFd::register(fd) };
        registered.map(AsyncOwnedFd).map_err(io::Error::from)
    }

    /// Registers a descriptor for exceptional conditions only: what sysfs, procfs and cgroupfs
    /// files report when their content changed. Needs a tokio runtime.
    pub fn for_changes(fd: OwnedFd) -> io::Result<AsyncOwnedFd> {
        let interest = Interest::PRIORITY;
        // SAFETY: as in `new`.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        registered.map(AsyncOwnedFd).map_err(io::Error::from)
    }
}

impl Deref for AsyncOwnedFd {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &AsyncFd<OwnedFd> {
        &self.0
    }
}
