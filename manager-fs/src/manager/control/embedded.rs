//! The control store of a manager on one machine: `redb`, one file, every commit synced.
//!
//! A sync costs milliseconds, and a thousand hosts report at once: commits that wait for the same sync share it, each
//! with a revision of its own.

use std::collections::HashMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use proto::codec;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::watch;

use super::{Change, ControlError, ControlStore, Event, Expect, LeaseId, Versioned};

/// Key to version (8 bytes) and value.
const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
/// Revision to its changes, encoded.
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
/// Keys that are bound to a lease.
const LEASED: TableDefinition<'_, &str, u64> = TableDefinition::new("leased");

/// Commits whose history is kept: a watcher that is further behind lists again.
const HISTORY_COMMITS: u64 = 4096;
/// Bytes of changes whose history is kept; an agent's timeline with its evidence may be large, and is written anew with
/// every step.
const HISTORY_BYTES_MAX: usize = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Page cache of the database, bytes. The whole state of some thousand hosts is a few MiB.
const CACHE_BYTES: usize = 16 << 20;
/// A database file larger than this is compacted when it is opened.
const COMPACT_BYTES: u64 = 256 << 20;

/// Bytes of one commit's changes: a handful of records.
const CHANGES_BYTES_MAX: usize = 256 << 20;

type Opener = Box<dyn Fn() -> Result<Database, ControlError> + Send + Sync>;

/// See the module.
pub struct EmbeddedStore {
    opener: Opener,
    /// `None` while it could not be opened again after a failure.
    database: RwLock<Option<Database>>,
    /// The disk failed: `redb` refuses everything until the database is opened again.
    failed: AtomicBool,
    revision: watch::Sender<u64>,
    leases: Mutex<Leases>,
    /// Commits that wait for the next transaction.
    waiting: Mutex<Vec<Waiting>>,
    /// Held over a transaction and the publication of its revisions, so that no two commits take the same number.
    committing: Mutex<Committing>,
}

/// A commit that waits for its turn.
struct Waiting {
    changes: Vec<Change>,
    outcome: Arc<OnceLock<Result<u64, ControlError>>>,
}

#[derive(Default)]
struct Leases {
    next: u64,
    /// Lifetime and end of each.
    live: HashMap<LeaseId, (Duration, Instant)>,
}

#[derive(Default)]
struct Committing {
    /// Bytes in the history.
    history_bytes: usize,
}

