//! The tables of the control database, and what is read from and written to them within one transaction.

use proto::codec;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::super::contract::{
    Act, Change, ControlError, Cursor, Entry, Event, Events, Expect, LeaseId, Listing, PAGE_ENTRIES_MAX, Revision,
};
use super::super::disk::{Changed, Disk, META, claim, storage};

/// Key to the revision of its last change (8 bytes) and its value.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Revision to the keys and new values of its commit, encoded.
const COMMITS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("commits");
/// Keys that are bound to a lease.
const LEASES: TableDefinition<'_, &str, u64> = TableDefinition::new("leases");

/// The format of these tables.
pub(super) const FORMAT: u64 = 2;

/// Commits whose history is kept: a watcher that is further behind lists again.
pub(super) const HISTORY_COMMITS: u64 = 4096;
/// Bytes of changes whose history is kept.
pub(super) const HISTORY_BYTES_MAX: usize = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Bytes of one page of a listing or of the history, unless one entry alone has more.
pub(super) const PAGE_BYTES: usize = if cfg!(test) { 32 << 10 } else { 4 << 20 };
/// Bytes of one commit as it stands in the history: its bound, and some for the encoding.
const COMMIT_BYTES_MAX: usize = super::super::contract::COMMIT_BYTES_MAX + (64 << 10);

/// What a store begins with.
pub(super) struct Begun {
    pub(super) revision: Revision,
    pub(super) history_bytes: usize,
    /// Keys of leases that ended with the process that held them.
    pub(super) stale: Vec<String>,
}

/// How far the commits of a transaction are.
pub(super) struct Reached {
    pub(super) revision: Revision,
    pub(super) history_bytes: usize,
}

/// A key and its new value.
type Written = (String, Option<Vec<u8>>);

/// Makes the tables if need be.
pub(super) fn begin(disk: &Disk) -> Result<Begun, ControlError> {
    disk.write(|transaction| {
        claim(transaction, FORMAT)?;
        let meta = transaction.open_table(META).map_err(storage)?;
        let revision = meta.get("revision").map_err(storage)?.map_or(0, |revision| revision.value());
        transaction.open_table(ENTRIES).map_err(storage)?;
        let commits = transaction.open_table(COMMITS).map_err(storage)?;
        let mut history_bytes = 0;
        for entry in commits.iter().map_err(storage)? {
            history_bytes += entry.map_err(storage)?.1.value().len();
        }
        let leases = transaction.open_table(LEASES).map_err(storage)?;
        let begun = Begun { revision: Revision(revision), history_bytes, stale: keys_of(&leases, None)? };
        Ok((begun, Changed::Something))
    })
}

fn revision_of(transaction: &ReadTransaction) -> Result<Revision, ControlError> {
    let meta = transaction.open_table(META).map_err(storage)?;
    Ok(Revision(meta.get("revision").map_err(storage)?.map_or(0, |revision| revision.value())))
}

/// The last revision that the database has.
pub(super) fn last(transaction: &WriteTransaction) -> Result<Revision, ControlError> {
    let meta = transaction.open_table(META).map_err(storage)?;
    Ok(Revision(meta.get("revision").map_err(storage)?.map_or(0, |revision| revision.value())))
}

/// Writes entries into an empty store, as its first revision and without a history.
pub(super) fn fill(
    transaction: &WriteTransaction,
    entries: &[(String, Vec<u8>)],
) -> Result<((), Changed), ControlError> {
    const FIRST: u64 = 1;
    let mut table = transaction.open_table(ENTRIES).map_err(storage)?;
    for (key, value) in entries {
        let packed = [&FIRST.to_le_bytes(), value.as_slice()].concat();
        table.insert(key.as_str(), packed.as_slice()).map_err(storage)?;
    }
    transaction.open_table(META).map_err(storage)?.insert("revision", FIRST).map_err(storage)?;
    Ok(((), Changed::Something))
}

