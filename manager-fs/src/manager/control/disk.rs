//! A `redb` database that outlives failures of its disk, and the threads that wait for it.
//!
//! Nothing here may be called on an async thread but [`Readers::run`]: opening, reading and committing wait for the
//! disk, and the locks below are held meanwhile.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    WriteTransaction,
};
use tokio::sync::oneshot;

use super::contract::{ControlError, Revision};
use crate::sync::{lock, read, write};

/// Page cache of a database, bytes. The whole state of some thousand hosts is a few MiB.
const CACHE_BYTES: usize = 16 << 20;
/// A database file larger than this is compacted when it is opened.
const COMPACT_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };
/// Revisions that listings under way may still read, and for how long: a listing is over in milliseconds, but a kept
/// revision keeps its pages from being used again.
const KEPT_MAX: usize = 8;
/// See [`KEPT_MAX`].
const KEPT_FOR: Duration = Duration::from_secs(30);

pub(super) type Opener = Box<dyn Fn() -> Result<Database, ControlError> + Send + Sync>;

/// A database that is opened again after its disk has failed.
pub(super) struct Disk {
    opener: Opener,
    /// `None` while it could not be opened again after a failure.
    database: RwLock<Option<Database>>,
    /// The disk failed: `redb` refuses everything until the database is opened again.
    failed: AtomicBool,
    kept: Mutex<VecDeque<Kept>>,
    synced: AtomicU64,
}

/// Numbers about the database itself: every one has its `format`.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Sees to it that a database is of the format that is known; a new one becomes that.
///
/// # Errors
/// It is of another one, or the disk failed.
pub(super) fn claim(transaction: &WriteTransaction, known: u64) -> Result<Changed, ControlError> {
    let mut meta = transaction.open_table(META).map_err(storage)?;
    let found = meta.get("format").map_err(storage)?.map(|format| format.value());
    match found {
        None => {
            meta.insert("format", known).map_err(storage)?;
            Ok(Changed::Something)
        }
        Some(found) if found == known => Ok(Changed::Nothing),
        Some(found) => Err(ControlError::Newer { found, known }),
    }
}

/// Whether a transaction is worth a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    Nothing,
    Something,
}

/// A revision that a listing reads from.
struct Kept {
    revision: Revision,
    since: Instant,
    transaction: Arc<ReadTransaction>,
}

impl Disk {
    pub(super) fn open(opener: Opener) -> Result<Self, ControlError> {
        let database = opener()?;
        Ok(Self {
            opener,
            database: RwLock::new(Some(database)),
            failed: AtomicBool::new(false),
            kept: Mutex::default(),
            synced: AtomicU64::new(0),
        })
    }

