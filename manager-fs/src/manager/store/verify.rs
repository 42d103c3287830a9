//! Checking every byte of the store, and telling which trees a fault touches.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::{fmt, io};

use proto::{ChunkId, Manifest, ObjectId, TreeId};

use super::pack::{self, Frame};
use super::pack_store::{BlobKind, BlobName};
use super::{ChunkFault, PackId, Store, StoreError, StoredChunk};
use crate::manager::monitor::{Monitor, Task};
use crate::sync::lock;

/// What is said of deltas and bundles, which are made again when a host asks.
pub(super) const REMOVED: &str = "it was damaged, and is removed";

/// Something that may be damaged. Its text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// A pack as a whole.
    Pack(PackId),
    /// A chunk where it lies in a pack.
    Chunk(ChunkId, PackId),
    /// A tree's manifest.
    Manifest(TreeId),
    /// An object that its chunks do not make.
    Object(ObjectId),
    /// A delta between two trees.
    Delta(TreeId, TreeId),
    /// A start-up bundle of a tree.
    Bundle(TreeId),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Pack(pack) => write!(f, "pack {pack}"),
            Thing::Chunk(chunk, pack) => write!(f, "chunk {chunk} in pack {pack}"),
            Thing::Manifest(tree) => write!(f, "manifest {tree}"),
            Thing::Object(object) => write!(f, "object {object}"),
            Thing::Delta(from, to) => write!(f, "delta {from} to {to}"),
            Thing::Bundle(tree) => write!(f, "start-up bundle of {tree}"),
        }
    }
}

/// Something that is not as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which pack, chunk, manifest or object.
    pub thing: Thing,
    /// What is wrong with it.
    pub fault: String,
    /// The trees that need it.
    pub trees: BTreeSet<TreeId>,
}

/// What was checked, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Packs whose every byte was read.
    pub packs: u64,
    /// Bytes of packs and manifests read.
    pub bytes: u64,
    /// Chunks decoded and hashed.
    pub chunks: u64,
    /// Manifests that were decoded and checked.
    pub manifests: u64,
    /// Distinct objects put together and hashed.
    pub objects: u64,
    /// What is wrong; empty when all is well.
    pub problems: Vec<Problem>,
}

/// What is wrong with a chunk in its pack.
#[derive(Debug, thiserror::Error)]
enum FrameFault {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("its stored bytes are not what was stored")]
    Stored,
    #[error(transparent)]
    Chunk(#[from] ChunkFault),
    #[error("it has {got} bytes where the index says {listed}")]
    Length { got: usize, listed: u32 },
}

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
enum ObjectFault {
    #[error(transparent)]
    Chunk(#[from] StoreError),
    #[error("its chunks make {bytes} bytes with the hash {got}")]
    Content { bytes: u64, got: ObjectId },
}

impl VerifyReport {
    pub(super) fn problem(&mut self, monitor: &dyn Monitor, thing: Thing, fault: String) {
        monitor.problem(&format!("{thing}: {fault}"));
        self.problems.push(Problem { thing, fault, trees: BTreeSet::new() });
    }
}

impl Store {
    /// Reads every byte: packs with their indexes, every chunk decoded and hashed, every manifest, every object put
    /// together and hashed. Damaged chunks are forgotten, so that publishing the same files again mends the store.
    ///
    /// # Errors
    /// The store cannot be listed. What is damaged is in the report.
    pub fn verify(&self, monitor: &dyn Monitor) -> Result<VerifyReport, StoreError> {
        // A collection must not act on places that are being found out to be damaged.
        let _alone = lock(&self.collecting);
        let listed = |cause| StoreError::io("the list of blobs", cause);
        let mut report = VerifyReport::default();
        let packs = self.packs.list(BlobKind::Pack).map_err(listed)?;
        let total = self.usage()?.pack_bytes;
        let mut bad_chunks: HashMap<ChunkId, usize> = HashMap::new();
        for name in packs {
            let BlobName::Pack(id) = name else { continue };
            self.verify_pack(&id, total, monitor, &mut report, &mut bad_chunks);
        }
        self.verify_all_there(monitor, &mut report, &mut bad_chunks)?;
        let mut checked: HashMap<(ObjectId, u32), Option<usize>> = HashMap::new();
        for tree in self.trees()? {
            self.verify_tree(&tree, monitor, &mut report, &bad_chunks, &mut checked);
        }
        self.verify_deltas(monitor, &mut report)?;
        self.verify_bundles(monitor, &mut report)?;
        monitor.progress(Task::Verify, total, total);
        Ok(report)
    }

    /// Looks for packs that somebody has removed: they may still be read through open files, until the next start.
    fn verify_all_there(
        &self,
        monitor: &dyn Monitor,
        report: &mut VerifyReport,
        bad_chunks: &mut HashMap<ChunkId, usize>,
    ) -> Result<(), StoreError> {
        let packs = self.index().packs();
        for id in packs {
            let there = self.packs.size(&BlobName::Pack(id)).map_err(|e| StoreError::io("a blob's size", e))?;
            let slot = self.index().slot(&id);
            // One that a publication has just replaced is no longer in the index.
            if let (None, Some(slot)) = (there, slot) {
                self.mark_bad(&id);
                let chunks = self.index().frames_of(slot);
                bad_chunks.extend(chunks.iter().map(|frame| (frame.chunk, report.problems.len())));
                report.problem(monitor, Thing::Pack(id), String::from("it is missing"));
            }
        }
        Ok(())
    }

