//! Blobs written: each once, sealed, into packs of some MiB, and the packs into index files.
//!
//! The order is what makes a cut harmless: a pack is on the disk before an index file names it, and every index file
//! before a snapshot needs it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::compression;
use super::files::{FileFault, FileKind, Files};
use super::id::Id;
use super::index::{BlobKind, Index, IndexBlob, IndexFile, IndexPack, encode_header};
use super::pace::Pace;
use super::seal::{Key, SealFault};

/// A pack is closed once it has this many bytes: restic's default, large enough for cheap listing, small enough for a
/// few of them in memory.
const PACK_BYTES: usize = 16 << 20;
/// An index file is written once this many blobs are new: restic's bound.
const INDEX_BLOBS: usize = 50_000;
/// And at the latest after this time: what is written down by then, a killed agent need not store again. The first ones
/// come sooner, so that it loses no more than half of what it did.
const INDEX_EVERY: Duration = Duration::from_secs(60);
const FIRST_INDEX_AFTER: Duration = Duration::from_secs(5);
/// Shorter blobs are compressed without a trial.
const TRIAL_BYTES: usize = 64 << 10;

/// Something cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreFault {
    #[error(transparent)]
    File(#[from] FileFault),
    #[error("new data {0}")]
    Seal(#[from] SealFault),
    #[error("the index cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("a piece of {0} bytes is more than a pack can hold")]
    TooLarge(usize),
}

/// What was new.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) data_blobs: u64,
    pub(crate) tree_blobs: u64,
    pub(crate) bytes: u64,
    pub(crate) packed_bytes: u64,
}

/// A repository that is written to. Shared by threads.
pub(crate) struct Packs<'a> {
    files: &'a Files,
    key: &'a Key,
    index: &'a Index,
    /// `None`: repositories of version 1, and those whose owner does not want it.
    compression: Option<i32>,
    /// Nothing is written: what would be is only counted.
    dry: bool,
    pace: Option<&'a Pace>,
    /// What was added, and whether an index file names it.
    fresh: Mutex<HashMap<(BlobKind, Id), bool>>,
    index_files: AtomicU64,
    open: [Mutex<OpenPack>; 2],
    unindexed: Mutex<Unindexed>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct OpenPack {
    bytes: Vec<u8>,
    blobs: Vec<IndexBlob>,
}

struct Unindexed {
    packs: Vec<IndexPack>,
    blobs: usize,
    since: Instant,
    every: Duration,
}

#[derive(Default)]
struct Counts {
    data_blobs: AtomicU64,
    tree_blobs: AtomicU64,
    bytes: AtomicU64,
    packed_bytes: AtomicU64,
}

impl<'a> Packs<'a> {
    pub(crate) fn new(files: &'a Files, key: &'a Key, index: &'a Index, compression: Option<i32>) -> Self {
        let unindexed = Unindexed { packs: Vec::new(), blobs: 0, since: Instant::now(), every: FIRST_INDEX_AFTER };
        Self {
            files,
            key,
            index,
            compression,
            dry: false,
            pace: None,
            fresh: Mutex::default(),
            index_files: AtomicU64::new(0),
            open: Default::default(),
            unindexed: Mutex::new(unindexed),
            counts: Counts::default(),
        }
    }

    /// Counts what would be written, and writes nothing.
    pub(crate) fn dry(self, dry: bool) -> Self {
        Self { dry, ..self }
    }

    /// Writes no faster than this, a pack at once.
    pub(crate) fn paced(self, pace: &'a Pace) -> Self {
        Self { pace: Some(pace), ..self }
    }

