//! The records of format 1, frozen as they were written, and what becomes of each.
//!
//! ```text
//! generation/PRODUCT/VERSION  signed record         group/GROUP           its hosts
//! export/PRODUCT/VERSION/TO   since when            token/HASH            one-time secret
//! host/HOST                   certificates          status/HOST           what it last said
//! history/HOST/PRODUCT        steps                 change/ID             order, steps and end of a change-over
//! job/ID                      order, progress, end  counter/NAME          last number
//! connected/HOST              leased
//! ```

use std::collections::BTreeSet;

use proto::agent::{AgentStatus, ChangeId, JobId, Operation, Outcome, Progress, Repository, SnapshotRef, StepEvent};
use proto::codec::{self, CodecError};
use proto::message::Unix;
use proto::name::{NameError, Target};
use proto::record::RecordFault;
use proto::{HostName, Product, TreeId, Version};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{New, PutFault};
use crate::manager::control::observations::{HostStatus, JobSeen};
use crate::manager::control::state::changes::{ChangeEnd, EndedBy, StoredChange};
use crate::manager::control::state::exports::Export;
use crate::manager::control::state::generations::{PART_BYTES, verify};
use crate::manager::control::state::hosts::{HostRecord, IssuedCertificate};
use crate::manager::control::state::jobs::{Later, StoredEnd, StoredJob};
use crate::manager::control::state::tokens::TokenRecord;
use crate::manager::control::state::{GenerationHead, Key};

/// First byte of every value.
const RECORD_FORMAT: u8 = 1;
/// More than format 1 could read: a record that was written too long is cut to what a record may have now.
const RECORD_BYTES_MAX: usize = 256 << 20;

