//! Removing what nothing needs, beside publishers and readers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{MutexGuard, PoisonError};

use proto::{ChunkId, TreeId};

use super::index::{Index, Slot};
use super::pack::{self, Frame, HEADER_BYTES, PackWriter};
use super::pack_store::{BlobKind, BlobName};
use super::{PackId, Store, StoreError};
use crate::manager::monitor::{Monitor, Task};

/// What a collection removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Manifests that nothing named.
    pub manifests_removed: u64,
    /// Packs of which nothing was needed.
    pub packs_removed: u64,
    /// Packs of which less than half was needed: what is needed was written anew.
    pub packs_rewritten: u64,
    /// Bytes given back to the disk.
    pub bytes_freed: u64,
    /// Bytes of packs that stay.
    pub bytes_kept: u64,
    /// Packs left alone because a running publication relies on them.
    pub packs_in_use: u64,
    /// Damaged packs that were left alone, because something in them is needed and lies nowhere else.
    pub packs_damaged: u64,
}

/// A collection that has begun: publications that end from now on keep what they wrote, even if the list of what to
/// keep does not have it yet.
pub struct GcPass<'a> {
    store: &'a Store,
    _alone: MutexGuard<'a, ()>,
}

impl Drop for GcPass<'_> {
    fn drop(&mut self) {
        self.store.registry.pass_ends();
    }
}

impl Store {
    /// Begins a collection. Learn what to keep after this call, then [`GcPass::run`].
    pub fn begin_gc(&self) -> GcPass<'_> {
        let alone = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        self.registry.pass_begins();
        GcPass { store: self, _alone: alone }
    }

    /// Removes what the trees of `keep` and running publications do not need. `keep` must have been read while no
    /// publication could end; where one can, use [`Store::begin_gc`].
    ///
    /// # Errors
    /// As [`GcPass::run`].
    pub fn gc(&self, keep: &BTreeSet<TreeId>, dry_run: bool, monitor: &dyn Monitor) -> Result<GcReport, StoreError> {
        self.begin_gc().run(keep, dry_run, monitor)
    }

    /// A blob's removal, in which no publication can come to rely on it.
    fn remove_unless(
        &self,
        name: &BlobName,
        needed: impl FnOnce(&Index) -> bool,
        replace: Option<(PackId, Vec<Frame>)>,
    ) -> Result<bool, StoreError> {
        let _commit = self.commits.write().unwrap_or_else(PoisonError::into_inner);
        let mut index = self.index_mut();
        if needed(&index) {
            return Ok(false);
        }
        if let Some((id, frames)) = replace {
            index.add(id, &frames);
        }
        if let BlobName::Pack(id) = name {
            index.remove(id);
        }
        drop(index);
        self.packs.delete(name).map_err(|source| StoreError::io(format!("removing {name:?}"), source))?;
        Ok(true)
    }
}

