//! Pages of a chunk, and the proof that they are the chunk's.
//!
//! BLAKE3 is a tree: the hash of a chunk can be computed from some of its pages and the chaining values of the subtrees
//! in between (BLAKE3 paper, section 2.1; bao calls it a slice). So a host that trusts a chunk's id can verify a single page of 4 KiB
//! at the cost of at most one chaining value of 32 bytes a level of the tree.

use blake3::hazmat::{self, HasherExt, Mode};
use serde::{Deserialize, Serialize};

use crate::id::ChunkId;
use crate::limits::CHUNK_BYTES_MAX;
use crate::width;

/// Bytes of a page: what one fault of the kernel brings in, on every architecture that we run on.
pub const PAGE_BYTES: u32 = 4 << 10;
/// Bytes of one chaining value.
pub const CHAINING_BYTES: usize = 32;
const PAGES_PER_CHUNK_MAX: u16 = 256;
const _: () = assert!(PAGES_PER_CHUNK_MAX as u32 * PAGE_BYTES == CHUNK_BYTES_MAX);

/// Consecutive pages of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// First page, counted from the start of the chunk, of 4096 bytes each.
    pub first: u16,
    /// How many, at least 1.
    pub count: u16,
}

/// Some pages of one chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageSet([u64; PAGES_PER_CHUNK_MAX as usize / 64]);

impl PageSet {
    /// Every page of a chunk.
    pub fn whole(chunk_bytes: u32) -> Self {
        let mut all = Self::default();
        (0..chunk_bytes.div_ceil(PAGE_BYTES)).for_each(|page| all.insert(page));
        all
    }

    /// These runs, if they are ascending, do not touch and lie within a chunk of so many bytes.
    pub fn of_runs(runs: &[PageRun], chunk_bytes: u32) -> Option<Self> {
        let (mut set, mut next) = (Self::default(), 0);
        for run in runs {
            let past = u32::from(run.first) + u32::from(run.count);
            if run.count == 0 || u32::from(run.first) < next || past > chunk_bytes.div_ceil(PAGE_BYTES) {
                return None;
            }
            (u32::from(run.first)..past).for_each(|page| set.insert(page));
            next = past + 1;
        }
        (!runs.is_empty()).then_some(set)
    }

