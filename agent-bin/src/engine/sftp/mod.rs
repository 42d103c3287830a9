//! A repository on a host that is reached by SSH, laid out as restic lays it out, by way of the system's `ssh`.
//!
//! A file is written under another name first, brought to the disk, and renamed, which fails where something has the name:
//! so a file is there whole or not at all, and nothing that is there is replaced unless it is damaged.

mod line;
mod packet;
mod way;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::again::{Again, Tried};
use super::format::files::{FileFault, FileKind, Store};
use super::format::id::Id;
use super::remote::ANSWER_BYTES_MAX;
use crate::wire::client::may_pass;
use line::{Failed, Line};
pub(super) use way::Way;

/// Connections at once: restic's number of them. What more is wanted waits.
const LINES_MAX: usize = 5;
/// How long somebody waits for one. Every request has an end before.
const TURN_WAIT_MAX: Duration = Duration::from_secs(300);
/// How long a connection without a request is kept.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// What has been written to for so long was left behind by whoever was killed.
const DRAFT_LEFT_BEHIND: Duration = Duration::from_secs(24 * 60 * 60);

/// A repository on a host that is reached by SSH.
pub(super) struct Sftp {
    /// How people call it.
    place: PathBuf,
    /// Its directory there.
    root: String,
    dial: Box<dyn Fn() -> io::Result<Line> + Send + Sync>,
    again: Again,
    lines: Mutex<Lines>,
    fewer: Condvar,
    /// Directories that were made, or seen.
    made: Mutex<HashSet<String>>,
}

#[derive(Default)]
struct Lines {
    kept: Vec<(Line, Instant)>,
    under_way: usize,
}

impl fmt::Debug for Sftp {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Sftp({})", self.place.display())
    }
}

impl Sftp {
    /// Nothing is dialled yet.
    pub(super) fn new(place: PathBuf, root: String, way: Way, again: Again) -> Self {
        let dial = Box::new(move || way.dial());
        let (lines, fewer, made) = (Mutex::default(), Condvar::new(), Mutex::default());
        Self { place, root, dial, again, lines, fewer, made }
    }

    fn directory(&self, kind: FileKind, id: &Id) -> String {
        match kind {
            FileKind::Config => self.root.clone(),
            // As restic: two digits of it are a directory.
            FileKind::Pack => format!("{}/data/{:.2}", self.root, id.to_string()),
            _ => format!("{}/{}", self.root, kind.name()),
        }
    }

    fn at(&self, kind: FileKind, id: &Id) -> String {
        match kind {
            FileKind::Config => format!("{}/config", self.root),
            _ => format!("{}/{id}", self.directory(kind, id)),
        }
    }

    /// Asks again while the server is away.
    fn ask<T>(&self, mut act: impl FnMut(&mut Line) -> Result<T, Failed>) -> io::Result<T> {
        self.again.ask(|| self.try_once(&mut act))
    }

    /// By a connection that was kept, if there is one; that it has ended meanwhile does not count.
    fn try_once<T>(&self, act: &mut impl FnMut(&mut Line) -> Result<T, Failed>) -> Result<T, Tried> {
        let _turn = self.turn().map_err(Tried::of)?;
        let kept = lock(&self.lines).kept.pop().map(|(line, _)| line);
        if let Some(mut line) = kept {
            match act(&mut line) {
                Err(Failed::Broken(error)) if may_pass(error.kind()) => {}
                done => return self.settle(line, done),
            }
            lock(&self.lines).kept.clear();
        }
        let mut line = (self.dial)().map_err(Tried::of)?;
        let done = act(&mut line);
        self.settle(line, done)
    }

