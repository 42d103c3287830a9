//! Doors to the records of the control state, for `tests/fuzz`; not built otherwise.

use proto::agent::StepEvent;
use proto::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::contract::VALUE_BYTES_MAX;
use super::observations::{HostStatus, JobSeen};
use super::state::changes::StoredChange;
use super::state::exports::Export;
use super::state::hosts::HostRecord;
use super::state::jobs::StoredJob;
use super::state::policies::PolicyRecord;
use super::state::repositories::{GrantRecord, RepositoryRecord};
use super::state::rollouts::StoredRollout;
use super::state::targets::StoredTarget;
use super::state::tokens::TokenRecord;
use super::state::{GenerationHead, Key};

/// What was read is written, and read again, the same. Whether it was read.
fn stable<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(value) = codec::decode::<T, VALUE_BYTES_MAX>(bytes) else { return false };
    let written = codec::encode(&value).unwrap_or_default();
    let again = codec::decode::<T, { 2 * VALUE_BYTES_MAX }>(&written).map(|value| codec::encode(&value));
    assert_eq!(again, Ok(Ok(written)));
    true
}

/// The records of every kind, without the checks that hide their bodies from chance.
pub(in crate::manager) fn records(bytes: &[u8]) -> bool {
    stable::<GenerationHead>(bytes)
        | stable::<Export>(bytes)
        | stable::<HostRecord>(bytes)
        | stable::<TokenRecord>(bytes)
        | stable::<StoredJob>(bytes)
        | stable::<StoredChange>(bytes)
        | stable::<StoredTarget>(bytes)
        | stable::<StoredRollout>(bytes)
        | stable::<PolicyRecord>(bytes)
        | stable::<RepositoryRecord>(bytes)
        | stable::<GrantRecord>(bytes)
        | stable::<HostStatus>(bytes)
        | stable::<JobSeen>(bytes)
        | stable::<StepEvent>(bytes)
        | super::database::read_any_commit(bytes)
}

/// A store of format 1: a key, a line end, and its value.
pub(in crate::manager) fn old_record(bytes: &[u8]) -> bool {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return false };
    let (key, value) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 1..]);
    super::bring_over::convert_any(&key, value)
}

/// A copy of the state.
pub(in crate::manager) fn backup(bytes: &[u8]) -> bool {
    let backup = super::backup::from_bytes(bytes);
    for (key, value) in &backup.entries {
        assert!(Key::parse(key).is_some_and(|parsed| parsed.to_string() == *key));
        drop(super::state::decode_value::<u64>(key, value));
    }
    !backup.entries.is_empty()
}

/// A value as the store has it, for a seed.
#[cfg(test)]
pub(in crate::manager) fn sealed(key: &str, number: u64) -> Vec<u8> {
    super::state::encode(key, &number).unwrap_or_default()
}
