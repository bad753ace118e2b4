//! Stream listeners and who calls, see accept4(2), vsock(7), unix(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::Shutdown;

/// Who is at the other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A vsock peer.
    Vsock {
        /// Its context id.
        cid: u32,
        /// Its port.
        port: u32,
    },
    /// Somebody on this system, through a socket file.
    Unix,
    /// Another address family.
    Other,
}

/// Takes a connection: non-blocking and close-on-exec. EAGAIN when a non-blocking listener has
/// none. accept4(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Peer)> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).map_err(io::Error::other)?;
    // SAFETY: `address` has room for `length` bytes, as the kernel is told, and both outlive it.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            address.as_mut_ptr().cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: it was zeroed, and any bytes make a sockaddr_storage.
    let address = unsafe { address.assume_init() };
    let peer = match i32::from(address.ss_family) {
        libc::AF_VSOCK => {
            // SAFETY: the family says that this is a sockaddr_vm, which is smaller than the
            // storage and no stricter in alignment.
            let vm = unsafe { *(&raw const address).cast::<libc::sockaddr_vm>() };
            Peer::Vsock { cid: vm.svm_cid, port: vm.svm_port }
        }
        libc::AF_UNIX => Peer::Unix,
        _ => Peer::Other,
    };
    Ok((fd, peer))
}

/// Ends this side's sending half. An end that the peer has made already is none to report.
/// shutdown(2) with SHUT_WR.
pub fn shutdown_write(socket: BorrowedFd<'_>) -> io::Result<()> {
    match nix::sys::socket::shutdown(socket.as_raw_fd(), Shutdown::Write) {
        Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Receives into the buffer without waiting. recv(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    use nix::sys::socket::{MsgFlags, recv};
    Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Sends from the buffer without waiting; a peer that is gone is EPIPE, never SIGPIPE. send(2).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    use nix::sys::socket::{MsgFlags, send};
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(send(socket.as_raw_fd(), bytes, flags)?)
}

/// Whether the peer takes nothing any more: it has closed, or the connection is lost. A peer that
/// has only ended its own sending is not gone. send(2) of nothing, since poll(2) does not tell the
/// two apart on vsock.
pub fn peer_is_gone(socket: BorrowedFd<'_>) -> bool {
    send(socket, &[]).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
}

/// Connects to the socket at `path` without waiting for it to be served, and hands over `bytes`.
/// unix(7).
pub fn connect_and_send(path: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let sent = send(socket.as_fd(), bytes)?;
    if sent < bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Bytes that were written to a socket and that the other side has not taken yet, or that a terminal has yet to send.
/// SIOCOUTQ, TIOCOUTQ (the same number), see unix(7), ioctl_tty(2).
pub fn unsent_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int, and `bytes` outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn peer_that_ended_its_sending_is_there_and_one_that_closed_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!peer_is_gone(ours.as_fd()));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!peer_is_gone(ours.as_fd()));
        drop(theirs);
        assert!(peer_is_gone(ours.as_fd()));
    }

    #[test]
    fn local_peer_is_told_from_others_and_an_idle_listener_would_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let error = accept(listener.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        let (_fd, peer) = accept(listener.as_fd()).unwrap();
        assert_eq!(peer, Peer::Unix);
    }
}
