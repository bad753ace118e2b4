//! The kernel's announcements of devices, see netlink(7), NETLINK_KOBJECT_UEVENT.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt,
    socket,
};

/// The kernel's own multicast group; a device manager would use another.
const KERNEL_GROUP: u32 = 1;

/// What one receive brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// An announcement of the kernel's, this many bytes long.
    Announcement(usize),
    /// Some were lost for want of room: whoever counts on them must look for himself.
    Lost,
}

/// A non-blocking socket on which each announcement arrives that is made from now on; `room` is how
/// many bytes of them may wait. socket(2), bind(2).
pub fn open(room: usize) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    setsockopt(&fd, RcvBuf, &room)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(fd)
}

/// The next announcement; what somebody other than the kernel has sent is skipped. WouldBlock when
/// there is none. recvfrom(2).
pub fn receive(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    loop {
        match recvfrom::<NetlinkAddr>(fd.as_fd().as_raw_fd(), buffer) {
            Ok((length, Some(from))) if from.pid() == 0 => {
                return Ok(Received::Announcement(length));
            }
            Ok(_) => {}
            Err(Errno::ENOBUFS) => return Ok(Received::Lost),
            Err(errno) => return Err(errno.into()),
        }
    }
}
