//! Signals: a descriptor to read them from (the stub), a wake-up for SIGTERM (the agent), and the clean slate that a
//! program expects when it begins.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// A descriptor that becomes readable when one of its signals is pending; they are blocked in this thread, and in those
/// that it starts.
#[derive(Debug)]
pub struct SignalFd(File);

impl SignalFd {
    /// Blocks the signals and opens the descriptor. Called before any other thread is started, or a signal would go
    /// to that one.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set, and sigaddset and the two calls after it read or change only that
        // set; unknown numbers give an error that changes nothing.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// The next pending signal's number.
    ///
    /// # Errors
    /// Never in practice; a short read is reported as one.
    pub fn read(&mut self) -> io::Result<Option<i32>> {
        let mut bytes = [0; mem::size_of::<libc::signalfd_siginfo>()];
        match self.0.read(&mut bytes) {
            // `ssi_signo` is the first field: a u32.
            Ok(n) if n >= 4 => Ok(Some(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

static TERMINATION: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_termination(_signal: i32) {
    let fd = TERMINATION.load(Ordering::Relaxed);
    let one = 1u64.to_ne_bytes();
    // SAFETY: write(2) is async-signal-safe, and the eight bytes live on this stack. errno is put back, since the
    // interrupted code may be about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}

/// From now on SIGTERM adds to this event descriptor instead of ending the process. The descriptor is leaked, since the
/// handler may run at any time.
///
/// # Errors
/// Never in practice.
pub fn wake_on_terminate(event: OwnedFd) -> io::Result<()> {
    TERMINATION.store(event.as_raw_fd(), Ordering::Relaxed);
    mem::forget(event);
    // SAFETY: all fields of a zeroed sigaction are valid; the handler is async-signal-safe (see there) and lives as
    // long as the program.
    let failed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_termination as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGTERM, &raw const action, ptr::null_mut())
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Mask and dispositions as they were before [`reset`].
pub(crate) struct SavedSignals {
    mask: libc::sigset_t,
    actions: Vec<(i32, libc::sigaction)>,
}

/// Gives every signal its default disposition and unblocks all: `execve` keeps ignored signals ignored and blocked ones
/// blocked, and the next program does not expect that.
pub(crate) fn reset() -> SavedSignals {
    let mut actions = Vec::new();
    // SAFETY: zeroed sigset_t and sigaction are valid places to write to; each call reads or writes only those. The
    // numbers run over all signals; SIGKILL, SIGSTOP and those that libc keeps for itself give EINVAL and stay.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        for signal in 1..=libc::SIGRTMAX() {
            let mut old: libc::sigaction = mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &raw mut old) != 0 || old.sa_sigaction == libc::SIG_DFL {
                continue;
            }
            let mut default: libc::sigaction = mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            if libc::sigaction(signal, &raw const default, ptr::null_mut()) == 0 {
                actions.push((signal, old));
            }
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, &raw mut mask);
        SavedSignals { mask, actions }
    }
}

impl SavedSignals {
    /// Undoes [`reset`] after an `execve` that failed.
    pub(crate) fn restore(self) {
        // SAFETY: mask and actions are what the kernel gave out for this process, and handlers live as long as it.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut());
            for (signal, action) in &self.actions {
                libc::sigaction(*signal, action, ptr::null_mut());
            }
        }
    }
}

/// The name of a signal as people know it.
pub(crate) fn name(signal: i32) -> String {
    let known = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_can_be_undone() {
        // In a process of its own thread: the mask is the thread's, and SIGUSR2 is nobody else's here.
        std::thread::spawn(|| {
            let mut fd = SignalFd::new(&[libc::SIGUSR2]).unwrap();
            let blocked = || {
                let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
                // SAFETY: asks for the mask alone.
                unsafe {
                    libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
                    libc::sigismember(mask.as_ptr(), libc::SIGUSR2) == 1
                }
            };
            assert!(blocked());
            let saved = reset();
            assert!(!blocked());
            saved.restore();
            assert!(blocked());
            // SAFETY: sends a blocked signal to this thread.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(fd.read().unwrap(), Some(libc::SIGUSR2));
            assert_eq!(fd.read().unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
