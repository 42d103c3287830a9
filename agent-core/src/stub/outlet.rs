//! Standard error of a process that must never wait for whoever reads it: a pipe that nobody empties would otherwise
//! stop the clock, the return and SIGTERM.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

/// What is kept for a reader that is slow; beyond it the newest words are dropped and counted.
const PENDING_MAX: usize = 64 << 10;
/// A pipe that can take anything at all takes this much in one piece (`PIPE_BUF`).
const PIPE_BUF: usize = 4096;

/// Standard error, written without ever waiting. Copies share what is pending.
#[derive(Debug, Clone)]
pub struct Outlet(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    way: Way,
    pending: VecDeque<u8>,
    lost: usize,
}

/// How to write without waiting depends on what standard error is.
#[derive(Debug)]
enum Way {
    /// A pipe or a terminal, opened anew: the flag "do not wait" is then ours alone, and not of everybody who shares it.
    Own(File),
    /// A socket: each send says so.
    Socket(OwnedFd),
    /// A pipe that cannot be opened anew.
    Polled(File),
    /// A file: it does not wait for a reader.
    File(File),
    /// There is none.
    Nowhere,
}

impl Outlet {
    /// The process's standard error.
    pub fn stderr() -> Self {
        match io::stderr().as_fd().try_clone_to_owned() {
            Ok(fd) => Self::to(fd),
            Err(_) => Self::with(Way::Nowhere),
        }
    }

    /// Any descriptor that can be written to.
    pub fn to(fd: OwnedFd) -> Self {
        let kind = rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        Self::with(match kind {
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
                match rustix::fs::open(path, flags, Mode::empty()) {
                    Ok(own) => Way::Own(File::from(own)),
                    Err(_) => Way::Polled(File::from(fd)),
                }
            }
            Ok(FileType::Socket) => Way::Socket(fd),
            Ok(_) => Way::File(File::from(fd)),
            Err(_) => Way::Nowhere,
        })
    }

    fn with(way: Way) -> Self {
        Self(Arc::new(Mutex::new(Inner { way, pending: VecDeque::new(), lost: 0 })))
    }

    /// Writes one line, now or when somebody reads again.
    pub fn line(&self, text: &str) {
        self.pass(format!("{text}\n").as_bytes());
    }

    /// Writes bytes as they are, now or when somebody reads again. What is too much is dropped, and said.
    pub fn pass(&self, bytes: &[u8]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.flush();
        if inner.lost > 0 && inner.pending.is_empty() {
            let text = format!("({} bytes were dropped here: nobody read them)\n", inner.lost);
            inner.pending.extend(text.as_bytes());
            inner.lost = 0;
        }
        if inner.lost > 0 || inner.pending.len() + bytes.len() > PENDING_MAX {
            inner.lost += bytes.len();
        } else {
            inner.pending.extend(bytes);
        }
        inner.flush();
    }
}

impl Inner {
    /// Writes what can be written at once.
    fn flush(&mut self) {
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            match self.way.write(bytes) {
                Ok(0) => return,
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Whoever read it has gone for good.
                Err(_) => {
                    self.pending.clear();
                    self.way = Way::Nowhere;
                }
            }
        }
    }
}

impl Way {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Way::Own(file) | Way::File(file) => file.write(bytes),
            Way::Socket(fd) => Ok(rustix::net::send(&*fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?),
            Way::Polled(file) => {
                let mut fds = [PollFd::new(&*file, PollFlags::OUT)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                rustix::event::poll(&mut fds, Some(&now))?;
                if !fds[0].revents().contains(PollFlags::OUT) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                file.write(&bytes[..bytes.len().min(PIPE_BUF)])
            }
            Way::Nowhere => Ok(bytes.len()),
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pass(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// Ten times what a pipe and the pending words hold: nothing waits, and the reader is told what it missed.
    fn check(outlet: &Outlet, mut read: impl Read + AsFd) {
        let (done, waits) = std::sync::mpsc::channel();
        let writer = outlet.clone();
        std::thread::spawn(move || {
            (0..20_000).for_each(|n| writer.line(&format!("line {n} ............................................")));
            done.send(()).unwrap();
        });
        waits.recv_timeout(std::time::Duration::from_secs(20)).expect("the outlet waits for its reader");
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let mut text = Vec::new();
        // Each look makes room, and each word after it writes on.
        for _ in 0..100 {
            let _ = read.read_to_end(&mut text);
            outlet.line("");
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("line 0 ") && text.contains("bytes were dropped here"), "{} bytes", text.len());
    }

    #[test]
    fn nobody_who_does_not_read_holds_the_writer_up() {
        let (read, write) = io::pipe().unwrap();
        check(&Outlet::to(write.into()), read);
        let (read, write) = UnixStream::pair().unwrap();
        check(&Outlet::to(write.into()), read);
        let (read, write) = io::pipe().unwrap();
        check(&Outlet::with(Way::Polled(File::from(OwnedFd::from(write)))), read);
    }

    #[test]
    fn a_file_is_written_behind_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"before\n").unwrap();
        Outlet::to(file.into()).line("after");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "before\nafter\n");
    }

    /// Into a pipe that takes nothing: what is pending, and how much was lost.
    fn kept(pieces: &[usize]) -> (usize, usize) {
        let (_read, write) = io::pipe().unwrap();
        let outlet = Outlet::to(write.into());
        let fill = |inner: &mut Inner| while inner.way.write(b"x").is_ok() {};
        fill(&mut outlet.0.lock().unwrap());
        pieces.iter().for_each(|bytes| outlet.pass(&vec![b'y'; *bytes]));
        let inner = outlet.0.lock().unwrap();
        (inner.pending.len(), inner.lost)
    }

    #[test]
    fn what_is_pending_has_a_bound_and_what_comes_behind_a_gap_waits_for_its_notice() {
        assert_eq!(kept(&[300, 300]), (600, 0));
        assert_eq!(kept(&[PENDING_MAX]), (PENDING_MAX, 0));
        assert_eq!(kept(&[PENDING_MAX + 1]), (0, PENDING_MAX + 1));
        assert_eq!(kept(&[PENDING_MAX - 1, 2, 1]), (PENDING_MAX - 1, 3));
    }

    #[test]
    fn a_reader_that_has_gone_for_good_is_written_to_no_more() {
        let (read, write) = io::pipe().unwrap();
        let mut outlet = Outlet::to(write.into());
        drop(read);
        assert_eq!(outlet.write(b"words").unwrap(), 5);
        let inner = outlet.0.lock().unwrap();
        assert!(matches!(inner.way, Way::Nowhere) && inner.pending.is_empty());
    }
}
