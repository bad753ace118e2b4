//! The memory of this process: the C library's heap.

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
