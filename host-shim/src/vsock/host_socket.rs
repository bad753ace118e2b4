//! Our end of one connection's socket pair, with the bytes that the host has yet to take.
//! Promises: never blocks; bytes leave in the order in which they came; the backlog is as small as the connection's
//! credit lets it be, and its memory is given up when it has emptied.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, setsockopt, shutdown,
    socketpair, sockopt,
};
use std::os::fd::AsRawFd;

use super::limits::{HOST_SOCKET_BYTES, IDLE_BACKLOG_BYTES};
use super::scatter::{self, Scatter};

/// What became of bytes for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The host took this many; the rest waits in the backlog.
    Bytes(u32),
    /// The host reads no more.
    HostGone,
}

/// What there is to read from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, in the pieces given.
    Bytes(usize),
    /// Nothing now; an event will tell.
    Nothing,
    /// Nothing ever.
    End,
}

/// Our end of a socket pair.
#[derive(Debug)]
pub struct HostSocket {
    fd: OwnedFd,
    backlog: Backlog,
    /// The last write was not refused, or an event has come since.
    writable: bool,
    /// There may be something to read: set by an event, cleared by a read that found nothing.
    readable: bool,
}

impl HostSocket {
    /// Makes a pair: our end, and the one to hand out.
    pub fn pair() -> io::Result<(HostSocket, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        for end in [&ours, &theirs] {
            // A smaller buffer than asked for only costs speed.
            let _ = setsockopt(end, sockopt::SndBuf, &HOST_SOCKET_BYTES);
        }
        let socket =
            HostSocket { fd: ours, backlog: Backlog::default(), writable: true, readable: false };
        Ok((socket, theirs))
    }