pub(super) fn get(transaction: &ReadTransaction, key: &str) -> Result<Option<Entry>, ControlError> {
    let entries = transaction.open_table(ENTRIES).map_err(storage)?;
    let found = entries.get(key).map_err(storage)?;
    Ok(found.map(|bytes| unpack(key, bytes.value())))
}

/// A page of the keys with a prefix, after a key.
pub(super) fn list(
    transaction: &ReadTransaction,
    prefix: &str,
    after: Option<&str>,
) -> Result<Listing, ControlError> {
    let revision = revision_of(transaction)?;
    let table = transaction.open_table(ENTRIES).map_err(storage)?;
    let mut listing = Listing { entries: Vec::new(), revision, next: None };
    let mut bytes = 0;
    for entry in table.range::<&str>(after.unwrap_or(prefix)..).map_err(storage)? {
        let (key, packed) = entry.map_err(storage)?;
        let (key, packed) = (key.value(), packed.value());
        if Some(key) == after {
            continue;
        }
        if !key.starts_with(prefix) {
            break;
        }
        if let Some(last) = listing.entries.last()
            && (listing.entries.len() == PAGE_ENTRIES_MAX || bytes + packed.len() > PAGE_BYTES)
        {
            listing.next = Some(Cursor { after: last.key.clone(), revision });
            break;
        }
        bytes += key.len() + packed.len();
        listing.entries.push(unpack(key, packed));
    }
    Ok(listing)
}