impl EmbeddedStore {
    /// Opens the database, or makes it. Leases do not outlive the process: their keys are deleted here.
    ///
    /// # Errors
    /// Another process has it open, it is damaged, or the disk fails.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let path = path.to_path_buf();
        Self::open_with(Box::new(move || open_file(&path)))
    }

    fn open_with(opener: Opener) -> Result<Self, ControlError> {
        let database = opener()?;
        let transaction = database.begin_write().map_err(storage)?;
        let (last, history_bytes, stale) = {
            transaction.open_table(VALUES).map_err(storage)?;
            let history = transaction.open_table(HISTORY).map_err(storage)?;
            let last = history.last().map_err(storage)?.map_or(0, |(revision, _)| revision.value());
            let mut bytes = 0;
            for entry in history.iter().map_err(storage)? {
                bytes += entry.map_err(storage)?.1.value().len();
            }
            let leased = transaction.open_table(LEASED).map_err(storage)?;
            (last, bytes, keys_of(&leased, |_| true)?)
        };
        transaction.commit().map_err(storage)?;
        let store = Self {
            opener,
            database: RwLock::new(Some(database)),
            failed: AtomicBool::new(false),
            revision: watch::Sender::new(last),
            leases: Mutex::new(Leases { next: 1, ..Leases::default() }),
            waiting: Mutex::default(),
            committing: Mutex::new(Committing { history_bytes }),
        };
        store.delete(stale)?;
        Ok(store)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the database; opens it again first when the disk failed before.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, ControlError>) -> Result<T, ControlError> {
        if self.failed.load(Ordering::Acquire) {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if self.failed.load(Ordering::Acquire) {
                // Dropped first: it holds the lock on the file.
                drop(database.take());
                *database = Some((self.opener)()?);
                self.failed.store(false, Ordering::Release);
                tracing::warn!("the control state was opened again after a failure");
            }
        }
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let open = database.as_ref().ok_or_else(|| ControlError::Storage(String::from("it is not open")))?;
        work(open).inspect_err(|error| {
            if matches!(error, ControlError::Storage(_)) {
                self.failed.store(true, Ordering::Release);
            }
        })
    }

    /// Ends leases whose time is over. Cheap while there are none.
    fn sweep(&self) -> Result<(), ControlError> {
        let now = Instant::now();
        let over: Vec<LeaseId> =
            self.leases().live.iter().filter(|(_, (_, end))| *end <= now).map(|(lease, _)| *lease).collect();
        over.into_iter().try_for_each(|lease| self.end(lease))
    }

    fn delete(&self, keys: Vec<String>) -> Result<(), ControlError> {
        if keys.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = keys.into_iter().map(|key| Change::delete(key, Expect::Any)).collect();
        self.apply(&changes).map(drop)
    }

    fn apply(&self, changes: &[Change]) -> Result<u64, ControlError> {
        let outcome = Arc::new(OnceLock::new());
        let waiting = Waiting { changes: changes.to_vec(), outcome: Arc::clone(&outcome) };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
        // Whoever gets here first commits for all that wait; the others find their outcome.
        let mut committing = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.get().is_none() {
            let batch = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let outcomes = self.commit_batch(&batch, &mut committing);
            for (at, waiting) in batch.iter().enumerate() {
                let its = outcomes.as_ref().map_or_else(|error| Err(error.clone()), |outcomes| outcomes[at].clone());
                // Set once: a batch is taken by one leader.
                let _ = waiting.outcome.set(its);
            }
        }
        let lost = || Err(ControlError::Storage(String::from("the commit was lost")));
        outcome.get().cloned().unwrap_or_else(lost)
    }

    /// One transaction for all; a commit whose conditions do not hold leaves the others alone.
    fn commit_batch(
        &self,
        batch: &[Waiting],
        committing: &mut Committing,
    ) -> Result<Vec<Result<u64, ControlError>>, ControlError> {
        let mut revision = *self.revision.borrow();
        let mut history_bytes = committing.history_bytes;
        let outcomes = self.with(|database| {
            let transaction = database.begin_write().map_err(storage)?;
            let mut outcomes = Vec::with_capacity(batch.len());
            for waiting in batch {
                match check(&transaction, &waiting.changes) {
                    Err(conflict @ ControlError::Conflict { .. }) => outcomes.push(Err(conflict)),
                    Err(error) => return Err(error),
                    Ok(()) => {
                        revision += 1;
                        write(&transaction, &waiting.changes, revision)?;
                        history_bytes = remember(&transaction, &waiting.changes, revision, history_bytes)?;
                        outcomes.push(Ok(revision));
                    }
                }
            }
            transaction.commit().map_err(storage)?;
            Ok(outcomes)
        })?;
        committing.history_bytes = history_bytes;
        self.revision.send_replace(revision);
        Ok(outcomes)
    }
}

fn open_file(path: &Path) -> Result<Database, ControlError> {
    let named = |error: &dyn std::fmt::Display| ControlError::Storage(format!("{}: {error}", path.display()));
    let opened = |error| match error {
        DatabaseError::DatabaseAlreadyOpen => named(&"another manager has it open"),
        other => named(&other),
    };
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| named(&error))?;
    let bytes = file.metadata().map_err(|error| named(&error))?.len();
    // Opened a second time by path; the first only saw to it that the file is private.
    let mut database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(opened)?;
    if bytes > COMPACT_BYTES {
        database.compact().map_err(|error| named(&error))?;
    }
    Ok(database)
}

/// Adds a commit to the history and forgets the oldest; returns the bytes that it has then.
fn remember(
    transaction: &WriteTransaction,
    changes: &[Change],
    revision: u64,
    mut bytes: usize,
) -> Result<usize, ControlError> {
    let mut history = transaction.open_table(HISTORY).map_err(storage)?;
    let events: Vec<_> = changes.iter().map(|change| (&change.key, &change.put)).collect();
    let encoded = codec::encode(&events).map_err(|error| ControlError::Storage(error.to_string()))?;
    bytes += encoded.len();
    history.insert(revision, encoded.as_slice()).map_err(storage)?;
    loop {
        let oldest = history.first().map_err(storage)?.map_or(revision, |(oldest, _)| oldest.value());
        if oldest == revision || (bytes <= HISTORY_BYTES_MAX && revision - oldest < HISTORY_COMMITS) {
            return Ok(bytes);
        }
        let forgotten = history.pop_first().map_err(storage)?.map_or(0, |(_, encoded)| encoded.value().len());
        bytes = bytes.saturating_sub(forgotten);
    }
}

