//! A connection to a program that wants a *listening* socket, without a path that could be left behind or met by
//! anybody else: an autobound abstract address, see unix(7).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen,
    socket,
};

/// How often somebody may be faster than we are at a name nobody was told.
const TRIES: usize = 16;

/// A listening socket and, first in its queue, the other end of a connection to it.
///
/// The queue has room for one. Somebody who saw the address in /proc/net/unix and was faster than our own connect
/// thus makes that fail, and another address is tried; who comes later is never accepted by a program that accepts
/// once.
pub fn connected_listener() -> io::Result<(OwnedFd, OwnedFd)> {
    for _ in 0..TRIES {
        let listener = stream(SockFlag::empty())?;
        bind(listener.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = getsockname(listener.as_raw_fd())?;
        listen(&listener, Backlog::new(0)?)?;
        let client = stream(SockFlag::SOCK_NONBLOCK)?;
        match connect(client.as_raw_fd(), &address) {
            Ok(()) => {
                std::os::unix::net::UnixStream::from(client.try_clone()?).set_nonblocking(false)?;
                return Ok((listener, client));
            }
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody connects to every socket first"))
}

fn stream(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_first_connection_accepted_is_ours_and_another_is_refused_meanwhile() {
        let (listener, client) = connected_listener().unwrap();
        let listener = UnixListener::from(listener);
        let address = listener.local_addr().unwrap();
        let stranger = stream(SockFlag::SOCK_NONBLOCK).unwrap();
        let name: UnixAddr = getsockname(listener.as_raw_fd()).unwrap();
        assert_eq!(connect(stranger.as_raw_fd(), &name), Err(Errno::EAGAIN));
        let (mut accepted, _) = listener.accept().unwrap();
        UnixStream::from(client).write_all(b"ours").unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ours");
        assert!(address.as_pathname().is_none(), "no file is made");
    }
}
