//! One tree as a delta against another: made once, stored, and sent to every host that has the other.
//!
//! ```text
//! manifests ──plan──> pieces that the old tree lacks ──group──> frames
//! old tree ──anchors──> where each piece's content stood ──stretches──> base ──patch──> frame, if it pays
//! ```
//! The base is found by content, so renamed files and moved functions are found, and by name where content says too
//! little. What does not pay is left out: hosts fetch those chunks as they are. Format: `docs/delta-format.md`.

pub(super) mod anchors;
pub(super) mod plan;
mod serve;
pub(super) mod stretches;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use proto::delta::{Frame, Header, encode_index, trailer};
use proto::relative::{Part, Recipe, Stretch};
use proto::width;
use proto::{ChunkId, Manifest, TreeId};

use super::store::{Draft, Store, StoreError};
use crate::patch::{self, Encoder, PatchError};
use crate::sync::{into_inner, lock};
use anchors::Anchors;
use plan::Piece;

pub(crate) use serve::Deltas;
pub use serve::SendDeltaError;

/// Level for a delta that someone waits for: nine tenths of what the best level saves, in a tenth of its time.
pub const LEVEL_FAST: i32 = 12;
/// Level for a delta that is made in the background.
pub const LEVEL_BEST: i32 = 19;
/// Manifests larger than this are compressed at [`LEVEL_FAST`] at most: they are mostly hashes.
const MANIFEST_BYTES_BEST: usize = 4 << 20;
/// Bytes of a chunk's frame head and header on the wire, which a delta saves too.
const CHUNK_WIRE_BYTES: u64 = 29;
/// Old chunks kept decoded, bytes.
const OLD_BYTES_CACHED: u64 = 32 << 20;

/// How a delta is made.
#[derive(Debug, Clone, Copy)]
pub struct DeltaOptions {
    /// zstd level, such as [`LEVEL_FAST`] or [`LEVEL_BEST`].
    pub level: i32,
    /// Threads that search and compress.
    pub threads: usize,
}

/// What is in a delta that was made, and what it leaves to be fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeltaStats {
    /// Bytes of the whole delta.
    pub delta_bytes: u64,
    /// Bytes of the manifest in it.
    pub manifest_bytes: u64,
    /// Bytes of the index in it.
    pub index_bytes: u64,
    /// Frames that were worth their bytes.
    pub frames: u64,
    /// Plain bytes that its frames make.
    pub made_bytes: u64,
    /// Plain bytes that the old tree lacks and no frame makes, because none would pay.
    pub left_out_bytes: u64,
    /// What the chunks that no frame makes cost when fetched as they are stored, bytes.
    pub left_out_stored_bytes: u64,
    /// What the chunks that the frames make would cost when fetched as they are stored, bytes.
    pub replaced_stored_bytes: u64,
}

/// Why there is no delta.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The store failed, or lacks a tree or a chunk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// zstd failed, or a thread that compresses did; the text says how.
    #[error("the delta cannot be encoded: {0}")]
    Encode(String),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

impl From<PatchError> for DeltaError {
    fn from(error: PatchError) -> Self {
        Self::Encode(error.to_string())
    }
}

/// Makes the delta that turns tree `from` into tree `to`, and stores it. One that is there already is replaced by
/// nothing: the first stays.
///
/// # Errors
/// A tree or a chunk is missing or damaged, the store cannot be written, or `cancelled` was set.
pub fn make(
    store: &Store,
    from: &TreeId,
    to: &TreeId,
    options: DeltaOptions,
    cancelled: &AtomicBool,
) -> Result<DeltaStats, DeltaError> {
    let (old, new) = (store.tree(from)?, store.tree(to)?);
    let groups = plan::group(plan::missing(&old, &new), &new);
    let anchors = if groups.is_empty() { Anchors::none() } else { Anchors::of(store, &old, cancelled)? };
    let failed = |source| StoreError::io("the new delta", source);
    let mut stats = DeltaStats::default();
    let mut frames = Vec::new();
    let mut stored = store.draft().map_err(failed)?;
    let maker = Maker { store, old: OldBytes::new(store, &old), new: &new, anchors, options, cancelled };
    // Batches keep what is not written yet small, and the frames in order: the same trees make the same delta.
    for batch in groups.chunks(options.threads.max(1) * 4) {
        for made in maker.frames(batch)? {
            stats.add(&made);
            if let Some((frame, bytes)) = made.frame {
                stored.append(&bytes).map_err(failed)?;
                frames.push(frame);
            }
        }
    }
    let (header, front) = front(store, (from, to), &frames, options)?;
    stats.frames = frames.len() as u64;
    (stats.manifest_bytes, stats.index_bytes) =
        (header.manifest.stored_bytes.into(), header.index.stored_bytes.into());
    stats.delta_bytes = header.delta_bytes().unwrap_or(0);
    let draft = assemble(store, &header, &front, stored.as_ref()).map_err(failed)?;
    store.put_delta(draft, from, to)?;
    Ok(stats)
}