    /// Commits that were synced so far.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Relaxed)
    }

    /// Reads as of now.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.with(|database| work(&database.begin_read().map_err(storage)?))
    }

    /// Reads, and keeps what was read from for [`Disk::read_kept`] when `work` gives a revision to keep it for.
    pub(super) fn read_and_keep<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<(T, Option<Revision>), ControlError>,
    ) -> Result<T, ControlError> {
        self.with(|database| {
            let transaction = Arc::new(database.begin_read().map_err(storage)?);
            let (read, keep) = work(&transaction)?;
            if let Some(revision) = keep {
                let mut kept = self.kept();
                kept.retain(|kept| kept.revision != revision && kept.since.elapsed() < KEPT_FOR);
                if kept.len() >= KEPT_MAX {
                    kept.pop_front();
                }
                kept.push_back(Kept { revision, since: Instant::now(), transaction });
            }
            Ok(read)
        })
    }

    /// Reads as of an earlier revision; `None` when that is no longer kept.
    pub(super) fn read_kept<T>(
        &self,
        revision: Revision,
        work: impl FnOnce(&ReadTransaction) -> Result<T, ControlError>,
    ) -> Result<Option<T>, ControlError> {
        self.with(|_| {
            let found = {
                let mut kept = self.kept();
                kept.retain(|kept| kept.since.elapsed() < KEPT_FOR);
                kept.iter().find(|kept| kept.revision == revision).map(|kept| Arc::clone(&kept.transaction))
            };
            found.map(|transaction| work(&transaction)).transpose()
        })
    }

    /// Writes in one transaction and syncs it, if `work` says that it has changed anything. An error of `work` leaves
    /// everything as it was.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, Changed), ControlError>,
    ) -> Result<T, ControlError> {
        self.with(|database| {
            let transaction = database.begin_write().map_err(storage)?;
            let (written, changed) = work(&transaction)?;
            match changed {
                Changed::Nothing => transaction.abort().map_err(storage)?,
                Changed::Something => {
                    transaction.commit().map_err(storage)?;
                    self.synced.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(written)
        })
    }

    /// Works on the database; opens it again first when the disk failed before.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, ControlError>) -> Result<T, ControlError> {
        if self.failed.load(Ordering::Acquire) {
            self.open_again()?;
        }
        let database = read(&self.database);
        let open = database.as_ref().ok_or_else(|| ControlError::Storage(String::from("it is not open")))?;
        // A damaged page can make the database's own code panic; that must not take the thread along.
        let done = catch_unwind(AssertUnwindSafe(|| work(open)));
        let done = done.unwrap_or_else(|panic| Err(ControlError::Storage(format!("it broke: {}", text_of(&*panic)))));
        done.inspect_err(|error| {
            if matches!(error, ControlError::Storage(_)) {
                self.failed.store(true, Ordering::Release);
            }
        })
    }

    fn open_again(&self) -> Result<(), ControlError> {
        let mut database = write(&self.database);
        if self.failed.load(Ordering::Acquire) {
            // Dropped first: they hold the lock on the file.
            self.kept().clear();
            drop(database.take());
            *database = Some((self.opener)()?);
            self.failed.store(false, Ordering::Release);
            tracing::warn!("a database of the manager was opened again after a failure");
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        lock(&self.kept)
    }
}

/// Opens a database file for its owner alone, or makes it, and checks every page of it.
///
/// # Errors
/// Another process has it open; [`ControlError::Broken`]: it is damaged or no database; the disk fails.
pub(super) fn open_file(path: &Path) -> Result<Database, ControlError> {
    // Opened a second time by path; the first only sees to it that the file is private.
    let bytes = make_private(path).and_then(|file| file.metadata()).map_err(|error| named(path, &error))?.len();
    let opened = catch_unwind(|| {
        let mut database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
        // Reads every page: a flipped bit is found here, and not when somebody needs the record.
        if bytes > 0 && !database.check_integrity()? {
            tracing::warn!(path = %path.display(), "the database had to be repaired");
        }
        if bytes > COMPACT_BYTES {
            database.compact().map_err(|error| StorageError::Io(io::Error::other(error.to_string())))?;
        }
        Ok(database)
    });
    let broken = |reason: String| ControlError::Broken { path: path.display().to_string(), reason };
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(match error {
            DatabaseError::DatabaseAlreadyOpen => ControlError::InUse { path: path.display().to_string() },
            DatabaseError::Storage(StorageError::Corrupted(reason)) => broken(reason),
            DatabaseError::Storage(StorageError::Io(error))
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                broken(error.to_string())
            }
            DatabaseError::UpgradeRequired(found) => broken(format!("it claims to be of database format {found}")),
            DatabaseError::RepairAborted => broken(String::from("it could not be repaired")),
            other => named(path, &other),
        }),
        Err(panic) => Err(broken(text_of(&*panic))),
    }
}

fn make_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> ControlError {
    ControlError::Storage(format!("{}: {error}", path.display()))
}

pub(super) fn storage(error: impl std::fmt::Display) -> ControlError {
    ControlError::Storage(error.to_string())
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

type Work = Box<dyn FnOnce(&Disk) + Send>;

/// A fixed number of threads that read, so that no async thread ever waits for the disk.
pub(super) struct Readers {
    queue: mpsc::Sender<Work>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(disk: &Arc<Disk>, name: &str, count: usize) -> Result<Self, ControlError> {
        let (queue, received) = mpsc::channel::<Work>();
        let received = Arc::new(Mutex::new(received));
        let threads = (0..count).map(|_| {
            let (disk, received) = (Arc::clone(disk), Arc::clone(&received));
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                loop {
                    // One of them waits in `recv` with the lock, the others for the lock.
                    let next = lock(&received).recv();
                    let Ok(work) = next else { return };
                    work(&disk);
                }
            })
        });
        let threads = threads.collect::<io::Result<Vec<_>>>().map_err(storage)?;
        Ok(Self { queue, threads })
    }

    /// Runs `work` on one of the threads.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |disk| drop(answer.send(work(disk))));
        self.queue.send(work).map_err(|_| ControlError::Closed)?;
        answered.await.map_err(|_| ControlError::Closed)?
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // The threads end when nobody can send them anything any more.
        self.queue = mpsc::channel().0;
        join(self.threads.drain(..));
    }
}