    /// The fewest runs that hold these pages, ascending.
    pub fn runs(&self) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for page in (0..PAGES_PER_CHUNK_MAX).filter(|page| self.contains(u32::from(*page))) {
            match runs.last_mut() {
                Some(run) if run.first + run.count == page => run.count += 1,
                _ => runs.push(PageRun { first: page, count: 1 }),
            }
        }
        runs
    }

    /// Adds a page; one past the largest chunk is ignored.
    pub fn insert(&mut self, page: u32) {
        if let Some(word) = self.0.get_mut(page as usize / 64) {
            *word |= 1 << (page % 64);
        }
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u32) -> bool {
        self.0.get(page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Bytes of these pages of a chunk of so many bytes; its last page may be shorter.
    pub fn bytes(&self, chunk_bytes: u32) -> u32 {
        let pages: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        let last = chunk_bytes.div_ceil(PAGE_BYTES).saturating_sub(1);
        let short = if self.contains(last) { (last + 1) * PAGE_BYTES - chunk_bytes } else { 0 };
        pages * PAGE_BYTES - short
    }

    fn any(&self, mut pages: std::ops::Range<u32>) -> bool {
        pages.any(|page| self.contains(page))
    }

    fn all(&self, mut pages: std::ops::Range<u32>) -> bool {
        pages.all(|page| self.contains(page))
    }
}

/// The chaining values that, beside these pages of `chunk`, give its hash; in the order in which [`verify`] wants them.
pub fn prove(chunk: &[u8], pages: &PageSet) -> Vec<[u8; CHAINING_BYTES]> {
    let mut proof = Vec::new();
    if pages.any(0..pages_in(chunk.len())) {
        prove_subtree(chunk, 0, chunk.len(), pages, &mut proof);
    }
    proof
}

fn prove_subtree(chunk: &[u8], start: usize, len: usize, pages: &PageSet, proof: &mut Vec<[u8; CHAINING_BYTES]>) {
    let within = pages_of(start, len);
    if pages.all(within.clone()) {
        return;
    }
    if !pages.any(within) {
        return proof.push(chaining_value(&chunk[start..start + len], start));
    }
    let left = width::index(hazmat::left_subtree_len(len as u64));
    prove_subtree(chunk, start, left, pages, proof);
    prove_subtree(chunk, start + left, len - left, pages, proof);
}

/// The id of the chunk of `chunk_bytes` bytes that has these pages (`plain`: their bytes, one after another) and this
/// proof. `None` when there are too few or too many bytes or chaining values.
pub fn verify(chunk_bytes: u32, pages: &PageSet, plain: &[u8], proof: &[[u8; CHAINING_BYTES]]) -> Option<ChunkId> {
    let len = chunk_bytes as usize;
    if chunk_bytes == 0 || chunk_bytes > CHUNK_BYTES_MAX || !pages.any(0..pages_in(len)) {
        return None;
    }
    if pages.all(0..pages_in(len)) {
        return (plain.len() == len && proof.is_empty()).then(|| ChunkId::of(plain));
    }
    let mut rest = Rest { pages, plain, proof };
    let left = width::index(hazmat::left_subtree_len(len as u64));
    let (a, b) = (rest.subtree(0, left)?, rest.subtree(left, len - left)?);
    let root = hazmat::merge_subtrees_root(&a, &b, Mode::Hash);
    (rest.plain.is_empty() && rest.proof.is_empty()).then(|| ChunkId::from_bytes(*root.as_bytes()))
}

/// How many chaining values the proof of these pages of a chunk of so many bytes has.
pub fn proof_len(chunk_bytes: u32, pages: &PageSet) -> usize {
    fn subtree(start: usize, len: usize, pages: &PageSet) -> usize {
        let within = pages_of(start, len);
        match (pages.all(within.clone()), pages.any(within)) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => {
                let left = width::index(hazmat::left_subtree_len(len as u64));
                subtree(start, left, pages) + subtree(start + left, len - left, pages)
            }
        }
    }
    if chunk_bytes == 0 { 0 } else { subtree(0, chunk_bytes as usize, pages) }
}

struct Rest<'a> {
    pages: &'a PageSet,
    plain: &'a [u8],
    proof: &'a [[u8; CHAINING_BYTES]],
}

impl Rest<'_> {
    fn subtree(&mut self, start: usize, len: usize) -> Option<[u8; CHAINING_BYTES]> {
        let within = pages_of(start, len);
        if !self.pages.any(within.clone()) {
            let (value, rest) = self.proof.split_first()?;
            self.proof = rest;
            return Some(*value);
        }
        if self.pages.all(within) {
            let (bytes, rest) = self.plain.split_at_checked(len)?;
            self.plain = rest;
            return Some(chaining_value(bytes, start));
        }
        let left = width::index(hazmat::left_subtree_len(len as u64));
        let (a, b) = (self.subtree(start, left)?, self.subtree(start + left, len - left)?);
        Some(hazmat::merge_subtrees_non_root(&a, &b, Mode::Hash))
    }
}

fn chaining_value(bytes: &[u8], start: usize) -> [u8; CHAINING_BYTES] {
    blake3::Hasher::new().set_input_offset(start as u64).update(bytes).finalize_non_root()
}

fn pages_in(bytes: usize) -> u32 {
    width::count(bytes).div_ceil(PAGE_BYTES)
}

