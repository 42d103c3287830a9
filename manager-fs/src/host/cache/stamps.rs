//! How a local object looked when it was hashed last: whoever changes its bytes changes that too, so an object that still
//! looks the same need not be hashed again, and one that does not is.
//!
//! ```text
//! CACHE/stamps = epoch line | record*      record = object id (32) | inode | bytes | mtime | ctime (8 each, little-endian)
//! ```
//! The file only saves hashing after a worker was replaced: nothing of it is believed in another boot, a torn record fits no
//! file, and a lost one costs one hash.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proto::ObjectId;

use crate::moments::{self, Moment};
use crate::sync::lock;

const RECORD_BYTES: usize = 32 + 4 * 8;
/// A file with more is begun anew: half a million objects.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// What `stat` says of a file and any change of its bytes would change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    /// Nanoseconds since 1970; cannot be set by anyone but by setting the machine's clock.
    changed: i64,
}

impl Stamp {
    pub(super) fn of(found: &Metadata) -> Self {
        let nanoseconds = |s: i64, ns: i64| s.wrapping_mul(1_000_000_000).wrapping_add(ns);
        Self {
            inode: found.ino(),
            bytes: found.len(),
            modified: nanoseconds(found.mtime(), found.mtime_nsec()),
            changed: nanoseconds(found.ctime(), found.ctime_nsec()),
        }
    }

    /// Whether the bytes are those of the other one's file, which may have been renamed or closed to writers since.
    pub(super) fn has_bytes_of(&self, other: &Self) -> bool {
        (self.inode, self.bytes, self.modified) == (other.inode, other.bytes, other.modified)
    }

    fn encode(&self, id: &ObjectId) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[..32].copy_from_slice(id.as_bytes());
        let numbers = [self.inode, self.bytes, self.modified.cast_unsigned(), self.changed.cast_unsigned()];
        for (field, number) in record[32..].chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        record
    }

    fn decode(record: &[u8; RECORD_BYTES]) -> (ObjectId, Self) {
        let (id, numbers) = record.split_at(32);
        let number =
            |at: usize| numbers[8 * at..8 * at + 8].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        let mut bytes = [0; 32];
        bytes.copy_from_slice(id);
        let stamp = Self {
            inode: number(0),
            bytes: number(1),
            modified: number(2).cast_signed(),
            changed: number(3).cast_signed(),
        };
        (ObjectId::from_bytes(bytes), stamp)
    }
}

/// The stamps of all local objects that were hashed in this epoch.
#[derive(Debug)]
pub(super) struct Stamps {
    path: PathBuf,
    epoch: String,
    known: Mutex<HashMap<ObjectId, Stamp>>,
    /// `None` while it cannot be written; then they live in memory alone.
    file: Mutex<Option<File>>,
}

impl Stamps {
    /// What an earlier process of the same epoch noted. With an empty epoch nothing is taken over.
    pub(super) fn open(dir: &Path, epoch: &str) -> Self {
        let path = dir.join("stamps");
        let line = format!("{epoch}\n");
        let known = if epoch.is_empty() { None } else { read(&path, &line) };
        let stamps = Self { path, epoch: line, known: Mutex::new(known.unwrap_or_default()), file: Mutex::default() };
        if !epoch.is_empty() {
            stamps.rewrite();
        }
        stamps
    }

    pub(super) fn get(&self, id: &ObjectId) -> Option<Stamp> {
        lock(&self.known).get(id).copied()
    }

    /// Notes what has just been hashed.
    pub(super) fn put(&self, fresh: &[(ObjectId, Stamp)]) {
        if fresh.is_empty() {
            return;
        }
        lock(&self.known).extend(fresh.iter().copied());
        let records: Vec<u8> = fresh.iter().flat_map(|(id, stamp)| stamp.encode(id)).collect();
        let mut file = lock(&self.file);
        if file.as_mut().is_some_and(|file| file.write_all(&records).is_err()) {
            *file = None;
        }
    }

    pub(super) fn remove(&self, id: &ObjectId) {
        lock(&self.known).remove(id);
    }

