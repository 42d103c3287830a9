//! What a start touches first, as one stream: made once, stored, and sent to every host with the manifest.
//!
//! ```text
//! touches ──parts──> pages by chunk, in the order of first touch ──frames──> compressed, each after what came before
//!                          └──prove──> chaining values            old tree ──stretches──┘ for hosts that have it
//! ```
//! The order is that of the first touch of each chunk: its other touched pages come with it, so that one proof serves
//! them all. Format: `docs/bundle-format.md`.

mod agreement;
mod background;
mod carried;
mod guess;
mod guessed;
mod likely;
mod recorded;
mod serve;
mod served;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proto::bundle::{
    Frame, Header, Origin, PAGES_BYTES_MAX, Pages, TAIL_BYTES, TOUCHES_MAX, Touch, decode_index, encode_index,
};
use proto::delta::Run;
use proto::manifest::NodeKind;
use proto::message::BundleFacts;
use proto::proof::{PAGE_BYTES, PageSet, prove};
use proto::relative::{FRAME_PARTS_MAX, Part, Recipe, Stretch};
use proto::width;
use proto::{Manifest, TreeId};

use super::delta::anchors::Anchors;
use super::delta::plan::{Namesakes, Piece};
use super::delta::{DeltaError, OldBytes, stretches};
use super::store::{Store, StoreError};
use crate::patch::{self, Encoder, Patch};

pub use serve::SendStartError;
pub(crate) use serve::{Bundles, StartOrder};

/// zstd level of a bundle: it is made once and sent to every host (`docs/decisions.md`).
pub const LEVEL: i32 = 19;
/// Level of manifests larger than [`MANIFEST_BYTES_BEST`]: they are mostly hashes.
const LEVEL_FAST: i32 = 9;
const MANIFEST_BYTES_BEST: usize = 4 << 20;
/// Plain bytes of the first frame; each is twice as large as the one before, up to [`FRAME_BYTES`]: the program goes on as
/// soon as the first is there.
const FIRST_FRAME_BYTES: u64 = 64 << 10;
const FRAME_BYTES: u64 = 512 << 10;

/// Pages of a guess that come by chunk before the order of their likelihood is kept.
const NEAR_PAGES: usize = 256;

/// What to make a bundle of.
#[derive(Debug, Clone, Copy)]
pub struct BundleOrder<'a> {
    /// The tree of which pages are wanted.
    pub tree: &'a TreeId,
    /// For hosts that have every object of this tree.
    pub from: Option<&'a TreeId>,
    /// Pages in the order in which they were touched; some may occur again.
    pub touches: &'a [Touch],
    /// How it is known that they are.
    pub origin: Origin,
    /// The zstd level: low while a host waits, high afterwards.
    pub level: i32,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The touches are not of this tree, or more than a bundle may hold.
    #[error("{0}")]
    Touches(String),
    /// Trees or chunks are missing, or encoding failed.
    #[error(transparent)]
    Make(#[from] DeltaError),
}

impl From<StoreError> for BundleError {
    fn from(error: StoreError) -> Self {
        Self::Make(error.into())
    }
}

impl From<patch::PatchError> for BundleError {
    fn from(error: patch::PatchError) -> Self {
        Self::Make(error.into())
    }
}

impl From<proto::codec::CodecError> for BundleError {
    fn from(error: proto::codec::CodecError) -> Self {
        Self::Make(DeltaError::Encode(error.to_string()))
    }
}