    /// Keeps the connection for the next request, if nothing speaks against it.
    fn settle<T>(&self, line: Line, done: Result<T, Failed>) -> Result<T, Tried> {
        // What else is refused may have left something open.
        let is_good = match &done {
            Ok(_) => true,
            Err(Failed::Refused(why)) => why.is_missing() || why.is_end() || why.is_plain_failure(),
            Err(Failed::Broken(_)) => false,
        };
        if is_good {
            lock(&self.lines).kept.push((line, Instant::now()));
        }
        done.map_err(|failed| match failed {
            Failed::Refused(why) => match why.into_error() {
                error if error.kind() == io::ErrorKind::ConnectionReset => Tried::Passing(error),
                error => Tried::Final(error),
            },
            Failed::Broken(error) => Tried::of(error),
        })
    }

    fn turn(&self) -> io::Result<Turn<'_>> {
        let until = Instant::now() + TURN_WAIT_MAX;
        let mut lines = lock(&self.lines);
        while lines.under_way >= LINES_MAX {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            lines = self.fewer.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        lines.under_way += 1;
        lines.kept.retain(|(_, since)| since.elapsed() < KEPT_FOR);
        Ok(Turn(self))
    }

    /// Makes a directory and those above it, unless it is known.
    fn make_directories(&self, line: &mut Line, path: &str) -> Result<(), Failed> {
        if lock(&self.made).contains(path) {
            return Ok(());
        }
        let begins = path.match_indices('/').map(|(at, _)| &path[..at]).filter(|above| !above.is_empty());
        for one in begins.chain([path]) {
            match line.make_directory(one) {
                // It is there, or something else is, which is said by what needs it.
                Ok(()) | Err(Failed::Refused(_)) => {}
                Err(broken) => return Err(broken),
            }
        }
        line.look(path)?;
        lock(&self.made).insert(path.to_owned());
        Ok(())
    }

    fn put(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> io::Result<()> {
        let (path, directory) = (self.at(kind, id), self.directory(kind, id));
        let draft = format!("{path}-tmp-{}", drawn()?);
        let put = self.ask(|line| {
            self.make_directories(line, &directory)?;
            let put = self.put_once(line, kind, (&draft, &path), bytes);
            if matches!(put, Err(Failed::Refused(_))) {
                // Somebody may have removed the directory.
                lock(&self.made).remove(&directory);
                forget(line, &draft)?;
            }
            let put = put?;
            line.sync_directory(&directory)?;
            Ok(put)
        });
        if put? { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    }

    /// Whether it is there now; otherwise something else has its name.
    fn put_once(
        &self,
        line: &mut Line,
        kind: FileKind,
        (draft, path): (&str, &str),
        bytes: &[u8],
    ) -> Result<bool, Failed> {
        // Of an earlier attempt, which was cut.
        forget(line, draft)?;
        line.make(draft, bytes)?;
        let Err(failed) = line.rename(draft, path) else { return Ok(true) };
        let Failed::Refused(why) = failed else { return Err(failed) };
        let there = match line.look(path) {
            Ok(there) => there.size,
            Err(Failed::Refused(_)) => return Err(Failed::Refused(why)),
            Err(broken) => return Err(broken),
        };
        let is_as_long = there == Some(bytes.len() as u64);
        if kind == FileKind::Config {
            forget(line, draft)?;
            // Its own, if an attempt before was not answered.
            return Ok(is_as_long && line.read(path, ANSWER_BYTES_MAX)? == bytes);
        }
        // The name is that of the content: one that is as long is it; what has another length is damaged, and what has the
        // right hash takes its place.
        if is_as_long {
            line.remove(draft)?;
        } else {
            line.remove(path)?;
            line.rename(draft, path)?;
        }
        Ok(true)
    }

    fn list_kind(&self, kind: FileKind) -> io::Result<Vec<(Id, u64)>> {
        let top = format!("{}/{}", self.root, kind.name());
        let of_packs = |name: &str| name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.ask(|line| {
            let mut listed = line.list(std::slice::from_ref(&top))?;
            let mut directories = vec![top.clone()];
            if kind == FileKind::Pack {
                let names = listed.iter().flatten().filter_map(|entry| std::str::from_utf8(&entry.name).ok());
                directories = names.filter(|name| of_packs(name)).map(|name| format!("{top}/{name}")).collect();
                directories.sort_unstable();
                listed = line.list(&directories)?;
            }
            let mut found = Vec::new();
            for (directory, entries) in directories.iter().zip(listed) {
                for entry in entries {
                    // Strangers have other names.
                    let Ok(name) = std::str::from_utf8(&entry.name) else { continue };
                    let path = format!("{directory}/{name}");
                    let Some(id) = Id::parse(name) else {
                        if is_left_behind(name, entry.attributes.mtime) {
                            drop(line.remove(&path));
                        }
                        continue;
                    };
                    let size = match entry.attributes.size {
                        Some(size) => Some(size),
                        None => line.look(&path)?.size,
                    };
                    found.extend(size.map(|size| (id, size)));
                }
            }
            Ok(found)
        })
    }

    fn fault(&self, kind: FileKind, id: &Id, source: io::Error) -> FileFault {
        FileFault { path: self.path(kind, id), source }
    }
}

/// A connection that is used, or being made.
struct Turn<'a>(&'a Sftp);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.lines).under_way -= 1;
        self.0.fewer.notify_one();
    }
}

