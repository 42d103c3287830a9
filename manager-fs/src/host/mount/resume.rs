//! How a worker takes over a FUSE connection that was negotiated long ago.
//!
//! The kernel sends INIT once. `fuser` insists on seeing it, so the saved INIT is replayed over a socket pair, the answer
//! is taken from there, and then the live descriptor is put over the pair's end. Requests that the previous worker had
//! read and not answered come again after `FUSE_NOTIFY_RESEND`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::host::fuse::Adapter;

/// Threads that read requests; what waits for the network waits elsewhere.
const EVENT_THREADS: usize = 2;
const INIT_BYTES_MAX: usize = 4096;
/// `FUSE_NOTIFY_RESEND` of linux/fuse.h, since 6.9.
const NOTIFY_RESEND: i32 = 7;
/// `FUSE_HAS_RESEND`, bit 39 of the flags: the upper word's bit 7.
const HAS_RESEND_IN_FLAGS2: u32 = 1 << (39 - 32);

/// The running session and its answer to INIT.
pub(super) struct Resumed {
    pub(super) session: BackgroundSession,
    pub(super) answer: Vec<u8>,
}

/// Serves `device` with `adapter`.
///
/// `pinned` is what the kernel was told when the connection was made. Today's answer may differ (a newer worker may wish
/// for more), but the kernel never hears it: the granted features are those of the first answer.
pub(super) fn serve(
    adapter: Adapter,
    device: BorrowedFd<'_>,
    init: &[u8],
    pinned: Option<&[u8]>,
) -> io::Result<Resumed> {
    let (near, far): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    send(&near, init, SendFlags::NOSIGNAL)?;
    let mut config = Config::default();
    config.n_threads = Some(EVENT_THREADS);
    let session = Session::from_fd(adapter, far, SessionACL::All, config)?;
    let mut answer = vec![0; INIT_BYTES_MAX];
    let (len, _) = recv(&near, &mut answer[..], RecvFlags::DONTWAIT)?;
    answer.truncate(len);
    if let Some(pinned) = pinned.filter(|pinned| **pinned != *answer) {
        tracing::info!(
            granted = pinned.len(),
            "the kernel was granted other features by an earlier worker; they stay"
        );
    }
    crate::sys::replace_descriptor(session.as_fd(), device)?;
    let session = session.spawn()?;
    if pinned.is_some() {
        resend(device)?;
    }
    Ok(Resumed { session, answer })
}

/// Makes the kernel queue again what was read and never answered.
fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    const HEADER_BYTES: u32 = 16;
    let mut header = [0; HEADER_BYTES as usize];
    header[..4].copy_from_slice(&HEADER_BYTES.to_ne_bytes());
    header[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    match rustix::io::write(device, &header) {
        Ok(_) => Ok(()),
        // An older kernel: what was in flight waits until its process is killed. Everything else goes on.
        Err(rustix::io::Errno::INVAL) => {
            tracing::warn!("this kernel cannot resend requests: reads that the last worker had begun will hang");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel that sent this INIT can resend requests.
pub(super) fn can_resend(init: &[u8]) -> bool {
    // fuse_in_header (40 bytes), then major, minor, max_readahead, flags, flags2.
    let flags2 = init.get(56..60).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    flags2.is_some_and(|flags2| flags2 & HAS_RESEND_IN_FLAGS2 != 0)
}