/// What happened to keys with a prefix after a revision, as far as one page reaches.
pub(super) fn history(transaction: &ReadTransaction, prefix: &str, after: Revision) -> Result<Events, ControlError> {
    let commits = transaction.open_table(COMMITS).map_err(storage)?;
    // Without any commit everything is older than what comes next.
    let oldest = commits.first().map_err(storage)?.map(|(revision, _)| revision.value());
    let oldest = oldest.map_or_else(|| Ok(revision_of(transaction)?.0 + 1), Ok)?;
    if oldest > after.0 + 1 {
        return Err(ControlError::Compacted { oldest: Revision(oldest) });
    }
    let (mut found, mut bytes) = (Events { through: after, events: Vec::new() }, 0);
    for entry in commits.range(after.0 + 1..).map_err(storage)? {
        let (revision, encoded) = entry.map_err(storage)?;
        let (revision, encoded) = (Revision(revision.value()), encoded.value());
        let written = match codec::decode::<Vec<Written>, COMMIT_BYTES_MAX>(encoded) {
            Ok(written) => written,
            // What it changed can still be listed; only how it came about is lost.
            Err(error) => {
                tracing::error!(revision = revision.0, %error, "a commit of the control state's history is damaged");
                return Err(ControlError::Compacted { oldest: Revision(revision.0 + 1) });
            }
        };
        let wanted = written.into_iter().filter(|(key, _)| key.starts_with(prefix));
        found.events.extend(wanted.map(|(key, value)| Event { revision, key, value }));
        found.through = revision;
        bytes += encoded.len();
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(found)
}

/// Keys that are bound to a lease, or to any.
pub(super) fn leased(transaction: &ReadTransaction, lease: Option<LeaseId>) -> Result<Vec<String>, ControlError> {
    keys_of(&transaction.open_table(LEASES).map_err(storage)?, lease)
}

/// Checks the conditions of one commit, then makes its changes.
pub(super) fn apply(
    transaction: &WriteTransaction,
    changes: &[Change],
    reached: &mut Reached,
) -> Result<Revision, ControlError> {
    check(transaction, changes)?;
    let revision = Revision(reached.revision.0 + 1);
    write(transaction, changes, revision)?;
    reached.history_bytes = remember(transaction, changes, revision, reached.history_bytes)?;
    let mut meta = transaction.open_table(META).map_err(storage)?;
    meta.insert("revision", revision.0).map_err(storage)?;
    reached.revision = revision;
    Ok(revision)
}

fn check(transaction: &WriteTransaction, changes: &[Change]) -> Result<(), ControlError> {
    let entries = transaction.open_table(ENTRIES).map_err(storage)?;
    for change in changes {
        let found = entries.get(change.key.as_str()).map_err(storage)?;
        let changed = found.map(|bytes| unpack(&change.key, bytes.value()).changed);
        let holds = match change.expect {
            Expect::Any => true,
            Expect::Absent => changed.is_none(),
            Expect::At(wanted) => changed == Some(wanted),
        };
        if !holds {
            return Err(ControlError::Conflict { key: change.key.clone() });
        }
    }
    Ok(())
}

fn write(transaction: &WriteTransaction, changes: &[Change], revision: Revision) -> Result<(), ControlError> {
    let mut entries = transaction.open_table(ENTRIES).map_err(storage)?;
    let mut leases = transaction.open_table(LEASES).map_err(storage)?;
    for change in changes {
        let key = change.key.as_str();
        let lease = match &change.act {
            Act::Put { value, lease } => {
                let packed = [&revision.0.to_le_bytes(), value.as_slice()].concat();
                entries.insert(key, packed.as_slice()).map_err(storage)?;
                *lease
            }
            Act::Delete => {
                entries.remove(key).map_err(storage)?;
                None
            }
            Act::Check => continue,
        };
        match lease {
            Some(lease) => leases.insert(key, lease.0),
            None => leases.remove(key),
        }
        .map_err(storage)?;
    }
    Ok(())
}

/// Adds a commit to the history and forgets the oldest; returns the bytes that it has then.
fn remember(
    transaction: &WriteTransaction,
    changes: &[Change],
    revision: Revision,
    mut bytes: usize,
) -> Result<usize, ControlError> {
    let mut commits = transaction.open_table(COMMITS).map_err(storage)?;
    let written: Vec<(&String, Option<&Vec<u8>>)> = changes
        .iter()
        .filter_map(|change| match &change.act {
            Act::Put { value, .. } => Some((&change.key, Some(value))),
            Act::Delete => Some((&change.key, None)),
            Act::Check => None,
        })
        .collect();
    let encoded = codec::encode(&written).map_err(storage)?;
    bytes += encoded.len();
    commits.insert(revision.0, encoded.as_slice()).map_err(storage)?;
    loop {
        let oldest = commits.first().map_err(storage)?.map_or(revision.0, |(oldest, _)| oldest.value());
        if oldest == revision.0 || (bytes <= HISTORY_BYTES_MAX && revision.0 - oldest < HISTORY_COMMITS) {
            return Ok(bytes);
        }
        let forgotten = commits.pop_first().map_err(storage)?.map_or(0, |(_, encoded)| encoded.value().len());
        bytes = bytes.saturating_sub(forgotten);
    }
}

fn keys_of(
    leases: &impl ReadableTable<&'static str, u64>,
    wanted: Option<LeaseId>,
) -> Result<Vec<String>, ControlError> {
    let mut keys = Vec::new();
    for entry in leases.iter().map_err(storage)? {
        let (key, lease) = entry.map_err(storage)?;
        if wanted.is_none_or(|wanted| wanted.0 == lease.value()) {
            keys.push(key.value().to_owned());
        }
    }
    Ok(keys)
}

/// For `tests/fuzz`: a commit of the history, and an entry.
#[cfg(any(test, fuzzing))]
pub(in crate::manager::control) fn read_any_commit(bytes: &[u8]) -> bool {
    drop(unpack("key", bytes));
    codec::decode::<Vec<Written>, COMMIT_BYTES_MAX>(bytes).is_ok()
}

/// The parts of a stored entry. One without a revision never matches a condition on it, and its value is empty, which
/// no record is: whoever reads it says that it is damaged.
fn unpack(key: &str, bytes: &[u8]) -> Entry {
    let (changed, value) = match bytes.split_first_chunk::<8>() {
        Some((changed, value)) => (u64::from_le_bytes(*changed), value.to_vec()),
        None => (0, Vec::new()),
    };
    Entry { key: key.to_owned(), value, changed: Revision(changed) }
}
