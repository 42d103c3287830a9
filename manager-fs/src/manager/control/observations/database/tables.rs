//! The tables of the observations, and what is read from and written to them within one transaction.
//!
//! A row that does not decode is passed over when it is read, and gone when it would be written: what it said, its
//! host says again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proto::agent::{JobId, StepEvent};
use proto::{HostName, Product, codec};
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::super::contract::ControlError;
use super::super::super::disk::{Changed, Disk, claim, storage};
use super::super::{HostStatus, JobSeen, Noted, Observation, bounds};
use super::{Filling, Statuses};

/// Host to what it last said.
const STATUSES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("statuses");
/// `HOST/PRODUCT/NUMBER` to a step; numbers (16 hex digits) grow by one.
const STEPS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("steps");
/// Job to how far it is.
const PROGRESS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("progress");

/// The format of these tables.
const FORMAT: u64 = 1;
/// Bytes of one row; the bounds keep them far below.
const ROW_BYTES_MAX: usize = 16 << 20;

/// Makes the tables if need be, and reads what hosts last said.
pub(super) fn begin(disk: &Disk) -> Result<Statuses, ControlError> {
    disk.write(|transaction| {
        let changed = claim(transaction, FORMAT)?;
        transaction.open_table(STEPS).map_err(storage)?;
        transaction.open_table(PROGRESS).map_err(storage)?;
        let table = transaction.open_table(STATUSES).map_err(storage)?;
        let mut statuses = BTreeMap::new();
        for row in table.iter().map_err(storage)? {
            let (host, bytes) = row.map_err(storage)?;
            let Ok(host) = host.value().parse::<HostName>() else { continue };
            if let Some(status) = decode(host.as_str(), bytes.value()) {
                statuses.insert(host, Arc::new(status));
            }
        }
        Ok((statuses, changed))
    })
}

/// Takes what was seen of a host: statuses into `statuses`, the rest into their tables.
pub(super) fn note(
    transaction: &WriteTransaction,
    host: &HostName,
    seen: &[Observation],
    statuses: &mut HashMap<HostName, HostStatus>,
    steps_bytes: usize,
) -> Result<Vec<Noted>, ControlError> {
    let mut noted = Vec::with_capacity(seen.len());
    for seen in seen {
        noted.push(match seen {
            Observation::Step(event) => add_step(transaction, host, event, steps_bytes)?,
            Observation::Progress { job, progress, at } => {
                let seen = JobSeen { since: *at, progress: progress.clone() };
                put_progress(transaction, *job, seen)?
            }
            other => change_status(statuses.entry(host.clone()).or_default(), other),
        });
    }
    Ok(noted)
}

fn change_status(status: &mut HostStatus, seen: &Observation) -> Noted {
    let before = status.clone();
    match seen {
        Observation::Seen { at, software } => {
            status.last_seen = status.last_seen.max(*at);
            if let Some(software) = software {
                status.software.clone_from(software);
            }
        }
        Observation::Agents { agents, at } => {
            status.last_seen = status.last_seen.max(*at);
            status.agents.clone_from(agents);
        }
        Observation::Attached { trees, at } => {
            status.last_seen = status.last_seen.max(*at);
            status.attached.clone_from(trees);
        }
        Observation::WrongHash { what, at } => status.wrong_hashes.push((*at, what.clone())),
        Observation::Step(_) | Observation::Progress { .. } => {}
    }
    bounds::bound_status(status);
    if *status == before { Noted::Known } else { Noted::New }
}

/// Writes statuses, and says whether anything of this transaction is worth a sync.
pub(super) fn put_statuses(
    transaction: &WriteTransaction,
    statuses: &HashMap<HostName, HostStatus>,
) -> Result<Changed, ControlError> {
    let mut table = transaction.open_table(STATUSES).map_err(storage)?;
    for (host, status) in statuses {
        let encoded = encode(status)?;
        let same = table.get(host.as_str()).map_err(storage)?.is_some_and(|old| old.value() == encoded);
        if !same {
            table.insert(host.as_str(), encoded.as_slice()).map_err(storage)?;
        }
    }
    // A step or a status: hosts do not send what changes nothing, but after a lost answer.
    Ok(Changed::Something)
}

fn add_step(
    transaction: &WriteTransaction,
    host: &HostName,
    event: &StepEvent,
    steps_bytes: usize,
) -> Result<Noted, ControlError> {
    let prefix = format!("{host}/{}/", event.product);
    let encoded = encode(event)?;
    let mut table = transaction.open_table(STEPS).map_err(storage)?;
    let (mut kept, mut number) = (Vec::new(), 0);
    for row in table.range(prefix.as_str()..).map_err(storage)? {
        let (key, bytes) = row.map_err(storage)?;
        let Some(digits) = key.value().strip_prefix(&prefix) else { break };
        if bytes.value() == encoded {
            return Ok(Noted::Known);
        }
        number = u64::from_str_radix(digits, 16).unwrap_or(number) + 1;
        kept.push((key.value().to_owned(), bytes.value().len()));
    }
    if kept.is_empty() {
        make_room_for_product(&mut table, host)?;
    }
    // The oldest go when there are too many, or too many bytes; the new one stays in any case.
    let (mut left, mut bytes) = (bounds::STEPS_MAX - 1, encoded.len());
    for (key, length) in kept.into_iter().rev() {
        bytes += length;
        if left == 0 || bytes > steps_bytes {
            left = 0;
            table.remove(key.as_str()).map_err(storage)?;
        } else {
            left -= 1;
        }
    }
    table.insert(format!("{prefix}{number:016x}").as_str(), encoded.as_slice()).map_err(storage)?;
    Ok(Noted::New)
}

