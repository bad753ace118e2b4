//! A packet's bytes as they lie scattered in guest memory, and moving them to and from a socket without a copy.
//! Promises: every piece lies in memory that is mapped here; their number and sizes were checked once, on a copy of
//! the descriptors that the guest cannot change.
//! Never: makes a reference to guest memory; the guest writes to it at any time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::limits::MAX_SEGMENTS;

/// The VM's memory.
pub type Memory = GuestMemoryMmap<()>;

/// Pieces that one system call moves, at most; Linux takes 1024 (`UIO_MAXIOV`).
pub const MAX_PIECES_PER_CALL: usize = 256;

/// Why a descriptor chain is not a list of pieces: always the guest's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChain;

/// A list of pieces of guest memory, read or written in order.
#[derive(Debug)]
pub struct Scatter<'m> {
    pieces: Vec<VolatileSlice<'m>>,
}

impl<'m> Scatter<'m> {
    /// The part of a chain that the device may read.
    pub fn readable(
        memory: &'m Memory,
        chain: DescriptorChain<&'m Memory>,
    ) -> Result<Scatter<'m>, BadChain> {
        Scatter::collect(memory, chain.readable(), Permissions::Read)
    }

    /// The part of a chain that the device may write.
    pub fn writable(
        memory: &'m Memory,
        chain: DescriptorChain<&'m Memory>,
    ) -> Result<Scatter<'m>, BadChain> {
        Scatter::collect(memory, chain.writable(), Permissions::Write)
    }

    fn collect(
        memory: &'m Memory,
        descriptors: impl Iterator<Item = Descriptor>,
        access: Permissions,
    ) -> Result<Scatter<'m>, BadChain> {
        let mut pieces = Vec::with_capacity(4);
        for (number, descriptor) in descriptors.enumerate() {
            if number >= MAX_SEGMENTS {
                return Err(BadChain);
            }
            let slices = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access);
            for slice in slices.map_err(|_| BadChain)? {
                // A descriptor may span two regions of the VM's memory, and so give two pieces.
                pieces.push(slice.map_err(|_| BadChain)?);
            }
        }
        Ok(Scatter { pieces })
    }

    /// Bytes in all pieces. At most [`MAX_SEGMENTS`] times 2^32, so it cannot overflow.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(VolatileSlice::len).sum()
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[VolatileSlice<'m>] {
        &self.pieces
    }

    /// Cuts off and returns the first `bytes`, or all if there are fewer.
    pub fn split_front(&mut self, bytes: usize) -> Scatter<'m> {
        let mut front = Vec::new();
        let mut missing = bytes;
        let mut whole = 0;
        for piece in &mut self.pieces {
            if piece.len() <= missing {
                missing -= piece.len();
                front.push(*piece);
                whole += 1;
                continue;
            }
            if missing > 0
                && let Ok((head, tail)) = piece.split_at(missing)
            {
                front.push(head);
                *piece = tail;
            }
            break;
        }
        self.pieces.drain(..whole);
        Scatter { pieces: front }
    }

    /// Copies the bytes out; false if there are fewer than `bytes` is long.
    pub fn copy_to(&self, bytes: &mut [u8]) -> bool {
        let mut rest = bytes;
        for piece in &self.pieces {
            let copied = piece.copy_to(rest);
            rest = &mut rest[copied..];
        }
        rest.is_empty()
    }

    /// Copies `bytes` in; false if there is no room for all of them.
    pub fn copy_from(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        for piece in &self.pieces {
            let some = rest.len().min(piece.len());
            if piece.write_slice(&rest[..some], 0).is_err() {
                return false;
            }
            rest = &rest[some..];
        }
        rest.is_empty()
    }
}