    /// Stores a blob unless the repository has it. Its pack may be written later, at [`Packs::finish`].
    pub(crate) fn add(&self, kind: BlobKind, plain: &[u8]) -> Result<Id, StoreFault> {
        let id = Id::of(plain);
        if self.index.has(kind, &id) || !self.is_first(kind, id) {
            return Ok(id);
        }
        let packed = self.compression.and_then(|level| compress(plain, level));
        let raw = match &packed {
            Some(_) => NonZeroU32::new(u32::try_from(plain.len()).map_err(|_| StoreFault::TooLarge(plain.len()))?),
            None => None,
        };
        let sealed = self.key.seal(packed.as_deref().unwrap_or(plain))?;
        self.count(kind, plain.len(), sealed.len());
        if self.dry {
            return Ok(id);
        }
        let full = {
            let mut open = lock(&self.open[kind as usize]);
            let length = |bytes: usize| u32::try_from(bytes).map_err(|_| StoreFault::TooLarge(plain.len()));
            let (offset, length) = (length(open.bytes.len())?, length(sealed.len())?);
            open.bytes.extend_from_slice(&sealed);
            open.blobs.push(IndexBlob { id, kind, offset, length, uncompressed_length: raw });
            (open.bytes.len() >= PACK_BYTES).then(|| std::mem::take(&mut *open))
        };
        // Outside of the lock: others fill the next pack meanwhile.
        if let Some(full) = full {
            self.write(full)?;
        }
        Ok(id)
    }

    fn is_first(&self, kind: BlobKind, id: Id) -> bool {
        match lock(&self.fresh).entry((kind, id)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(false);
                true
            }
        }
    }

    /// Whether a blob is there for whoever reads the repository anew.
    pub(crate) fn is_indexed(&self, kind: BlobKind, id: &Id) -> bool {
        lock(&self.fresh).get(&(kind, *id)).copied().unwrap_or_else(|| self.index.has(kind, id))
    }

    /// How many index files were written.
    pub(crate) fn index_files(&self) -> u64 {
        self.index_files.load(Ordering::Acquire)
    }

    fn count(&self, kind: BlobKind, plain: usize, sealed: usize) {
        let blobs = match kind {
            BlobKind::Data => &self.counts.data_blobs,
            BlobKind::Tree => &self.counts.tree_blobs,
        };
        blobs.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(plain as u64, Ordering::Relaxed);
        self.counts.packed_bytes.fetch_add(sealed as u64, Ordering::Relaxed);
    }

    fn write(&self, pack: OpenPack) -> Result<(), StoreFault> {
        let OpenPack { mut bytes, blobs } = pack;
        if blobs.is_empty() {
            return Ok(());
        }
        let header = self.key.seal(&encode_header(&blobs))?;
        let length = u32::try_from(header.len()).map_err(|_| StoreFault::TooLarge(header.len()))?;
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&length.to_le_bytes());
        self.pace.inspect(|pace| pace.take(bytes.len()));
        let id = self.files.write(FileKind::Pack, &bytes)?;
        let due = {
            let mut unindexed = lock(&self.unindexed);
            unindexed.blobs += blobs.len();
            unindexed.packs.push(IndexPack { id, blobs });
            if unindexed.blobs >= INDEX_BLOBS || unindexed.since.elapsed() >= unindexed.every {
                take(&mut unindexed)
            } else {
                Vec::new()
            }
        };
        self.write_index(due)
    }

    fn write_index(&self, packs: Vec<IndexPack>) -> Result<(), StoreFault> {
        if packs.is_empty() {
            return Ok(());
        }
        let index = IndexFile { packs };
        let document = serde_json::to_vec(&index)?;
        self.files.write(FileKind::Index, &self.key.seal_document(&document, self.compression)?)?;
        {
            let mut fresh = lock(&self.fresh);
            let blobs = index.packs.iter().flat_map(|pack| &pack.blobs);
            fresh.extend(blobs.map(|blob| ((blob.kind, blob.id), true)));
        }
        self.index_files.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Writes what is not written yet. Only then may a snapshot refer to what was added. Can be called again.
    pub(crate) fn finish(&self) -> Result<Added, StoreFault> {
        for open in &self.open {
            let last = std::mem::take(&mut *lock(open));
            self.write(last)?;
        }
        let rest = take(&mut lock(&self.unindexed));
        self.write_index(rest)?;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(Added {
            data_blobs: read(&self.counts.data_blobs),
            tree_blobs: read(&self.counts.tree_blobs),
            bytes: read(&self.counts.bytes),
            packed_bytes: read(&self.counts.packed_bytes),
        })
    }
}

