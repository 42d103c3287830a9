//! Entries of a control state that is built anew, before there is a store for them.

use std::collections::{BTreeMap, BTreeSet};

use proto::message::Unix;
use proto::{GenerationRecord, TreeId};

use super::contract::ControlError;
use super::state::exports::after_loss;
use super::state::generations::{PART_BYTES, key_of, verify};
use super::state::{GenerationHead, Key, decode_value, encode, is_whole};

/// Adds a signed record, of a new version or `also` for another architecture, unless its generation is there already;
/// whether it was added.
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

#[cfg(test)]
pub(super) mod tests {
    use ed25519_dalek::SigningKey;
    use proto::record::{ElfFile, Metadata};
    use proto::{SignedRecord, TreePath};

    use super::*;

    type Entries = BTreeMap<String, Vec<u8>>;

    /// A record as it is signed; of 20,000 files it does not fit into one value.
    pub(in crate::manager::control) fn record(
        version: &str,
        sequence: u64,
        machine: Option<&str>,
        files: usize,
    ) -> (GenerationRecord, Vec<u8>) {
        let file = |number: usize| ElfFile {
            path: TreePath::parse(format!("lib/{number:06}").as_bytes()).unwrap(),
            architecture: String::from("x86_64"),
            kind: String::from("shared object"),
            interpreter: None,
            needed: vec![String::from("libc.so.6")],
            soname: None,
            runpath: None,
            build_id: None,
            bytes: 1,
        };
        let elf_files = (0..files).map(file).collect();
        let metadata = Metadata { architecture: machine.map(String::from), elf_files, ..Metadata::default() };
        let record = GenerationRecord {
            product: "data-agent".parse().unwrap(),
            version: version.parse().unwrap(),
            sequence,
            tree: tree(version),
            manifest_bytes: 1,
            published_unix_ms: 1,
            metadata,
        };
        let signed = SignedRecord::sign(&record, &SigningKey::from_bytes(&[7; 32])).unwrap().to_bytes().unwrap();
        (record, signed)
    }

    fn tree(version: &str) -> TreeId {
        TreeId::of(version.as_bytes())
    }

    fn add(entries: &mut Entries, version: &str, machine: Option<&str>, files: usize, also: bool) -> bool {
        let (record, signed) = record(version, 1, machine, files);
        add_record(entries, &record, also, signed).unwrap()
    }

    fn number(entries: &Entries, key: &Key) -> u64 {
        let key = key.to_string();
        decode_value(&key, &entries[&key]).unwrap()
    }

    #[test]
    fn a_record_is_added_once_whole_or_in_parts_and_can_be_read_again() {
        let mut entries = Entries::new();
        assert!(add(&mut entries, "1", None, 1, false) && add(&mut entries, "2", None, 20_000, false));
        assert!(!add(&mut entries, "1", None, 1, false) && !add(&mut entries, "2", None, 20_000, false));
        let parts: Vec<String> = entries.keys().filter(|key| key.starts_with("part/")).cloned().collect();
        let heads: Vec<&String> = entries.keys().filter(|key| !key.starts_with("part/")).collect();
        assert_eq!(heads, ["generation/data-agent/1", "generation/data-agent/2"]);
        assert!(parts.len() > 1 && parts.iter().all(|part| is_entry(part, &entries[part])), "{parts:?}");
        assert!(!is_entry(&parts[0], &entries[&parts[1]]), "a value is good under its own key alone");

        assert_eq!(trees_of(&entries), [tree("1"), tree("2")].into());
        assert_eq!(names_without(&entries, &BTreeSet::new()), ["data-agent@1", "data-agent@2"]);
        assert_eq!(names_without(&entries, &[tree("2")].into()), ["data-agent@1"]);
        // Without one of its parts the long one cannot be read: it is added anew.
        entries.remove(&parts[1]);
        assert_eq!(names_without(&entries, &BTreeSet::new()), ["data-agent@1"]);
        assert!(add(&mut entries, "2", None, 20_000, false));
        assert_eq!(trees_of(&entries).len(), 2);
    }

    #[test]
    fn a_version_for_one_more_architecture_stands_beside_the_first_of_it() {
        let mut entries = Entries::new();
        // Whose first one is lost becomes the first.
        assert!(add(&mut entries, "1", Some("aarch64"), 1, true));
        assert!(add(&mut entries, "1", Some("x86_64"), 1, true));
        assert!(!add(&mut entries, "1", Some("x86_64"), 1, true));
        assert!(!add(&mut entries, "1", Some("riscv64"), 1, false), "there is one of this name");
        let keys: Vec<&String> = entries.keys().collect();
        assert_eq!(keys, ["generation/data-agent/1", "generation/data-agent/1/x86_64"]);
    }

    #[test]
    fn no_number_is_given_twice_whatever_was_lost() {
        let mut entries = Entries::new();
        for (newest, expected) in [(7, 7), (3, 7), (9, 9)] {
            raise_sequence(&mut entries, newest).unwrap();
            assert_eq!(number(&entries, &Key::Sequence), expected);
        }
        for (now, expected) in [(7, 7), (3, 7), (9, 9)] {
            raise_lists(&mut entries, now).unwrap();
            assert_eq!(number(&entries, &Key::Lists), after_loss(expected));
        }
        // After a restore: beyond what was signed last, and beyond every record that is there.
        leave_out(&mut entries, 10).unwrap();
        assert_eq!((number(&entries, &Key::Sequence), number(&entries, &Key::Lists)), (9 + LEFT_OUT, after_loss(10)));
        let (newer, signed) = record("1", 3 * LEFT_OUT, None, 1);
        add_record(&mut entries, &newer, false, signed).unwrap();
        leave_out(&mut entries, 10).unwrap();
        assert_eq!(number(&entries, &Key::Sequence), 4 * LEFT_OUT);
        // A number that nobody can read counts as none.
        entries.insert(Key::Sequence.to_string(), b"damaged".to_vec());
        raise_sequence(&mut entries, 5).unwrap();
        assert_eq!(number(&entries, &Key::Sequence), 5);
    }
}
