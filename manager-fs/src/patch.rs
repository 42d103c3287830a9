//! One piece of new bytes against a piece of old ones. Pure: bytes in, bytes out.
//!
//! ```text
//! plain ──align──> segments that lie over the base, byte by byte ──subtract──> differences ─┐
//!        └───────> literals: what lies over nothing ──zstd, base as prefix──> stored       zstd ──> stored
//! ```
//! A relinked program differs from its predecessor in addresses: everywhere, a few bytes at a time, by the same few
//! amounts. Subtracting what lies underneath turns that into runs of zeros with repeated differences between them; code
//! that is really new still finds its like in the base, as the prefix of its compression. Measured in
//! `docs/decisions.md`. The bytes are specified in `docs/delta-format.md`, "Patch".

use proto::relative::Part;
use proto::width;
use zstd_safe::{CCtx, CParameter, DCtx};

/// Bytes by which a place of the base is found.
const SEED_BYTES: usize = 16;
/// Bytes that must agree without a gap before another shift is believed: shorter matches cost more than they save.
const SEED_RUN_MIN: usize = 32;
/// Agreements that one disagreement outweighs while a segment grows.
const DISAGREEMENT_COST: i64 = 1;
/// How many more bytes a seed must agree in than the segment before it would, carried on to the same place.
const SEED_GAIN: usize = 8;
/// An extension is given up when it has this many more disagreements than agreements since it was best.
const EXTENSION_SLACK: i64 = 64;
/// Segments shorter than this are literals: their control costs more than compression against the base.
const SEGMENT_BYTES_MIN: usize = 64;
/// A gap between segments of the same shift is part of them when it has no more disagreements than agreements and
/// this: ending and beginning a segment costs as much as so many differences.
const BRIDGE_BYTES: usize = 8;
/// A patch of more than one byte in this many is poor: perhaps subtracting was wrong.
const POOR_RATIO: usize = 6;
/// Hash slots for positions of the base: 8 MiB, for bases of up to 2 MiB.
const SLOT_BITS_MAX: u32 = 21;
const NOWHERE: u32 = u32::MAX;

/// A piece could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The library refused; the text is its own.
    #[error("zstd: {0}")]
    Zstd(String),
    /// The bytes are not a patch of this base.
    #[error("malformed patch: {0}")]
    Malformed(&'static str),
}

impl PatchError {
    fn zstd(code: usize) -> Self {
        Self::Zstd(zstd_safe::get_error_name(code).to_owned())
    }
}

/// Bytes to be carried instead of the plain ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Control and differences; empty when nothing lies over the base.
    pub(crate) patch: Part,
    /// What lies over nothing.
    pub(crate) literals: Part,
    /// Stored bytes of both, one after the other.
    pub(crate) stored: Vec<u8>,
}

/// Plain bytes that lie over the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: usize,
    end: usize,
    /// Base offset of `start`, less `start`.
    shift: i64,
}

/// Makes patches; keeps its table between them.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    slots: Vec<u32>,
}

impl Encoder {
    /// Encodes `plain` against `base` at a zstd level.
    ///
    /// # Errors
    /// The library refuses the level.
    pub(crate) fn encode(&mut self, base: &[u8], plain: &[u8], level: i32) -> Result<Patch, PatchError> {
        let segments = self.align(base, plain);
        let aligned = encode_segments(&segments, base, plain, level)?;
        if segments.is_empty() || aligned.stored.len() * POOR_RATIO <= plain.len() {
            return Ok(aligned);
        }
        // Tables of addresses lie over the base and differ everywhere: their own order may say more than the old one.
        let unaligned = encode_segments(&[], base, plain, level)?;
        Ok(if unaligned.stored.len() < aligned.stored.len() { unaligned } else { aligned })
    }

    /// Segments of `plain` that agree with the base for the most part, in order, not overlapping.
    fn align(&mut self, base: &[u8], plain: &[u8]) -> Vec<Segment> {
        let mut segments = self.seeds(base, plain);
        bridge(&mut segments, base, plain);
        extend(&mut segments, base, plain);
        bridge(&mut segments, base, plain);
        segments.retain(|segment| segment.end - segment.start >= SEGMENT_BYTES_MIN);
        segments
    }

