//! The few calls of kernel and C library for which `rustix` has no safe function: all `unsafe` of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::UnshareFlags;

/// Takes over a descriptor that the parent process left open for this one.
///
/// # Errors
/// `EBADF` if nothing is open under this number.
pub(crate) fn adopt_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the number is only borrowed for one fcntl, which reports EBADF for a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open (checked above). It was inherited across execve under a number that the parent
    // wrote into this process's environment and that is read once, so no other owner exists in this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes the number of `target` refer to what `with` refers to; the old description behind `target` is closed.
pub(crate) fn replace_descriptor(target: BorrowedFd<'_>, with: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `target` is open and stays open: dup3 exchanges what is behind the number in one step, and the owner of
    // `target` remains its only owner. The temporary owner is forgotten, so the number is not closed here.
    let mut number = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    rustix::io::dup3(with, &mut number, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Enters a new user namespace and a new mount namespace. The process must have one thread (the kernel says EINVAL
/// otherwise).
pub(crate) fn unshare_user_and_mounts() -> io::Result<()> {
    // SAFETY: unsharing descriptors (`FILES`) is what could surprise other threads; it is not asked for.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)? };
    Ok(())
}

/// Turns fs-verity on for a file that is open read-only and has no writer: from then on the kernel checks every page
/// against a hash tree. `Unsupported` where the file system cannot.
pub(crate) fn enable_verity(file: BorrowedFd<'_>) -> io::Result<()> {
    // The layout of `struct fsverity_enable_arg` (linux/fsverity.h): version, hash_algorithm, block_size, salt_size,
    // salt_ptr, sig_size, reserved, sig_ptr, reserved[11].
    #[repr(C)]
    struct EnableArg {
        version: u32,
        hash_algorithm: u32,
        block_size: u32,
        salt_size: u32,
        salt_ptr: u64,
        sig_size: u32,
        reserved1: u32,
        sig_ptr: u64,
        reserved2: [u64; 11],
    }
    const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
    const SHA256: u32 = 1;
    let arg = EnableArg {
        version: 1,
        hash_algorithm: SHA256,
        block_size: 4096,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: the ioctl reads 128 bytes, exactly the size of `arg`, which lives until the call returns; salt and
    // signature are empty, so no other pointer is followed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const arg) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
