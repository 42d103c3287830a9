//! What the allocator keeps.

/// Gives memory back to the kernel that was freed and is kept for the next allocations: after work that took much of it
/// and is not to be had again soon.
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes a number, may be called by any thread at any time, and touches nothing that is in use.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Sets the allocator up for a process that now and then needs much memory for a moment: what is `large`, in bytes, comes
/// from the kernel and goes back to it when it is freed, and threads share a few heaps. By itself the GNU allocator keeps
/// what it once gave (up to 32 MiB a piece), in a heap for each of many threads. To be called before there are other
/// threads. What is needed again and again must not be large: each time the kernel would give it anew, and empty.
pub fn be_frugal(large: i32) {
    // mallopt(3): pieces of so many bytes are mapped one by one; free memory at the end of a heap beyond this is given back.
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, large), (libc::M_TRIM_THRESHOLD, large), (libc::M_ARENA_MAX, 4)]
    {
        // SAFETY: mallopt takes two numbers, and changes nothing of what was given already.
        unsafe { libc::mallopt(parameter, value) };
    }
}
