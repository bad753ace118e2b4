//! Memory that outlives the process which writes it: a memfd that somebody else holds too. See
//! memfd_create(2), mmap(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};

/// A mapping of a memfd whose size is sealed, so that no access can be a SIGBUS for lack of file.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is reached through atomics and through `&mut self` only.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// New memory, all 0; `bytes` is a multiple of 8. The pages are taken when they are touched.
    pub fn make(name: &CStr, bytes: usize) -> io::Result<Self> {
        let fd =
            memfd_create(name, MemFdCreateFlag::MFD_CLOEXEC | MemFdCreateFlag::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, libc::off_t::try_from(bytes).map_err(io::Error::other)?)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(fd.as_raw_fd(), FcntlArg::F_ADD_SEALS(seals))?;
        Self::open(fd, bytes)
    }

    /// Maps what [`Self::make`] made, perhaps in another process.
    pub fn open(fd: OwnedFd, bytes: usize) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(fd.as_raw_fd())?.st_size;
        let seals = fcntl(fd.as_raw_fd(), FcntlArg::F_GET_SEALS)?;
        let fixed = SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK);
        if usize::try_from(size) != Ok(bytes) || !fixed || !bytes.is_multiple_of(8) {
            return Err(io::Error::other(format!("memory of {size} bytes instead of {bytes}")));
        }
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is as long
        // and can never be shorter.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { fd, start, bytes })
    }

    /// The 64-bit word of this index.
    ///
    /// # Panics
    /// When it lies outside.
    pub fn word(&self, index: usize) -> u64 {
        self.atomic(index).load(Ordering::Acquire)
    }

    /// Sets a word: after all that was written before, and before all that is written later, also
    /// if this process is killed in between. (What a killed thread had stored is stored; the fences
    /// keep the compiler from changing the order.)
    ///
    /// # Panics
    /// When it lies outside.
    pub fn set_word(&mut self, index: usize, value: u64) {
        fence(Ordering::SeqCst);
        self.atomic(index).store(value, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When they lie outside.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        self.check(at, into.len());
        // SAFETY: inside of the mapping, as was checked; no other process maps it for writing
        // while this one lives, and this one writes through `&mut self`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.as_ptr().add(at),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When they lie outside.
    pub fn write(&mut self, at: usize, from: &[u8]) {
        self.check(at, from.len());
        // SAFETY: as in `read`, and `self` is borrowed exclusively.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr().add(at), from.len());
        }
    }

    fn atomic(&self, index: usize) -> &AtomicU64 {
        self.check(index.saturating_mul(8), 8);
        // SAFETY: inside of the mapping, aligned because the mapping is, and only plain copies
        // that borrow `self` exclusively write beside atomics.
        unsafe { self.start.cast::<AtomicU64>().add(index).as_ref() }
    }

    fn check(&self, at: usize, bytes: usize) {
        let inside = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "{bytes} bytes at {at} of {}", self.bytes);
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrows `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_wrote_the_next_reads_and_the_size_is_fixed() {
        let mut first = SharedMemory::make(c"test", 8192).unwrap();
        first.set_word(1023, 7);
        first.write(4093, b"across");
        let fd = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        assert!(nix::unistd::ftruncate(&fd, 100).is_err());
        let second = SharedMemory::open(fd, 8192).unwrap();
        let mut bytes = [0; 6];
        second.read(4093, &mut bytes);
        assert_eq!((second.word(1023), second.word(0), &bytes), (7, 0, b"across"));
    }

    #[test]
    fn memory_of_another_size_and_files_that_can_shrink_are_refused() {
        let memory = SharedMemory::make(c"test", 8192).unwrap();
        let fd = memory.as_fd().try_clone_to_owned().unwrap();
        assert!(SharedMemory::open(fd, 4096).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert!(SharedMemory::open(file.into(), 8192).is_err());
    }
}