/// Makes a bundle: its bytes without the trailer, and what it holds.
///
/// # Errors
/// A touch is not of the tree, a chunk is missing or damaged, or `cancelled` was set.
pub fn make(
    store: &Store,
    order: BundleOrder<'_>,
    cancelled: &AtomicBool,
) -> Result<(Vec<u8>, BundleFacts), BundleError> {
    let tree = store.tree(order.tree)?;
    let from = order.from.map(|from| store.tree(from)).transpose()?;
    // What is guessed stands in the order of its likelihood, and that is kept.
    let gather = if order.origin == Origin::Guessed { Gather::Near } else { Gather::Whole };
    let mut parts = parts(order.touches, &tree, gather)?;
    if let Some(from) = &from {
        // The host has these objects whole, and the kernel never asks the daemon for them.
        parts.retain(|part| from.object(&tree.objects[part.object as usize].id).is_none());
    }
    let mut maker = Maker {
        store,
        tree: &tree,
        old: from.as_ref().map(|from| Old::of(store, from, &tree, cancelled)).transpose()?,
        level: order.level,
        tail: Vec::new(),
        frames: Vec::new(),
        stored: Vec::new(),
        proofs: Vec::new(),
        facts: BundleFacts::default(),
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    for batch in groups(&parts, &tree).chunks(threads) {
        if cancelled.load(Ordering::Relaxed) {
            return Err(DeltaError::Cancelled.into());
        }
        maker.frames(batch)?;
    }
    let mut objects: Vec<u32> = parts.iter().map(|part| part.object).collect();
    objects.sort_unstable();
    objects.dedup();
    maker.facts.objects = objects.len() as u64;
    maker.finish(&order)
}

/// What a bundle has pages of, in its order: with these a new one can be made.
pub(crate) fn touches_of(bundle: &[u8], header: &Header, store: &Store) -> Result<Vec<Touch>, BundleError> {
    let tree = store.tree(&header.tree)?;
    let start = proto::bundle::HEADER_BYTES + header.manifest.stored_bytes as usize;
    let damaged = || BundleError::Touches("the bundle that was there cannot be read".into());
    let stored = bundle.get(start..start + header.index.stored_bytes as usize).ok_or_else(damaged)?;
    let index = patch::decompress(stored, &[], header.index.plain_bytes as usize)?;
    let frames =
        decode_index(&index, header, None, &tree).map_err(|fault| BundleError::Touches(fault.to_string()))?;
    let pages_per_chunk = tree.chunk_bytes / PAGE_BYTES;
    let touches = frames.iter().flat_map(|frame| &frame.makes).flat_map(|pages| {
        let first = pages.chunk * pages_per_chunk;
        pages.runs.iter().map(move |run| Touch {
            object: pages.object,
            first: first + u32::from(run.first),
            count: run.count.into(),
        })
    });
    Ok(touches.collect())
}

/// Which pages of a chunk come with the first of them, so that one proof serves them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gather {
    /// All.
    Whole,
    /// Those that are touched before twice as much has been, and [`NEAR_PAGES`]. The others come later, with a proof of
    /// their own.
    Near,
}

/// Touched pages by chunk, in the order of the chunks' first touches.
fn parts(touches: &[Touch], tree: &Manifest, gather: Gather) -> Result<Vec<Pages>, BundleError> {
    let pages_per_chunk = tree.chunk_bytes / PAGE_BYTES;
    let mut order: Vec<(u32, u32, PageSet)> = Vec::new();
    let mut places: HashMap<(u32, u32), (usize, usize)> = HashMap::new();
    let mut seen: HashMap<(u32, u32), PageSet> = HashMap::new();
    let mut count = 0;
    if touches.len() > TOUCHES_MAX {
        return Err(BundleError::Touches(format!("{} touches; {TOUCHES_MAX} are allowed", touches.len())));
    }
    for touch in touches {
        let object = tree.objects.get(touch.object as usize);
        let past = touch.first.checked_add(touch.count).filter(|_| touch.count > 0);
        let within = |past: &u32| {
            object.is_some_and(|object| u64::from(*past) <= object.bytes.div_ceil(u64::from(PAGE_BYTES)))
        };
        let Some(past) = past.filter(within) else {
            return Err(BundleError::Touches(format!("{touch:?} is not of this tree")));
        };
        for page in touch.first..past {
            let key = (touch.object, page / pages_per_chunk);
            let known = seen.entry(key).or_default();
            if known.contains(page % pages_per_chunk) {
                continue;
            }
            known.insert(page % pages_per_chunk);
            let is_far = |(_, until): &mut (usize, usize)| gather == Gather::Near && count >= *until;
            if places.get_mut(&key).is_none_or(is_far) {
                order.push((key.0, key.1, PageSet::default()));
                places.insert(key, (order.len() - 1, (count * 2).max(NEAR_PAGES)));
            }
            count += 1;
            order[places[&key].0].2.insert(page % pages_per_chunk);
        }
    }
    let parts: Vec<Pages> =
        order.into_iter().map(|(object, chunk, set)| Pages { object, chunk, runs: set.runs() }).collect();
    match parts.iter().map(|part| plain_bytes(part, tree)).sum::<u64>() {
        bytes if bytes > PAGES_BYTES_MAX => {
            Err(BundleError::Touches(format!("{bytes} bytes were touched; a bundle holds {PAGES_BYTES_MAX} at most")))
        }
        _ => Ok(parts),
    }
}