    fn verify_pack(
        &self,
        id: &PackId,
        total: u64,
        monitor: &dyn Monitor,
        report: &mut VerifyReport,
        bad_chunks: &mut HashMap<ChunkId, usize>,
    ) {
        let frames = match pack::read_index(self.packs.as_ref(), id) {
            Ok(found) => found.frames,
            // Removed by a collection since it was listed.
            Err(_) if matches!(self.packs.size(&BlobName::Pack(*id)), Ok(None)) => return,
            Err(fault) => {
                self.mark_bad(id);
                // They may still be readable here, but not after the next start.
                let index = self.index();
                let chunks = index.slot(id).map(|slot| index.frames_of(slot)).unwrap_or_default();
                bad_chunks.extend(chunks.iter().map(|frame| (frame.chunk, report.problems.len())));
                return report.problem(monitor, Thing::Pack(*id), fault.to_string());
            }
        };
        report.packs += 1;
        for frame in frames {
            if let Err(fault) = self.verify_frame(id, &frame) {
                if matches!(self.packs.size(&BlobName::Pack(*id)), Ok(None)) {
                    return;
                }
                let mut index = self.index_mut();
                if let Some(slot) = index.slot(id) {
                    index.forget(&frame.chunk, slot);
                }
                self.mark_bad(id);
                if index.first(&frame.chunk).is_none() {
                    bad_chunks.insert(frame.chunk, report.problems.len());
                }
                drop(index);
                report.problem(monitor, Thing::Chunk(frame.chunk, *id), fault.to_string());
            }
            report.chunks += 1;
            report.bytes += u64::from(frame.stored_bytes);
            if report.chunks.is_multiple_of(64) {
                monitor.progress(Task::Verify, report.bytes, total);
            }
        }
    }

    fn verify_frame(&self, id: &PackId, frame: &Frame) -> Result<(), FrameFault> {
        let range = frame.offset..frame.offset + u64::from(frame.stored_bytes);
        let bytes = self.packs.get(&BlobName::Pack(*id), range)?;
        if pack::check_of(&bytes) != frame.check {
            return Err(FrameFault::Stored);
        }
        let chunk = StoredChunk { encoding: frame.encoding, plain_bytes: frame.plain_bytes, bytes };
        let plain = chunk.plain(&frame.chunk)?;
        if plain.len() != frame.plain_bytes as usize {
            return Err(FrameFault::Length { got: plain.len(), listed: frame.plain_bytes });
        }
        Ok(())
    }

    fn verify_tree(
        &self,
        tree: &TreeId,
        monitor: &dyn Monitor,
        report: &mut VerifyReport,
        bad_chunks: &HashMap<ChunkId, usize>,
        checked: &mut HashMap<(ObjectId, u32), Option<usize>>,
    ) {
        let manifest = match self.tree(tree) {
            Ok(manifest) => manifest,
            Err(StoreError::Missing { .. }) => return,
            Err(error) => {
                report.problem(monitor, Thing::Manifest(*tree), error.to_string());
                if let Some(problem) = report.problems.last_mut() {
                    problem.trees.insert(*tree);
                }
                return;
            }
        };
        report.manifests += 1;
        let mut touched: HashSet<usize> = HashSet::new();
        for object in &manifest.objects {
            touched.extend(object.chunks.iter().filter_map(|chunk| bad_chunks.get(chunk)).copied());
            let key = (object.id, manifest.chunk_bytes);
            let found = match checked.get(&key) {
                Some(found) => *found,
                None => {
                    let found = self.verify_object(&manifest, object.id).err().map(|fault| {
                        report.problem(monitor, Thing::Object(object.id), fault.to_string());
                        report.problems.len() - 1
                    });
                    report.objects += 1;
                    checked.insert(key, found);
                    found
                }
            };
            touched.extend(found);
        }
        for problem in touched {
            report.problems[problem].trees.insert(*tree);
        }
    }

    fn verify_object(&self, manifest: &Manifest, id: ObjectId) -> Result<(), ObjectFault> {
        let Some(object) = manifest.object(&id) else { return Ok(()) };
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0_u64);
        for chunk in &object.chunks {
            let plain = self.plain_chunk(chunk)?;
            hasher.update(&plain);
            bytes += plain.len() as u64;
        }
        let got = ObjectId::from_bytes(*hasher.finalize().as_bytes());
        if got != id || bytes != object.bytes {
            return Err(ObjectFault::Content { bytes, got });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{publish_plain, source};
    use super::*;
    use crate::manager::monitor::Quiet;
    use crate::manager::testing::Fixture;

    #[test]
    fn a_pack_that_a_collection_has_removed_since_it_was_listed_is_no_problem() {
        let fixture = Fixture::new();
        let (mut report, mut bad) = (VerifyReport::default(), HashMap::new());
        let gone: PackId = "ab".repeat(32).parse().unwrap();
        fixture.store.verify_pack(&gone, 0, &Quiet, &mut report, &mut bad);
        assert_eq!((report.packs, report.problems.len(), fixture.store.is_bad(&gone)), (0, 0, false));
    }

    /// Every chunk is sound, but they are another object's: of the same length, or not.
    #[test]
    fn an_object_that_its_chunks_do_not_make_is_told() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let tree = publish_plain(store, &source(fixture.dir.path(), "a", &[1, 2])).unwrap().tree;
        let whole = store.tree(&tree).unwrap();
        assert!(whole.objects.iter().all(|object| store.verify_object(&whole, object.id).is_ok()));
        let mut swapped = whole.clone();
        swapped.objects[0].chunks = whole.objects[1].chunks.clone();
        let fault = store.verify_object(&swapped, whole.objects[0].id).unwrap_err().to_string();
        assert!(fault.contains(&whole.objects[1].id.to_string()), "{fault}");
        let mut longer = whole.clone();
        longer.objects[0].bytes += 1;
        assert!(store.verify_object(&longer, whole.objects[0].id).is_err());
    }
}
