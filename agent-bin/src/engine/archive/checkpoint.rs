//! How far inside large files a backup came. Kept in the agent's state, so that the next run goes on there, whatever
//! ended this one, instead of reading and sending all of a file again.
//!
//! What is noted of a file are the ids of its pieces, from the first on, as soon as they are stored and an index file
//! names them. How long each is says the repository, so nothing that is read here can put a piece at a wrong place: a
//! piece that the repository does not have ends what is believed.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::super::facts::Facts;
use super::super::format::id::Id;
use super::super::format::index::{BlobKind, Index};
use super::super::format::packs::Packs;

/// Smaller files are read again: that takes a second.
const LARGE_BYTES: u64 = 64 << 20;
/// Of one file, which is some eight million pieces; a larger file goes on at its last noted one.
const RECORD_BYTES_MAX: u64 = 256 << 20;
/// The first line of a record.
const HEADER_BYTES_MAX: usize = 1 << 10;
/// Of all files.
const RECORDS_MAX: usize = 4096;
/// How many have a descriptor at once: more than there can be threads that read.
const OPEN_MAX: usize = 128;
/// Pieces that the repository had before are noted without waiting for an index file of this backup's.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// What nobody has gone on with for so long is of files that nobody backs up any more.
const STALE_AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How coarse the clock may be that stamps files.
const TICK: Duration = Duration::from_secs(2);
const ID_BYTES: usize = 32;
/// The form of a record that this program writes, and the only one that it goes on with.
const FORM: u32 = 1;

/// Those of one backup.
#[derive(Debug)]
pub(in super::super) struct Checkpoints {
    directory: PathBuf,
    /// Its id.
    repository: String,
    job: u64,
    /// Every file is to be read: only what this very job has read counts as read.
    own_only: bool,
    shelf: Mutex<Shelf>,
}

#[derive(Debug)]
struct Shelf {
    open: Vec<Arc<Checkpoint>>,
    /// Every record of this backup, and how many there are in all.
    records: Vec<PathBuf>,
    count: usize,
    /// Up to which of the index files everything is noted, and when.
    noted: (u64, Instant),
}

/// How far one file is.
#[derive(Debug)]
pub(super) struct Checkpoint(Mutex<Course>);

#[derive(Debug)]
struct Course {
    record: File,
    /// Pieces that are noted.
    noted: usize,
    /// Those behind them; none: not stored yet.
    waiting: VecDeque<Option<Id>>,
    /// Nothing more is to come.
    ended: bool,
    /// It cannot be written any more.
    lost: bool,
}

/// Where a file goes on.
pub(super) struct GoOn {
    pub(super) checkpoint: Arc<Checkpoint>,
    /// What the repository has of it, from its beginning on, and how many bytes that is.
    pub(super) pieces: Vec<Id>,
    pub(super) offset: u64,
}

/// The first line of a record: which state of the file it is about.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    form: u32,
    job: u64,
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Header {
    fn is_of(&self, facts: &Facts) -> bool {
        *self == Self::new(self.job, facts)
    }

    fn new(job: u64, facts: &Facts) -> Self {
        let Facts { identity: (device, inode), size, mtime, ctime, .. } = *facts;
        Self { form: FORM, job, device, inode, size, mtime, ctime }
    }
}

impl Checkpoints {
    /// Of a backup into this repository. Whatever fails here costs time at the next run, and nothing else.
    pub(in super::super) fn new(state: &Path, repository: String, job: u64, own_only: bool) -> Self {
        let directory = state.join("checkpoints");
        let count = sweep(&directory).unwrap_or(0);
        let shelf = Shelf { open: Vec::new(), records: Vec::new(), count, noted: (0, Instant::now()) };
        Self { directory, repository, job, own_only, shelf: Mutex::new(shelf) }
    }

    /// Where an open file goes on, which is at its beginning if nothing is known of it as it is; `None`: nothing is noted
    /// of this one.
    pub(super) fn begin(&self, path: &Path, facts: &Facts, index: &Index) -> Option<GoOn> {
        if facts.size < LARGE_BYTES || !is_settled(facts) {
            return None;
        }
        let found = self.open(path, facts, index);
        found.inspect_err(|error| tracing::info!("{}: has no checkpoints: {error}", path.display())).ok()
    }

    fn open(&self, path: &Path, facts: &Facts, index: &Index) -> io::Result<GoOn> {
        let mut shelf = lock(&self.shelf);
        let name = Id::of(&[self.repository.as_bytes(), b"\0", path.as_os_str().as_bytes()].concat());
        let place = self.directory.join(name.to_string());
        if !place.exists() {
            if shelf.count >= RECORDS_MAX {
                return Err(io::Error::other(format!("there are {RECORDS_MAX} of other files")));
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        }
        if shelf.open.len() >= OPEN_MAX {
            let ended = shelf.open.iter().position(|open| lock(&open.0).ended);
            shelf.open.swap_remove(ended.ok_or_else(|| io::Error::other("too many are open"))?);
        }
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        let mut record = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&place)?;
        // Another job may be at the same file.
        record.try_lock()?;
        shelf.count += usize::from(record.metadata()?.len() == 0);
        shelf.records.push(place);
        let (pieces, offset) = self.known(&mut record, facts, index)?;
        if offset > 0 {
            tracing::info!("{}: goes on at byte {offset} of {}", path.display(), facts.size);
        }
        let course = Course { record, noted: pieces.len(), waiting: VecDeque::new(), ended: false, lost: false };
        let checkpoint = Arc::new(Checkpoint(Mutex::new(course)));
        shelf.open.push(Arc::clone(&checkpoint));
        Ok(GoOn { checkpoint, pieces, offset })
    }