/// The parts before the frames, and the header that tells their sizes.
fn front(
    store: &Store,
    (from, to): (&TreeId, &TreeId),
    frames: &[Frame],
    options: DeltaOptions,
) -> Result<(Header, Vec<u8>), DeltaError> {
    let manifest = |tree: &TreeId| {
        let missing = || StoreError::Missing { what: format!("manifest {tree}") };
        store.manifest(tree).and_then(|found| found.ok_or_else(missing))
    };
    let (old, new) = (manifest(from)?, manifest(to)?);
    let level = if new.len() > MANIFEST_BYTES_BEST { options.level.min(LEVEL_FAST) } else { options.level };
    let manifest_stored = patch::compress(&new, &old, level)?;
    let index = encode_index(frames).map_err(|error| DeltaError::Encode(error.to_string()))?;
    let index_stored = patch::compress(&index, &[], options.level)?;
    let part = |stored: &[u8], plain: &[u8]| Part {
        stored_bytes: width::count(stored.len()),
        plain_bytes: width::count(plain.len()),
    };
    let header = Header {
        from: *from,
        to: *to,
        manifest: part(&manifest_stored, &new),
        index: part(&index_stored, &index),
        frames_bytes: frames.iter().map(|frame| frame.recipe.stored_bytes()).sum(),
    };
    Ok((header, [manifest_stored, index_stored].concat()))
}

fn assemble(store: &Store, header: &Header, front: &[u8], frames: &dyn Draft) -> io::Result<Box<dyn Draft>> {
    const PIECE: u64 = 1 << 20;
    let mut draft = store.draft()?;
    let mut hasher = blake3::Hasher::new();
    let mut append = |bytes: &[u8]| {
        hasher.update(bytes);
        draft.append(bytes)
    };
    append(&header.encode())?;
    append(front)?;
    let mut at = 0;
    while at < header.frames_bytes {
        let end = (at + PIECE).min(header.frames_bytes);
        append(&frames.read(at..end)?)?;
        at = end;
    }
    draft.append(&trailer(*hasher.finalize().as_bytes()))?;
    Ok(draft)
}

impl DeltaStats {
    fn add(&mut self, made: &Made) {
        match made.frame {
            Some(_) => {
                self.made_bytes += made.plain_bytes;
                self.replaced_stored_bytes += made.fetched_bytes;
            }
            None => {
                self.left_out_bytes += made.plain_bytes;
                self.left_out_stored_bytes += made.fetched_bytes;
            }
        }
    }
}

/// What became of one group of pieces.
struct Made {
    plain_bytes: u64,
    /// What it costs to fetch the chunks as they are stored.
    fetched_bytes: u64,
    frame: Option<(Frame, Vec<u8>)>,
}

struct Maker<'a> {
    store: &'a Store,
    old: OldBytes<'a>,
    new: &'a Manifest,
    anchors: Anchors,
    options: DeltaOptions,
    cancelled: &'a AtomicBool,
}

