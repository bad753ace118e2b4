//! AF_UNIX seqpacket sockets that carry datagrams with file descriptors, see unix(7), cmsg(3).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

/// The kernel's limit of descriptors on one datagram (SCM_MAX_FD in include/net/scm.h).
pub const MAX_FDS: usize = 253;

/// A received datagram. `bytes` is 0 when the peer has closed.
#[derive(Debug)]
pub struct Datagram {
    /// How much of the buffer was filled.
    pub bytes: usize,
    /// The descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The datagram was longer than the buffer.
    pub truncated: bool,
    /// The kernel dropped descriptors: this process has no room for more (RLIMIT_NOFILE).
    pub fds_lost: bool,
}

/// Both ends, close-on-exec; non-blocking if asked for. socketpair(2).
pub fn pair(nonblocking: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    if nonblocking {
        flags |= SockFlag::SOCK_NONBLOCK;
    }
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one datagram, whole or not at all. sendmsg(2); a closed peer is EPIPE, never SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one datagram. recvmsg(2) with MSG_CMSG_CLOEXEC.
///
/// By hand, because nix refuses to show the control messages of a datagram that lost descriptors,
/// and so leaks those that did arrive.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Datagram> {
    // Not cleared: that would cost more than the call.
    let mut control = MaybeUninit::<Control>::uninit();
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data; all zero is a header that points nowhere.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the header points to `slice`, which points to the caller's buffer, and to `control`;
    // all three outlive the call and their lengths are their own.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let bytes = nix::errno::Errno::result(received)? as usize;

    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in the header's control part, as far as `msg_controllen` says now; CMSG_FIRSTHDR and CMSG_NXTHDR
    // stay inside `msg_controllen` and yield null at its end.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(&raw const header);
        while !part.is_null() {
            if (*part).cmsg_level == libc::SOL_SOCKET && (*part).cmsg_type == libc::SCM_RIGHTS {
                let length = (*part).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(part).cast::<RawFd>();
                for index in 0..length / size_of::<RawFd>() {
                    // The kernel has just installed this descriptor for this datagram; nothing
                    // else in this process knows its number.
                    fds.push(OwnedFd::from_raw_fd(first.add(index).read_unaligned()));
                }
            }
            part = libc::CMSG_NXTHDR(&raw const header, part);
        }
    }
    Ok(Datagram {
        bytes,
        fds,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        fds_lost: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Room for [`MAX_FDS`] descriptors: a header of at most 16 bytes, then the numbers.
const CONTROL_BYTES: usize = 16 + MAX_FDS.next_multiple_of(2) * size_of::<RawFd>();

/// Aligned as the kernel's cmsghdr wants it.
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL_BYTES],
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn datagrams_keep_their_borders_and_their_descriptors() {
        let (a, b) = pair(true).unwrap();
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        let many: Vec<BorrowedFd<'_>> = (0..MAX_FDS).map(|_| pipe.as_fd()).collect();
        send(a.as_fd(), b"one", &many).unwrap();
        send(a.as_fd(), b"three", &[]).unwrap();
        let mut buffer = [0; 4];
        let first = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!(
            (first.bytes, first.fds.len(), first.truncated, first.fds_lost),
            (3, 253, false, false)
        );
        let second = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((second.bytes, second.fds.len(), second.truncated), (4, 0, true));
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap().bytes, 0);
    }

    #[test]
    fn send_to_a_closed_peer_is_an_error_and_no_signal() {
        let (a, b) = pair(false).unwrap();
        drop(b);
        let error = send(a.as_fd(), b"x", &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    }
}