    /// An event said that there may be something to read.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// An event said that there may be room.
    pub fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Whether a read is worth trying.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Gives bytes of the guest to the host: what it does not take at once goes to the backlog.
    pub fn give(&mut self, mut bytes: Scatter<'_>) -> Taken {
        let mut taken = 0;
        while self.backlog.is_empty() && self.writable && bytes.len() > 0 {
            match scatter::send(self.fd.as_fd(), bytes.pieces()) {
                Ok(sent) => {
                    bytes.split_front(sent);
                    taken += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => {
                    self.backlog.clear();
                    return Taken::HostGone;
                }
            }
        }
        self.backlog.append(&bytes);
        Taken::Bytes(taken as u32)
    }

    /// Gives the backlog to the host, as much as it takes.
    pub fn flush(&mut self) -> Taken {
        let mut taken = 0;
        while !self.backlog.is_empty() && self.writable {
            match send(
                self.fd.as_raw_fd(),
                self.backlog.bytes(),
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(sent) => {
                    self.backlog.advance(sent);
                    taken += sent;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => self.writable = false,
                Err(_) => {
                    self.backlog.clear();
                    return Taken::HostGone;
                }
            }
        }
        Taken::Bytes(taken as u32)
    }

    /// Reads from the host into pieces of guest memory, which must have room for a byte.
    pub fn receive(&mut self, pieces: &[vm_memory::VolatileSlice<'_>]) -> Received {
        loop {
            match scatter::receive(self.fd.as_fd(), pieces) {
                Ok(0) => {
                    self.readable = false;
                    return Received::End;
                }
                Ok(bytes) => return Received::Bytes(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Received::Nothing;
                }
                // ECONNRESET: the host closed with bytes of the guest unread. It has nothing more to say.
                Err(_) => {
                    self.readable = false;
                    return Received::End;
                }
            }
        }
    }

    /// Drops the backlog: the host reads no more.
    pub fn drop_backlog(&mut self) {
        self.backlog.clear();
    }

    /// Tells the host that no more bytes come.
    pub fn end_writing(&self) {
        // The only failure is that the host is gone.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }

    /// Lets the host's writes fail, and drops what it wrote.
    pub fn end_reading(&mut self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Read);
        self.readable = false;
        let mut sink = [0; 16 * 1024];
        // Ends after what is in the socket's buffer: nothing comes in any more.
        while matches!(recv(self.fd.as_raw_fd(), &mut sink, MsgFlags::MSG_DONTWAIT), Ok(bytes) if bytes > 0)
        {
        }
    }

    /// Closes our end so that the host sees an end and not an error: a Unix socket that is closed with bytes unread
    /// gives its peer ECONNRESET.
    pub fn close(mut self) {
        self.end_reading();
    }
}

impl AsFd for HostSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Bytes in the order in which they came; a vector whose front is consumed.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// Bytes at the front that have left.
    gone: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.gone == self.bytes.len()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    fn append(&mut self, more: &Scatter<'_>) {
        let more_len = more.len();
        if more_len == 0 {
            return;
        }
        if self.gone > self.bytes.len() / 2 {
            // Each byte is moved at most once for each that left: the cost stays in proportion.
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + more_len, 0);
        more.copy_to(&mut self.bytes[start..]);
    }

    fn advance(&mut self, bytes: usize) {
        self.gone += bytes;
        if self.is_empty() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.gone = 0;
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_BACKLOG_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vsock::driver_model::{Driver, MEMORY_BYTES};
    use crate::vsock::limits::GUEST_CREDIT_BYTES;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::OnceLock;
    use vm_memory::{Bytes, GuestAddress};

    fn scatter(driver: &Driver, from: usize, count: usize) -> Scatter<'_> {
        Scatter::new_for_test(&driver.memory, from as u64, count as u32)
    }

    /// Guest memory and what is in it; the bytes follow from their place.
    fn noise() -> &'static (Driver, Vec<u8>) {
        static NOISE: OnceLock<(Driver, Vec<u8>)> = OnceLock::new();
        NOISE.get_or_init(|| {
            let driver = Driver::anonymous();
            let bytes: Vec<u8> =
                (0..MEMORY_BYTES).map(|place| (place ^ place >> 8 ^ place >> 16) as u8).collect();
            driver.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
            (driver, bytes)
        })
    }

    #[test]
    fn a_pair_is_closed_without_an_error_even_with_bytes_unread() {
        let (ours, theirs) = HostSocket::pair().unwrap();
        let mut theirs = UnixStream::from(theirs);
        std::io::Write::write_all(&mut theirs, b"unread").unwrap();
        ours.close();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 50, ..ProptestConfig::default() })]

        #[test]
        fn bytes_leave_in_the_order_in_which_they_came(
            steps in proptest::collection::vec((1usize..200_000, 0usize..200_000), 1..40),
        ) {
            let (driver, noise) = noise();
            let (mut ours, theirs) = HostSocket::pair().unwrap();
            let mut theirs = UnixStream::from(theirs);
            theirs.set_nonblocking(true).unwrap();
            let (mut given, mut taken, mut read) = (0, 0, 0);
            for (give, want) in steps {
                let credit = GUEST_CREDIT_BYTES as usize - (given - taken);
                let give = give.min(MEMORY_BYTES - given).min(credit);
                let Taken::Bytes(some) = ours.give(scatter(driver, given, give)) else { panic!("the host is here") };
                given += give;
                taken += some as usize;
                let mut chunk = vec![0; want];
                if let Ok(count) = theirs.read(&mut chunk) {
                    prop_assert!(chunk[..count] == noise[read..read + count]);
                    read += count;
                }
                ours.set_writable();
                let Taken::Bytes(some) = ours.flush() else { panic!("the host is here") };
                taken += some as usize;
                prop_assert_eq!(given - taken, ours.backlog.bytes().len());
                prop_assert!(ours.backlog.bytes.len() <= 2 * GUEST_CREDIT_BYTES as usize);
            }
            while read < given {
                let mut chunk = vec![0; 100_000];
                if let Ok(count) = theirs.read(&mut chunk) {
                    prop_assert!(chunk[..count] == noise[read..read + count]);
                    read += count;
                }
                ours.set_writable();
                ours.flush();
            }
            prop_assert!(ours.backlog.bytes.capacity() <= IDLE_BACKLOG_BYTES);
        }
    }
}
