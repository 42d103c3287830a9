//! A connection to a server of SFTP: a child, whose input and output are one socket of ours, so that every wait for it has
//! an end. It is killed when the connection is dropped.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::meter::one_line;
use super::packet::{self, Asked, Attributes, Named, Reply, VERSION};

/// What a server may take for an answer, however short. Before one of them it syncs what it was sent.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How fast what belongs to a request must come or go beyond that.
const BYTES_A_SECOND_MIN: u64 = 16 << 10;
/// How long `ssh` may take to say why it ended.
const WHY_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of what it says.
const SAID_BYTES_MAX: u64 = 4 << 10;
/// Bytes of one request to read or to write: what every server takes.
const STEP: usize = 32 << 10;
/// Requests under way at once: two MiB, for lines on which a round trip takes a while.
const UNDER_WAY: usize = 64;
/// Entries of a directory.
const NAMES_MAX: usize = 10_000_000;

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    ssh: Child,
    stream: UnixStream,
    said: UnixStream,
    until: Instant,
    number: u32,
    /// Whether the server can say that something is on its disk.
    can_sync: bool,
    /// Bytes that came and were not taken.
    ahead: VecDeque<u8>,
}

/// What a server refuses.
#[derive(Debug)]
pub(super) struct Refused {
    code: u32,
    message: String,
}

impl Refused {
    pub(super) fn is_missing(&self) -> bool {
        self.code == 2
    }

    pub(super) fn is_end(&self) -> bool {
        self.code == 1
    }

    /// Also of a rename to a name that something has.
    pub(super) fn is_plain_failure(&self) -> bool {
        self.code == 4
    }

    pub(super) fn into_error(self) -> io::Error {
        use io::ErrorKind::{NotFound, Other, PermissionDenied, UnexpectedEof, Unsupported};
        let said = one_line(&self.message);
        let (kind, text) = match self.code {
            1 => (UnexpectedEof, said),
            2 => (NotFound, said),
            3 => (PermissionDenied, format!("{said} (that user may not do it there)")),
            // It says no more of a full disk, a quota or a file in a directory's place.
            4 => (Other, format!("{said} (the server does not say why: is its disk full, or are there quotas?)")),
            6 | 7 => (io::ErrorKind::ConnectionReset, said),
            8 => (Unsupported, said),
            code => (Other, format!("{said} (status {code})")),
        };
        io::Error::new(kind, text)
    }
}

/// An operation that came to nothing: the server refuses it, or the connection is of no use any more.
#[derive(Debug)]
pub(super) enum Failed {
    Refused(Refused),
    Broken(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed::Broken(error)
    }
}

type Done<T> = Result<T, Failed>;

