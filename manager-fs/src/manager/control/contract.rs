//! What the manager needs of a database for its decisions, and no more than etcd and its like offer.
//!
//! Keys are texts, values are bytes, and every commit that succeeds is one *revision* of the whole store. A reader
//! lists the keys under a prefix as of one revision, and then watches from that revision on: there is no gap in which
//! a change could be missed. What a store cannot keep is refused when it is written, never found out when it is read.
//!
//! How etcd would serve each method (by its HTTP/JSON gateway): `get` and `list` are `/v3/kv/range`, with `revision`
//! set from the second page on; `commit` is one `/v3/kv/txn` with a compare on `mod_revision` for every condition (0:
//! absent) and a range of the same keys in its failing branch, which tells the key of a conflict; `watch` is
//! `/v3/watch` with `start_revision = after + 1`; leases are `/v3/lease/*`. The bounds below lie within etcd's own
//! (1.5 MiB a request, 128 operations, each key once).

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Bytes of one key: a kind, and at most three names of at most 253 bytes.
pub const KEY_BYTES_MAX: usize = 768;
/// Changes of one commit.
pub const CHANGES_MAX: usize = 100;
/// Bytes of all keys and values of one commit: a value of the largest size and little else. etcd takes requests of
/// 1.5 MiB, in which each key stands three times.
pub const COMMIT_BYTES_MAX: usize = VALUE_BYTES_MAX + (96 << 10);
/// Entries of one page.
pub const PAGE_ENTRIES_MAX: usize = 1000;

/// A future that a trait's method returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, ControlError>> + Send + 'a>>;

/// The number of a commit; of a key: of the commit that last changed it. Grows by at least one with every commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `export/PRODUCT/VERSION/TARGET` (`docs/control-state.md`).
    pub key: String,
    /// The record's bytes, at most [`VALUE_BYTES_MAX`].
    pub value: Vec<u8>,
    /// When it was last written; [`Expect::At`] compares this.
    pub changed: Revision,
}

/// What a key must be for a commit to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Whatever it is, there or not.
    Any,
    /// Not there: somebody makes it.
    Absent,
    /// Last written in this revision.
    At(Revision),
}

/// What a commit does with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Writes the value; with a lease, the key vanishes when that ends.
    Put {
        /// The new value.
        value: Vec<u8>,
        /// The lease that the key is bound to.
        lease: Option<LeaseId>,
    },
    /// Deletes the key. It is no error that it is not there.
    Delete,
    /// Leaves the key as it is; only the condition counts.
    Check,
}

/// One key of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key, such as `export/PRODUCT/VERSION/TARGET` (`docs/control-state.md`).
    pub key: String,
    /// On what condition. One that does not hold stops the whole commit.
    pub expect: Expect,
    /// What happens to the key.
    pub act: Act,
}

impl Change {
    /// Writes `value` if `expect` holds.
    pub fn put(key: impl Into<String>, expect: Expect, value: Vec<u8>) -> Self {
        Self { key: key.into(), expect, act: Act::Put { value, lease: None } }
    }

    /// Deletes the key if `expect` holds.
    pub fn delete(key: impl Into<String>, expect: Expect) -> Self {
        Self { key: key.into(), expect, act: Act::Delete }
    }

    /// Only requires that `expect` holds.
    pub fn check(key: impl Into<String>, expect: Expect) -> Self {
        Self { key: key.into(), expect, act: Act::Check }
    }

    fn bytes(&self) -> usize {
        let value = match &self.act {
            Act::Put { value, .. } => value.len(),
            Act::Delete | Act::Check => 0,
        };
        self.key.len() + value
    }
}

/// One change of one key, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// In which commit; events of one commit share it.
    pub revision: Revision,
    /// The key that was written or deleted.
    pub key: String,
    /// The new value; `None`: deleted.
    pub value: Option<Vec<u8>>,
}

/// Some events, in order, and how far they reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// Whatever happened up to and with this revision has now been told.
    pub through: Revision,
    /// The changes, in the order of their commits; may be empty.
    pub events: Vec<Event>,
}

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// After this key,
    pub after: String,
    /// as of this revision.
    pub revision: Revision,
}

/// Some of the keys under a prefix, in order, as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The keys of this page, in ascending order, with their values.
    pub entries: Vec<Entry>,
    /// The revision of the whole listing, the same on all its pages: watch after it.
    pub revision: Revision,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<Cursor>,
}

