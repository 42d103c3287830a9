//! A start that was recorded of one tree as what a start of another will touch: the version after it, or a tree that shares
//! files with it.
//!
//! ```text
//! recorded touches ──┬─ of a file that both have ───────────────────────────────────────> the same pages
//!                    └─ of one that changed ── anchors: where its content stands now ───> pages moved by as much
//! ```
//! What was touched because of what it is, a function or a table, is touched again where it is now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;

use proto::bundle::Touch;
use proto::manifest::NodeKind;
use proto::proof::PAGE_BYTES;
use proto::width;
use proto::{GenerationRecord, Manifest, TreeId};

use crate::manager::delta::DeltaError;
use crate::manager::delta::anchors::Anchors;
use crate::manager::delta::plan::Namesakes;
use crate::manager::store::Store;

/// Anchors around a page of which the one in the middle says how far its content has moved: one that stands elsewhere by
/// chance says nothing then.
const WITNESSES: usize = 5;
/// Untouched pages between touched ones that are taken along: what a version touches beside what the one before did lies
/// mostly there (`docs/decisions.md`), and a page of a bundle costs less than the chunk that a miss costs.
const GAP_PAGES_MAX: u32 = 8;
/// The share of a tree that another one must have, for a start of that other to tell anything of this: one in so many bytes.
const SHARED_ONE_IN: u64 = 2;
/// Trees of other products that are compared, the newest first.
const COMPARED_MAX: usize = 16;

/// The tree whose recorded start tells most of how this one will start: the generation of the same product that was
/// published last before it, else first after it, else the tree that has most of its bytes.
pub(super) fn source(
    store: &Store,
    tree: &TreeId,
    records: &[&GenerationRecord],
    is_recorded: impl Fn(&TreeId) -> bool,
) -> Option<TreeId> {
    let own: Vec<_> = records.iter().filter(|record| record.tree == *tree).collect();
    let same_product = |record: &&&GenerationRecord| {
        own.iter().any(|own| own.product == record.product && own.shares_architecture(record))
    };
    let at = own.iter().map(|own| own.sequence).max()?;
    // The nearest before, then the nearest after.
    let distance = |record: &&&GenerationRecord| (record.sequence > at, record.sequence.abs_diff(at));
    let others = || records.iter().filter(|record| record.tree != *tree);
    let mut related: Vec<_> = others().filter(same_product).collect();
    related.sort_by_key(distance);
    if let Some(record) = related.into_iter().find(|record| is_recorded(&record.tree)) {
        return Some(record.tree);
    }
    let mut strangers: Vec<_> = others().filter(|record| !same_product(record)).collect();
    strangers.sort_by_key(|record| std::cmp::Reverse(record.sequence));
    let candidates = strangers.into_iter().map(|record| record.tree).filter(is_recorded).take(COMPARED_MAX);
    let this = store.tree(tree).ok()?;
    let shared = |candidate: TreeId| {
        let other = store.tree(&candidate).ok()?;
        let shared = this.objects.iter().filter(|object| other.object(&object.id).is_some());
        Some((shared.map(|object| object.bytes).sum::<u64>(), candidate))
    };
    let enough = |(bytes, _): &(u64, TreeId)| *bytes > this.object_bytes() / SHARED_ONE_IN;
    candidates.filter_map(shared).filter(enough).max().map(|(_, candidate)| candidate)
}

/// The touches of `old` as touches of `new`, in the same order.
///
/// # Errors
/// A chunk is missing or damaged.
pub(super) fn touches(
    store: &Store,
    old: &Manifest,
    recorded: &[Touch],
    new: &Manifest,
) -> Result<Vec<Touch>, DeltaError> {
    let successors = successors(old, new);
    let changed = |touch: &&Touch| old.objects[touch.object as usize].id != successor_id(&successors, new, touch);
    let touched: Vec<&Touch> = recorded.iter().filter(|touch| successors.contains_key(&touch.object)).collect();
    let moves = Moves::of(store, old, touched.iter().copied().filter(changed), new, &successors)?;
    let mut carried = Vec::new();
    for touch in touched {
        let to = successors[&touch.object];
        let object = &new.objects[to as usize];
        let pages = object.bytes.div_ceil(u64::from(PAGE_BYTES));
        for page in touch.first..touch.first.saturating_add(touch.count) {
            let from = u64::from(page) * u64::from(PAGE_BYTES);
            let at = from.saturating_add_signed(moves.at(touch.object, from));
            // Content that no longer begins with a page lies in two.
            let first = at / u64::from(PAGE_BYTES);
            let past = (at + u64::from(PAGE_BYTES)).div_ceil(u64::from(PAGE_BYTES)).min(pages);
            if let (Ok(first), Ok(count)) = (u32::try_from(first), u32::try_from(past.saturating_sub(first)))
                && count > 0
            {
                carried.push(Touch { object: to, first, count });
            }
        }
    }
    let gaps = gaps(&carried);
    carried.extend(gaps);
    Ok(carried)
}

