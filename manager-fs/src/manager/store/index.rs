//! Which chunk lies where, and who must not lose it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use proto::bulk::Encoding;
use proto::{ChunkId, TreeId};

use super::pack::{Effort, Frame, PackIndex};
use super::pack_id::PackId;
use crate::sync::lock;

/// A pack in the index. Never given twice, so that a pin cannot come to mean another pack.
pub(super) type Slot = u32;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) slot: Slot,
    pub(super) offset: u64,
    pub(super) stored_bytes: u32,
    pub(super) plain_bytes: u32,
    pub(super) encoding: Encoding,
    pub(super) check: [u8; 8],
}

impl Location {
    fn frame(&self, chunk: ChunkId) -> Frame {
        Frame {
            chunk,
            offset: self.offset,
            stored_bytes: self.stored_bytes,
            plain_bytes: self.plain_bytes,
            encoding: self.encoding,
            check: self.check,
        }
    }
}

/// Every chunk of the store. Rebuilt from the packs' own indexes at start, so it cannot disagree with them.
#[derive(Debug, Default)]
pub(super) struct Index {
    chunks: HashMap<ChunkId, Location>,
    /// Further places of chunks that two publishers wrote at the same time.
    spare: HashMap<ChunkId, Vec<Location>>,
    packs: HashMap<PackId, Slot>,
    names: HashMap<Slot, PackId>,
    /// Packs whose frames could be smaller.
    fast: BTreeSet<PackId>,
    next_slot: Slot,
}

impl Index {
    /// Adds a pack's frames. A pack that is there already keeps its slot, and gets back the places that were forgotten.
    pub(super) fn add(&mut self, pack: PackId, index: &PackIndex) -> Slot {
        let slot = *self.packs.entry(pack).or_insert_with(|| {
            self.next_slot += 1;
            self.names.insert(self.next_slot, pack);
            self.next_slot
        });
        if index.effort == Effort::Fast {
            self.fast.insert(pack);
        }
        self.chunks.reserve(index.frames.len());
        for frame in &index.frames {
            let location = Location {
                slot,
                offset: frame.offset,
                stored_bytes: frame.stored_bytes,
                plain_bytes: frame.plain_bytes,
                encoding: frame.encoding,
                check: frame.check,
            };
            let Some(first) = self.chunks.get(&frame.chunk) else {
                self.chunks.insert(frame.chunk, location);
                continue;
            };
            let spare = self.spare.get(&frame.chunk).into_iter().flatten();
            if std::iter::once(first).chain(spare).all(|place| place.slot != slot) {
                self.spare.entry(frame.chunk).or_default().push(location);
            }
        }
        slot
    }

    /// Forgets packs; chunks that lie elsewhere too stay known.
    pub(super) fn remove(&mut self, packs: &[PackId]) {
        let slots: HashSet<Slot> = packs.iter().filter_map(|pack| self.packs.remove(pack)).collect();
        if slots.is_empty() {
            return;
        }
        self.names.retain(|slot, _| !slots.contains(slot));
        self.fast.retain(|pack| !packs.contains(pack));
        self.spare.retain(|_, places| {
            places.retain(|place| !slots.contains(&place.slot));
            !places.is_empty()
        });
        let Self { chunks, spare, .. } = self;
        chunks.retain(|chunk, place| {
            if !slots.contains(&place.slot) {
                return true;
            }
            match spare.get_mut(chunk).and_then(Vec::pop) {
                Some(other) => {
                    *place = other;
                    true
                }
                None => false,
            }
        });
        spare.retain(|_, places| !places.is_empty());
    }

    /// Forgets one place of a chunk, whose bytes turned out to be damaged, so that the next publication writes it anew.
    pub(super) fn forget(&mut self, chunk: &ChunkId, slot: Slot) {
        if let Some(places) = self.spare.get_mut(chunk) {
            places.retain(|place| place.slot != slot);
        }
        if self.chunks.get(chunk).is_some_and(|place| place.slot == slot) {
            match self.spare.get_mut(chunk).and_then(Vec::pop) {
                Some(other) => self.chunks.insert(*chunk, other),
                None => self.chunks.remove(chunk),
            };
        }
        self.spare.retain(|_, places| !places.is_empty());
    }

    /// The place that is read.
    pub(super) fn first(&self, chunk: &ChunkId) -> Option<&Location> {
        self.chunks.get(chunk)
    }

    /// Every place of a chunk.
    pub(super) fn places_of(&self, chunk: &ChunkId) -> impl Iterator<Item = &Location> {
        self.chunks.get(chunk).into_iter().chain(self.spare.get(chunk).into_iter().flatten())
    }

    /// Every place of a chunk, with the pack's name.
    pub(super) fn places(&self, chunk: &ChunkId) -> Vec<(PackId, Location)> {
        self.places_of(chunk).filter_map(|place| Some((self.name(place.slot)?, *place))).collect()
    }

    pub(super) fn name(&self, slot: Slot) -> Option<PackId> {
        self.names.get(&slot).copied()
    }

    /// Every chunk with the place that is read.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChunkId, &Location)> {
        self.chunks.iter()
    }

    /// The chunks that are read out of one pack, in its order.
    pub(super) fn frames_of(&self, slot: Slot) -> Vec<Frame> {
        let ours = self.chunks.iter().filter(|(_, place)| place.slot == slot);
        let mut frames: Vec<Frame> = ours.map(|(chunk, place)| place.frame(*chunk)).collect();
        frames.sort_by_key(|frame| frame.offset);
        frames
    }

    /// Every pack whose frames are in the index.
    pub(super) fn packs(&self) -> BTreeSet<PackId> {
        self.packs.keys().copied().collect()
    }

    /// The packs whose frames could be smaller.
    pub(super) fn fast(&self) -> impl Iterator<Item = &PackId> {
        self.fast.iter()
    }

    pub(super) fn effort(&self, pack: &PackId) -> Effort {
        if self.fast.contains(pack) { Effort::Fast } else { Effort::Best }
    }

    pub(super) fn slot(&self, pack: &PackId) -> Option<Slot> {
        self.packs.get(pack).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }
}

