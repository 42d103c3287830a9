//! Putting back what is damaged or gone: the same bytes, from wherever they still are.
//!
//! ```text
//! verify ──> Lost ──salvage, take──> Mender: a new pack ──finish──> durable, in the index ──> drop_mended: the old packs go
//! ```
//! Readers and publications go on meanwhile. A crash at any moment leaves what was there, and at most a copy beside it.

use std::collections::{BTreeMap, BTreeSet};

use proto::{ChunkId, ObjectId, TreeId, width};

use super::gc::GcPass;
use super::index::Index;
use super::pack::{Effort, Frame, PackWriter, check_of};
use super::pack_store::BlobName;
use super::pipeline::compress;
use super::{PackId, PublishGuard, Store, StoreError};
use crate::sync::{self, lock};

/// Where a chunk belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Where {
    /// A tree that needs it.
    pub tree: TreeId,
    /// The object that it is a part of.
    pub object: ObjectId,
    /// Which of the object's chunks.
    pub chunk: u32,
    /// Size of the tree's chunks, bytes.
    pub chunk_bytes: u32,
}

/// What trees need and no sound pack has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Manifests that are damaged or not there.
    pub manifests: BTreeSet<TreeId>,
    /// Chunks, each with one of the places where it belongs.
    pub chunks: BTreeMap<ChunkId, Where>,
}

impl Lost {
    /// Whether every tree has all that it needs.
    pub fn is_empty(&self) -> bool {
        self.manifests.is_empty() && self.chunks.is_empty()
    }
}

impl Store {
    /// What these trees need and no sound pack has. What is damaged is known by an earlier [`Store::verify`].
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn lost(&self, trees: &BTreeSet<TreeId>) -> Result<Lost, StoreError> {
        let mut lost = Lost::default();
        for tree in trees {
            let manifest = match self.tree(tree) {
                Ok(manifest) => manifest,
                Err(StoreError::Damaged { .. } | StoreError::Missing { .. }) => {
                    lost.manifests.insert(*tree);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let index = self.index();
            for object in &manifest.objects {
                let chunks = object.chunks.iter().enumerate();
                for (chunk, id) in chunks.filter(|(_, id)| !self.is_sound(&index, id)) {
                    let (object, chunk, chunk_bytes) = (object.id, width::count(chunk), manifest.chunk_bytes);
                    lost.chunks.entry(*id).or_insert(Where { tree: *tree, object, chunk, chunk_bytes });
                }
            }
        }
        Ok(lost)
    }

    /// Whether a chunk lies in a pack that is not known to be damaged.
    pub fn has_sound(&self, chunk: &ChunkId) -> bool {
        self.is_sound(&self.index(), chunk)
    }

    fn is_sound(&self, index: &Index, chunk: &ChunkId) -> bool {
        let bad = lock(&self.bad_packs);
        index
            .places_of(chunk)
            .any(|place| bad.is_empty() || index.name(place.slot).is_none_or(|pack| !bad.contains(&pack)))
    }

    /// Begins to put back what is lost, with what is still right in damaged packs.
    ///
    /// # Errors
    /// The store cannot be read, as [`Store::lost`].
    pub fn mender(&self, trees: &BTreeSet<TreeId>) -> Result<Mender<'_>, StoreError> {
        let (guard, trees) = (self.guard(), trees.clone());
        let lost = self.lost(&trees)?;
        let mut mender = Mender { store: self, guard, trees, lost, saved: BTreeMap::new(), pack: None };
        mender.salvage()?;
        Ok(mender)
    }
}

impl GcPass<'_> {
    /// Removes damaged packs, once everything that these trees need lies elsewhere; returns how many. Until then someone may
    /// still save something out of them.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn drop_mended(&self, trees: &BTreeSet<TreeId>) -> Result<u64, StoreError> {
        let store = self.store;
        if !store.lost(trees)?.is_empty() {
            return Ok(0);
        }
        let _commit = sync::write(&store.commits);
        let gone: Vec<PackId> = {
            let mut index = store.index_mut();
            let mut bad = lock(&store.bad_packs);
            let free = |pack: &&PackId| index.slot(pack).is_none_or(|slot| !store.registry.needs_pack(slot));
            let gone: Vec<PackId> = bad.iter().filter(free).copied().collect();
            index.remove(&gone);
            bad.retain(|pack| !gone.contains(pack));
            gone
        };
        for pack in &gone {
            store.delete(&BlobName::Pack(*pack))?;
        }
        Ok(gone.len() as u64)
    }
}