/// What lies between touched pages of one file, where that is little.
fn gaps(touches: &[Touch]) -> Vec<Touch> {
    let mut sorted: Vec<&Touch> = touches.iter().collect();
    sorted.sort_unstable_by_key(|touch| (touch.object, touch.first));
    let mut gaps = Vec::new();
    let mut last: Option<(u32, u32)> = None;
    for touch in sorted {
        let past = touch.first + touch.count;
        last = match last {
            Some((object, end)) if object == touch.object => {
                if touch.first > end && touch.first - end <= GAP_PAGES_MAX {
                    gaps.push(Touch { object, first: end, count: touch.first - end });
                }
                Some((object, end.max(past)))
            }
            _ => Some((touch.object, past)),
        };
    }
    gaps
}

fn successor_id(successors: &HashMap<u32, u32>, new: &Manifest, touch: &Touch) -> proto::ObjectId {
    new.objects[successors[&touch.object] as usize].id
}

/// For objects of the old tree: the same one of the new tree, else the one at its path.
fn successors(old: &Manifest, new: &Manifest) -> HashMap<u32, u32> {
    let names = Namesakes::of(new);
    let mut successors = HashMap::new();
    for entry in &old.entries {
        let NodeKind::File(id) = old.node(entry).kind else { continue };
        let Some(from) = old.object_index(&id).map(width::count) else { continue };
        let to = new.object_index(&id).map(width::count).or_else(|| names.find(new, &entry.path));
        if let Some(to) = to {
            successors.entry(from).or_insert(to);
        }
    }
    successors
}

/// How far the content of changed files has moved.
struct Moves {
    /// By old object: offsets of anchors that both have, ascending, with how far each has moved.
    by_object: BTreeMap<u32, Vec<(u64, i64)>>,
}

impl Moves {
    /// Reads the chunks that were touched, and all of the files that took their place.
    fn of<'t>(
        store: &Store,
        old: &Manifest,
        changed: impl Iterator<Item = &'t Touch>,
        new: &Manifest,
        successors: &HashMap<u32, u32>,
    ) -> Result<Self, DeltaError> {
        let pages_per_chunk = old.chunk_bytes / PAGE_BYTES;
        let chunks: BTreeSet<(u32, u32)> = changed
            .flat_map(|touch| {
                let last = touch.first.saturating_add(touch.count.saturating_sub(1));
                (touch.first / pages_per_chunk..=last / pages_per_chunk).map(|chunk| (touch.object, chunk))
            })
            .collect();
        let wanted: BTreeSet<u32> = chunks.iter().map(|(object, _)| successors[object]).collect();
        let anchors = Anchors::of_some(store, new, |object| wanted.contains(&object), &AtomicBool::new(false))?;
        let mut by_object: BTreeMap<u32, Vec<(u64, i64)>> = BTreeMap::new();
        for (object, chunk) in chunks {
            let Some(id) = old.objects[object as usize].chunks.get(chunk as usize) else { continue };
            let start = u64::from(chunk) * u64::from(old.chunk_bytes);
            let hits = anchors.found(&store.plain_chunk(id)?);
            let own = hits.into_iter().filter(|(_, place)| place.object == successors[&object]);
            let moved = own.filter_map(|(at, place)| {
                let from = start + at as u64;
                Some((from, i64::try_from(place.offset).ok()? - i64::try_from(from).ok()?))
            });
            by_object.entry(object).or_default().extend(moved);
        }
        Ok(Self { by_object })
    }

    /// How far what stands at this offset has moved: as far as most around it.
    fn at(&self, object: u32, offset: u64) -> i64 {
        let Some(moved) = self.by_object.get(&object).filter(|moved| !moved.is_empty()) else { return 0 };
        let middle = moved.partition_point(|(at, _)| *at < offset);
        let from = middle.saturating_sub(WITNESSES / 2).min(moved.len().saturating_sub(WITNESSES));
        let mut witnesses: Vec<i64> = moved[from..].iter().take(WITNESSES).map(|(_, by)| *by).collect();
        witnesses.sort_unstable();
        witnesses[witnesses.len() / 2]
    }
}

#[cfg(test)]
#[path = "carried_tests.rs"]
mod tests;