    fn rewrite(&self) {
        let fresh = self.path.with_extension("new");
        let records: Vec<u8> = lock(&self.known).iter().flat_map(|(id, stamp)| stamp.encode(id)).collect();
        let written = moments::reach(Moment::StampsRewrite, &self.path)
            .and_then(|()| OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh));
        let written = written.and_then(|mut file| {
            file.write_all(self.epoch.as_bytes())?;
            file.write_all(&records)?;
            std::fs::rename(&fresh, &self.path)?;
            Ok(file)
        });
        match written {
            Ok(file) => *lock(&self.file) = Some(file),
            Err(error) => tracing::debug!(%error, path = %self.path.display(), "what was hashed is not noted"),
        }
    }
}

fn read(path: &Path, epoch: &str) -> Option<HashMap<ObjectId, Stamp>> {
    let bytes = crate::host::files::read_bounded(path, FILE_BYTES_MAX).ok()??;
    let records = bytes.strip_prefix(epoch.as_bytes())?;
    let (records, _torn) = records.as_chunks::<RECORD_BYTES>();
    Some(records.iter().map(Stamp::decode).collect())
}

/// The stamp of an open file.
pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
    Ok(Stamp::of(&file.metadata()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_believed_in_their_epoch_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (ObjectId::of(b"1"), ObjectId::of(b"2"));
        let stamp = Stamp { inode: 7, bytes: 9, modified: -3, changed: i64::MAX };
        let stamps = Stamps::open(dir.path(), "boot-1");
        stamps.put(&[(one, stamp), (two, stamp)]);
        stamps.put(&[(two, Stamp { bytes: 1, ..stamp })]);
        drop(stamps);
        let again = Stamps::open(dir.path(), "boot-1");
        assert_eq!((again.get(&one), again.get(&two)), (Some(stamp), Some(Stamp { bytes: 1, ..stamp })));
        again.put(&[(one, Stamp { inode: 8, ..stamp })]);
        drop(again);
        let mut torn = std::fs::read(dir.path().join("stamps")).unwrap();
        torn.truncate(torn.len() - 1);
        std::fs::write(dir.path().join("stamps"), torn).unwrap();
        assert_eq!(Stamps::open(dir.path(), "boot-1").get(&one), Some(stamp), "the torn one is left out");
        assert_eq!(Stamps::open(dir.path(), "boot-2").get(&one), None);
        assert_eq!(Stamps::open(dir.path(), "boot-1").get(&one), None, "the file is boot-2's");
    }

    /// What a power cut, a full disk or somebody's editor leaves of the file.
    #[test]
    fn whatever_stands_in_the_file_only_costs_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stamps");
        let (id, stamp) = (ObjectId::of(b"1"), Stamp { inode: 1, bytes: 2, modified: 3, changed: 4 });
        let record = stamp.encode(&id);
        let whole = [b"boot\n".as_slice(), &record].concat();
        for bytes in [&b""[..], b"boot", b"boot\n", b"\n", &whole[..20], &[0xff; 500], b"boot\nrecord"] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Stamps::open(dir.path(), "boot").get(&id), None, "{bytes:?}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Stamps::open(dir.path(), "boot").get(&id), Some(stamp));
        assert_eq!(Stamps::open(dir.path(), "").get(&id), None, "without an epoch nothing is believed");
        // It is removed from memory alone; a later worker that believes the old record finds no such file.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let nowhere = Stamps::open(dir.path(), "boot");
        nowhere.put(&[(id, stamp)]);
        assert_eq!(nowhere.get(&id), Some(stamp), "a file that cannot be written is done without");
        nowhere.remove(&id);
        assert_eq!(nowhere.get(&id), None);
    }

    proptest::proptest! {
        #[test]
        fn a_record_says_what_was_noted(
            inode: u64, bytes: u64, modified: i64, changed: i64, name: [u8; 32],
        ) {
            let (id, stamp) = (ObjectId::from_bytes(name), Stamp { inode, bytes, modified, changed });
            proptest::prop_assert_eq!(Stamp::decode(&stamp.encode(&id)), (id, stamp));
        }
    }
}
