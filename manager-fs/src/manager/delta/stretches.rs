//! Which stretches of the old tree are the base of a frame.

use proto::Manifest;
use proto::delta::{FRAME_BASE_BYTES_MAX, FRAME_PARTS_MAX, Stretch};
use proto::width;

use super::anchors::OldPlace;
use super::plan::Piece;

/// Hits nearer to each other than this belong together.
const CLUSTER_GAP_BYTES: u64 = 4 << 10;
/// Taken on each side of a cluster: what stands there in both trees may have changed just too much for an anchor.
const CLUSTER_MARGIN_BYTES: u64 = 4 << 10;
/// Taken on each side of where most of the piece is found.
const MAIN_MARGIN_BYTES: u64 = 32 << 10;
/// Bytes of a frame's base; more makes frames slower to make and to apply, and hardly smaller.
const BASE_BYTES: u64 = FRAME_BASE_BYTES_MAX / 2;

/// A range of one old object, with how much speaks for it.
#[derive(Debug, Clone, Copy)]
pub(in crate::manager) struct Candidate {
    object: u32,
    start: u64,
    end: u64,
    hits: usize,
}

impl Candidate {
    fn within(object: u32, start: u64, end: u64, hits: usize, from: &Manifest) -> Option<Self> {
        let bytes = from.objects.get(object as usize)?.bytes;
        let end = end.min(bytes);
        (start < end).then_some(Self { object, start, end, hits })
    }

    fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// Where the content of a piece stands in the old tree (`hits`, ordered), and its namesake's bytes at the same offset.
pub(in crate::manager) fn candidates(
    piece: &Piece,
    plain_bytes: u64,
    hits: &[OldPlace],
    from: &Manifest,
    to: &Manifest,
) -> Vec<Candidate> {
    let mut candidates = clusters(hits, from);
    candidates.extend(main_window(plain_bytes, hits, from));
    if let Some(object) = piece.namesake {
        // Short pieces have few anchors, and those of copies are not unique: the name is a good guess then.
        let start = u64::from(piece.run.first) * u64::from(to.chunk_bytes);
        let (start, end) = (start.saturating_sub(MAIN_MARGIN_BYTES), start + plain_bytes + MAIN_MARGIN_BYTES);
        candidates.extend(Candidate::within(object, start, end, 1, from));
    }
    candidates
}

/// The base of a frame: its candidates put together, the weakest left out where they are more than a base may have.
pub(in crate::manager) fn base(candidates: Vec<Candidate>) -> Vec<Stretch> {
    let mut candidates = merge(candidates);
    candidates.sort_by_key(|candidate| std::cmp::Reverse(((candidate.hits as u64) << 32) / candidate.bytes()));
    let mut room = BASE_BYTES;
    candidates.retain(|candidate| {
        let fits = candidate.bytes() <= room;
        room -= if fits { candidate.bytes() } else { 0 };
        fits
    });
    candidates.truncate(FRAME_PARTS_MAX);
    candidates.sort_by_key(|candidate| (candidate.object, candidate.start));
    let stretch = |candidate: Candidate| Stretch {
        object: candidate.object,
        offset: candidate.start,
        bytes: width::count(candidate.bytes()),
    };
    candidates.into_iter().map(stretch).collect()
}

fn clusters(hits: &[OldPlace], from: &Manifest) -> Vec<Candidate> {
    let near = |a: &OldPlace, b: &OldPlace| a.object == b.object && b.offset - a.offset <= CLUSTER_GAP_BYTES;
    let cluster = |run: &[OldPlace]| {
        let (first, last) = (run.first()?, run.last()?);
        let start = first.offset.saturating_sub(CLUSTER_MARGIN_BYTES);
        Candidate::within(first.object, start, last.offset + CLUSTER_MARGIN_BYTES, run.len(), from)
    };
    hits.chunk_by(near).filter_map(cluster).collect()
}

/// As many bytes as the piece has, and some more, around where most hits are.
fn main_window(plain_bytes: u64, hits: &[OldPlace], from: &Manifest) -> Option<Candidate> {
    let reach = plain_bytes + plain_bytes / 4;
    let (mut best, mut low) = (0..0, 0);
    for high in 0..hits.len() {
        while hits[low].object != hits[high].object || hits[high].offset - hits[low].offset >= reach {
            low += 1;
        }
        if high + 1 - low > best.len() {
            best = low..high + 1;
        }
    }
    let (first, last) = (hits.get(best.start)?, hits.get(best.end.checked_sub(1)?)?);
    let middle = first.offset.midpoint(last.offset);
    let half = plain_bytes / 2 + MAIN_MARGIN_BYTES;
    Candidate::within(first.object, middle.saturating_sub(half), middle + half, best.len(), from)
}

/// Puts candidates that touch or overlap together.
fn merge(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by_key(|candidate| (candidate.object, candidate.start));
    candidates.dedup_by(|next, last| {
        let touch = next.object == last.object && next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
            last.hits += next.hits;
        }
        touch
    });
    candidates
}