impl ControlStore for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, ControlError> {
        self.sweep()?;
        self.with(|database| {
            let transaction = database.begin_read().map_err(storage)?;
            let values = transaction.open_table(VALUES).map_err(storage)?;
            let found = values.get(key).map_err(storage)?;
            found.map(|bytes| unpack(key, bytes.value())).transpose()
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, ControlError> {
        self.sweep()?;
        self.with(|database| {
            let transaction = database.begin_read().map_err(storage)?;
            let values = transaction.open_table(VALUES).map_err(storage)?;
            let mut found = Vec::new();
            for entry in values.range::<&str>(prefix..).map_err(storage)? {
                let (key, bytes) = entry.map_err(storage)?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_owned(), unpack(key.value(), bytes.value())?));
            }
            Ok(found)
        })
    }

    fn commit(&self, changes: &[Change]) -> Result<u64, ControlError> {
        self.sweep()?;
        for lease in changes.iter().filter_map(|change| change.lease) {
            if !self.leases().live.contains_key(&lease) {
                return Err(ControlError::LeaseEnded);
            }
        }
        self.apply(changes)
    }

    fn history(&self, prefix: &str, after: u64) -> Result<Vec<Event>, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(storage)?;
            let history = transaction.open_table(HISTORY).map_err(storage)?;
            let oldest = history.first().map_err(storage)?.map_or(after + 1, |(revision, _)| revision.value());
            if oldest > after + 1 {
                return Err(ControlError::Compacted { oldest });
            }
            let mut events = Vec::new();
            for entry in history.range(after + 1..).map_err(storage)? {
                let (revision, bytes) = entry.map_err(storage)?;
                let revision = revision.value();
                let wanted = decode_changes(revision, bytes.value())?.into_iter();
                let wanted = wanted.filter(|(key, _)| key.starts_with(prefix));
                events.extend(wanted.map(|(key, value)| Event { revision, key, value }));
            }
            Ok(events)
        })
    }

    fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError> {
        let mut leases = self.leases();
        let lease = LeaseId(leases.next);
        leases.next += 1;
        leases.live.insert(lease, (ttl, Instant::now() + ttl));
        Ok(lease)
    }

    fn keep(&self, lease: LeaseId) -> Result<(), ControlError> {
        self.sweep()?;
        let mut leases = self.leases();
        let (ttl, end) = leases.live.get_mut(&lease).ok_or(ControlError::LeaseEnded)?;
        *end = Instant::now() + *ttl;
        Ok(())
    }

    fn end(&self, lease: LeaseId) -> Result<(), ControlError> {
        self.leases().live.remove(&lease);
        let keys = self.with(|database| {
            let transaction = database.begin_read().map_err(storage)?;
            let leased = transaction.open_table(LEASED).map_err(storage)?;
            keys_of(&leased, |owner| owner == lease.0)
        })?;
        self.delete(keys)
    }
}

/// Whether all conditions of a commit hold.
fn check(transaction: &WriteTransaction, changes: &[Change]) -> Result<(), ControlError> {
    let values = transaction.open_table(VALUES).map_err(storage)?;
    for change in changes {
        let found = values.get(change.key.as_str()).map_err(storage)?;
        let version = found.map(|bytes| unpack(&change.key, bytes.value())).transpose()?.map(|found| found.version);
        let holds = match change.expect {
            Expect::Any => true,
            Expect::Absent => version.is_none(),
            Expect::Version(wanted) => version == Some(wanted),
        };
        if !holds {
            return Err(ControlError::Conflict { key: change.key.clone() });
        }
    }
    Ok(())
}

fn write(transaction: &WriteTransaction, changes: &[Change], revision: u64) -> Result<(), ControlError> {
    let mut values = transaction.open_table(VALUES).map_err(storage)?;
    let mut leased = transaction.open_table(LEASED).map_err(storage)?;
    for change in changes {
        let key = change.key.as_str();
        match &change.put {
            Some(value) => values.insert(key, [&revision.to_le_bytes(), value.as_slice()].concat().as_slice()),
            None => values.remove(key),
        }
        .map_err(storage)?;
        match change.lease {
            Some(lease) if change.put.is_some() => leased.insert(key, lease.0),
            _ => leased.remove(key),
        }
        .map_err(storage)?;
    }
    Ok(())
}

