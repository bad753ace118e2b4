//! The memory of this process: the C library's heap, and the program's own pages.

use std::io;

/// One arena for all threads, instead of one for each that allocates. glibc keeps what an arena has
/// freed, so each holds memory of its own for ever; a process that runs one thing at a time has no
/// use for several. mallopt(3).
pub fn keep_one_arena() {
    // SAFETY: sets a number in the allocator, under its own lock. It fails for other numbers only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Unmaps the pages of the program's code and constants; those that are needed again come back from
/// the file, one by one. For a process that has done most of what it will ever do. madvise(2).
pub fn forget_code() -> io::Result<()> {
    unsafe extern "C" {
        /// The linker's; see end(3). Only their addresses mean something.
        static __executable_start: u8;
        static etext: u8;
    }
    let start = (&raw const __executable_start).addr() & !(PAGE - 1);
    let end = (&raw const etext).addr() & !(PAGE - 1);
    let length = end.saturating_sub(start);
    // SAFETY: from the first page of the program to the end of its code there are only private
    // mappings of the executable that cannot be written, and in a program at a fixed address nobody
    // has: what is dropped is read again from the file.
    let result = unsafe {
        let start = std::ptr::with_exposed_provenance_mut(start);
        libc::madvise(start, length, libc::MADV_DONTNEED)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The smallest there is; a larger one makes the range begin within a page, and the call fail.
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_forgotten_runs_on() {
        forget_code().unwrap();
        assert_eq!("1 2 3".split(' ').filter_map(|word| word.parse::<u8>().ok()).sum::<u8>(), 6);
    }
}
