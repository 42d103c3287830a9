//! Where the content of the old tree stands, so that moved and renamed content is found by what it is.

use std::sync::atomic::{AtomicBool, Ordering};

use proto::Manifest;
use proto::width;

use super::DeltaError;
use crate::manager::store::Store;
use crate::patch::anchor;

/// Bytes of one anchor's content.
const ANCHOR_BYTES: usize = 16;
/// One position in 32 is an anchor, chosen by its content, so that old and new choose the same.
const SAMPLE_BITS_MIN: u32 = 5;
/// Anchors held at most (16 bytes each); larger trees are sampled more thinly.
const ANCHORS_MAX: u64 = 4 << 20;

/// A place in the old tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::manager) struct OldPlace {
    /// Index into the objects of its manifest.
    pub(in crate::manager) object: u32,
    /// Offset in the object, bytes.
    pub(in crate::manager) offset: u64,
}

/// The anchors of a tree that stand in one place only.
pub(in crate::manager) struct Anchors {
    /// Ordered by hash.
    places: Vec<(u32, u64)>,
    /// Where each object begins when all are put one after another.
    starts: Vec<u64>,
    sample_bits: u32,
}

impl Anchors {
    /// Of no tree: there is nothing to be found in it.
    pub(in crate::manager) fn none() -> Self {
        Self { places: Vec::new(), starts: Vec::new(), sample_bits: SAMPLE_BITS_MIN }
    }

    /// Reads every object of a tree.
    ///
    /// # Errors
    /// A chunk is missing or damaged, or the caller gave up.
    pub(in crate::manager) fn of(
        store: &Store,
        manifest: &Manifest,
        cancelled: &AtomicBool,
    ) -> Result<Self, DeltaError> {
        Self::of_some(store, manifest, |_| true, cancelled)
    }

    /// Reads the objects of a tree that are wanted, by their number.
    ///
    /// # Errors
    /// Those of [`Anchors::of`].
    pub(in crate::manager) fn of_some(
        store: &Store,
        manifest: &Manifest,
        wanted: impl Fn(u32) -> bool,
        cancelled: &AtomicBool,
    ) -> Result<Self, DeltaError> {
        let numbered = || (0_u32..).zip(&manifest.objects);
        let total = numbered().filter(|(number, _)| wanted(*number)).map(|(_, object)| object.bytes).sum::<u64>();
        let sample_bits = (SAMPLE_BITS_MIN..32).find(|bits| total >> bits <= ANCHORS_MAX).unwrap_or(32);
        let (mut places, mut starts, mut start) = (Vec::new(), Vec::with_capacity(manifest.objects.len()), 0_u64);
        let mut window: Vec<u8> = Vec::new();
        for (number, object) in numbered() {
            starts.push(start);
            let mut at = start;
            window.clear();
            for chunk in object.chunks.iter().filter(|_| wanted(number)) {
                if cancelled.load(Ordering::Relaxed) {
                    return Err(DeltaError::Cancelled);
                }
                window.extend_from_slice(&store.plain_chunk(chunk)?);
                for (place, hash) in sampled(&window, sample_bits) {
                    places.push((hash, at + place as u64));
                }
                // What an anchor at the start of the next chunk reaches back to stays.
                let done = window.len().saturating_sub(ANCHOR_BYTES - 1);
                window.drain(..done);
                at += done as u64;
            }
            start += object.bytes;
        }
        places.sort_unstable();
        Ok(Self { places: unique(places), starts, sample_bits })
    }

    /// Positions in `plain`, ascending, whose content stands in one place of the tree, with that place.
    pub(in crate::manager) fn found(&self, plain: &[u8]) -> Vec<(usize, OldPlace)> {
        let found = sampled(plain, self.sample_bits).filter_map(|(position, hash)| {
            let at = self.places.binary_search_by_key(&hash, |place| place.0).ok()?;
            Some((position, self.place(self.places[at].1)))
        });
        found.collect()
    }

    /// Where content of `plain` stands in the tree, if in one place, in the order of these places.
    pub(in crate::manager) fn hits(&self, plain: &[u8]) -> Vec<OldPlace> {
        let mut hits: Vec<OldPlace> = self.found(plain).into_iter().map(|(_, place)| place).collect();
        hits.sort_unstable();
        hits
    }

    fn place(&self, at: u64) -> OldPlace {
        let object = self.starts.partition_point(|start| *start <= at) - 1;
        OldPlace { object: width::count(object), offset: at - self.starts[object] }
    }
}

/// Positions chosen by their content, with its hash.
fn sampled(bytes: &[u8], sample_bits: u32) -> impl Iterator<Item = (usize, u32)> + '_ {
    let windows = bytes.windows(ANCHOR_BYTES).enumerate();
    windows.filter_map(move |(at, window)| {
        let hash = anchor(window);
        // The low half names the content, the high bits choose.
        let [a, b, c, d, ..] = hash.to_le_bytes();
        (hash >> (64 - sample_bits) == 0).then_some((at, u32::from_le_bytes([a, b, c, d])))
    })
}

/// What stands in several places tells nothing.
fn unique(places: Vec<(u32, u64)>) -> Vec<(u32, u64)> {
    let mut kept: Vec<(u32, u64)> =
        places.chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() == 1).map(|run| run[0]).collect();
    kept.shrink_to_fit();
    kept
}