fn plain_bytes(part: &Pages, tree: &Manifest) -> u64 {
    part.of(tree).map_or(0, |(set, chunk_bytes)| u64::from(set.bytes(chunk_bytes)))
}

/// Parts into frames of growing size.
fn groups<'a>(parts: &'a [Pages], tree: &Manifest) -> Vec<&'a [Pages]> {
    let (mut groups, mut rest, mut target) = (Vec::new(), parts, FIRST_FRAME_BYTES);
    while !rest.is_empty() {
        let (mut bytes, mut count) = (0, 0);
        for part in rest.iter().take(FRAME_PARTS_MAX) {
            let more = plain_bytes(part, tree);
            if count > 0 && bytes + more > target {
                break;
            }
            (bytes, count) = (bytes + more, count + 1);
        }
        let (group, after) = rest.split_at(count);
        groups.push(group);
        rest = after;
        target = (target * 2).min(FRAME_BYTES);
    }
    groups
}

/// The tree that hosts have, ready to be searched.
struct Old<'a> {
    manifest: &'a Manifest,
    anchors: Anchors,
    bytes: OldBytes<'a>,
    /// For each object of the new tree, the old one at its path.
    namesakes: HashMap<u32, u32>,
}

impl<'a> Old<'a> {
    fn of(store: &'a Store, from: &'a Manifest, tree: &Manifest, cancelled: &AtomicBool) -> Result<Self, DeltaError> {
        let names = Namesakes::of(from);
        let named = tree.entries.iter().filter_map(|entry| {
            let NodeKind::File(id) = tree.node(entry).kind else { return None };
            Some((width::count(tree.object_index(&id)?), names.find(from, &entry.path)?))
        });
        let namesakes = named.collect();
        let anchors = Anchors::of(store, from, cancelled)?;
        Ok(Self { manifest: from, anchors, bytes: OldBytes::new(store, from), namesakes })
    }
}

struct Maker<'a> {
    store: &'a Store,
    tree: &'a Manifest,
    old: Option<Old<'a>>,
    level: i32,
    /// The last plain bytes, [`TAIL_BYTES`] at most.
    tail: Vec<u8>,
    frames: Vec<Frame>,
    stored: Vec<u8>,
    proofs: Vec<u8>,
    facts: BundleFacts,
}

