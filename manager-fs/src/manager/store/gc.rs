//! Removing what nothing needs, beside publishers and readers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::MutexGuard;

use proto::{ChunkId, TreeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::index::{Index, Slot};
use super::pack::{self, PackIndex, PackWriter};
use super::pack_store::{BlobKind, BlobName};
use super::{PackId, Store, StoreError};
use crate::manager::monitor::{Monitor, Task};
use crate::sync::{lock, write};

/// What a collection removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcReport {
    /// Manifests that nothing named.
    pub manifests_removed: u64,
    /// Deltas of which one tree is not kept.
    pub deltas_removed: u64,
    /// Start-up bundles of which one tree is not kept.
    pub bundles_removed: u64,
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
    pub(super) store: &'a Store,
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
        let alone = lock(&self.collecting);
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

    /// Removes a blob unless `needed` says otherwise, at a moment when no publication can come to rely on it.
    pub(super) fn remove_unless(
        &self,
        name: &BlobName,
        needed: impl FnOnce(&Index) -> bool,
    ) -> Result<bool, StoreError> {
        let _commit = write(&self.commits);
        let needed = needed(&self.index());
        if !needed {
            self.delete(name)?;
        }
        Ok(!needed)
    }

    /// Puts a copy in the place of a pack, unless a publication has come to rely on the pack meanwhile. The caller holds
    /// `collecting`.
    pub(super) fn replace(
        &self,
        (old, slot): (PackId, Slot),
        new: PackId,
        index_of_new: &PackIndex,
    ) -> Result<bool, StoreError> {
        let _commit = write(&self.commits);
        let mut index = self.index_mut();
        if self.registry.needs_pack(slot) {
            // The copy is not known to anyone, unless a publication has just written the same.
            let known = index.slot(&new).is_some();
            drop(index);
            if !known {
                self.delete(&BlobName::Pack(new))?;
            }
            return Ok(false);
        }
        index.add(new, index_of_new);
        index.remove(&[old]);
        drop(index);
        self.delete(&BlobName::Pack(old))?;
        Ok(true)
    }

    pub(super) fn delete(&self, name: &BlobName) -> Result<(), StoreError> {
        self.packs.delete(name).map_err(|cause| StoreError::io(format!("removing {name:?}"), cause))
    }
}

/// A pack as a collection sees it.
struct Measured {
    id: PackId,
    slot: Slot,
    /// Bytes of the file.
    bytes: u64,
    /// Bytes of a pack of the chunks in it that are needed; 0 when none are.
    live_bytes: u64,
}