    /// Exact matches where the base is seen to begin anew.
    fn seeds(&mut self, base: &[u8], plain: &[u8]) -> Vec<Segment> {
        let mut seeds: Vec<Segment> = Vec::new();
        let Some(bits) = self.fill(base) else { return seeds };
        let mut at = 0;
        while at + SEED_BYTES <= plain.len() {
            if let Some(last) = seeds.last_mut() {
                let run = agreement(base, plain, at, last.shift);
                if last.end == at && run > 0 {
                    last.end += run;
                    at += run;
                    continue;
                }
                if run >= SEED_BYTES {
                    let shift = last.shift;
                    seeds.push(Segment { start: at, end: at + run, shift });
                    at += run;
                    continue;
                }
            }
            let slot = self.slots[slot_of(&plain[at..], bits)];
            let shift = i64::from(slot) - width::place(at);
            let run = if slot == NOWHERE { 0 } else { agreement(base, plain, at, shift) };
            let carried_on = |last: &Segment| agreeing(base, plain, at..at + run, last.shift);
            if run < SEED_RUN_MIN || seeds.last().is_some_and(|last| carried_on(last) + SEED_GAIN >= run) {
                at += 1;
                continue;
            }
            seeds.push(Segment { start: at, end: at + run, shift });
            at += run;
        }
        seeds
    }

    /// Notes where each 16 bytes of the base stand; the last place counts. `None` for a base that has no 16 bytes.
    fn fill(&mut self, base: &[u8]) -> Option<u32> {
        let places = base.len().checked_sub(SEED_BYTES - 1).filter(|places| *places > 0)?;
        let bits = usize::BITS - places.leading_zeros();
        let bits = bits.clamp(8, SLOT_BITS_MAX);
        self.slots.clear();
        self.slots.resize(1 << bits, NOWHERE);
        for at in 0..places {
            self.slots[slot_of(&base[at..], bits)] = width::count(at);
        }
        Some(bits)
    }
}

/// Encodes `plain` without looking for anything that it lies over: compressed with `base` as what came before.
///
/// # Errors
/// The library refuses the level.
pub(crate) fn encode_plain(base: &[u8], plain: &[u8], level: i32) -> Result<Patch, PatchError> {
    encode_segments(&[], base, plain, level)
}

fn encode_segments(segments: &[Segment], base: &[u8], plain: &[u8], level: i32) -> Result<Patch, PatchError> {
    let (mut control, mut differences, mut literals) = (Vec::new(), Vec::new(), Vec::new());
    put_varint(&mut control, segments.len() as u64);
    let (mut at, mut base_at) = (0, 0_i64);
    for segment in segments {
        literals.extend_from_slice(&plain[at..segment.start]);
        let from = width::place(segment.start) + segment.shift;
        let len = segment.end - segment.start;
        put_varint(&mut control, (segment.start - at) as u64);
        put_varint(&mut control, zigzag(from - base_at));
        put_varint(&mut control, len as u64);
        let over = &plain[segment.start..segment.end];
        let under = &base[width::index(from.cast_unsigned())..][..len];
        differences.extend(over.iter().zip(under).map(|(new, old)| new.wrapping_sub(*old)));
        (at, base_at) = (segment.end, from + width::place(len));
    }
    literals.extend_from_slice(&plain[at..]);
    if segments.is_empty() {
        control.clear();
    }
    control.append(&mut differences);
    let part = |plain: &[u8], prefix: &[u8]| -> Result<(Part, Vec<u8>), PatchError> {
        let stored = if plain.is_empty() { Vec::new() } else { compress(plain, prefix, level)? };
        Ok((Part { stored_bytes: width::count(stored.len()), plain_bytes: width::count(plain.len()) }, stored))
    };
    let (patch, mut stored) = part(&control, &[])?;
    let (literals, mut rest) = part(&literals, base)?;
    stored.append(&mut rest);
    Ok(Patch { patch, literals, stored })
}

