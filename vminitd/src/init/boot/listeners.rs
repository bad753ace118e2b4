//! The two vsock listeners. Init opens them and lends them to each agent, so that a connection
//! that comes while there is no agent waits in the backlog instead of being refused.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket,
};

use crate::limits::LISTEN_BACKLOG;

/// A port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("listen on vsock port {port}")]
pub struct ListenError {
    port: u32,
    #[source]
    errno: Errno,
}

/// A listener on any CID of this VM, non-blocking.
pub fn open(port: u32) -> Result<OwnedFd, ListenError> {
    let failed = |errno| ListenError { port, errno };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None).map_err(failed)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port)).map_err(failed)?;
    let backlog = Backlog::new(LISTEN_BACKLOG).map_err(failed)?;
    listen(&listener, backlog).map_err(failed)?;
    Ok(listener)
}