/// What one publication, or one that ended during a collection, still needs.
#[derive(Debug, Default)]
pub(super) struct Pins {
    slots: HashSet<Slot>,
    trees: BTreeSet<TreeId>,
}

type SharedPins = Arc<Mutex<Pins>>;

/// The running publications.
#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<RegistryState>,
}

#[derive(Debug, Default)]
struct RegistryState {
    live: HashMap<u64, SharedPins>,
    next: u64,
    passes: usize,
    /// Of publications that ended while a collection runs: it may have learned what to keep before they did.
    ended: Vec<SharedPins>,
}

impl Registry {
    fn state(&self) -> std::sync::MutexGuard<'_, RegistryState> {
        lock(&self.state)
    }

    /// A publication begins.
    pub(super) fn guard(self: &Arc<Self>) -> PublishGuard {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let pins = SharedPins::default();
        state.live.insert(number, pins.clone());
        PublishGuard { registry: self.clone(), number, pins }
    }

    /// Whether any publication is running.
    pub(super) fn is_publishing(&self) -> bool {
        !self.state().live.is_empty()
    }

    pub(super) fn pass_begins(&self) {
        self.state().passes += 1;
    }

    pub(super) fn pass_ends(&self) {
        let mut state = self.state();
        state.passes -= 1;
        if state.passes == 0 {
            state.ended.clear();
        }
    }

    fn any(&self, needs: impl Fn(&Pins) -> bool) -> bool {
        let state = self.state();
        let mut all = state.live.values().chain(&state.ended);
        all.any(|pins| needs(&lock(pins)))
    }

    pub(super) fn needs_pack(&self, slot: Slot) -> bool {
        self.any(|pins| pins.slots.contains(&slot))
    }

    pub(super) fn needs_tree(&self, tree: &TreeId) -> bool {
        self.any(|pins| pins.trees.contains(tree))
    }
}

/// Keeps `gc` from removing what a publication has written or relies on, until it is dropped: hold it until the
/// generation's record is committed.
#[derive(Debug)]
pub struct PublishGuard {
    registry: Arc<Registry>,
    number: u64,
    pins: SharedPins,
}

impl PublishGuard {
    pub(super) fn pin_pack(&self, slot: Slot) {
        lock(&self.pins).slots.insert(slot);
    }

    pub(super) fn pin_tree(&self, tree: TreeId) {
        lock(&self.pins).trees.insert(tree);
    }
}

impl Drop for PublishGuard {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        let pins = state.live.remove(&self.number);
        if state.passes > 0 {
            state.ended.extend(pins);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u8) -> PackId {
        format!("{number:02x}").repeat(32).parse().unwrap()
    }

    fn chunk(name: &str) -> ChunkId {
        ChunkId::of(name.as_bytes())
    }

    /// Three packs that all have the chunk `x`, and one of their own each.
    fn index() -> Index {
        let mut index = Index::default();
        for number in 1..=3 {
            let frame = |offset: u64, chunk| Frame {
                chunk,
                offset,
                stored_bytes: 1,
                plain_bytes: 1,
                encoding: Encoding::Raw,
                check: [number; 8],
            };
            let frames = vec![frame(1, chunk("x")), frame(2, chunk(&number.to_string()))];
            index.add(pack(number), &PackIndex { effort: Effort::Fast, frames });
        }
        index
    }

    fn of_x(index: &Index) -> Vec<PackId> {
        let mut packs: Vec<PackId> = index.places(&chunk("x")).into_iter().map(|(pack, _)| pack).collect();
        packs.sort();
        packs
    }

    #[test]
    fn a_chunk_of_several_packs_counts_once_and_outlives_all_but_the_last_of_them() {
        let mut index = index();
        assert_eq!((index.len(), of_x(&index)), (4, vec![pack(1), pack(2), pack(3)]));
        for (gone, left) in [(2, vec![pack(1), pack(3)]), (1, vec![pack(3)]), (3, vec![])] {
            index.remove(&[pack(gone)]);
            assert_eq!((index.len(), of_x(&index)), (left.len() + usize::from(!left.is_empty()), left));
        }
    }

    #[test]
    fn one_place_of_a_chunk_is_forgotten_and_the_others_stay() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
            let mut index = index();
            for (forgotten, number) in (1..).zip(order) {
                let slot = index.slot(&pack(number)).unwrap();
                index.forget(&chunk("x"), slot);
                let left = order[forgotten..].iter().map(|number| pack(*number)).collect::<BTreeSet<_>>();
                assert_eq!(of_x(&index), Vec::from_iter(left), "{order:?} after {forgotten}");
            }
            // What else these packs have is as it was, and a pack that is read again brings its places back.
            assert_eq!((index.len(), index.first(&chunk("x"))), (3, None));
            let frames = vec![Frame { stored_bytes: 1, ..index.first(&chunk("1")).unwrap().frame(chunk("x")) }];
            index.add(pack(1), &PackIndex { effort: Effort::Fast, frames });
            assert_eq!(of_x(&index), [pack(1)]);
        }
    }

    #[test]
    fn a_publication_runs_until_its_guard_is_dropped() {
        let registry = Arc::new(Registry::default());
        assert!(!registry.is_publishing());
        let guards = [registry.guard(), registry.guard()];
        assert!(registry.is_publishing());
        drop(guards);
        assert!(!registry.is_publishing());
    }
}