/// A lease: keys bound to it vanish unless it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A condition of the commit did not hold; nothing was written.
    #[error("'{key}' was changed by someone else at the same time")]
    Conflict {
        /// The first such key.
        key: String,
    },
    /// The history asked for is no longer kept: list again, then watch from there.
    #[error("the control state's history before revision {} is no longer kept", oldest.0)]
    Compacted {
        /// The oldest kept.
        oldest: Revision,
    },
    /// No such lease, or it has ended.
    #[error("the lease has ended")]
    LeaseEnded,
    /// The value of a change is too long; nothing was written.
    #[error("the control state's record '{key}' would have {bytes} bytes; {VALUE_BYTES_MAX} are allowed")]
    TooLong {
        /// The key whose value it is.
        key: String,
        /// How long its value is.
        bytes: usize,
    },
    /// The value of a change could not be read again; nothing was written.
    #[error("the record '{key}' cannot be kept: {reason}")]
    Unfit {
        /// The key whose value it is.
        key: String,
        /// What its reader says of it.
        reason: String,
    },
    /// The commit is too large as a whole; nothing was written.
    #[error(
        "a commit to the control state with {changes} changes and {bytes} bytes (the first is '{key}'); \
         {CHANGES_MAX} changes and {COMMIT_BYTES_MAX} bytes are allowed"
    )]
    TooLarge {
        /// The first key.
        key: String,
        /// How many changes.
        changes: usize,
        /// How many bytes, keys and values.
        bytes: usize,
    },
    /// A key that no store could keep: empty, too long, or twice in one commit; nothing was written.
    #[error("'{key}' cannot be a key of the control state here: {fault}")]
    BadKey {
        /// Its first 80 characters.
        key: String,
        /// Which of these it is.
        fault: &'static str,
    },
    /// Another process has the database open.
    #[error("{path}: another manager has it open")]
    InUse {
        /// Path of the database file.
        path: String,
    },
    /// The database is gone, and what it can be built from is there.
    #[error("the control state {path} is missing, and {copy} is there; `manager-fs recover` builds it anew")]
    Gone {
        /// Path of the database file.
        path: String,
        /// What it can be built from.
        copy: String,
    },
    /// The whole database is damaged.
    #[error("the control state {path} is damaged: {reason}; `manager-fs recover` builds it anew from the store")]
    Broken {
        /// Path of the database file.
        path: String,
        /// What the database says of it.
        reason: String,
    },
    /// The database was written by a later version.
    #[error("the control state is of format {found}; this program knows {known}: use a newer manager-fs")]
    Newer {
        /// The format that it says.
        found: u64,
        /// The newest that this program knows.
        known: u64,
    },
    /// A record cannot be read. It stays where it is, and everything else goes on without it.
    #[error("the record '{key}' cannot be read: {reason}; `manager-fs verify` lists such records")]
    Damaged {
        /// The key of the record.
        key: String,
        /// What its reader says of it.
        reason: String,
    },
    /// The database failed. A commit may have happened or not: read again.
    #[error("the manager's database failed: {0}")]
    Storage(String),
    /// No number could be drawn.
    #[error("no number can be drawn: {0}")]
    Random(String),
    /// The store was closed.
    #[error("the control state is closed")]
    Closed,
}

/// Every change under a prefix, in order and without a gap.
pub trait Watch: Send {
    /// Waits for the next changes: at least one event. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ControlError::Compacted`] when the watcher fell behind the kept history; the database failed (ask again), or
    /// [`ControlError::Closed`].
    fn next(&mut self) -> Pending<'_, Events>;
}

/// A small database with one history. No method waits on the caller's thread.
pub trait ControlStore: Send + Sync + 'static {
    /// Reads one key.
    ///
    /// # Errors
    /// The database failed.
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Entry>>;

    /// Reads keys that begin with `prefix`, in order: at most [`PAGE_ENTRIES_MAX`] and some MiB. Without `from` it
    /// begins at the first key and the newest revision; with the cursor of a page it gives the next page, of the same
    /// revision.
    ///
    /// # Errors
    /// [`ControlError::Compacted`]: the revision of the cursor is no longer kept, begin again. The database failed.
    fn list<'a>(&'a self, prefix: &'a str, from: Option<Cursor>) -> Pending<'a, Listing>;

    /// Makes all changes or none; durable when it is answered. Returns the revision that it made.
    ///
    /// # Errors
    /// [`ControlError::Conflict`] with the first key whose condition does not hold; [`ControlError::TooLong`],
    /// [`ControlError::TooLarge`], [`ControlError::BadKey`]: see [`check_bounds`]; [`ControlError::LeaseEnded`]. After
    /// [`ControlError::Storage`] the commit may have happened: read again.
    fn commit(&self, changes: Vec<Change>) -> Pending<'_, Revision>;

    /// Everything that happens to keys with `prefix` after revision `after`.
    fn watch(&self, prefix: &str, after: Revision) -> Box<dyn Watch>;

    /// Begins a lease that ends `ttl` after it was last kept.
    ///
    /// # Errors
    /// The store is closed.
    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId>;

    /// Keeps a lease.
    ///
    /// # Errors
    /// It has ended.
    fn keep(&self, lease: LeaseId) -> Pending<'_, ()>;

    /// Ends a lease: its keys are deleted. Ending it twice is no error.
    ///
    /// # Errors
    /// The database failed.
    fn end(&self, lease: LeaseId) -> Pending<'_, ()>;
}