/// Decodes a patch: `stored` is what [`Encoder::encode`] returned, `base` the same bytes as then.
///
/// Allocates no more than `plain_bytes`, the sizes named in the parts (which [`proto::delta`] bounds), and zstd's own.
///
/// # Errors
/// The bytes are not a patch of this base that makes `plain_bytes` bytes.
pub(crate) fn decode(
    base: &[u8],
    patch: Part,
    literals: Part,
    stored: &[u8],
    plain_bytes: usize,
) -> Result<Vec<u8>, PatchError> {
    let malformed = PatchError::Malformed;
    let split = stored.split_at_checked(patch.stored_bytes as usize);
    let (patch_stored, literals_stored) = split.ok_or(malformed("shorter than its parts"))?;
    if literals_stored.len() != literals.stored_bytes as usize {
        return Err(malformed("its length is not that of its parts"));
    }
    let part = |part: Part, stored: &[u8], prefix: &[u8]| match part.plain_bytes {
        0 => Ok(Vec::new()),
        bytes => decompress(stored, prefix, bytes as usize),
    };
    let patch = part(patch, patch_stored, &[])?;
    let literals = part(literals, literals_stored, base)?;
    let mut plain = Vec::with_capacity(plain_bytes);
    let (mut control, mut literals, mut base_at) = (patch.as_slice(), literals.as_slice(), 0_i64);
    let segments = if control.is_empty() { 0 } else { take_varint(&mut control)? };
    // Each takes at least three bytes of control, so a hostile count ends the bytes, not our memory.
    let mut lens = Vec::new();
    for _ in 0..segments {
        let skip = take_varint(&mut control)?;
        base_at = base_at.wrapping_add(unzigzag(take_varint(&mut control)?));
        let len = width::index(take_varint(&mut control)?);
        let from =
            usize::try_from(base_at).ok().filter(|from| from.checked_add(len).is_some_and(|end| end <= base.len()));
        lens.push((width::index(skip), from.ok_or(malformed("it reaches past its base"))?, len));
        base_at += width::place(len);
    }
    for (skip, from, len) in lens {
        let taken = literals.split_at_checked(skip).zip(control.split_at_checked(len));
        let ((literal, rest), (differences, control_rest)) = taken.ok_or(malformed("a segment ends past the end"))?;
        if plain.len() + skip + len > plain_bytes {
            return Err(malformed("it makes more bytes than it should"));
        }
        plain.extend_from_slice(literal);
        plain.extend(differences.iter().zip(&base[from..from + len]).map(|(new, old)| new.wrapping_add(*old)));
        (literals, control) = (rest, control_rest);
    }
    plain.extend_from_slice(literals);
    if control.is_empty() && plain.len() == plain_bytes {
        Ok(plain)
    } else {
        Err(malformed("it makes another number of bytes than it should"))
    }
}