/// What became of a pack that was to be written anew.
enum Rewritten {
    /// Here is the copy.
    Copy(PackId, PackIndex),
    /// All of it was needed, and what was damaged is as it was.
    InPlace,
    /// A needed chunk is damaged and lies nowhere else.
    Beyond,
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
        self.collect_deltas(keep, dry_run, &mut report)?;
        self.collect_bundles(keep, dry_run, &mut report)?;
        self.collect_manifests(keep, dry_run, &mut report)?;
        let packs = self.measure(&live)?;
        let total = packs.len() as u64;
        let (dead, rest): (Vec<_>, Vec<_>) = packs.into_iter().partition(|pack| pack.live_bytes == 0);
        for (done, pack) in rest.into_iter().enumerate() {
            monitor.progress(Task::Collect, done as u64, total);
            self.collect_partly_live(&pack, &live, dry_run, &mut report)?;
        }
        // Last, since copying may find that a chunk's other place is the sound one.
        self.remove_dead(dead, &live, dry_run, &mut report)?;
        monitor.progress(Task::Collect, total, total);
        self.collect_unreadable(&live, dry_run, &mut report)?;
        Ok(report)
    }

    pub(super) fn list(&self, kind: BlobKind) -> Result<Vec<BlobName>, StoreError> {
        self.store.packs.list(kind).map_err(|cause| StoreError::io("the list of blobs", cause))
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
            if dry_run || self.store.remove_unless(&name, |_| self.store.registry.needs_tree(&tree))? {
                report.manifests_removed += 1;
                report.bytes_freed += bytes;
            }
        }
        Ok(())
    }

    pub(super) fn size(&self, name: &BlobName) -> Result<u64, StoreError> {
        let size = self.store.packs.size(name).map_err(|cause| StoreError::io("a blob's size", cause))?;
        Ok(size.unwrap_or(0))
    }

    fn measure(&self, live: &HashSet<ChunkId>) -> Result<Vec<Measured>, StoreError> {
        let mut needed: HashMap<Slot, u64> = HashMap::new();
        let empty = pack::pack_bytes(0, 0);
        let packs: Vec<(PackId, Slot)> = {
            let index = self.store.index();
            for (_, place) in index.iter().filter(|(chunk, _)| live.contains(*chunk)) {
                *needed.entry(place.slot).or_insert(empty) += pack::pack_bytes(1, place.stored_bytes.into()) - empty;
            }
            index.packs().into_iter().filter_map(|id| Some((id, index.slot(&id)?))).collect()
        };
        let measured = packs.into_iter().map(|(id, slot)| {
            let live_bytes = needed.get(&slot).copied().unwrap_or(0);
            Ok(Measured { id, slot, bytes: self.size(&BlobName::Pack(id))?, live_bytes })
        });
        measured.collect()
    }

    /// Removes packs of which nothing is needed, unless that has changed.
    fn remove_dead(
        &self,
        dead: Vec<Measured>,
        live: &HashSet<ChunkId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let _commit = write(&self.store.commits);
        let mut index = self.store.index_mut();
        let live_places = index.iter().filter(|(chunk, _)| live.contains(*chunk));
        let live_slots: HashSet<Slot> = live_places.map(|(_, place)| place.slot).collect();
        let needed = |pack: &Measured| self.store.registry.needs_pack(pack.slot) || live_slots.contains(&pack.slot);
        let (stays, goes): (Vec<_>, Vec<_>) = dead.into_iter().partition(needed);
        for pack in stays {
            report.packs_in_use += 1;
            report.bytes_kept += pack.bytes;
        }
        if !dry_run {
            let names: Vec<PackId> = goes.iter().map(|pack| pack.id).collect();
            index.remove(&names);
        }
        drop(index);
        for pack in goes {
            if !dry_run {
                self.store.delete(&BlobName::Pack(pack.id))?;
            }
            report.packs_removed += 1;
            report.bytes_freed += pack.bytes;
        }
        Ok(())
    }

    /// Writes a pack anew when less than half of it is needed, or when it is damaged.
    fn collect_partly_live(
        &self,
        pack: &Measured,
        live: &HashSet<ChunkId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let needed = || self.store.registry.needs_pack(pack.slot);
        let worth_it = pack.live_bytes * 2 < pack.bytes || self.store.is_bad(&pack.id);
        let mut written = None;
        if worth_it && !needed() {
            written = Some(pack.live_bytes);
            if !dry_run {
                written = match self.rewrite(&pack.id, pack.slot, live)? {
                    Rewritten::Copy(new, index) => {
                        let bytes = self.size(&BlobName::Pack(new))?;
                        self.store.replace((pack.id, pack.slot), new, &index)?.then_some(bytes)
                    }
                    Rewritten::InPlace => Some(pack.bytes),
                    Rewritten::Beyond => {
                        report.packs_damaged += 1;
                        None
                    }
                };
            }
        }
        report.packs_in_use += u64::from(written.is_none() && needed());
        report.packs_rewritten += u64::from(written.is_some());
        report.bytes_freed += written.map_or(0, |written| pack.bytes.saturating_sub(written));
        report.bytes_kept += written.unwrap_or(pack.bytes);
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
            if needed || !(dry_run || self.store.remove_unless(&name, |index| index.slot(&id).is_some())?) {
                report.packs_damaged += u64::from(needed);
                report.bytes_kept += bytes;
                continue;
            }
            report.packs_removed += 1;
            report.bytes_freed += bytes;
        }
        Ok(())
    }

    /// Copies the needed frames of a pack, as they are stored, into a new one.
    fn rewrite(&self, id: &PackId, slot: Slot, live: &HashSet<ChunkId>) -> Result<Rewritten, StoreError> {
        let what = || format!("pack {id}");
        let packs = self.store.packs.as_ref();
        // As the index in memory has them: that of the pack may be what is damaged.
        let (frames, effort) = {
            let index = self.store.index();
            (index.frames_of(slot), index.effort(id))
        };
        let failed = |cause| StoreError::io("the rewritten pack", cause);
        let mut new = PackWriter::create(packs, effort).map_err(failed)?;
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
                return Ok(Rewritten::Beyond);
            }
        }
        let new = new.seal().map_err(failed)?;
        if new.id() == *id {
            self.store.replace_bad(new).map_err(failed)?;
            return Ok(Rewritten::InPlace);
        }
        let (id, index) = new.commit().map_err(failed)?;
        Ok(Rewritten::Copy(id, index))
    }
}