impl Line {
    /// To what a command speaks with.
    pub(super) fn over(mut command: Command, deadline: Duration) -> io::Result<Line> {
        let (stream, theirs) = UnixStream::pair()?;
        let (said, their_said) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let also = theirs.try_clone()?;
        command.stdin(theirs).stdout(also).stderr(Stdio::from(OwnedFd::from(their_said)));
        let ssh = {
            let _permit = agent_core::exec::child_permit();
            command.spawn()
        };
        // What is kept of it would keep its end open.
        drop(command);
        let ssh = ssh.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other("there is no ssh on this host: install openssh-client"),
            _ => error,
        })?;
        let (until, ahead) = (Instant::now() + deadline, VecDeque::new());
        let mut line = Line { ssh, stream, said, until, number: 0, can_sync: false, ahead };
        match line.greet() {
            Ok(()) => Ok(line),
            Err(error) => Err(line.why(error)),
        }
    }

    fn greet(&mut self) -> io::Result<()> {
        // Who ended may have said before why, which tells more than that nothing can be sent to it.
        let sent = self.send(Asked::hello());
        let answer = packet::next(self).map_err(|error| match sent {
            Err(unsent) if error.kind() != io::ErrorKind::InvalidData => unsent,
            _ => error,
        })?;
        let hello = packet::hello(&answer).map_err(packet::invalid)?;
        if hello.version != VERSION {
            let what = format!("it speaks version {} of SFTP, and not {VERSION}", hello.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.can_sync = hello.extensions.iter().any(|(name, _)| name == b"fsync@openssh.com");
        Ok(())
    }

    /// Why there is no connection, as `ssh` says it.
    fn why(self, error: io::Error) -> io::Error {
        let _ = self.said.set_read_timeout(Some(WHY_DEADLINE));
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let mut said = Vec::new();
        let _ = (&self.said).take(SAID_BYTES_MAX).read_to_end(&mut said);
        let said = one_line(&String::from_utf8_lossy(&said));
        let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
        let (kind, advice) = if has(&["Host key verification failed", "REMOTE HOST IDENTIFICATION"]) {
            let what = "its key is not the one in known-hosts-file of storage.toml: see whether it is that host, and put \
                        its key there";
            (io::ErrorKind::PermissionDenied, what)
        } else if has(&["Permission denied"]) {
            let what = "the key in identity-file of storage.toml lets nobody in there, has a passphrase, or others may \
                        read it";
            (io::ErrorKind::PermissionDenied, what)
        } else if has(&["subsystem request failed"]) {
            (io::ErrorKind::Other, "it has no SFTP: its sshd_config wants a line Subsystem sftp")
        } else if error.kind() == io::ErrorKind::InvalidData {
            return error;
        } else {
            // Away, busy, or with a name that is not known just now.
            (io::ErrorKind::ConnectionRefused, "")
        };
        match (said.is_empty(), advice) {
            (true, _) if error.kind() == io::ErrorKind::TimedOut => error,
            (true, _) => io::Error::new(io::ErrorKind::ConnectionReset, "ssh ended without a word"),
            (false, "") => io::Error::new(kind, said),
            (false, advice) => io::Error::new(kind, format!("{said} ({advice})")),
        }
    }

    /// Has it end, as a server does that is stopped.
    #[cfg(test)]
    pub(super) fn end(&mut self) {
        drop(self.ssh.kill());
        drop(self.ssh.wait());
    }

    /// From now on everything that belongs to a request of so many bytes must be done in its time.
    fn within(&mut self, bytes: u64) {
        self.until = Instant::now() + ANSWER_DEADLINE + Duration::from_secs(bytes / BYTES_A_SECOND_MIN);
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn next_number(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    fn send(&mut self, asked: Asked) -> io::Result<()> {
        let bytes = asked.into_bytes();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?))?;
            match timed(self.stream.write(rest)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<(u32, Reply)> {
        packet::reply(&packet::next(self)?).map_err(packet::invalid)
    }

    /// Sends one request, and waits for its answer.
    fn ask(&mut self, asked: impl FnOnce(u32) -> Asked) -> Done<Reply> {
        let number = self.next_number();
        self.send(asked(number))?;
        match self.answer()? {
            (of, reply) if of == number => settled(reply),
            _ => Err(strange().into()),
        }
    }

    /// Sends requests, several at once, and has `take` see each answer with the place of its request.
    fn ask_all(
        &mut self,
        count: usize,
        mut asked: impl FnMut(usize, u32) -> Asked,
        mut take: impl FnMut(usize, Done<Reply>) -> Done<()>,
    ) -> Done<()> {
        let (mut sent, mut places) = (0, HashMap::new());
        let mut refused = None;
        while sent < count || !places.is_empty() {
            while sent < count && places.len() < UNDER_WAY && refused.is_none() {
                let number = self.next_number();
                self.send(asked(sent, number))?;
                places.insert(number, sent);
                sent += 1;
            }
            let (of, reply) = self.answer()?;
            let place = places.remove(&of).ok_or_else(strange)?;
            match take(place, settled(reply)) {
                Err(Failed::Broken(error)) => return Err(error.into()),
                // What is under way is answered all the same.
                Err(Failed::Refused(why)) => {
                    refused.get_or_insert(why);
                    sent = count;
                }
                Ok(()) => {}
            }
        }
        refused.map_or(Ok(()), |why| Err(Failed::Refused(why)))
    }

    fn ok(&mut self, asked: impl FnOnce(u32) -> Asked) -> Done<()> {
        match self.ask(asked)? {
            Reply::Status { .. } => Ok(()),
            _ => Err(strange().into()),
        }
    }

    fn handle(&mut self, asked: impl FnOnce(u32) -> Asked) -> Done<Vec<u8>> {
        match self.ask(asked)? {
            Reply::Handle(handle) => Ok(handle),
            _ => Err(strange().into()),
        }
    }

    fn attributes(&mut self, asked: impl FnOnce(u32) -> Asked) -> Done<Attributes> {
        match self.ask(asked)? {
            Reply::Attributes(attributes) => Ok(attributes),
            _ => Err(strange().into()),
        }
    }

    /// Has something open, and closes it whatever comes of it.
    fn with<T>(&mut self, handle: Vec<u8>, act: impl FnOnce(&mut Self, &[u8]) -> Done<T>) -> Done<T> {
        let acted = act(self, &handle);
        if matches!(acted, Err(Failed::Broken(_))) {
            return acted;
        }
        let closed = self.ok(|number| Asked::close(number, &handle));
        acted.and_then(|acted| closed.map(|()| acted))
    }

    /// What is known of a file.
    pub(super) fn look(&mut self, path: &str) -> Done<Attributes> {
        self.within(0);
        self.attributes(|number| Asked::look(number, path))
    }

    /// All of a file, if it has no more bytes than that.
    pub(super) fn read(&mut self, path: &str, at_most: u64) -> Done<Vec<u8>> {
        self.within(0);
        let handle = self.handle(|number| Asked::open(number, path, packet::READ))?;
        self.with(handle, |line, handle| {
            let bytes = line.attributes(|number| Asked::look_at_open(number, handle))?.size.ok_or_else(strange)?;
            let bytes = usize::try_from(bytes).ok().filter(|_| bytes <= at_most).ok_or_else(|| {
                let what = format!("it has {bytes} bytes where {at_most} at most were to come");
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            line.part(handle, 0, bytes)
        })
    }

    /// A part of a file, of just this length.
    pub(super) fn read_part(&mut self, path: &str, offset: u64, length: usize) -> Done<Vec<u8>> {
        self.within(0);
        let handle = self.handle(|number| Asked::open(number, path, packet::READ))?;
        self.with(handle, |line, handle| line.part(handle, offset, length))
    }

    fn part(&mut self, handle: &[u8], offset: u64, length: usize) -> Done<Vec<u8>> {
        self.within(length as u64);
        let mut bytes = vec![0; length];
        // A server may give less than was asked for: then the rest is asked for.
        let mut missing = vec![(0, length)];
        while !missing.is_empty() {
            let steps: Vec<(usize, usize)> = missing
                .drain(..)
                .flat_map(|(from, to)| (from..to).step_by(STEP).map(move |at| (at, (at + STEP).min(to))))
                .collect();
            let asked = |place: usize, number| {
                let (from, to) = steps[place];
                Asked::read(number, handle, offset + from as u64, u32::try_from(to - from).unwrap_or(u32::MAX))
            };
            self.ask_all(steps.len(), asked, |place, reply| {
                let (from, to) = steps[place];
                match reply? {
                    Reply::Data(data) if !data.is_empty() && data.len() <= to - from => {
                        bytes[from..from + data.len()].copy_from_slice(&data);
                        if from + data.len() < to {
                            missing.push((from + data.len(), to));
                        }
                        Ok(())
                    }
                    _ => Err(strange().into()),
                }
            })?;
        }
        Ok(bytes)
    }

    /// Makes a file, which must not be there, with all of its bytes, on the disk if the server can say so.
    pub(super) fn make(&mut self, path: &str, bytes: &[u8]) -> Done<()> {
        self.within(bytes.len() as u64);
        let handle = self.handle(|number| Asked::open(number, path, packet::WRITE_NEW))?;
        self.with(handle, |line, handle| {
            let step = |place: usize| &bytes[place * STEP..((place + 1) * STEP).min(bytes.len())];
            let asked = |place, number| Asked::write(number, handle, (place * STEP) as u64, step(place));
            line.ask_all(bytes.len().div_ceil(STEP), asked, |_, reply| match reply? {
                Reply::Status { .. } => Ok(()),
                _ => Err(strange().into()),
            })?;
            if line.can_sync {
                line.within(0);
                line.ok(|number| Asked::sync(number, handle))?;
            }
            Ok(())
        })
    }

    /// Has a directory's names on the disk, where the server can do that.
    pub(super) fn sync_directory(&mut self, path: &str) -> Done<()> {
        if !self.can_sync {
            return Ok(());
        }
        self.within(0);
        let synced = self
            .handle(|number| Asked::open(number, path, packet::READ))
            .and_then(|handle| self.with(handle, |line, handle| line.ok(|number| Asked::sync(number, handle))));
        match synced {
            // Not every server opens a directory so.
            Err(Failed::Refused(_)) => Ok(()),
            synced => synced,
        }
    }

    /// Fails where something has the new name.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Done<()> {
        self.within(0);
        self.ok(|number| Asked::rename(number, from, to))
    }

    pub(super) fn remove(&mut self, path: &str) -> Done<()> {
        self.within(0);
        self.ok(|number| Asked::remove(number, path))
    }

    pub(super) fn make_directory(&mut self, path: &str) -> Done<()> {
        self.within(0);
        self.ok(|number| Asked::make_directory(number, path))
    }

    /// What is in each of some directories, in their order; in one that is not there is nothing.
    pub(super) fn list(&mut self, paths: &[String]) -> Done<Vec<Vec<Named>>> {
        let mut found: Vec<Vec<Named>> = vec![Vec::new(); paths.len()];
        for (group, into) in paths.chunks(UNDER_WAY).zip(found.chunks_mut(UNDER_WAY)) {
            self.within(0);
            let mut open: Vec<(usize, Vec<u8>)> = Vec::new();
            self.ask_all(
                group.len(),
                |place, number| Asked::open_directory(number, &group[place]),
                |place, reply| {
                    match reply {
                        Ok(Reply::Handle(handle)) => open.push((place, handle)),
                        Ok(_) => return Err(strange().into()),
                        Err(Failed::Refused(why)) if why.is_missing() => {}
                        Err(failed) => return Err(failed),
                    }
                    Ok(())
                },
            )?;
            let handles = open.clone();
            while !open.is_empty() {
                self.within(0);
                let mut ended = vec![false; open.len()];
                let asked = |place: usize, number| Asked::read_directory(number, &open[place].1);
                self.ask_all(open.len(), asked, |place, reply| {
                    match reply {
                        Ok(Reply::Names(names)) if into[open[place].0].len() + names.len() <= NAMES_MAX => {
                            into[open[place].0].extend(names);
                        }
                        Ok(_) => return Err(strange().into()),
                        Err(Failed::Refused(why)) if why.is_end() => ended[place] = true,
                        Err(failed) => return Err(failed),
                    }
                    Ok(())
                })?;
                let mut ended = ended.into_iter();
                open.retain(|_| !ended.next().unwrap_or(true));
            }
            self.within(0);
            self.ask_all(
                handles.len(),
                |place, number| Asked::close(number, &handles[place].1),
                |_, reply| reply.map(drop),
            )?;
        }
        Ok(found)
    }
}

/// What a time-out of a socket is called.
fn timed(done: io::Result<usize>) -> io::Result<usize> {
    done.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    })
}

fn settled(reply: Reply) -> Done<Reply> {
    match reply {
        Reply::Status { code, message } if code != 0 => Err(Failed::Refused(Refused { code, message })),
        reply => Ok(reply),
    }
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it answers something else than it was asked")
}

impl Read for Line {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            let mut buffer = [0; 64 << 10];
            let read = timed(self.stream.read(&mut buffer))?;
            self.ahead.extend(&buffer[..read]);
        }
        self.ahead.read(bytes)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Without its connection it ends by itself; nobody waits for that.
        drop(self.ssh.kill());
        drop(self.ssh.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_the_end_tells_more_than_that_nothing_can_be_sent() {
        let (stream, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"Welcome to this host\n").unwrap();
        drop(theirs);
        let (said, _) = UnixStream::pair().unwrap();
        let ssh = Command::new("true").spawn().unwrap();
        let until = Instant::now() + ANSWER_DEADLINE;
        let mut line = Line { ssh, stream, said, until, number: 0, can_sync: false, ahead: VecDeque::new() };
        let error = line.greet().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}