/// Whether a commit is one that every store can keep.
///
/// # Errors
/// The key and the sizes that are too large.
pub fn check_bounds(changes: &[Change]) -> Result<(), ControlError> {
    let mut keys = std::collections::HashSet::new();
    for change in changes {
        let bad = |fault| Err(ControlError::BadKey { key: change.key.chars().take(80).collect(), fault });
        if change.key.is_empty() {
            return bad("it is empty");
        }
        if change.key.len() > KEY_BYTES_MAX {
            return bad("it has more than 768 bytes");
        }
        if !keys.insert(change.key.as_str()) {
            return bad("one commit changes a key once");
        }
        match &change.act {
            Act::Put { value, .. } if value.len() > VALUE_BYTES_MAX => {
                return Err(ControlError::TooLong { key: change.key.clone(), bytes: value.len() });
            }
            Act::Put { .. } | Act::Delete | Act::Check => {}
        }
    }
    let bytes = changes.iter().map(Change::bytes).sum();
    match changes.first() {
        Some(first) if changes.len() > CHANGES_MAX || bytes > COMMIT_BYTES_MAX => {
            Err(ControlError::TooLarge { key: first.key.clone(), changes: changes.len(), bytes })
        }
        _ => Ok(()),
    }
}

/// Every key under a prefix, as of one revision, however many pages that takes.
///
/// # Errors
/// The database failed, or the state changes faster than it can be read.
pub async fn list_all(store: &dyn ControlStore, prefix: &str) -> Result<(Vec<Entry>, Revision), ControlError> {
    const TRIES: usize = 5;
    let mut last = ControlError::Closed;
    for _ in 0..TRIES {
        match list_once(store, prefix).await {
            Err(error @ ControlError::Compacted { .. }) => last = error,
            done => return done,
        }
    }
    Err(last)
}

async fn list_once(store: &dyn ControlStore, prefix: &str) -> Result<(Vec<Entry>, Revision), ControlError> {
    let mut page = store.list(prefix, None).await?;
    let mut entries = page.entries;
    while let Some(cursor) = page.next {
        page = store.list(prefix, Some(cursor)).await?;
        entries.append(&mut page.entries);
    }
    Ok((entries, page.revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(key: &str, bytes: usize) -> Change {
        Change::put(key, Expect::Any, vec![0; bytes])
    }

    #[test]
    fn what_is_too_large_is_named_with_its_size() {
        assert_eq!(check_bounds(&[value("a", VALUE_BYTES_MAX)]), Ok(()));
        let long = check_bounds(&[value("a", 1), value("b", VALUE_BYTES_MAX + 1)]);
        assert_eq!(long, Err(ControlError::TooLong { key: "b".into(), bytes: VALUE_BYTES_MAX + 1 }));
        let many: Vec<Change> = (0..=CHANGES_MAX).map(|n| value(&format!("k{n:03}"), 0)).collect();
        assert_eq!(check_bounds(&many[1..]), Ok(()));
        let bytes = many.len() * 4;
        assert_eq!(check_bounds(&many), Err(ControlError::TooLarge { key: "k000".into(), changes: 101, bytes }));
        let large = check_bounds(&[value("a", VALUE_BYTES_MAX), value("b", VALUE_BYTES_MAX)]);
        assert!(matches!(large, Err(ControlError::TooLarge { changes: 2, .. })), "{large:?}");
    }

    #[test]
    fn what_is_just_as_large_as_it_may_be_is_kept() {
        let key = "k".repeat(KEY_BYTES_MAX);
        let rest = COMMIT_BYTES_MAX - VALUE_BYTES_MAX - key.len() - "a".len();
        assert_eq!(check_bounds(&[value(&key, VALUE_BYTES_MAX), value("a", rest)]), Ok(()));
        let bytes = COMMIT_BYTES_MAX + 1;
        let over = check_bounds(&[value(&key, VALUE_BYTES_MAX), value("a", rest + 1)]);
        assert_eq!(over, Err(ControlError::TooLarge { key, changes: 2, bytes }));
    }

    #[test]
    fn a_key_is_neither_empty_nor_long_nor_there_twice() {
        for keys in [&["a", "a"][..], &[""], &["k".repeat(KEY_BYTES_MAX + 1).as_str()]] {
            let changes: Vec<Change> = keys.iter().map(|key| Change::delete(*key, Expect::Any)).collect();
            assert!(matches!(check_bounds(&changes), Err(ControlError::BadKey { .. })), "{keys:?}");
        }
    }
}