/// The pages of a subtree: it begins at a page, and one of a page or less is not divided.
fn pages_of(start: usize, len: usize) -> std::ops::Range<u32> {
    width::count(start) / PAGE_BYTES..pages_in(start + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..width::count(len)).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
    }

    fn plain(chunk: &[u8], pages: &PageSet) -> Vec<u8> {
        let numbered = chunk.chunks(PAGE_BYTES as usize).enumerate();
        numbered
            .filter(|(page, _)| pages.contains(width::count(*page)))
            .flat_map(|(_, bytes)| bytes.to_vec())
            .collect()
    }

    proptest! {
        #[test]
        fn pages_prove_themselves_and_nothing_else(
            len in 1usize..200_000,
            chosen in proptest::collection::vec(0u32..50, 1..20),
            flip in any::<prop::sample::Index>(),
        ) {
            let chunk = bytes(len);
            let mut pages = PageSet::default();
            chosen.iter().map(|page| page % pages_in(len)).for_each(|page| pages.insert(page));
            let (proof, mut some) = (prove(&chunk, &pages), plain(&chunk, &pages));
            let len = width::count(len);
            prop_assert_eq!(width::count(some.len()), pages.bytes(len));
            prop_assert_eq!(proof.len(), proof_len(len, &pages));
            prop_assert_eq!(PageSet::of_runs(&pages.runs(), len), Some(pages));
            prop_assert_eq!(verify(len, &pages, &some, &proof), Some(ChunkId::of(&chunk)));
            let at = flip.index(some.len());
            some[at] ^= 1;
            prop_assert_ne!(verify(len, &pages, &some, &proof), Some(ChunkId::of(&chunk)));
            some.pop();
            prop_assert_eq!(verify(len, &pages, &some, &proof), None);
        }
    }

    fn set(pages: &[u32]) -> PageSet {
        let mut set = PageSet::default();
        pages.iter().for_each(|page| set.insert(*page));
        set
    }

    #[test]
    fn a_set_holds_the_pages_that_were_put_in_and_no_other() {
        let pages = [0, 1, 63, 64, 127, 200, 255];
        let some = set(&pages);
        for page in 0..600 {
            assert_eq!(some.contains(page), pages.contains(&page), "page {page}");
        }
        assert_eq!(set(&[256, 1 << 20, u32::MAX]), PageSet::default(), "past the largest chunk");
        let runs = [(0, 2), (63, 2), (127, 1), (200, 1), (255, 1)].map(|(first, count)| PageRun { first, count });
        assert_eq!(some.runs(), runs);
        assert_eq!(PageSet::of_runs(&runs, CHUNK_BYTES_MAX), Some(some));
        assert_eq!(PageSet::default().runs(), []);
    }

    #[test]
    fn the_bytes_of_pages_are_counted_up_to_the_end_of_the_chunk() {
        assert_eq!(set(&[0]).bytes(1), 1);
        assert_eq!(set(&[0]).bytes(4096), 4096);
        assert_eq!((set(&[0]).bytes(4097), set(&[1]).bytes(4097), set(&[0, 1]).bytes(4097)), (4096, 1, 4097));
        assert_eq!(set(&[3, 9]).bytes(40_960), 8192);
        assert_eq!(PageSet::default().bytes(4096), 0);
        for chunk_bytes in [1, 4095, 4096, 4097, 262_143, 262_144, CHUNK_BYTES_MAX] {
            let whole = PageSet::whole(chunk_bytes);
            assert_eq!(whole.bytes(chunk_bytes), chunk_bytes);
            assert_eq!(
                whole.runs(),
                [PageRun { first: 0, count: u16::try_from(chunk_bytes.div_ceil(4096)).unwrap() }]
            );
        }
        assert_eq!(PageSet::whole(0), PageSet::default());
    }

    /// As many chaining values as there are subtrees in between, for one page of a chunk of eight.
    #[test]
    fn a_proof_has_one_value_for_each_subtree_in_between() {
        let chunk = bytes(8 * 4096);
        for (pages, wanted) in [
            (&[0][..], 3),
            (&[7], 3),
            (&[0, 1], 2),
            (&[1, 2], 3),
            (&[0, 1, 2, 3], 1),
            (&[0, 7], 4),
            (&[0, 2, 4, 6], 4),
            (&[0, 1, 2, 3, 4, 5, 6, 7], 0),
        ] {
            let pages = set(pages);
            let proof = prove(&chunk, &pages);
            assert_eq!((proof.len(), proof_len(8 * 4096, &pages)), (wanted, wanted), "{:?}", pages.runs());
            let id = verify(8 * 4096, &pages, &plain(&chunk, &pages), &proof);
            assert_eq!(id, Some(ChunkId::of(&chunk)));
        }
        assert_eq!(prove(&chunk, &PageSet::default()), Vec::<[u8; 32]>::new(), "no pages, nothing to prove");
        assert_eq!(proof_len(8 * 4096, &PageSet::default()), 1);
        assert_eq!(proof_len(0, &PageSet::default()), 0);
    }

    #[test]
    fn too_little_and_too_much_prove_nothing() {
        let chunk = bytes(5 * 4096 + 100);
        let len = width::count(chunk.len());
        let pages = set(&[1, 5]);
        let (proof, some) = (prove(&chunk, &pages), plain(&chunk, &pages));
        assert_eq!(verify(len, &pages, &some, &proof), Some(ChunkId::of(&chunk)));
        let longer = [some.as_slice(), &[0]].concat();
        let more = [proof.as_slice(), &[[0; 32]]].concat();
        for (plain, proof) in [
            (&some[1..], &proof[..]),
            (&longer, &proof),
            (&some, &proof[1..]),
            (&some, &more),
            (&some, &[]),
            (&[], &proof),
        ] {
            assert_eq!(verify(len, &pages, plain, proof), None, "{} bytes, {} values", plain.len(), proof.len());
        }
        let whole = PageSet::whole(len);
        assert_eq!(verify(len, &whole, &chunk, &[]), Some(ChunkId::of(&chunk)));
        assert_eq!(verify(len, &whole, &chunk, &[[0; 32]]), None);
        assert_eq!(verify(len, &whole, &chunk[1..], &[]), None);
        assert_eq!(
            verify(len, &PageSet::default(), &[], &[*ChunkId::of(&chunk).as_bytes()]),
            None,
            "no page, no proof"
        );
        assert_eq!(verify(0, &whole, &[], &[]), None);
        let largest = bytes(CHUNK_BYTES_MAX as usize);
        let all = PageSet::whole(CHUNK_BYTES_MAX);
        assert_eq!(verify(CHUNK_BYTES_MAX, &all, &largest, &[]), Some(ChunkId::of(&largest)));
        assert_eq!(verify(CHUNK_BYTES_MAX + 1, &all, &[largest.as_slice(), &[0]].concat(), &[]), None);
        // Nor is one page of what is larger than a chunk.
        let larger = [largest.as_slice(), &[0]].concat();
        let (first, proof_of_first) = (set(&[0]), prove(&larger, &set(&[0])));
        assert_eq!(verify(CHUNK_BYTES_MAX + 1, &first, &larger[..4096], &proof_of_first), None);
        // The values of both halves are the chunk's id, but prove no page.
        let two = bytes(2 * 4096);
        let halves = [prove(&two, &set(&[1])), prove(&two, &set(&[0]))].concat();
        assert_eq!(verify(2 * 4096, &PageSet::default(), &[], &halves), None);
        // A page is not proved by the values of another place.
        let mut swapped = proof.clone();
        swapped.swap(0, 1);
        assert_ne!(verify(len, &pages, &some, &swapped), Some(ChunkId::of(&chunk)));
    }

    #[test]
    fn a_single_page_of_64_kib_costs_four_chaining_values() {
        let chunk = bytes(64 << 10);
        let mut pages = PageSet::default();
        pages.insert(7);
        assert_eq!(prove(&chunk, &pages).len(), 4);
        assert_eq!(prove(&chunk, &PageSet::whole(64 << 10)).len(), 0);
    }

    #[test]
    fn runs_that_overlap_or_lead_out_of_the_chunk_are_refused() {
        let run = |first, count| PageRun { first, count };
        let set = |runs: &[PageRun]| PageSet::of_runs(runs, 60_000);
        assert!(set(&[run(0, 2), run(3, 12)]).is_some());
        for wrong in [&[][..], &[run(0, 0)], &[run(14, 2)], &[run(3, 1), run(0, 1)], &[run(0, 2), run(2, 1)]] {
            assert_eq!(set(wrong), None, "{wrong:?}");
        }
    }
}
