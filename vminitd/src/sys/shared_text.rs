//! Text that a process and its later forks write together, in shared anonymous memory, see
//! mmap(2).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// Bytes of the text.
pub const CAPACITY: usize = 8 * 1024 - size_of::<AtomicUsize>();

/// Append-only, until it is full. Never unmapped: it lives as long as the process.
#[derive(Debug)]
pub struct SharedText(NonNull<Page>);

#[derive(Debug)]
#[repr(C)]
struct Page {
    used: AtomicUsize,
    bytes: [AtomicU8; CAPACITY],
}

// SAFETY: the page is never unmapped and only ever reached through atomics.
unsafe impl Send for SharedText {}
// SAFETY: as above.
unsafe impl Sync for SharedText {}

impl SharedText {
    /// An empty one.
    pub fn new() -> io::Result<SharedText> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(SharedText).ok_or_else(io::Error::last_os_error)
    }

    /// Appends a line; what does not fit is lost.
    pub fn append(&self, line: &str) {
        let page = self.page();
        let start = page.used.fetch_add(line.len() + 1, Ordering::Relaxed);
        for (place, byte) in page.bytes.iter().skip(start).zip(line.bytes().chain([b'\n'])) {
            place.store(byte, Ordering::Relaxed);
        }
    }

    /// All lines so far.
    pub fn read(&self) -> String {
        let page = self.page();
        let used = page.used.load(Ordering::Relaxed).min(CAPACITY);
        let bytes: Vec<u8> =
            page.bytes[..used].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped in `new` with this size, zeroed by the kernel (valid for the atomics),
        // page-aligned, and never unmapped.
        unsafe { self.0.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_add_up_until_it_is_full() {
        let text = SharedText::new().unwrap();
        text.append("one");
        text.append("two");
        assert_eq!(text.read(), "one\ntwo\n");
        text.append(&"x".repeat(CAPACITY));
        text.append("lost");
        assert_eq!(text.read().len(), CAPACITY);
    }
}
