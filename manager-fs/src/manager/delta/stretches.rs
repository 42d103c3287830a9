//! Which stretches of the old tree are the base of a frame.

use proto::Manifest;
use proto::delta::FRAME_BASE_BYTES_MAX;
use proto::relative::{FRAME_PARTS_MAX, Stretch};
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::ObjectId;
    use proto::manifest::Object;

    use super::*;

    fn tree(sizes: &[u64]) -> Manifest {
        let object = |(at, bytes): (usize, &u64)| Object {
            id: ObjectId::of(&at.to_le_bytes()),
            bytes: *bytes,
            chunks: vec![],
        };
        Manifest {
            chunk_bytes: 65_536,
            objects: sizes.iter().enumerate().map(object).collect(),
            nodes: vec![],
            entries: vec![],
        }
    }

    proptest! {
        /// What a host must be able to read: within its objects, in order, not overlapping, and no more than a frame may
        /// have; [`proto::delta::decode_index`] refuses anything else.
        #[test]
        fn a_base_is_always_one_that_hosts_accept(
            sizes in prop::collection::vec(1_u64..4_000_000, 1..4),
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..200),
            plain_bytes in 1_u64..600_000,
            first in 0_u32..80,
            namesake in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let from = tree(&sizes);
            let mut hits: Vec<OldPlace> = hits
                .iter()
                .map(|(object, offset)| {
                    let object = object.index(sizes.len());
                    let offset = offset.index(width::index(sizes[object])) as u64;
                    OldPlace { object: width::count(object), offset }
                })
                .collect();
            hits.sort_unstable();
            let run = proto::delta::Run { object: 0, first, count: 1 };
            let piece = Piece { run, namesake: namesake.map(|at| width::count(at.index(sizes.len()))) };
            let base = base(candidates(&piece, plain_bytes, &hits, &from, &from));
            let total: u64 = base.iter().map(|stretch| u64::from(stretch.bytes)).sum();
            prop_assert!(total <= FRAME_BASE_BYTES_MAX && base.len() <= FRAME_PARTS_MAX, "{total} bytes");
            for stretch in &base {
                let past = stretch.offset + u64::from(stretch.bytes);
                prop_assert!(stretch.bytes > 0 && past <= sizes[stretch.object as usize], "{stretch:?}");
            }
            for two in base.windows(2) {
                let (a, b) = (&two[0], &two[1]);
                let apart = a.object < b.object || a.offset + u64::from(a.bytes) < b.offset;
                prop_assert!(apart, "{a:?} {b:?}");
            }
            // Where the piece stood before is never left out for want of room: it is what most hits speak for.
            prop_assert!(hits.is_empty() || !base.is_empty());
        }
    }

    #[test]
    fn hits_near_each_other_are_one_stretch_with_its_margins() {
        let from = tree(&[1_000_000]);
        let hit = |offset| OldPlace { object: 0, offset };
        let stretches = |hits: &[OldPlace]| {
            let found = clusters(hits, &from);
            base(found).into_iter().map(|stretch| (stretch.offset, stretch.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(stretches(&[hit(100_000), hit(104_000)]), [(95_904, 12_192)]);
        assert_eq!(stretches(&[hit(0)]), [(0, 4_096)], "nothing stands before the start");
        assert_eq!(stretches(&[hit(999_999)]), [(995_903, 4_097)], "nor past the end");
        assert_eq!(stretches(&[hit(100_000), hit(200_000)]), [(95_904, 8_192), (195_904, 8_192)]);
    }

    #[test]
    fn the_weakest_are_left_out_where_a_base_would_be_too_large() {
        let candidate = |start, hits| Candidate { object: 0, start, end: start + BASE_BYTES / 2, hits };
        let chosen = base(vec![candidate(0, 5), candidate(10 << 20, 50), candidate(20 << 20, 40)]);
        assert_eq!(chosen.iter().map(|stretch| stretch.offset).collect::<Vec<_>>(), [10 << 20, 20 << 20]);
    }
}
