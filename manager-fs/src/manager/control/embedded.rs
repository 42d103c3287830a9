//! The control store of a manager on one machine: `redb`, one file, every commit synced.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
const HISTORY_BYTES_MAX: usize = 256 << 20;
/// Page cache of the database, bytes. The whole state of some thousand hosts is a few MiB.
const CACHE_BYTES: usize = 16 << 20;

/// See the module.
pub struct EmbeddedStore {
    database: Database,
    revision: watch::Sender<u64>,
    leases: Mutex<Leases>,
    /// Held over a commit and the publication of its revision, so that no two commits take the same number.
    committing: Mutex<()>,
}

#[derive(Default)]
struct Leases {
    next: u64,
    /// Lifetime and end of each.
    live: HashMap<LeaseId, (Duration, Instant)>,
}

impl EmbeddedStore {
    /// Opens the database, or makes it. Leases do not outlive the process: their keys are deleted here.
    ///
    /// # Errors
    /// Another process has it open, it is damaged, or the disk fails.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let named = |error: &dyn std::fmt::Display| ControlError::Storage(format!("{}: {error}", path.display()));
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => named(&"another manager has it open"),
            other => named(&other),
        })?;
        let leases = Mutex::new(Leases { next: 1, ..Leases::default() });
        let store = Self { database, revision: watch::Sender::new(0), leases, committing: Mutex::new(()) };
        let transaction = store.database.begin_write().map_err(storage)?;
        let (last, stale) = {
            transaction.open_table(VALUES).map_err(storage)?;
            let history = transaction.open_table(HISTORY).map_err(storage)?;
            let last = history.last().map_err(storage)?.map_or(0, |(revision, _)| revision.value());
            let leased = transaction.open_table(LEASED).map_err(storage)?;
            (last, keys_of(&leased, |_| true)?)
        };
        transaction.commit().map_err(storage)?;
        store.revision.send_replace(last);
        store.delete(stale)?;
        Ok(store)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
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
        let _only = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = self.database.begin_write().map_err(storage)?;
        let revision = *self.revision.borrow() + 1;
        for change in changes {
            write(&transaction, change, revision)?;
        }
        {
            let mut history = transaction.open_table(HISTORY).map_err(storage)?;
            let events: Vec<_> = changes.iter().map(|change| (&change.key, &change.put)).collect();
            let bytes = codec::encode(&events).map_err(|error| ControlError::Storage(error.to_string()))?;
            history.insert(revision, bytes.as_slice()).map_err(storage)?;
            if let Some(old) = revision.checked_sub(HISTORY_COMMITS) {
                history.remove(old).map_err(storage)?;
            }
        }
        transaction.commit().map_err(storage)?;
        self.revision.send_replace(revision);
        Ok(revision)
    }
}

impl ControlStore for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, ControlError> {
        self.sweep()?;
        let transaction = self.database.begin_read().map_err(storage)?;
        let values = transaction.open_table(VALUES).map_err(storage)?;
        let found = values.get(key).map_err(storage)?;
        found.map(|bytes| unpack(key, bytes.value())).transpose()
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, ControlError> {
        self.sweep()?;
        let transaction = self.database.begin_read().map_err(storage)?;
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
        let transaction = self.database.begin_read().map_err(storage)?;
        let history = transaction.open_table(HISTORY).map_err(storage)?;
        let oldest = history.first().map_err(storage)?.map_or(after + 1, |(revision, _)| revision.value());
        if oldest > after + 1 {
            return Err(ControlError::Compacted { oldest });
        }
        let mut events = Vec::new();
        for entry in history.range(after + 1..).map_err(storage)? {
            let (revision, bytes) = entry.map_err(storage)?;
            let changes = codec::decode::<Vec<(String, Option<Vec<u8>>)>, HISTORY_BYTES_MAX>(bytes.value());
            let changes = changes.map_err(|error| ControlError::Damaged {
                key: format!("history of revision {}", revision.value()),
                reason: error.to_string(),
            })?;
            let wanted = changes.into_iter().filter(|(key, _)| key.starts_with(prefix));
            events.extend(wanted.map(|(key, value)| Event { revision: revision.value(), key, value }));
        }
        Ok(events)
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
        let keys = {
            let transaction = self.database.begin_read().map_err(storage)?;
            let leased = transaction.open_table(LEASED).map_err(storage)?;
            keys_of(&leased, |owner| owner == lease.0)?
        };
        self.delete(keys)
    }
}

fn write(transaction: &WriteTransaction, change: &Change, revision: u64) -> Result<(), ControlError> {
    let mut values = transaction.open_table(VALUES).map_err(storage)?;
    let mut leased = transaction.open_table(LEASED).map_err(storage)?;
    let key = change.key.as_str();
    let version = {
        let found = values.get(key).map_err(storage)?;
        found.map(|bytes| unpack(key, bytes.value())).transpose()?.map(|found| found.version)
    };
    let holds = match change.expect {
        Expect::Any => true,
        Expect::Absent => version.is_none(),
        Expect::Version(wanted) => version == Some(wanted),
    };
    if !holds {
        return Err(ControlError::Conflict { key: change.key.clone() });
    }
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
    use std::sync::Arc;

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
    fn a_second_manager_is_told_so() {
        let (directory, _store) = open();
        let error = EmbeddedStore::open(&directory.path().join("control.redb")).err().unwrap();
        assert!(error.to_string().contains("another manager has it open"), "{error}");
    }
}