/// Waits for threads, but never for the one that runs this.
pub(super) fn join(threads: impl Iterator<Item = JoinHandle<()>>) {
    let this = std::thread::current().id();
    for thread in threads.filter(|thread| thread.thread().id() != this) {
        if thread.join().is_err() {
            tracing::error!("a thread of the control state panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn disk() -> Disk {
        let open = || Database::builder().create_with_backend(InMemoryBackend::new()).map_err(storage);
        Disk::open(Box::new(open)).unwrap()
    }

    fn keep(disk: &Disk, revision: u64) {
        disk.read_and_keep(|_| Ok(((), Some(Revision(revision))))).unwrap();
    }

    fn is_kept(disk: &Disk, revision: u64) -> bool {
        disk.read_kept(Revision(revision), |_| Ok(())).unwrap().is_some()
    }

    #[test]
    fn the_last_revisions_that_are_read_from_are_kept_for_a_while() {
        let disk = disk();
        let last = KEPT_MAX as u64 + 1;
        (1..=last).for_each(|revision| keep(&disk, revision));
        assert!(!is_kept(&disk, 1) && (2..=last).all(|revision| is_kept(&disk, revision)));
        // One that is read from again takes no second place.
        keep(&disk, 2);
        assert!(disk.kept().len() == KEPT_MAX && (2..=last).all(|revision| is_kept(&disk, revision)));
        let long_ago = Instant::now().checked_sub(KEPT_FOR + Duration::from_millis(1)).unwrap();
        disk.kept().iter_mut().filter(|kept| kept.revision.0 % 2 == 0).for_each(|kept| kept.since = long_ago);
        assert!((2..=last).all(|revision| is_kept(&disk, revision) == (revision % 2 == 1)));
        disk.kept().iter_mut().for_each(|kept| kept.since = long_ago);
        keep(&disk, 20);
        assert_eq!(disk.kept().len(), 1);
    }

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");

    fn change(disk: &Disk, work: impl FnOnce(&mut redb::Table<'_, u64, &[u8]>)) {
        let write = |transaction: &WriteTransaction| {
            work(&mut transaction.open_table(TABLE).unwrap());
            Ok(((), Changed::Something))
        };
        disk.write(write).unwrap();
    }

    fn on_disk(path: &Path) -> Disk {
        let path = path.to_path_buf();
        Disk::open(Box::new(move || open_file(&path))).unwrap()
    }

    #[test]
    fn one_flipped_bit_in_a_value_that_nobody_reads_is_found_when_the_file_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("database");
        let disk = on_disk(&path);
        change(&disk, |table| drop(table.insert(0, [0x5a; 20_000].as_slice()).unwrap()));
        change(&disk, |table| drop(table.insert(1, b"later".as_slice()).unwrap()));
        drop(disk);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(10_000).position(|part| part.iter().all(|byte| *byte == 0x5a)).unwrap();
        bytes[at + 5_000] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let opened = open_file(&path).map(drop);
        assert!(matches!(opened, Err(ControlError::Broken { .. })), "{opened:?}");
    }

    #[test]
    fn a_large_file_that_is_mostly_empty_is_made_small_when_it_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("database");
        let (disk, large) = (on_disk(&path), vec![7; 1 << 20]);
        for key in 0..12 {
            change(&disk, |table| drop(table.insert(key, large.as_slice()).unwrap()));
        }
        // What lies behind the others keeps the file long.
        change(&disk, |table| (0..11).for_each(|key| drop(table.remove(key).unwrap())));
        drop(disk);
        let before = std::fs::metadata(&path).unwrap().len();
        let database = open_file(&path).unwrap();
        let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
        assert_eq!(table.get(11).unwrap().unwrap().value(), large);
        let after = std::fs::metadata(&path).unwrap().len();
        assert!(before > COMPACT_BYTES && after < before / 2, "{before} bytes, then {after}");
    }

    #[test]
    fn a_panic_is_told_in_its_own_words() {
        assert_eq!(text_of(&"a text"), "a text");
        assert_eq!(text_of(&String::from("a string")), "a string");
        assert_eq!(text_of(&7), "a panic without words");
    }

    #[test]
    fn the_end_waits_for_what_is_being_read() {
        let readers = Readers::start(&Arc::new(disk()), "test-read", 1).unwrap();
        let (begun, begins) = mpsc::channel();
        let read = Arc::new(AtomicBool::new(false));
        let its = Arc::clone(&read);
        let work: Work = Box::new(move |_| {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            its.store(true, Ordering::SeqCst);
        });
        readers.queue.send(work).unwrap();
        begins.recv().unwrap();
        drop(readers);
        assert!(read.load(Ordering::SeqCst));
    }
}
