//! The control state: generations, exports, hosts, agents, jobs, change-overs.
//!
//! [`ControlStore`] is all that the rest needs of a database; [`embedded`] is the one for a manager on one machine.
//! [`State`] lays typed records over it. Keys are paths of checked names:
//!
//! ```text
//! generation/PRODUCT/VERSION         the signed record            counter/NAME
//! export/PRODUCT/VERSION/TARGET      since when                   group/GROUP          its hosts
//! host/HOST                          certificates, revocation     token/HASH           one-time secrets
//! status/HOST                        agents, attached trees       history/HOST/PRODUCT steps of change-overs
//! change/ID                          one upgrade of one agent     job/ID               one storage operation
//! ```

use std::sync::Arc;
use std::time::Duration;

use proto::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub mod bring_over;
pub mod changes;
pub mod contract;
mod disk;
pub mod embedded;
pub mod generations;
pub mod hosts;
mod ids;
pub mod jobs;
pub mod local;
pub mod observations;
pub mod state;

/// A value, and the revision of the store in which it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes.
    pub value: Vec<u8>,
    /// Compare-and-swap compares this.
    pub version: u64,
}

/// What a key must be for a change to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// Not there.
    Absent,
    /// Last written in this revision.
    Version(u64),
}

/// One key of a commit.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which.
    pub key: String,
    /// On what condition.
    pub expect: Expect,
    /// The new value; `None` deletes.
    pub put: Option<Vec<u8>>,
    /// Delete the key when this lease ends.
    pub lease: Option<LeaseId>,
}

impl Change {
    /// Writes `value` if `expect` holds.
    pub fn put(key: impl Into<String>, expect: Expect, value: Vec<u8>) -> Self {
        Self { key: key.into(), expect, put: Some(value), lease: None }
    }

    /// Deletes the key if `expect` holds.
    pub fn delete(key: impl Into<String>, expect: Expect) -> Self {
        Self { key: key.into(), expect, put: None, lease: None }
    }
}

/// One change of one key, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// In which commit; events of one commit share it.
    pub revision: u64,
    /// Which key.
    pub key: String,
    /// The new value; `None`: deleted.
    pub value: Option<Vec<u8>>,
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
    #[error("the history before revision {oldest} is no longer kept")]
    Compacted {
        /// The oldest kept.
        oldest: u64,
    },
    /// No such lease, or it has ended.
    #[error("the lease has ended")]
    LeaseEnded,
    /// A record does not decode.
    #[error("the control state's record '{key}' is damaged: {reason}")]
    Damaged {
        /// Which.
        key: String,
        /// How.
        reason: String,
    },
    /// The database failed.
    #[error("the control state failed: {0}")]
    Storage(String),
}

/// A small database with one history: what etcd and its like offer, and no more.
pub trait ControlStore: Send + Sync + 'static {
    /// Reads one key.
    ///
    /// # Errors
    /// The database failed.
    fn get(&self, key: &str) -> Result<Option<Versioned>, ControlError>;

    /// Reads every key that begins with `prefix`, in order.
    ///
    /// # Errors
    /// The database failed.
    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, ControlError>;

    /// Makes all changes or none; durable when it returns. Returns the new revision.
    ///
    /// # Errors
    /// [`ControlError::Conflict`], or the database failed.
    fn commit(&self, changes: &[Change]) -> Result<u64, ControlError>;

    /// Everything that happened to keys with `prefix` after revision `after`, in order.
    ///
    /// # Errors
    /// [`ControlError::Compacted`], or the database failed.
    fn history(&self, prefix: &str, after: u64) -> Result<Vec<Event>, ControlError>;

    /// The current revision, and a way to wait for the next.
    fn revision(&self) -> watch::Receiver<u64>;

    /// Begins a lease that ends `ttl` after it was last kept.
    ///
    /// # Errors
    /// The database failed.
    fn grant(&self, ttl: Duration) -> Result<LeaseId, ControlError>;

    /// Keeps a lease.
    ///
    /// # Errors
    /// It has ended.
    fn keep(&self, lease: LeaseId) -> Result<(), ControlError>;

    /// Ends a lease: its keys are deleted. Ending it twice is no error.
    ///
    /// # Errors
    /// The database failed.
    fn end(&self, lease: LeaseId) -> Result<(), ControlError>;
}