impl Maker<'_> {
    /// Makes frames that follow each other, each in a thread of its own: what comes before one is plain bytes, not their
    /// encoding.
    fn frames(&mut self, batch: &[&[Pages]]) -> Result<(), BundleError> {
        let drafts = batch.iter().map(|makes| self.draft(makes)).collect::<Result<Vec<_>, _>>()?;
        let this = &*self;
        let encoded: Vec<_> = thread::scope(|scope| {
            let encoding: Vec<_> = drafts
                .iter()
                .map(|draft| scope.spawn(|| this.encode(&draft.tail, &draft.stretches, &draft.plain)))
                .collect();
            encoding.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        for ((makes, draft), encoded) in batch.iter().zip(&drafts).zip(encoded) {
            let ended_early = || BundleError::Make(DeltaError::Encode("a thread ended early".into()));
            let (stretches, patch) = encoded.map_err(|_| ended_early())??;
            let recipe = Recipe { stretches, patch: patch.patch, literals: patch.literals };
            self.frames.push(Frame { makes: makes.to_vec(), recipe });
            self.stored.extend_from_slice(&patch.stored);
            self.facts.plain_bytes += draft.plain.len() as u64;
        }
        Ok(())
    }

    /// Everything that the encoding of a frame needs.
    fn draft(&mut self, makes: &[Pages]) -> Result<Draft, BundleError> {
        let (mut plain, mut candidates) = (Vec::new(), Vec::new());
        for part in makes {
            let start = plain.len();
            let id = &self.tree.objects[part.object as usize].chunks[part.chunk as usize];
            let chunk = self.store.plain_chunk(id)?;
            let (set, _) = part.of(self.tree).ok_or_else(|| BundleError::Touches("a part of another tree".into()))?;
            for run in &part.runs {
                let from = usize::from(run.first) * PAGE_BYTES as usize;
                let to = (usize::from(run.first) + usize::from(run.count)) * PAGE_BYTES as usize;
                plain.extend_from_slice(&chunk[from..to.min(chunk.len())]);
            }
            self.proofs.extend(prove(&chunk, &set).iter().flatten());
            if let Some(old) = &self.old {
                let run = Run { object: part.object, first: part.chunk, count: 1 };
                let piece = Piece { run, namesake: old.namesakes.get(&part.object).copied() };
                let hits = old.anchors.hits(&plain[start..]);
                let bytes = (plain.len() - start) as u64;
                candidates.extend(stretches::candidates(&piece, bytes, &hits, old.manifest, self.tree));
            }
        }
        let tail = self.tail.clone();
        extend_tail(&mut self.tail, &plain);
        Ok(Draft { tail, plain, stretches: stretches::base(candidates) })
    }

    /// Against the old tree where that has anything to say, else after the plain bytes that came before.
    fn encode(&self, tail: &[u8], stretches: &[Stretch], plain: &[u8]) -> Result<(Vec<Stretch>, Patch), BundleError> {
        let after = patch::encode_plain(tail, plain, self.level)?;
        let Some(old) = self.old.as_ref().filter(|_| !stretches.is_empty()) else { return Ok((Vec::new(), after)) };
        let base = [tail, &old.bytes.read(stretches)?].concat();
        let over = Encoder::default().encode(&base, plain, self.level)?;
        Ok(if over.stored.len() < after.stored.len() { (stretches.to_vec(), over) } else { (Vec::new(), after) })
    }

    fn finish(mut self, order: &BundleOrder<'_>) -> Result<(Vec<u8>, BundleFacts), BundleError> {
        let missing = |tree: &TreeId| StoreError::Missing { what: format!("manifest {tree}") };
        let manifest = |tree: &TreeId| self.store.manifest(tree).and_then(|found| found.ok_or_else(|| missing(tree)));
        let new = manifest(order.tree)?;
        let old = order.from.map(manifest).transpose()?.unwrap_or_default();
        let level = if new.len() > MANIFEST_BYTES_BEST { self.level.min(LEVEL_FAST) } else { self.level };
        let manifest_stored = patch::compress(&new, &old, level)?;
        let index = encode_index(&self.frames)?;
        let index_stored = patch::compress(&index, &[], self.level)?;
        let part = |stored: &[u8], plain: &[u8]| Part {
            stored_bytes: width::count(stored.len()),
            plain_bytes: width::count(plain.len()),
        };
        let header = Header {
            tree: *order.tree,
            from: order.from.copied(),
            origin: order.origin,
            fast: order.level < LEVEL,
            manifest: part(&manifest_stored, &new),
            index: part(&index_stored, &index),
            proofs_bytes: width::count(self.proofs.len()),
            frames_bytes: self.stored.len() as u64,
        };
        let bytes = [&header.encode()[..], &manifest_stored, &index_stored, &self.proofs, &self.stored].concat();
        self.facts.bundle_bytes = bytes.len() as u64;
        Ok((bytes, self.facts))
    }
}

/// One frame before it is encoded.
struct Draft {
    /// What comes before it.
    tail: Vec<u8>,
    plain: Vec<u8>,
    stretches: Vec<Stretch>,
}

/// The last [`TAIL_BYTES`] of what came before and this.
fn extend_tail(tail: &mut Vec<u8>, plain: &[u8]) {
    tail.extend_from_slice(plain);
    let surplus = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..surplus);
}