    /// What a record says that is of the file as it is, and that the repository has; the record ends there then.
    fn known(&self, record: &mut File, facts: &Facts, index: &Index) -> io::Result<(Vec<Id>, u64)> {
        let mut bytes = Vec::new();
        (&mut *record).take(HEADER_BYTES_MAX as u64 + RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
        let line = bytes.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n');
        let (header, ids) = line.map_or((&[][..], &[][..]), |end| (&bytes[..end], &bytes[end + 1..]));
        let is_of_it = |header: &Header| header.is_of(facts) && (!self.own_only || header.job == self.job);
        if !serde_json::from_slice(header).is_ok_and(|header| is_of_it(&header)) {
            record.set_len(0)?;
            record.rewind()?;
            let mut header = serde_json::to_vec(&Header::new(self.job, facts))?;
            header.push(b'\n');
            record.write_all(&header)?;
            return Ok((Vec::new(), 0));
        }
        let (mut pieces, mut offset) = (Vec::new(), 0u64);
        for id in ids.as_chunks::<ID_BYTES>().0 {
            let id = Id::from_bytes(*id);
            let length = index.length(BlobKind::Data, &id).filter(|length| *length > 0);
            let Some(end) = length.and_then(|length| offset.checked_add(length)).filter(|end| *end <= facts.size)
            else {
                break;
            };
            pieces.push(id);
            offset = end;
        }
        let end = (header.len() + 1 + pieces.len() * ID_BYTES) as u64;
        record.set_len(end)?;
        record.seek(SeekFrom::Start(end))?;
        // Nobody sweeps what is gone on with.
        record.set_modified(SystemTime::now())?;
        Ok((pieces, offset))
    }

    /// Notes what index files name since the last time, if that may be something.
    pub(super) fn note_if_due(&self, packs: &Packs<'_>) {
        let written = packs.index_files();
        let (noted, at) = lock(&self.shelf).noted;
        if written > noted || at.elapsed() >= NOTE_EVERY {
            self.note(packs);
        }
    }

    /// Notes all that index files name.
    pub(in super::super) fn note(&self, packs: &Packs<'_>) {
        let written = packs.index_files();
        let open = {
            let mut shelf = lock(&self.shelf);
            shelf.noted = (written, Instant::now());
            shelf.open.clone()
        };
        open.iter().for_each(|checkpoint| checkpoint.note(|id| packs.is_indexed(BlobKind::Data, id)));
        lock(&self.shelf).open.retain(|checkpoint| !lock(&checkpoint.0).is_over());
    }

    /// The snapshot is there: all of it is over.
    pub(in super::super) fn end(self) {
        for record in self.shelf.into_inner().unwrap_or_else(PoisonError::into_inner).records {
            if let Err(error) = fs::remove_file(&record) {
                tracing::info!("{}: {error}", record.display());
            }
        }
    }
}

impl Checkpoint {
    /// A piece was read, and is to be stored.
    pub(super) fn reserve(&self) {
        lock(&self.0).waiting.push_back(None);
    }

    /// The piece of this number of the file was stored.
    pub(super) fn stored(&self, number: usize, id: Id) {
        let mut course = lock(&self.0);
        let place = number.checked_sub(course.noted);
        if let Some(slot) = place.and_then(|place| course.waiting.get_mut(place)) {
            *slot = Some(id);
        }
    }

    /// Every piece was.
    pub(super) fn end(&self) {
        lock(&self.0).ended = true;
    }

    fn note(&self, is_indexed: impl Fn(&Id) -> bool) {
        let mut course = lock(&self.0);
        let ready: Vec<Id> = course.waiting.iter().map_while(|id| id.filter(|id| is_indexed(id))).collect();
        let bytes: Vec<u8> = ready.iter().flat_map(|id| *id.as_bytes()).collect();
        let end = (HEADER_BYTES_MAX + course.noted * ID_BYTES + bytes.len()) as u64;
        if course.lost || bytes.is_empty() || end > RECORD_BYTES_MAX {
            return;
        }
        let Course { record, .. } = &mut *course;
        if let Err(error) = record.write_all(&bytes).and_then(|()| record.sync_data()) {
            tracing::warn!("how far inside a file the backup is cannot be noted: {error}");
            course.lost = true;
            return;
        }
        course.noted += ready.len();
        course.waiting.drain(..ready.len());
    }
}

impl Course {
    fn is_over(&self) -> bool {
        self.lost || (self.ended && self.waiting.is_empty())
    }
}

/// One that was changed a moment ago may change once more without looking different.
fn is_settled(facts: &Facts) -> bool {
    let [seconds, nanoseconds] = [facts.ctime.0, facts.ctime.1].map(|part| u64::try_from(part).unwrap_or(0));
    let changed = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds));
    SystemTime::UNIX_EPOCH.elapsed().is_ok_and(|now| changed.saturating_add(TICK) < now)
}

/// Removes what is stale; how many are left.
fn sweep(directory: &Path) -> io::Result<usize> {
    let mut left = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > STALE_AFTER {
            fs::remove_file(entry.path())?;
        } else {
            left += 1;
        }
    }
    Ok(left)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
