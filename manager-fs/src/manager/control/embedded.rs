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
#[path = "embedded_tests.rs"]
mod tests;
