//! Entries of a control state that is built anew, before there is a store for them.

use std::collections::{BTreeMap, BTreeSet};

use proto::message::Unix;
use proto::{GenerationRecord, TreeId};

use super::contract::ControlError;
use super::state::exports::after_loss;
use super::state::generations::{PART_BYTES, key_of, verify};
use super::state::{GenerationHead, Key, decode_value, encode, is_whole};

/// Adds a signed record, of a new version or `also` for another architecture, unless its generation is there already; whether it was added.
///
/// # Errors
/// It cannot be kept.
pub(crate) fn add_record(
    entries: &mut BTreeMap<String, Vec<u8>>,
    record: &GenerationRecord,
    also: bool,
    signed: Vec<u8>,
) -> Result<bool, ControlError> {
    let first = key_of(record, false).to_string();
    let key = if also && entries.contains_key(&first) { key_of(record, true).to_string() } else { first };
    if record_at(entries, &key).is_some() {
        return Ok(false);
    }
    let head = if signed.len() <= PART_BYTES {
        GenerationHead::Whole(signed)
    } else {
        let hash = blake3::hash(&signed).to_hex().to_string();
        let mut count = 0;
        for part in signed.chunks(PART_BYTES) {
            let key = Key::Part(hash.clone(), count).to_string();
            let value = encode(&key, &part.to_vec())?;
            entries.insert(key, value);
            count += 1;
        }
        GenerationHead::Parts { hash, count }
    };
    let value = encode(&key, &head)?;
    entries.insert(key, value);
    Ok(true)
}

/// Sees to it that no number of a record is given twice.
///
/// # Errors
/// It cannot be kept.
pub(crate) fn raise_sequence(entries: &mut BTreeMap<String, Vec<u8>>, newest: u64) -> Result<(), ControlError> {
    let key = Key::Sequence.to_string();
    let known = entries.get(&key).and_then(|value| decode_value::<u64>(&key, value).ok());
    let value = encode(&key, &known.unwrap_or(0).max(newest))?;
    entries.insert(key, value);
    Ok(())
}

/// Sees to it that no list of exports gets a number that an earlier list may have had: what is built anew may be older than
/// the last that hosts were told.
///
/// # Errors
/// It cannot be kept.
pub(crate) fn raise_lists(entries: &mut BTreeMap<String, Vec<u8>>, now: Unix) -> Result<(), ControlError> {
    let key = Key::Lists.to_string();
    let known = entries.get(&key).and_then(|value| decode_value::<u64>(&key, value).ok());
    let value = encode(&key, &known.unwrap_or(0).max(after_loss(now)))?;
    entries.insert(key, value);
    Ok(())
}

/// Numbers of records that are left out after a restore: more than were signed since any backup that anybody puts back.
const LEFT_OUT: u64 = 1 << 20;

/// Sees to it that no record and no list of exports gets a number that was given after these entries were copied.
///
/// # Errors
/// They cannot be kept.
pub(crate) fn leave_out(entries: &mut BTreeMap<String, Vec<u8>>, now: Unix) -> Result<(), ControlError> {
    let generations = entries.keys().filter(|key| key.starts_with("generation/"));
    let newest = generations.filter_map(|key| record_at(entries, key)).map(|record| record.sequence).max();
    let key = Key::Sequence.to_string();
    let signed = entries.get(&key).and_then(|value| decode_value::<u64>(&key, value).ok());
    let last = signed.unwrap_or(0).max(newest.unwrap_or(0));
    raise_sequence(entries, last.saturating_add(LEFT_OUT))?;
    raise_lists(entries, now)
}

/// The trees of all generations whose records can be read.
pub(crate) fn trees_of(entries: &BTreeMap<String, Vec<u8>>) -> BTreeSet<TreeId> {
    let generations = entries.keys().filter(|key| key.starts_with("generation/"));
    generations.filter_map(|key| record_at(entries, key)).map(|record| record.tree).collect()
}

/// Whether a value is undamaged and stands under its own key.
pub(crate) fn is_entry(key: &str, value: &[u8]) -> bool {
    is_whole(key, value)
}

/// Names of the generations whose trees are not among these.
pub(crate) fn names_without(entries: &BTreeMap<String, Vec<u8>>, trees: &BTreeSet<TreeId>) -> Vec<String> {
    let generations = entries.keys().filter(|key| key.starts_with("generation/"));
    let records = generations.filter_map(|key| record_at(entries, key));
    records.filter(|record| !trees.contains(&record.tree)).map(|record| record.name()).collect()
}

/// The record under a key, whole or in parts, if it can be read.
fn record_at(entries: &BTreeMap<String, Vec<u8>>, key: &str) -> Option<GenerationRecord> {
    let signed = match decode_value::<GenerationHead>(key, entries.get(key)?).ok()? {
        GenerationHead::Whole(signed) => signed,
        GenerationHead::Parts { hash, count } => {
            let mut signed = Vec::new();
            for number in 0..count {
                let key = Key::Part(hash.clone(), number).to_string();
                signed.extend(decode_value::<Vec<u8>>(&key, entries.get(&key)?).ok()?);
            }
            signed
        }
    };
    verify(&signed).ok()
}