/// Forgets the product of a host whose last step is the oldest, when one more would be too many.
fn make_room_for_product(table: &mut Table<'_, &str, &[u8]>, host: &HostName) -> Result<(), ControlError> {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let prefix = format!("{host}/");
    for row in table.range(prefix.as_str()..).map_err(storage)? {
        let (key, bytes) = row.map_err(storage)?;
        let Some(rest) = key.value().strip_prefix(&prefix) else { break };
        let product = rest.split('/').next().unwrap_or_default();
        let at = decode::<StepEvent>(key.value(), bytes.value()).map_or(0, |event| event.at_unix_ms);
        last.insert(product.to_owned(), at);
    }
    if last.len() >= bounds::PRODUCTS_MAX
        && let Some((product, _)) = last.iter().min_by_key(|(_, at)| **at)
    {
        remove_prefix(table, &format!("{prefix}{product}/"))?;
    }
    Ok(())
}

fn put_progress(transaction: &WriteTransaction, job: JobId, mut seen: JobSeen) -> Result<Noted, ControlError> {
    let mut table = transaction.open_table(PROGRESS).map_err(storage)?;
    let old = table.get(job.0).map_err(storage)?.and_then(|old| decode::<JobSeen>("progress", old.value()));
    if let Some(old) = &old {
        seen.since = old.since;
    }
    let known = old.as_ref() == Some(&seen);
    table.insert(job.0, encode(&seen)?.as_slice()).map_err(storage)?;
    if table.len().map_err(storage)? > bounds::PROGRESS_MAX {
        table.pop_first().map_err(storage)?;
    }
    Ok(if known { Noted::Known } else { Noted::New })
}

pub(super) fn steps(
    transaction: &ReadTransaction,
    host: &HostName,
    product: &Product,
) -> Result<Vec<StepEvent>, ControlError> {
    let table = transaction.open_table(STEPS).map_err(storage)?;
    let prefix = format!("{host}/{product}/");
    let mut steps = Vec::new();
    for row in table.range(prefix.as_str()..).map_err(storage)? {
        let (key, bytes) = row.map_err(storage)?;
        if !key.value().starts_with(&prefix) {
            break;
        }
        steps.extend(decode::<StepEvent>(key.value(), bytes.value()));
    }
    Ok(steps)
}

pub(super) fn progress(transaction: &ReadTransaction, job: JobId) -> Result<Option<JobSeen>, ControlError> {
    let table = transaction.open_table(PROGRESS).map_err(storage)?;
    let found = table.get(job.0).map_err(storage)?;
    Ok(found.and_then(|bytes| decode("progress", bytes.value())))
}

pub(super) fn forget_host(transaction: &WriteTransaction, host: &HostName) -> Result<((), Changed), ControlError> {
    transaction.open_table(STATUSES).map_err(storage)?.remove(host.as_str()).map_err(storage)?;
    remove_prefix(&mut transaction.open_table(STEPS).map_err(storage)?, &format!("{host}/"))?;
    Ok(((), Changed::Something))
}

fn remove_prefix(table: &mut Table<'_, &str, &[u8]>, prefix: &str) -> Result<(), ControlError> {
    let mut keys = BTreeSet::new();
    for row in table.range(prefix..).map_err(storage)? {
        let key = row.map_err(storage)?.0;
        if !key.value().starts_with(prefix) {
            break;
        }
        keys.insert(key.value().to_owned());
    }
    keys.iter().try_for_each(|key| table.remove(key.as_str()).map(drop).map_err(storage))
}

/// Writes everything, bounded as what hosts report.
pub(super) fn fill(transaction: &WriteTransaction, all: &Filling) -> Result<((), Changed), ControlError> {
    let mut statuses = HashMap::new();
    for (host, status) in &all.statuses {
        let mut parts = vec![
            Observation::Seen { at: status.last_seen, software: Some(status.software.clone()) },
            Observation::Agents { agents: status.agents.clone(), at: status.last_seen },
            Observation::Attached { trees: status.attached.clone(), at: status.last_seen },
        ];
        let wrong = status.wrong_hashes.iter();
        parts.extend(wrong.map(|(at, what)| Observation::WrongHash { what: what.clone(), at: *at }));
        note_bounded(transaction, host, parts, &mut statuses, all.statuses.len())?;
    }
    for (host, steps) in &all.steps {
        let steps = steps.iter().cloned().map(Observation::Step).collect();
        note_bounded(transaction, host, steps, &mut statuses, all.statuses.len())?;
    }
    for (job, seen) in &all.progress {
        let (progress, at) = (seen.progress.clone(), seen.since);
        let mut seen = Observation::Progress { job: *job, progress, at };
        bounds::bound(&mut seen);
        if let Observation::Progress { job, progress, at } = seen {
            put_progress(transaction, job, JobSeen { since: at, progress })?;
        }
    }
    Ok(((), put_statuses(transaction, &statuses)?))
}

fn note_bounded(
    transaction: &WriteTransaction,
    host: &HostName,
    mut seen: Vec<Observation>,
    statuses: &mut HashMap<HostName, HostStatus>,
    hosts: usize,
) -> Result<(), ControlError> {
    seen.iter_mut().for_each(bounds::bound);
    note(transaction, host, &seen, statuses, bounds::steps_bytes(hosts)).map(drop)
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, ControlError> {
    codec::encode(value).map_err(storage)
}

fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Option<T> {
    match codec::decode::<T, ROW_BYTES_MAX>(bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(what, %error, "an observation cannot be read and counts as never made");
            None
        }
    }
}