fn keys_of(
    leased: &impl ReadableTable<&'static str, u64>,
    wanted: impl Fn(u64) -> bool,
) -> Result<Vec<String>, ControlError> {
    let mut keys = Vec::new();
    for entry in leased.iter().map_err(storage)? {
        let (key, lease) = entry.map_err(storage)?;
        if wanted(lease.value()) {
            keys.push(key.value().to_owned());
        }
    }
    Ok(keys)
}

/// A key and its new value.
type Written = (String, Option<Vec<u8>>);

fn decode_changes(revision: u64, bytes: &[u8]) -> Result<Vec<Written>, ControlError> {
    codec::decode::<_, CHANGES_BYTES_MAX>(bytes).map_err(|error| ControlError::Damaged {
        key: format!("history of revision {revision}"),
        reason: error.to_string(),
    })
}

fn unpack(key: &str, bytes: &[u8]) -> Result<Versioned, ControlError> {
    let Some((version, value)) = bytes.split_first_chunk::<8>() else {
        return Err(ControlError::Damaged { key: key.to_owned(), reason: String::from("it has no version") });
    };
    Ok(Versioned { value: value.to_vec(), version: u64::from_le_bytes(*version) })
}

fn storage(error: impl std::fmt::Display) -> ControlError {
    ControlError::Storage(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::Watch;
    use super::*;
    use redb::StorageBackend;
    use redb::backends::FileBackend;

    fn open() -> (tempfile::TempDir, EmbeddedStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&directory.path().join("control.redb")).unwrap();
        (directory, store)
    }

    fn put(key: &str, expect: Expect, value: &str) -> Change {
        Change::put(key, expect, value.into())
    }

    #[test]
    fn a_commit_is_all_or_nothing_and_compares_versions() {
        let (_directory, store) = open();
        let first = store.commit(&[put("a", Expect::Absent, "1"), put("b", Expect::Absent, "1")]).unwrap();
        let conflict = store.commit(&[put("b", Expect::Any, "2"), put("a", Expect::Absent, "2")]);
        assert_eq!(conflict, Err(ControlError::Conflict { key: "a".into() }));
        assert_eq!(store.get("b").unwrap().unwrap().value, b"1");
        let second = store.commit(&[put("a", Expect::Version(first), "2")]).unwrap();
        assert!(store.commit(&[put("a", Expect::Version(first), "3")]).is_err());
        assert!(store.commit(&[Change::delete("a", Expect::Version(second))]).is_ok());
        assert_eq!(store.get("a").unwrap(), None);
    }

    #[test]
    fn commits_of_many_threads_share_syncs_and_lose_nothing() {
        const THREADS: u64 = 16;
        const EACH: u64 = 25;
        let (_directory, store) = open();
        store.commit(&[put("n", Expect::Absent, "0")]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        loop {
                            let found = store.get("n").unwrap().unwrap();
                            let next = String::from_utf8(found.value).unwrap().parse::<u64>().unwrap() + 1;
                            let swap = put("n", Expect::Version(found.version), &next.to_string());
                            match store.commit(&[swap]) {
                                Ok(_) => break,
                                Err(ControlError::Conflict { .. }) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                });
            }
        });
        let end = store.get("n").unwrap().unwrap();
        assert_eq!(end.value, (THREADS * EACH).to_string().as_bytes());
        // Each success has a revision of its own, and conflicts have none.
        assert_eq!(end.version, THREADS * EACH + 1);
        let events = store.history("n", 0).unwrap();
        assert!(events.iter().enumerate().all(|(at, event)| event.value == Some(at.to_string().into())));
    }

    #[test]
    fn a_prefix_lists_its_keys_only_and_in_order() {
        let (_directory, store) = open();
        for key in ["x/b", "x/a", "x", "y/a", "xy"] {
            store.commit(&[put(key, Expect::Any, key)]).unwrap();
        }
        let keys: Vec<String> = store.list("x/").unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["x/a", "x/b"]);
    }

    #[test]
    fn state_and_history_survive_and_leased_keys_do_not() {
        let (directory, store) = open();
        let lease = store.grant(Duration::from_secs(60)).unwrap();
        let leased = Change { lease: Some(lease), ..put("connected/h", Expect::Absent, "") };
        store.commit(&[put("a", Expect::Absent, "1"), leased]).unwrap();
        drop(store);
        let store = EmbeddedStore::open(&directory.path().join("control.redb")).unwrap();
        assert_eq!(store.get("connected/h").unwrap(), None);
        assert_eq!(store.get("a").unwrap().unwrap().value, b"1");
        let events = store.history("connected/", 0).unwrap();
        assert_eq!(events.iter().map(|event| event.value.is_some()).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_lease_ends_by_time_or_by_request() {
        let (_directory, store) = open();
        let long = store.grant(Duration::from_secs(60)).unwrap();
        let short = store.grant(Duration::ZERO).unwrap();
        assert_eq!(store.keep(short), Err(ControlError::LeaseEnded));
        let bound = Change { lease: Some(short), ..put("k", Expect::Any, "") };
        assert_eq!(store.commit(&[bound]), Err(ControlError::LeaseEnded));
        store.commit(&[Change { lease: Some(long), ..put("k", Expect::Any, "") }]).unwrap();
        store.keep(long).unwrap();
        store.end(long).unwrap();
        assert_eq!(store.get("k").unwrap(), None);
        store.end(long).unwrap();
    }

    #[tokio::test]
    async fn a_watch_sees_every_change_once_and_in_order() {
        let (_directory, store) = open();
        let store: Arc<dyn ControlStore> = Arc::new(store);
        let mut watch = Watch::new(Arc::clone(&store), "n/", 0);
        let writer = std::thread::spawn({
            let store = Arc::clone(&store);
            move || {
                for n in 0..100 {
                    let key = if n % 2 == 0 { "n/x" } else { "other" };
                    store.commit(&[put(key, Expect::Any, &n.to_string())]).unwrap();
                }
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 50 {
            let events = watch.next().await.unwrap();
            seen.extend(events.into_iter().map(|event| String::from_utf8(event.value.unwrap()).unwrap()));
        }
        writer.join().unwrap();
        assert_eq!(seen, (0..100).step_by(2).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_disk_fails_the_commit_and_nothing_after_it() {
        #[derive(Debug)]
        struct Disk(FileBackend, Arc<AtomicBool>);
        impl Disk {
            fn check(&self) -> std::io::Result<()> {
                let full = self.1.load(Ordering::SeqCst);
                if full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            }
        }
        impl StorageBackend for Disk {
            fn len(&self) -> std::io::Result<u64> {
                self.0.len()
            }
            fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
                self.0.read(offset, out)
            }
            fn set_len(&self, len: u64) -> std::io::Result<()> {
                self.check().and_then(|()| self.0.set_len(len))
            }
            fn sync_data(&self) -> std::io::Result<()> {
                self.check().and_then(|()| self.0.sync_data())
            }
            fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
                self.check().and_then(|()| self.0.write(offset, data))
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.redb");
        let full = Arc::new(AtomicBool::new(false));
        let disk = Arc::clone(&full);
        let store = EmbeddedStore::open_with(Box::new(move || {
            let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let backend = Disk(FileBackend::new(file.unwrap()).unwrap(), Arc::clone(&disk));
            Database::builder().create_with_backend(backend).map_err(storage)
        }))
        .unwrap();
        let first = store.commit(&[put("a", Expect::Absent, "1")]).unwrap();
        full.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            assert!(matches!(store.commit(&[put("a", Expect::Any, "2")]), Err(ControlError::Storage(_))));
        }
        full.store(false, Ordering::SeqCst);
        assert_eq!(store.get("a").unwrap(), Some(Versioned { value: b"1".to_vec(), version: first }));
        store.commit(&[put("a", Expect::Version(first), "3")]).unwrap();
        assert_eq!(store.get("a").unwrap().unwrap().value, b"3");
    }

    #[test]
    fn the_history_is_bounded_by_its_bytes() {
        let (_directory, store) = open();
        let large = "x".repeat(9 << 10);
        for _ in 0..9 {
            store.commit(&[put("a", Expect::Any, &large)]).unwrap();
        }
        let Err(ControlError::Compacted { oldest }) = store.history("", 0) else { panic!("nothing was forgotten") };
        assert_eq!(store.history("", oldest - 1).unwrap().len(), 7);
    }

    #[test]
    fn a_second_manager_is_told_so() {
        let (directory, _store) = open();
        let error = EmbeddedStore::open(&directory.path().join("control.redb")).err().unwrap();
        assert!(error.to_string().contains("another manager has it open"), "{error}");
    }
}
