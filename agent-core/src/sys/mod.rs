//! Every raw system call of the workspace, and every `unsafe`: safe functions that take owned or borrowed
//! descriptors. Kernel differences stay in here.

#![allow(unsafe_code)]

pub(crate) mod exec;
pub(crate) mod fd;
pub(crate) mod memory;
pub(crate) mod namespace;
pub(crate) mod signal;
pub(crate) mod socket;

/// Microseconds of `CLOCK_MONOTONIC`, which goes on across `execve` and is the same for all processes.
pub(crate) fn monotonic_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for one timespec, and the kernel writes nothing else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    debug_assert_eq!(failed, 0, "CLOCK_MONOTONIC is always there");
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}
