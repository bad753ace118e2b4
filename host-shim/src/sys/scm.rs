//! File descriptors over a Unix stream socket: unix(7), cmsg(3), on every system.
//! Promises: what is received is close-on-exec and owned, so that an error on the way leaks nothing.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::{SCM_RECEIVE_FLAGS, SCM_SEND_FLAGS, close_on_exec};
use crate::limits::MAX_MESSAGE_FDS;

/// Sends as many of `bytes` as the socket takes, and `fds` on the first of them: sendmsg(2).
/// `bytes` must not be empty.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::from_bits_retain(SCM_SEND_FLAGS);
    let sent =
        sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    Ok(sent)
}

/// Receives into `buffer`, and puts what rode along into `fds`: recvmsg(2). 0 is the end of the stream.
/// More than [`MAX_MESSAGE_FDS`] at once is an error; none of them stays open.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; MAX_MESSAGE_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::from_bits_retain(SCM_RECEIVE_FLAGS);
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let mut came = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these for us (SCM_RIGHTS), and nothing else has their numbers.
            came.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let read = message.bytes;
    // The buffer is rounded up, so that one more may fit.
    if truncated || came.len() > MAX_MESSAGE_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more file descriptors than a message may carry",
        ));
    }
    for fd in &came {
        close_on_exec(fd.as_fd())?;
    }
    fds.append(&mut came);
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn a_file_arrives_open_and_close_on_exec() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        send(here.as_fd(), b"x", &[file.as_fd()]).unwrap();
        drop(file);
        let (mut buffer, mut fds) = ([0; 8], Vec::new());
        assert_eq!(receive(there.as_fd(), &mut buffer, &mut fds).unwrap(), 1);
        let flags = FdFlag::from_bits_retain(fcntl(fds[0].as_raw_fd(), FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        let mut file = File::from(fds.pop().unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn more_than_a_message_may_carry_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        let fds = vec![here.as_fd(); MAX_MESSAGE_FDS + 1];
        send(here.as_fd(), b"x", &fds).unwrap();
        let mut came = Vec::new();
        let error = receive(there.as_fd(), &mut [0; 8], &mut came).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(came.is_empty());
    }
}