impl GcPass<'_> {
    /// Removes manifests and packs that the trees of `keep` and running publications do not need; a pack of which less
    /// than half is needed is written anew. With `dry_run` nothing is changed.
    ///
    /// # Errors
    /// The manifest of a kept tree is missing or damaged (then nothing was removed, since what it needs is not known),
    /// or the store cannot be read or written (then what was removed so far was not needed).
    pub fn run(&self, keep: &BTreeSet<TreeId>, dry_run: bool, monitor: &dyn Monitor) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        let live = self.live_chunks(keep)?;
        self.collect_manifests(keep, dry_run, &mut report)?;
        let packs = self.measure(&live);
        let total = packs.len() as u64;
        for (done, (id, slot, live_bytes)) in packs.into_iter().enumerate() {
            monitor.progress(Task::Collect, done as u64, total);
            self.collect_pack(&id, slot, live_bytes, &live, dry_run, &mut report)?;
        }
        monitor.progress(Task::Collect, total, total);
        self.collect_unreadable(&live, dry_run, &mut report)?;
        Ok(report)
    }

    fn list(&self, kind: BlobKind) -> Result<Vec<BlobName>, StoreError> {
        self.store.packs.list(kind).map_err(|source| StoreError::io("the list of blobs", source))
    }

    fn live_chunks(&self, keep: &BTreeSet<TreeId>) -> Result<HashSet<ChunkId>, StoreError> {
        let mut live = HashSet::new();
        for tree in keep {
            let manifest = self.store.tree(tree)?;
            live.extend(manifest.objects.iter().flat_map(|object| object.chunks.iter().copied()));
        }
        Ok(live)
    }

    /// Manifests go first: a crash then leaves chunks without a manifest, never the other way round.
    fn collect_manifests(
        &self,
        keep: &BTreeSet<TreeId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        for name in self.list(BlobKind::Manifest)? {
            let BlobName::Manifest(tree) = name else { continue };
            if keep.contains(&tree) || self.store.registry.needs_tree(&tree) {
                continue;
            }
            let bytes = self.size(&name)?;
            if dry_run || self.store.remove_unless(&name, |_| self.store.registry.needs_tree(&tree), None)? {
                report.manifests_removed += 1;
                report.bytes_freed += bytes;
            }
        }
        Ok(())
    }

    fn size(&self, name: &BlobName) -> Result<u64, StoreError> {
        let size = self.store.packs.size(name).map_err(|source| StoreError::io("a blob's size", source))?;
        Ok(size.unwrap_or(0))
    }

    /// How many stored bytes of each pack are needed.
    fn measure(&self, live: &HashSet<ChunkId>) -> Vec<(PackId, Slot, u64)> {
        let index = self.store.index();
        let mut needed: HashMap<Slot, u64> = HashMap::new();
        for (_, place) in index.iter().filter(|(chunk, _)| live.contains(*chunk)) {
            *needed.entry(place.slot).or_default() += u64::from(place.stored_bytes);
        }
        let packs = index.packs().into_iter();
        packs
            .filter_map(|id| index.slot(&id).map(|slot| (id, slot, needed.get(&slot).copied().unwrap_or(0))))
            .collect()
    }

    fn collect_pack(
        &self,
        id: &PackId,
        slot: Slot,
        live_bytes: u64,
        live: &HashSet<ChunkId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let name = BlobName::Pack(*id);
        let bytes = self.size(&name)?;
        let in_use = self.store.registry.needs_pack(slot);
        let damaged = self.store.is_bad(id);
        if in_use || (live_bytes * 2 >= bytes.saturating_sub(HEADER_BYTES) && !damaged) {
            report.packs_in_use += u64::from(in_use);
            report.bytes_kept += bytes;
            return Ok(());
        }
        let rewrites = live_bytes > 0;
        let mut written = live_bytes;
        let removed = match (dry_run, rewrites) {
            (true, _) => true,
            (false, false) => self.store.remove_unless(&name, |_| self.store.registry.needs_pack(slot), None)?,
            (false, true) => {
                let Some((new, frames)) = self.rewrite(id, slot, live)? else {
                    report.packs_damaged += 1;
                    report.bytes_kept += bytes;
                    return Ok(());
                };
                written = self.size(&BlobName::Pack(new))?;
                let replace = Some((new, frames));
                let removed = self.store.remove_unless(&name, |_| self.store.registry.needs_pack(slot), replace)?;
                if !removed {
                    // A publication has come to rely on the old pack; the copy is not known to anyone yet.
                    self.store.remove_unless(&BlobName::Pack(new), |index| index.slot(&new).is_some(), None)?;
                }
                removed
            }
        };
        if removed {
            report.packs_removed += u64::from(!rewrites);
            report.packs_rewritten += u64::from(rewrites);
            report.bytes_freed += bytes.saturating_sub(written);
            report.bytes_kept += written;
        } else {
            report.packs_in_use += 1;
            report.bytes_kept += bytes;
        }
        Ok(())
    }

    /// Packs without a readable index are garbage once every needed chunk lies elsewhere; until then someone may still
    /// save something out of them.
    fn collect_unreadable(
        &self,
        live: &HashSet<ChunkId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let complete = |index: &Index| live.iter().all(|chunk| index.first(chunk).is_some());
        for name in self.list(BlobKind::Pack)? {
            let BlobName::Pack(id) = name else { continue };
            if self.store.index().slot(&id).is_some() {
                continue;
            }
            let (bytes, needed) = (self.size(&name)?, !complete(&self.store.index()));
            // One that is being committed just now is in the index by the time we may remove it.
            if needed || !(dry_run || self.store.remove_unless(&name, |index| index.slot(&id).is_some(), None)?) {
                report.packs_damaged += u64::from(needed);
                report.bytes_kept += bytes;
                continue;
            }
            report.packs_removed += 1;
            report.bytes_freed += bytes;
        }
        Ok(())
    }

    /// Copies the needed frames of a pack, as they are stored, into a new one. `None` when one of them is damaged and lies
    /// nowhere else.
    fn rewrite(
        &self,
        id: &PackId,
        slot: Slot,
        live: &HashSet<ChunkId>,
    ) -> Result<Option<(PackId, Vec<Frame>)>, StoreError> {
        let what = || format!("pack {id}");
        let packs = self.store.packs.as_ref();
        // As the index in memory has them: that of the pack may be what is damaged.
        let frames = self.store.index().frames_of(slot);
        let failed = |source| StoreError::io("the rewritten pack", source);
        let mut new = PackWriter::create(packs).map_err(failed)?;
        for frame in frames.into_iter().filter(|frame| live.contains(&frame.chunk)) {
            let range = frame.offset..frame.offset + u64::from(frame.stored_bytes);
            let stored = packs.get(&BlobName::Pack(*id), range).map_err(|e| StoreError::io(what(), e))?;
            if pack::check_of(&stored) == frame.check {
                new.append_many([frame], &stored).map_err(failed)?;
                continue;
            }
            self.store.mark_bad(id);
            let mut index = self.store.index_mut();
            index.forget(&frame.chunk, slot);
            if index.first(&frame.chunk).is_none() {
                return Ok(None);
            }
        }
        let new = new.seal().map_err(failed)?;
        if new.id() == *id {
            // Everything in it is needed and its frames are sound, so what was bad is repaired by writing it again.
            self.store.replace_bad(new).map_err(failed)?;
            return Ok(None);
        }
        new.commit().map(Some).map_err(failed)
    }
}