#[cfg(test)]
impl<'m> Scatter<'m> {
    /// One piece.
    pub fn new_for_test(memory: &'m Memory, address: u64, bytes: u32) -> Scatter<'m> {
        let descriptor = Descriptor::new(address, bytes, 0, 0);
        Scatter::collect(memory, std::iter::once(descriptor), Permissions::Read)
            .expect("a range within memory")
    }
}

/// Sends as much of `pieces` as the socket takes without waiting.
pub fn send(socket: BorrowedFd<'_>, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut vectors = [EMPTY; MAX_PIECES_PER_CALL];
    let message = message(&mut vectors, pieces);
    // SAFETY: `message` points at `vectors`, which lives until the end of this function, and each vector at a piece
    // of guest memory that is mapped for as long as the slice's lifetime. The kernel only reads there.
    let sent = unsafe {
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what the socket has, without waiting, into `pieces`. 0 is the end (if there was room).
pub fn receive(socket: BorrowedFd<'_>, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut vectors = [EMPTY; MAX_PIECES_PER_CALL];
    let mut message = message(&mut vectors, pieces);
    // SAFETY: as in `send`; the kernel writes to guest memory only, of which nobody here holds a reference.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// The message header for the first pieces, as many as fit into `vectors`.
fn message(
    vectors: &mut [libc::iovec; MAX_PIECES_PER_CALL],
    pieces: &[VolatileSlice<'_>],
) -> libc::msghdr {
    let count = pieces.len().min(MAX_PIECES_PER_CALL);
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        *vector =
            libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() };
    }
    // SAFETY: a msghdr of zeroes is valid: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = count as _;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use vm_memory::GuestAddress;

    fn memory() -> Memory {
        // Two regions that touch: what spans them is one range for the guest and two pieces here.
        Memory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    fn scatter<'m>(memory: &'m Memory, ranges: &[(u64, u32)]) -> Result<Scatter<'m>, BadChain> {
        let descriptors = ranges.iter().map(|(addr, len)| Descriptor::new(*addr, *len, 0, 0));
        Scatter::collect(memory, descriptors, Permissions::Read)
    }

    #[test]
    fn a_range_over_two_regions_is_two_pieces() {
        let memory = memory();
        let scatter = scatter(&memory, &[(0xff0, 0x20)]).unwrap();
        assert_eq!(scatter.pieces().len(), 2);
        assert_eq!(scatter.len(), 0x20);
    }

    #[test]
    fn a_range_outside_of_memory_is_refused_wherever_it_begins() {
        let memory = memory();
        for range in
            [(0x1ff0, 0x20), (0x2000, 1), (u64::MAX, 1), (u64::MAX - 4, u32::MAX), (0, u32::MAX)]
        {
            assert_eq!(scatter(&memory, &[range]).unwrap_err(), BadChain, "{range:x?}");
        }
    }

    #[test]
    fn pieces_are_limited_and_the_limit_is_allowed() {
        let memory = memory();
        assert!(scatter(&memory, &[(0, 1); MAX_SEGMENTS]).is_ok());
        assert_eq!(scatter(&memory, &[(0, 1); MAX_SEGMENTS + 1]).unwrap_err(), BadChain);
    }

    #[test]
    fn a_front_is_cut_within_a_piece_and_between_pieces() {
        let memory = memory();
        memory.write_slice(b"abcdefgh", GuestAddress(0)).unwrap();
        for cut in 0..=8 {
            let mut rest = scatter(&memory, &[(0, 3), (3, 0), (3, 3), (6, 2)]).unwrap();
            let front = rest.split_front(cut);
            let (mut head, mut tail) = (vec![0; cut], vec![0; 8 - cut]);
            assert!(front.copy_to(&mut head) && rest.copy_to(&mut tail));
            assert_eq!([head, tail].concat(), b"abcdefgh");
        }
        let mut short = scatter(&memory, &[(0, 3)]).unwrap();
        assert_eq!(short.split_front(9).len(), 3);
        assert_eq!(short.len(), 0);
    }

    #[test]
    fn bytes_move_between_guest_memory_and_a_socket() {
        let memory = memory();
        memory.write_slice(b"hello, host", GuestAddress(0xffa)).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let out = scatter(&memory, &[(0xffa, 7), (0x1001, 4)]).unwrap();
        assert_eq!(send(ours.as_fd(), out.pieces()).unwrap(), 11);
        let mut got = [0; 11];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello, host");

        theirs.write_all(b"hello, guest").unwrap();
        let into = scatter(&memory, &[(0x10, 5), (0xffe, 100)]).unwrap();
        assert_eq!(receive(ours.as_fd(), into.pieces()).unwrap(), 12);
        let mut got = [0; 7];
        memory.read_slice(&mut got, GuestAddress(0xffe)).unwrap();
        assert_eq!(&got, b", guest");
    }

    #[test]
    fn sending_to_a_closed_socket_is_an_error_and_no_signal() {
        let memory = memory();
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let out = scatter(&memory, &[(0, 1)]).unwrap();
        assert_eq!(send(ours.as_fd(), out.pieces()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