/// Follows every change below a prefix, in order and without a gap.
pub struct Watch {
    store: Arc<dyn ControlStore>,
    prefix: String,
    seen: u64,
    revision: watch::Receiver<u64>,
}

impl Watch {
    /// Follows what happens after revision `after`.
    pub fn new(store: Arc<dyn ControlStore>, prefix: impl Into<String>, after: u64) -> Self {
        let revision = store.revision();
        Self { store, prefix: prefix.into(), seen: after, revision }
    }

    /// Waits for the next changes.
    ///
    /// # Errors
    /// The watcher fell behind the kept history, or the database failed.
    pub async fn next(&mut self) -> Result<Vec<Event>, ControlError> {
        loop {
            let current = *self.revision.borrow_and_update();
            if current > self.seen {
                let events = self.store.history(&self.prefix, self.seen)?;
                // A commit may have come in between: then its events are here already.
                self.seen = events.last().map_or(current, |event| event.revision.max(current));
                if !events.is_empty() {
                    return Ok(events);
                }
            }
            let changed = self.revision.changed().await;
            changed.map_err(|_| ControlError::Storage(String::from("the store was closed")))?;
        }
    }
}

/// Bytes of one record: a change-over's timeline with its evidence, or a signed record.
const STATE_RECORD_BYTES_MAX: usize = 16 << 20;
/// First byte of every value; another one is a later format.
const STATE_RECORD_FORMAT: u8 = 1;

/// Typed records over a control store.
pub struct State {
    store: Arc<dyn ControlStore>,
    generations: generations::Cache,
}

impl State {
    /// Lays typed records over `store`.
    pub fn new(store: Arc<dyn ControlStore>) -> Self {
        Self { store, generations: generations::Cache::default() }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn ControlStore> {
        &self.store
    }

    pub(crate) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, ControlError> {
        let Some(found) = self.store.get(key)? else { return Ok(None) };
        Ok(Some((decode(key, &found.value)?, found.version)))
    }

    pub(crate) fn read_all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, ControlError> {
        let found = self.store.list(prefix)?;
        found.into_iter().map(|(key, found)| decode(&key, &found.value).map(|value| (key, value))).collect()
    }

    /// Changes one record, starting over when someone else changed it meanwhile. `change` gets `None` when there is
    /// none yet; returning `None` leaves everything as it is.
    pub(crate) fn update<T, R, E>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> Result<(Option<T>, R), E>,
    ) -> Result<R, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<ControlError>,
    {
        loop {
            let found = self.read::<T>(key)?;
            let expect = found.as_ref().map_or(Expect::Absent, |(_, version)| Expect::Version(*version));
            let (value, result) = change(found.map(|(value, _)| value))?;
            let Some(value) = value else { return Ok(result) };
            match self.store.commit(&[Change::put(key, expect, encode(&value)?)]) {
                Ok(_) => return Ok(result),
                Err(ControlError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next number of a counter, beginning with 1.
    pub(crate) fn next_number(&self, counter: &str) -> Result<u64, ControlError> {
        self.update(&format!("counter/{counter}"), |last: Option<u64>| {
            let next = last.unwrap_or(0) + 1;
            Ok((Some(next), next))
        })
    }
}

/// Encodes a record for [`Change::put`].
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, ControlError> {
    let body = codec::encode(value).map_err(|error| ControlError::Storage(error.to_string()))?;
    Ok([&[STATE_RECORD_FORMAT], body.as_slice()].concat())
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, ControlError> {
    let damaged = |reason: String| ControlError::Damaged { key: key.to_owned(), reason };
    match bytes.split_first() {
        Some((&STATE_RECORD_FORMAT, body)) => {
            codec::decode::<_, STATE_RECORD_BYTES_MAX>(body).map_err(|error| damaged(error.to_string()))
        }
        Some((format, _)) => Err(damaged(format!("it has format {format}; this program knows 1"))),
        None => Err(damaged(String::from("it is empty"))),
    }
}