/// Removes what may not be there.
fn forget(line: &mut Line, path: &str) -> Result<(), Failed> {
    match line.remove(path) {
        Ok(()) | Err(Failed::Refused(_)) => Ok(()),
        broken => broken,
    }
}

/// Whether it is a draft that nobody writes to any more.
fn is_left_behind(name: &str, mtime: Option<u32>) -> bool {
    let is_draft = name.split_once("-tmp-").is_some_and(|(id, _)| Id::parse(id).is_some());
    let written = mtime.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()));
    is_draft && written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > DRAFT_LEFT_BEHIND)
}

fn drawn() -> io::Result<String> {
    let mut bits = [0; 8];
    rustix::rand::getrandom(&mut bits[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_le_bytes(bits)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for Sftp {
    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        let at = self.at(kind, id);
        self.place.join(at.strip_prefix(&self.root).unwrap_or(&at).trim_start_matches('/'))
    }

    fn make(&self) -> Result<(), FileFault> {
        // restic warns of every one that is missing.
        let directories = FileKind::WITH_ID.map(|kind| format!("{}/{}", self.root, kind.name()));
        let made = self.ask(|line| directories.iter().try_for_each(|path| self.make_directories(line, path)));
        made.map_err(|source| FileFault { path: self.place.clone(), source })
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault> {
        self.list_kind(kind).map_err(|source| FileFault { path: self.place.join(kind.name()), source })
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault> {
        let path = self.at(kind, id);
        self.ask(|line| line.read(&path, ANSWER_BYTES_MAX)).map_err(|error| self.fault(kind, id, error))
    }

    fn read_part(&self, kind: FileKind, id: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault> {
        let path = self.at(kind, id);
        self.ask(|line| line.read_part(&path, offset, length)).map_err(|error| self.fault(kind, id, error))
    }

    fn bytes(&self, kind: FileKind, id: &Id) -> Result<u64, FileFault> {
        let path = self.at(kind, id);
        let size = self.ask(|line| line.look(&path)).and_then(|found| {
            let none = || io::Error::new(io::ErrorKind::InvalidData, "the server does not say how long it is");
            found.size.ok_or_else(none)
        });
        size.map_err(|error| self.fault(kind, id, error))
    }

    fn write(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> Result<(), FileFault> {
        self.put(kind, id, bytes).map_err(|error| self.fault(kind, id, error))
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault> {
        let path = self.at(kind, id);
        match self.ask(|line| line.remove(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| self.fault(kind, id, error)),
        }
    }

    fn is_there(&self, kind: FileKind, id: &Id) -> bool {
        let path = self.at(kind, id);
        !self.ask(|line| line.look(&path)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    fn written_at(&self, _: FileKind, _: &Id) -> Option<SystemTime> {
        None
    }
}

#[cfg(test)]
mod tests;