fn take(unindexed: &mut Unindexed) -> Vec<IndexPack> {
    unindexed.blobs = 0;
    unindexed.since = Instant::now();
    unindexed.every = (unindexed.every * 2).min(INDEX_EVERY);
    std::mem::take(&mut unindexed.packs)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics is called under these locks; a pack is taken whole or not at all.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` if compression does not pay. A trial of the beginning spares media and archives the whole attempt.
fn compress(plain: &[u8], level: i32) -> Option<Vec<u8>> {
    let pays = |packed: &[u8], plain: &[u8]| packed.len() < plain.len() - plain.len() / 64;
    if plain.is_empty() {
        return None;
    }
    if plain.len() > 4 * TRIAL_BYTES {
        let middle = plain.len() / 2;
        let trial = [&plain[..TRIAL_BYTES / 2], &plain[middle..middle + TRIAL_BYTES / 2]].concat();
        if !pays(&compression::compress(&trial, 1).ok()?, &trial) {
            return None;
        }
    }
    compression::compress(plain, level).ok().filter(|packed| pays(packed, plain))
}

#[cfg(test)]
mod tests {
    use super::super::blobs::Blobs;
    use super::*;
    use rustic_core::repofile::MasterKey;

    #[test]
    fn a_dry_run_counts_the_same_and_writes_nothing() {
        let key = Key::new(&MasterKey::new()).unwrap();
        let counted = [true, false].map(|dry| {
            let dir = tempfile::tempdir().unwrap();
            let (files, none) = (Files::new(dir.path()), Index::default());
            let packs = Packs::new(&files, &key, &none, Some(3)).dry(dry);
            for content in [&b"one"[..], b"two", b"one", &[7; 100_000]] {
                packs.add(BlobKind::Data, content).unwrap();
            }
            let added = packs.finish().unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count() == 0, dry);
            added
        });
        assert_eq!(counted[0], counted[1]);
        assert_eq!(counted[0].data_blobs, 3);
    }

    #[test]
    fn a_blob_is_stored_once_and_reads_back_also_without_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let (files, key) = (Files::new(dir.path()), Key::new(&MasterKey::new()).unwrap());
        let content = [vec![1u8; 500_000], (0..=255).cycle().take(1000).collect(), b"small".to_vec(), Vec::new()];
        let none = Index::default();
        let packs = Packs::new(&files, &key, &none, Some(3));
        let ids: Vec<Id> = content.iter().map(|c| packs.add(BlobKind::Data, c).unwrap()).collect();
        packs.add(BlobKind::Data, &content[0]).unwrap();
        let tree = packs.add(BlobKind::Tree, b"{\"nodes\":[]}\n").unwrap();
        let added = packs.finish().unwrap();
        assert_eq!((added.data_blobs, added.tree_blobs), (4, 1));
        assert!(added.packed_bytes < 3_000, "{added:?}");

        let read_all = |expected_faults: usize| {
            let mut faults = Vec::new();
            let index = Index::load(&files, &key, &mut faults).unwrap();
            assert_eq!(faults.len(), expected_faults, "{faults:?}");
            let blobs = Blobs::new(&files, &key, &index);
            for (id, plain) in ids.iter().zip(&content) {
                assert!(index.has(BlobKind::Data, id));
                assert_eq!(blobs.read(BlobKind::Data, id).unwrap(), *plain);
            }
            assert!(blobs.tree(&tree).unwrap().nodes.is_empty());
        };
        read_all(0);
        let (index_file, _) = files.list(FileKind::Index).unwrap()[0];
        let path = files.path(FileKind::Index, &index_file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        read_all(1);
    }
}
