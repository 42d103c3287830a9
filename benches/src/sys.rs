//! Tracing a child of this thread, and what a child took: what `rustix` has no call for, and all `unsafe` of this crate.
//!
//! The kernel takes requests about a traced process from the one thread that started it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::ptr;
use std::time::Duration;

use rustix::process::Pid;

/// What a process took until it ended.
pub(crate) struct Usage {
    pub(crate) processor: Duration,
    /// The most that was resident.
    pub(crate) peak_bytes: u64,
}

/// Waits for a child that nobody has waited for.
pub(crate) fn wait(child: Child) -> io::Result<(ExitStatus, Usage)> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: all zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid places for what wait4(2) writes; the child is this process's, and is waited for once, since
    // `child` ends here and does not wait when it is dropped.
    while unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |time: libc::timeval| {
        let (seconds, micros) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
        Duration::from_secs(seconds.unwrap_or(0)) + Duration::from_micros(micros.unwrap_or(0))
    };
    let processor = time(usage.ru_utime) + time(usage.ru_stime);
    // getrusage(2): in kibibytes.
    let peak_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10;
    Ok((ExitStatus::from_raw(status), Usage { processor, peak_bytes }))
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the same clock for all processes.
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for one timespec, and the kernel writes nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Lets the thread that starts this command trace it: the process writes [`now_ns`] into `stamp` (8 bytes, native order)
/// as the last thing before `execve`, and stops when that is done, before the program's first instruction.
pub(crate) fn trace(command: &mut Command, stamp: OwnedFd) {
    // SAFETY: the closure runs in the child between fork and exec, and calls only ptrace, clock_gettime and write, which
    // are async-signal-safe; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<c_void>(), ptr::null_mut::<c_void>()) < 0 {
                return Err(io::Error::last_os_error());
            }
            rustix::io::write(&stamp, &now_ns().to_ne_bytes())?;
            Ok(())
        });
    }
}

/// Lets a stopped process execute one instruction, after which it stops again.
pub(crate) fn step(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, pid, 0, 0)
}

/// Lets a stopped process go on, still traced.
pub(crate) fn go_on(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_CONT, pid, 0, 0)
}

/// Lets a stopped process go on untraced.
pub(crate) fn detach(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, 0)
}

/// Makes a stopped process stop again before it executes the instruction at `address`, or no longer. The processor watches for
/// it: an instruction written over the one there would bring its page in, which is part of what is measured.
#[cfg(target_arch = "x86_64")]
pub(crate) fn break_at(pid: Pid, address: Option<usize>) -> io::Result<()> {
    const ADDRESS: usize = std::mem::offset_of!(libc::user, u_debugreg);
    const CONTROL: usize = ADDRESS + 7 * size_of::<u64>();
    // The lowest bit switches the first of the four on; zero elsewhere means execution.
    const EXECUTION_OF_FIRST: usize = 1;
    request(libc::PTRACE_POKEUSER, pid, CONTROL, 0)?;
    let Some(address) = address else { return Ok(()) };
    request(libc::PTRACE_POKEUSER, pid, ADDRESS, address)?;
    request(libc::PTRACE_POKEUSER, pid, CONTROL, EXECUTION_OF_FIRST)
}

/// Only written for x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn break_at(_pid: Pid, _address: Option<usize>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn request(request: libc::c_uint, pid: Pid, address: usize, data: usize) -> io::Result<()> {
    let (address, data) =
        (ptr::without_provenance_mut::<c_void>(address), ptr::without_provenance_mut::<c_void>(data));
    // SAFETY: none of the requests above reads or writes this process's memory: the address is an offset into the other
    // process's registers or ignored, the data is a value. A process that is not ours to trace is ESRCH.
    let result = unsafe { libc::ptrace(request, pid.as_raw_nonzero().get(), address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