/// One zstd frame with `prefix` as what came before; its size is not noted, since whoever decodes knows it.
///
/// # Errors
/// The library refuses the level.
pub(crate) fn compress(plain: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>, PatchError> {
    let mut context = CCtx::create();
    let mut set = |parameter| context.set_parameter(parameter).map_err(PatchError::zstd);
    set(CParameter::CompressionLevel(level))?;
    set(CParameter::ContentSizeFlag(false))?;
    // The window must reach over the whole prefix from the end of the content.
    let reach = (prefix.len() + plain.len()).clamp(1 << 10, 1 << 30).next_power_of_two();
    set(CParameter::WindowLog(reach.trailing_zeros()))?;
    if !prefix.is_empty() {
        context.ref_prefix(prefix).map_err(PatchError::zstd)?;
    }
    let mut stored = vec![0; zstd_safe::compress_bound(plain.len())];
    let bytes = context.compress2(&mut stored[..], plain).map_err(PatchError::zstd)?;
    stored.truncate(bytes);
    Ok(stored)
}

/// Decodes one zstd frame to exactly `plain_bytes` bytes; the output is the window, so memory is bounded by it.
///
/// # Errors
/// It is no such frame.
pub(crate) fn decompress(stored: &[u8], prefix: &[u8], plain_bytes: usize) -> Result<Vec<u8>, PatchError> {
    let mut context = DCtx::create();
    if !prefix.is_empty() {
        context.ref_prefix(prefix).map_err(PatchError::zstd)?;
    }
    let mut plain = vec![0; plain_bytes];
    match context.decompress(&mut plain[..], stored).map_err(PatchError::zstd)? {
        bytes if bytes == plain_bytes => Ok(plain),
        _ => Err(PatchError::Malformed("a part is shorter than it should be")),
    }
}

/// A manifest may have so many bytes whatever it is compressed to: some 150,000 entries.
pub(crate) const MANIFEST_BYTES_FREE: usize = 16 << 20;
/// And so many more for each byte that came. Names in order and hashes of nothing come to some 30.
pub(crate) const MANIFEST_FOR_PACKED: usize = 64;

/// As [`decompress`], of a manifest out of an older one, if there is one: a small part cannot be a large manifest, unless
/// the old one was large.
pub(crate) fn decompress_manifest(stored: &[u8], old: &[u8], plain_bytes: usize) -> Result<Vec<u8>, PatchError> {
    if plain_bytes > MANIFEST_BYTES_FREE + MANIFEST_FOR_PACKED * stored.len() + 2 * old.len() {
        return Err(PatchError::Malformed("a manifest that unpacks to more than one of its size can have"));
    }
    decompress(stored, old, plain_bytes)
}

/// Joins neighbours of the same shift when most bytes between them agree under it.
fn bridge(segments: &mut Vec<Segment>, base: &[u8], plain: &[u8]) {
    segments.dedup_by(|next, last| {
        let gap = last.end..next.start;
        let joins = next.shift == last.shift
            && gap.len() <= BRIDGE_BYTES + 2 * agreeing(base, plain, gap.clone(), last.shift);
        if joins {
            last.end = next.end;
        }
        joins
    });
}

/// Grows segments into the gaps between them for as long as more bytes agree than not.
fn extend(segments: &mut [Segment], base: &[u8], plain: &[u8]) {
    for at in 0..=segments.len() {
        let gap_start = if at == 0 { 0 } else { segments[at - 1].end };
        let gap_end = segments.get(at).map_or(plain.len(), |next| next.start);
        let gap = gap_end - gap_start;
        let agree = |place: usize, shift: i64| agreement_at(base, plain, place, shift);
        let forward = match at.checked_sub(1).map(|last| segments[last].shift) {
            Some(shift) => growth((gap_start..gap_end).map(|place| agree(place, shift))),
            None => 0,
        };
        let backward = match segments.get(at).map(|next| next.shift) {
            Some(shift) => growth((gap_start..gap_end).rev().map(|place| agree(place, shift))),
            None => 0,
        };
        let (mut forward_end, mut backward_start) = (gap_start + forward, gap_end - backward);
        if forward + backward > gap {
            // Both want the middle: cut where the sum of agreements is highest.
            let (left, right) = (segments[at - 1].shift, segments[at].shift);
            let (mut best, mut score, mut cut) = (0_i64, 0_i64, backward_start);
            for place in backward_start..forward_end {
                score += i64::from(agree(place, left) == Some(true)) - i64::from(agree(place, right) == Some(true));
                if score > best {
                    (best, cut) = (score, place + 1);
                }
            }
            (forward_end, backward_start) = (cut, cut);
        }
        if at > 0 {
            segments[at - 1].end = forward_end;
        }
        if let Some(next) = segments.get_mut(at) {
            next.start = backward_start;
        }
    }
}

/// How far to go so that agreements outweigh disagreements the most; `None` is the end of the base.
fn growth(agreements: impl Iterator<Item = Option<bool>>) -> usize {
    let (mut best, mut score, mut len) = (0_i64, 0_i64, 0);
    for (passed, agrees) in agreements.enumerate() {
        match agrees {
            Some(true) => score += 1,
            Some(false) => score -= DISAGREEMENT_COST,
            None => break,
        }
        if score > best {
            (best, len) = (score, passed + 1);
        }
        if score < best - EXTENSION_SLACK {
            break;
        }
    }
    len
}

/// Whether a plain byte agrees with the base under a shift; `None` beside the base.
fn agreement_at(base: &[u8], plain: &[u8], at: usize, shift: i64) -> Option<bool> {
    let place = usize::try_from(width::place(at) + shift).ok()?;
    Some(plain.get(at)? == base.get(place)?)
}

/// How many bytes from `at` on agree without a gap.
fn agreement(base: &[u8], plain: &[u8], at: usize, shift: i64) -> usize {
    let Some(under) = usize::try_from(width::place(at) + shift).ok().and_then(|place| base.get(place..)) else {
        return 0;
    };
    plain[at..].iter().zip(under).take_while(|(new, old)| new == old).count()
}

/// How many bytes of a range agree.
fn agreeing(base: &[u8], plain: &[u8], range: std::ops::Range<usize>, shift: i64) -> usize {
    range.filter(|at| agreement_at(base, plain, *at, shift) == Some(true)).count()
}

/// The slot of the 16 bytes at the start.
fn slot_of(bytes: &[u8], bits: u32) -> usize {
    width::index(anchor(bytes) >> (64 - bits))
}

/// A hash of the first 16 bytes, which must be there.
pub(crate) fn anchor(bytes: &[u8]) -> u64 {
    let word = |from: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[from..from + 8]);
        u64::from_le_bytes(word)
    };
    let mixed =
        word(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word(8).rotate_left(29).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, PatchError> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(PatchError::Malformed("its control is cut off"))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(PatchError::Malformed("a number is too large"))
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use ::tests::noise;
    use proptest::prelude::*;

    use super::*;

    fn round_trip(base: &[u8], plain: &[u8]) -> Patch {
        let patch = Encoder::default().encode(base, plain, 3).unwrap();
        assert_eq!(decode(base, patch.patch, patch.literals, &patch.stored, plain.len()).unwrap(), plain);
        patch
    }

    #[test]
    fn moved_code_with_new_addresses_costs_little() {
        let base = noise(1, 200_000);
        let mut plain = [&base[120_000..200_000], &noise(2, 1_000)[..], &base[..120_000]].concat();
        for address in plain.chunks_exact_mut(40) {
            address[7] = address[7].wrapping_add(0x30);
        }
        let patch = round_trip(&base, &plain);
        assert!(patch.stored.len() < 1_500, "{} bytes for 1,000 new ones and one shift", patch.stored.len());
        let as_prefix = compress(&plain, &base, 3).unwrap();
        assert!(as_prefix.len() > 3 * patch.stored.len(), "and {} when only compressed", as_prefix.len());
    }

    #[test]
    fn a_patch_for_another_base_or_length_is_an_error_or_other_bytes() {
        let base = noise(3, 50_000);
        let mut plain = base.clone();
        plain.insert(20_000, 7);
        let patch = round_trip(&base, &plain);
        let decode = |base: &[u8], stored: &[u8], bytes| decode(base, patch.patch, patch.literals, stored, bytes);
        assert!(decode(&base[..40_000], &patch.stored, plain.len()).is_err(), "it reaches past its base");
        assert!(decode(&base, &patch.stored, plain.len() - 1).is_err());
        assert!(decode(&base, &patch.stored, plain.len() + 1).is_err());
        assert!(decode(&base, &patch.stored[1..], plain.len()).is_err());
        let other = decode(&noise(4, 50_000), &patch.stored, plain.len());
        assert!(other.is_err() || other.is_ok_and(|bytes| bytes != plain));
    }

    /// One segment as `control` says it, of differences that are zero.
    fn one_segment(
        skip: u64,
        from: i64,
        len: u64,
        literals: &[u8],
        base: &[u8],
        bytes: usize,
    ) -> Result<Vec<u8>, PatchError> {
        let mut control = Vec::new();
        put_varint(&mut control, 1);
        put_varint(&mut control, skip);
        put_varint(&mut control, zigzag(from));
        put_varint(&mut control, len);
        control.resize(control.len() + usize::try_from(len).unwrap_or(0).min(1 << 16), 0);
        let part = |plain: &[u8], prefix: &[u8]| {
            let stored = if plain.is_empty() { Vec::new() } else { compress(plain, prefix, 3).unwrap() };
            (Part { stored_bytes: width::count(stored.len()), plain_bytes: width::count(plain.len()) }, stored)
        };
        let ((patch, mut stored), (literals, rest)) = (part(&control, &[]), part(literals, base));
        stored.extend(rest);
        decode(base, patch, literals, &stored, bytes)
    }

    #[test]
    fn a_segment_that_lies_over_nothing_or_takes_what_is_not_there_is_refused() {
        let base = noise(8, 1_000);
        assert_eq!(one_segment(2, 100, 50, b"ab", &base, 52).unwrap(), [b"ab", &base[100..150]].concat());
        assert_eq!(one_segment(0, 900, 100, b"", &base, 100).unwrap(), base[900..]);
        let past = Err(PatchError::Malformed("it reaches past its base"));
        for (from, len) in [(901, 100), (-1, 10), (1 << 33, 1), (-(1 << 33), 1), (0, 1 << 34), (1_000, 1)] {
            assert_eq!(one_segment(0, from, len, b"", &base, 100), past, "{from} {len}");
        }
        for skip in [3, 1 << 34] {
            let past_the_end = Err(PatchError::Malformed("a segment ends past the end"));
            assert_eq!(one_segment(skip, 0, 10, b"ab", &base, 12), past_the_end, "{skip}");
        }
        let too_large = Err(PatchError::Malformed("a number is too large"));
        assert_eq!(one_segment(1 << 35, 0, 10, b"ab", &base, 12), too_large);
        assert_eq!(one_segment(0, 1 << 34, 10, b"ab", &base, 12), too_large);
        let more = Err(PatchError::Malformed("it makes more bytes than it should"));
        assert_eq!(one_segment(2, 0, 50, b"ab", &base, 51), more);
        let other = Err(PatchError::Malformed("it makes another number of bytes than it should"));
        assert_eq!(one_segment(2, 0, 50, b"ab", &base, 53), other);
        assert_eq!(one_segment(1, 0, 50, b"ab", &base, 51), other, "a literal is left over");
    }

    #[test]
    fn what_lies_over_nothing_is_the_prefix_alone() {
        let (base, plain) = (noise(9, 3_000), noise(10, 3_000));
        for (base, plain) in [(&base[..], &b""[..]), (b"", &plain), (b"", b""), (&base[..15], &base[..15])] {
            let patch = round_trip(base, plain);
            assert_eq!(patch.patch, Part { stored_bytes: 0, plain_bytes: 0 }, "nothing is long enough to lie over");
            let again = encode_plain(base, plain, 3).unwrap();
            assert_eq!(again, patch);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_comes_back(
            base in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec((0_usize..300, 0_usize..120, any::<u8>()), 0..12),
        ) {
            let mut plain = Vec::new();
            for (start, len, byte) in cuts {
                let start = start.min(base.len());
                plain.extend_from_slice(&base[start..(start + len).min(base.len())]);
                plain.push(byte);
            }
            round_trip(&base, &plain);
        }

        /// Real programs: long stretches that moved, with addresses changed all over, among what is new.
        #[test]
        fn a_relinked_program_comes_back(
            seed in any::<u64>(),
            base_bytes in 0_usize..40_000,
            moves in proptest::collection::vec((any::<u16>(), 0_usize..9_000, any::<u8>(), 16_usize..200), 0..8),
        ) {
            let base = noise(seed, base_bytes);
            let mut plain = Vec::new();
            for (from, len, added, every) in moves {
                let from = usize::from(from).min(base.len());
                let mut moved = base[from..(from + len).min(base.len())].to_vec();
                moved.iter_mut().step_by(every).for_each(|byte| *byte = byte.wrapping_add(added));
                plain.append(&mut moved);
                plain.extend(noise(seed ^ 1, usize::from(added)));
            }
            round_trip(&base, &plain);
        }

        /// What a disk or a line does to a patch: it is refused, or makes as many bytes as were asked for; whoever asked
        /// hashes them.
        #[test]
        fn a_damaged_patch_never_makes_another_length(
            at in any::<prop::sample::Index>(),
            change in 1_u8..,
            cut in any::<prop::sample::Index>(),
        ) {
            let base = noise(6, 4_000);
            let plain = [&base[1_000..3_000], &noise(7, 300), &base[..900]].concat();
            let patch = Encoder::default().encode(&base, &plain, 3).unwrap();
            let mut damaged = patch.stored.clone();
            let place = at.index(damaged.len());
            damaged[place] ^= change;
            if let Ok(made) = decode(&base, patch.patch, patch.literals, &damaged, plain.len()) {
                prop_assert_eq!(made.len(), plain.len());
            }
            let short = &patch.stored[..cut.index(patch.stored.len())];
            prop_assert!(decode(&base, patch.patch, patch.literals, short, plain.len()).is_err());
        }

        #[test]
        fn hostile_bytes_are_an_error(
            control in proptest::collection::vec(any::<u8>(), 1..60),
            literals in proptest::collection::vec(any::<u8>(), 1..60),
            bytes in 0_usize..200,
        ) {
            let base = noise(5, 100);
            let (first, second) = (compress(&control, &[], 1).unwrap(), compress(&literals, &base, 1).unwrap());
            let part = |stored: &[u8], plain: &[u8]| Part {
                stored_bytes: width::count(stored.len()),
                plain_bytes: width::count(plain.len()),
            };
            let stored = [first.as_slice(), &second].concat();
            if let Ok(plain) = decode(&base, part(&first, &control), part(&second, &literals), &stored, bytes) {
                prop_assert_eq!(plain.len(), bytes);
            }
        }
    }
}
