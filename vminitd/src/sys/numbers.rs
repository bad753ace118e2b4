//! A page of counters in a file that outlives the process which counts, see mmap(2).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Counters in one page.
pub const COUNT: usize = BYTES / size_of::<u64>();

/// Bytes of the file: one page.
const BYTES: usize = 4096;

/// Counters that live in a file on a tmpfs: an addition is one instruction, and a process that
/// opens the file after this one died sees the last value.
#[derive(Debug)]
pub struct Numbers {
    page: NonNull<AtomicU64>,
}

// SAFETY: the page is shared memory that is only ever reached through atomics.
unsafe impl Send for Numbers {}
// SAFETY: as above.
unsafe impl Sync for Numbers {}

impl Numbers {
    /// Opens the counters at `path`, or makes them, all 0. The page is allocated at once, so that
    /// a full filesystem shows here and never as a SIGBUS later. posix_fallocate(3), mmap(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        Self::map(&file)
    }

    fn map(file: &File) -> io::Result<Self> {
        // SAFETY: takes integers only.
        let result = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, BYTES as libc::off_t) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: a new mapping at an address of the kernel's choice; the file is at least as
        // long, and nothing of ours ever shortens it.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { page })
    }

    /// The counter of this index.
    ///
    /// # Panics
    /// When there is none: indices are constants.
    pub fn get(&self, index: usize) -> &AtomicU64 {
        assert!(index < COUNT, "no counter {index}");
        // SAFETY: the mapping holds COUNT aligned u64s for as long as `self` lives, and they are
        // only reached as atomics.
        unsafe { self.page.add(index).as_ref() }
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrows `self`.
        unsafe { libc::munmap(self.page.as_ptr().cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn second_opening_sees_what_the_first_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        let first = Numbers::open(&path).unwrap();
        assert_eq!(first.get(COUNT - 1).load(Relaxed), 0);
        first.get(3).fetch_add(41, Relaxed);
        let second = Numbers::open(&path).unwrap();
        second.get(3).fetch_add(1, Relaxed);
        assert_eq!(first.get(3).load(Relaxed), 42);
        drop(first);
        assert_eq!(second.get(3).load(Relaxed), 42);
    }
}