/// Why a record of format 1 does not come over.
#[derive(Debug, thiserror::Error)]
pub(super) enum OldFault {
    #[error("it has no version")]
    NoVersion,
    #[error("it is of no known kind")]
    Kind,
    #[error("it names no product")]
    NoProduct,
    #[error("it is empty")]
    Empty,
    #[error("it has format {0}; stores of format 1 have {RECORD_FORMAT}")]
    Format(u8),
    #[error(transparent)]
    Encoding(#[from] CodecError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Signed(#[from] RecordFault),
    #[error("it is the record of {0}")]
    Misplaced(String),
    #[error(transparent)]
    Put(#[from] PutFault),
}

#[derive(Deserialize)]
struct OldExport(Product, Version, Target, Unix);

#[derive(Deserialize)]
struct OldCertificate(String, Unix);

#[derive(Deserialize)]
struct OldHost(Unix, Vec<OldCertificate>, Option<Unix>);

#[derive(Deserialize)]
struct OldToken(HostName, Unix, Option<Unix>);

#[derive(Deserialize)]
struct OldStatus(String, Unix, Vec<AgentStatus>, Vec<TreeId>, Vec<(Unix, String)>);

#[derive(Deserialize)]
struct OldChange {
    _id: ChangeId,
    host: HostName,
    product: Product,
    version: Version,
    to: TreeId,
    ordered: Unix,
    _steps: Vec<StepEvent>,
    ended: Option<OldChangeEnd>,
}

#[derive(Deserialize)]
struct OldChangeEnd {
    confirmed: bool,
    at: Unix,
    reason: String,
}

#[derive(Deserialize)]
struct OldJob {
    id: JobId,
    host: HostName,
    product: Product,
    operation: OldOperation,
    _state: OldJobState,
    created: Unix,
    started: Option<Unix>,
    ended: Option<Unix>,
    progress: Option<Progress>,
    outcome: Option<Outcome>,
    _waiting: Option<String>,
    cancel: bool,
    sent: u32,
}

/// Snapshots were named by a text alone, and looked up among those of all hosts.
#[derive(Deserialize)]
enum OldOperation {
    Backup { repository: Repository, sources: Vec<String> },
    Restore { repository: Repository, snapshot: String, target: String },
    Verify { repository: Repository, snapshot: String },
    Check { repository: Repository, read_data: bool },
    Prune { repository: Repository, keep_last: u32 },
}

impl From<OldOperation> for Operation {
    fn from(old: OldOperation) -> Self {
        let named = |snapshot| SnapshotRef { snapshot, ..SnapshotRef::latest() };
        match old {
            OldOperation::Backup { repository, sources } => Operation::Backup { repository, sources },
            OldOperation::Restore { repository, snapshot, target } => {
                Operation::Restore { repository, snapshot: named(snapshot), target }
            }
            OldOperation::Verify { repository, snapshot } => {
                Operation::Verify { repository, snapshot: named(snapshot) }
            }
            OldOperation::Check { repository, read_data } => Operation::Check { repository, read_data },
            OldOperation::Prune { repository, keep_last } => Operation::Prune { repository, keep_last },
        }
    }
}

#[derive(Deserialize)]
enum OldJobState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

/// Takes one record over.
///
/// # Errors
/// See [`OldFault`].
pub(super) fn convert(text: &str, packed: &[u8], new: &mut New) -> Result<(), OldFault> {
    let (_version, value) = packed.split_first_chunk::<8>().ok_or(OldFault::NoVersion)?;
    let (kind, rest) = text.split_once('/').ok_or(OldFault::Kind)?;
    match kind {
        "counter" => convert_counter(rest, value, new),
        "generation" => convert_generation(text, value, new),
        "group" => convert_group(rest, value, new),
        "status" => convert_status(rest, value, new),
        "history" => convert_history(rest, value, new),
        // Who was connected is known when they connect again.
        "connected" => Ok(()),
        _ => match Key::parse(text).ok_or(OldFault::Kind)? {
            key @ Key::Export(..) => {
                let OldExport(product, version, target, since) = decode(value)?;
                Ok(new.put(&key, &Export { product, version, target, since })?)
            }
            key @ Key::Host(_) => {
                let OldHost(enrolled, certificates, revoked) = decode(value)?;
                let certificates = certificates.into_iter();
                let certificates =
                    certificates.map(|OldCertificate(serial, not_after)| IssuedCertificate { serial, not_after });
                Ok(new.put(&key, &HostRecord { enrolled, certificates: certificates.collect(), revoked })?)
            }
            key @ Key::Token(_) => {
                let OldToken(host, expires, used) = decode(value)?;
                Ok(new.put(&key, &TokenRecord { host, expires, used })?)
            }
            key @ Key::Change(_) => Ok(new.put(&key, &stored_change(decode(value)?))?),
            key @ Key::Job(_) => convert_job(&key, decode(value)?, new),
            _ => Err(OldFault::Kind),
        },
    }
}

fn convert_counter(name: &str, value: &[u8], new: &mut New) -> Result<(), OldFault> {
    let last: u64 = decode(value)?;
    // The other counters are not needed: numbers are drawn now, and larger than any that was counted.
    if name == "generation" {
        new.sequence = new.sequence.max(last);
    }
    Ok(())
}

fn convert_generation(text: &str, value: &[u8], new: &mut New) -> Result<(), OldFault> {
    let signed: Vec<u8> = decode(value)?;
    let record = verify(&signed)?;
    let key = Key::Generation(record.product.clone(), record.version.clone());
    if key.to_string() != text {
        return Err(OldFault::Misplaced(record.name()));
    }
    new.sequence = new.sequence.max(record.sequence);
    if signed.len() <= PART_BYTES {
        return Ok(new.put(&key, &GenerationHead::Whole(signed))?);
    }
    let hash = blake3::hash(&signed).to_hex().to_string();
    let mut count = 0;
    for part in signed.chunks(PART_BYTES) {
        new.put(&Key::Part(hash.clone(), count), &part.to_vec())?;
        count += 1;
    }
    Ok(new.put(&key, &GenerationHead::Parts { hash, count })?)
}

fn convert_group(name: &str, value: &[u8], new: &mut New) -> Result<(), OldFault> {
    let hosts: BTreeSet<HostName> = decode(value)?;
    let group: proto::GroupName = name.parse()?;
    for host in hosts {
        new.put(&Key::Member(group.clone(), host), &())?;
    }
    Ok(new.put(&Key::Group(group), &())?)
}

fn convert_status(host: &str, value: &[u8], new: &mut New) -> Result<(), OldFault> {
    let host: HostName = host.parse()?;
    let OldStatus(software, last_seen, agents, attached, wrong_hashes) = decode(value)?;
    let status = HostStatus { software, last_seen, agents, attached, wrong_hashes };
    new.observations.statuses.push((host, status));
    Ok(())
}

fn convert_history(rest: &str, value: &[u8], new: &mut New) -> Result<(), OldFault> {
    let (host, _product) = rest.split_once('/').ok_or(OldFault::NoProduct)?;
    let host: HostName = host.parse()?;
    new.observations.steps.push((host, decode(value)?));
    Ok(())
}

fn stored_change(old: OldChange) -> StoredChange {
    // Whoever said so then, an agent that says otherwise now knows better.
    let by = |confirmed| if confirmed { EndedBy::Agent } else { EndedBy::Manager };
    let end = |old: OldChangeEnd| ChangeEnd {
        confirmed: old.confirmed,
        at: old.at,
        reason: old.reason,
        by: by(old.confirmed),
    };
    StoredChange {
        host: old.host,
        product: old.product,
        version: old.version,
        to: old.to,
        ordered: old.ordered,
        ended: old.ended.map(end),
    }
}

fn convert_job(key: &Key, old: OldJob, new: &mut New) -> Result<(), OldFault> {
    let progress = old.progress;
    let end = old.outcome.map(|outcome| StoredEnd {
        at: old.ended.unwrap_or(old.created),
        by: if matches!(outcome, Outcome::Failed(_)) { EndedBy::Manager } else { EndedBy::Agent },
        outcome,
        started: old.started,
        progress: progress.clone(),
    });
    if let (None, Some(progress)) = (&end, progress) {
        let seen = JobSeen { since: old.started.unwrap_or(old.created), progress };
        new.observations.progress.push((old.id, seen));
    }
    let sent = (old.sent > 0).then_some(old.started.unwrap_or(old.created));
    let (host, product, operation) = (old.host, old.product, old.operation.into());
    let stored =
        StoredJob { host, product, operation, created: old.created, sent, cancel: old.cancel, end, run: Later(None) };
    Ok(new.put(key, &stored)?)
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, OldFault> {
    match value.split_first() {
        Some((&RECORD_FORMAT, body)) => Ok(codec::decode::<T, RECORD_BYTES_MAX>(body)?),
        Some((format, _)) => Err(OldFault::Format(*format)),
        None => Err(OldFault::Empty),
    }
}
