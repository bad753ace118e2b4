//! IPv4 packets of one link, past the kernel's own IP, see packet(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Takes UDP packets to one port that are no fragments; as struct sock_filter has it.
/// The IPv4 header comes first: the protocol at 9, flags and fragment offset at 6.
const fn only_udp_to(port: u16) -> [libc::sock_filter; 9] {
    const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    [
        step(0x30, 0, 0, 9),           // ldb protocol
        step(0x15, 0, 5, 17),          // UDP, or refuse
        step(0x28, 0, 0, 6),           // ldh fragment
        step(0x45, 3, 0, 0x1fff),      // of a later fragment: refuse
        step(0xb1, 0, 0, 0),           // x = length of the IP header
        step(0x48, 0, 0, 2),           // ldh [x + 2]: the port
        step(0x15, 1, 0, port as u32), // ours: take it
        step(0x06, 0, 0, 0),           // refuse
        step(0x06, 0, 0, u32::MAX),    // take all of it
    ]
}

/// A non-blocking socket that gets each IPv4 packet of link `index` that carries UDP to `port`,
/// beginning with the IP header, whatever its address is.
pub fn open(index: u32, port: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0: nothing comes before the filter is there.
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut filter = only_udp_to(port);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to as many instructions as it says, which the kernel copies.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })?;
    let address = address(index);
    // SAFETY: the address has the size that is given, and outlives the call.
    check(unsafe {
        libc::bind(
            fd,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// Sends an IPv4 packet to everybody on link `index`.
pub fn broadcast(socket: BorrowedFd<'_>, index: u32, packet: &[u8]) -> io::Result<()> {
    let mut address = address(index);
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    // SAFETY: packet and address are as long as is said, and outlive the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a packet; what does not fit into `buffer` is lost.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::empty())?)
}

fn address(index: u32) -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is plain data, for which all zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    address
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
