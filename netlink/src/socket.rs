//! Sockets to the kernel's network configuration, see rtnetlink(7), netlink(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Changes of links: RTMGRP_LINK.
pub const LINK_CHANGES: u32 = 1;

/// A socket for requests. A receive waits for `patience` at most; the kernel answers in the send.
pub fn requests(patience: Duration) -> io::Result<OwnedFd> {
    let socket = open(0, SockFlag::SOCK_CLOEXEC)?;
    let patience = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    Ok(socket)
}

/// The same in the network namespace behind `namespace`, see setns(2). Blocks for a moment: a
/// thread of its own enters the namespace, since no other may be left in it.
pub fn requests_in(
    namespace: impl AsFd + Send + 'static,
    patience: Duration,
) -> io::Result<OwnedFd> {
    let enter = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        requests(patience)
    };
    let entered = thread::Builder::new().name("netns".to_owned()).spawn(enter)?;
    entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

/// A non-blocking socket that hears of changes of these `groups`.
pub fn changes(groups: u32) -> io::Result<OwnedFd> {
    open(groups, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
}

/// Sends a request.
pub fn tell(socket: BorrowedFd<'_>, message: &[u8]) -> io::Result<()> {
    send(socket.as_raw_fd(), message, MsgFlags::empty())?;
    Ok(())
}

/// Receives messages; what does not fit into `buffer` is lost. ENOBUFS: some were lost before.
pub fn hear(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?)
}

fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    // Whoever speaks to this socket is the kernel: only CAP_NET_ADMIN may send to others' groups, and
    // nobody in a container has a socket in this namespace's netlink with our port.
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}