impl Maker<'_> {
    /// Makes a batch of frames, on several threads; the results are in the order of the groups.
    fn frames(&self, groups: &[Vec<Piece>]) -> Result<Vec<Made>, DeltaError> {
        let next = AtomicUsize::new(0);
        let made: Vec<Mutex<Option<Result<Made, DeltaError>>>> = groups.iter().map(|_| Mutex::default()).collect();
        thread::scope(|scope| {
            for _ in 0..self.options.threads.clamp(1, groups.len().max(1)) {
                scope.spawn(|| {
                    let mut encoder = Encoder::default();
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some((group, slot)) = groups.get(at).zip(made.get(at)) else { return };
                        let result = self.frame(&mut encoder, group);
                        *lock(slot) = Some(result);
                    }
                });
            }
        });
        let unfinished = || Err(DeltaError::Encode("a thread ended early".into()));
        made.into_iter().map(|slot| into_inner(slot).unwrap_or_else(unfinished)).collect()
    }

    fn frame(&self, encoder: &mut Encoder, group: &[Piece]) -> Result<Made, DeltaError> {
        let (mut plain, mut candidates, mut fetched_bytes) = (Vec::new(), Vec::new(), 0);
        for piece in group {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(DeltaError::Cancelled);
            }
            let start = plain.len();
            for chunk in self.chunks(piece) {
                fetched_bytes += self.store.stored_bytes(chunk).unwrap_or(0) + CHUNK_WIRE_BYTES;
                plain.extend_from_slice(&self.store.plain_chunk(chunk)?);
            }
            let bytes = &plain[start..];
            let hits = self.anchors.hits(bytes);
            candidates.extend(stretches::candidates(piece, bytes.len() as u64, &hits, self.old.manifest, self.new));
        }
        let plain_bytes = plain.len() as u64;
        let left_out = Made { plain_bytes, fetched_bytes, frame: None };
        let stretches = stretches::base(candidates);
        if stretches.is_empty() && plain_bytes > plan::SMALL_BYTES {
            // Compressing so much as one piece saves little over its chunks, and the store would hold it twice.
            return Ok(left_out);
        }
        let base = self.old.read(&stretches)?;
        let patch = encoder.encode(&base, &plain, self.options.level)?;
        let makes = group.iter().map(|piece| piece.run).collect();
        let frame = Frame { makes, recipe: Recipe { stretches, patch: patch.patch, literals: patch.literals } };
        // Half of what the entry has in the index, which is compressed.
        let entry_bytes = (12 * frame.makes.len() + 16 * frame.recipe.stretches.len() + 32) as u64 / 2;
        if (frame.recipe.stored_bytes() + entry_bytes) * 8 <= fetched_bytes * 7 {
            Ok(Made { frame: Some((frame, patch.stored)), ..left_out })
        } else {
            Ok(left_out)
        }
    }

    fn chunks(&self, piece: &Piece) -> &[ChunkId] {
        let (first, past) = (piece.run.first as usize, (piece.run.first + piece.run.count) as usize);
        &self.new.objects[piece.run.object as usize].chunks[first..past]
    }
}

/// Reads stretches of the old tree.
pub(super) struct OldBytes<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    cached: Mutex<lru::LruCache<ChunkId, Arc<Vec<u8>>>>,
}

impl<'a> OldBytes<'a> {
    pub(super) fn new(store: &'a Store, manifest: &'a Manifest) -> Self {
        let chunks = width::index(OLD_BYTES_CACHED / u64::from(manifest.chunk_bytes));
        let chunks = std::num::NonZeroUsize::new(chunks).unwrap_or(std::num::NonZeroUsize::MIN);
        Self { store, manifest, cached: Mutex::new(lru::LruCache::new(chunks)) }
    }

    pub(super) fn read(&self, stretches: &[Stretch]) -> Result<Vec<u8>, DeltaError> {
        let chunk_bytes = u64::from(self.manifest.chunk_bytes);
        let mut bytes = Vec::with_capacity(stretches.iter().map(|stretch| stretch.bytes as usize).sum());
        for stretch in stretches {
            let chunks = &self.manifest.objects[stretch.object as usize].chunks;
            let (mut at, end) = (stretch.offset, stretch.offset + u64::from(stretch.bytes));
            while at < end {
                let chunk = self.chunk(&chunks[width::index(at / chunk_bytes)])?;
                let from = width::index(at % chunk_bytes);
                let len = (chunk.len() - from).min(width::index(end - at));
                bytes.extend_from_slice(&chunk[from..from + len]);
                at += len as u64;
            }
        }
        Ok(bytes)
    }

    fn chunk(&self, id: &ChunkId) -> Result<Arc<Vec<u8>>, DeltaError> {
        let cached = || lock(&self.cached);
        if let Some(chunk) = cached().get(id) {
            return Ok(chunk.clone());
        }
        let chunk = Arc::new(self.store.plain_chunk(id)?);
        cached().put(*id, chunk.clone());
        Ok(chunk)
    }
}