/// A repair under way. Nothing is visible before [`Mender::finish`]; dropped before that, it leaves nothing.
pub struct Mender<'a> {
    store: &'a Store,
    guard: PublishGuard,
    /// The trees that must be whole.
    trees: BTreeSet<TreeId>,
    lost: Lost,
    saved: BTreeMap<ChunkId, PackId>,
    pack: Option<PackWriter>,
}

impl Mender<'_> {
    /// What is still to be found.
    pub fn lost(&self) -> &Lost {
        &self.lost
    }

    /// What was still right in damaged packs and is taken already, and where it lay.
    pub fn saved(&self) -> &BTreeMap<ChunkId, PackId> {
        &self.saved
    }

    /// Takes out of damaged packs what is still right in them.
    fn salvage(&mut self) -> Result<(), StoreError> {
        for id in self.lost.chunks.keys().copied().collect::<Vec<_>>() {
            let places = self.store.index().places(&id);
            for (pack, place) in places {
                let chunk = self.store.read_place(&pack, &place).ok();
                if let Some(plain) = chunk.and_then(|chunk| chunk.plain(&id).ok())
                    && self.take(&plain)?.is_some()
                {
                    self.saved.insert(id, pack);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes bytes from anywhere: what they are is known by their hash. The chunk, if it was lost.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn take(&mut self, plain: &[u8]) -> Result<Option<ChunkId>, StoreError> {
        let id = ChunkId::of(plain);
        if !self.lost.chunks.contains_key(&id) {
            return Ok(None);
        }
        let failed = |cause| StoreError::io("the pack of what is repaired", cause);
        let mut compressor = zstd::bulk::Compressor::new(Effort::Fast.level()).map_err(failed)?;
        let mut stored = vec![0; plain.len()];
        let (encoding, stored_bytes) = compress(Some(&mut compressor), plain, &mut stored);
        stored.truncate(stored_bytes);
        let (plain_bytes, check) = (width::count(plain.len()), check_of(&stored));
        let frame =
            Frame { chunk: id, offset: 0, stored_bytes: width::count(stored_bytes), plain_bytes, encoding, check };
        let pack = match &mut self.pack {
            Some(pack) => pack,
            None => self.pack.insert(PackWriter::create(self.store.packs.as_ref(), Effort::Fast).map_err(failed)?),
        };
        pack.append_many([frame], &stored).map_err(failed)?;
        self.lost.chunks.remove(&id);
        Ok(Some(id))
    }

    /// Takes a manifest from anywhere, and from then on misses what its tree needs; whether it was a lost one.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn take_manifest(&mut self, bytes: &[u8]) -> Result<bool, StoreError> {
        let tree = TreeId::of(bytes);
        if !self.lost.manifests.contains(&tree) || proto::Manifest::decode(bytes, &tree).is_err() {
            return Ok(false);
        }
        self.store.put_manifest(&tree, bytes, &self.guard)?;
        let mut lost = self.store.lost(&self.trees)?;
        // What has been taken already lies in a pack that the store does not know yet.
        let taken = self.pack.as_ref().map_or(&[][..], PackWriter::frames);
        for frame in taken {
            lost.chunks.remove(&frame.chunk);
        }
        self.lost = lost;
        self.salvage()?;
        Ok(true)
    }

    /// Makes what was taken durable, and readers find it; returns what is still lost.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn finish(self) -> Result<Lost, StoreError> {
        if let Some(pack) = self.pack {
            self.store.commit_pack(pack, &self.guard)?;
        }
        Ok(self.lost)
    }
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
