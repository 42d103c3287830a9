//! A start-up bundle: what a program touches first, in the order in which it does. Specified in `docs/bundle-format.md`.
//!
//! ```text
//! header   magic "MFSBUND\0" | version u16 | ignorable u32 | refuse u32 | tree 32 | from 32 (zeros: nothing)
//!          | manifest stored u32, plain u32 | index stored u32, plain u32 | proofs u32 | frames u64
//! manifest one zstd frame, with the manifest of `from` as prefix; none (0, 0) when it was not asked for
//! index    one zstd frame: bincode of Vec<Frame>
//! proofs   chaining values of 32 bytes, in the order of the frames' parts
//! frames   stored bytes of the frames, one after another
//! trailer  BLAKE3 of all of the above | magic "MFSBUEND"
//! ```
//! Nothing in it is believed: the manifest is checked against the tree id of a signed record, and the pages of each
//! part against the chunk id in that manifest ([`crate::proof`]). Whoever made a bundle need not be trusted.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::delta::{Part, Stretch};
use crate::id::TreeId;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifest::Manifest;
use crate::proof::{CHAINING_BYTES, PageRun, PageSet, proof_len};
use crate::width;

const MAGIC: &[u8; 8] = b"MFSBUND\0";
const END_MAGIC: &[u8; 8] = b"MFSBUEND";
const VERSION: u16 = 1;
/// Ignorable feature: nobody has run the program yet; the pages are those that a loader is likely to touch.
const GUESSED: u32 = 1;
/// Ignorable feature: see [`Header::fast`].
const FAST: u32 = 2;
/// Features that a reader must know: none in version 1. Unknown ignorable features are ignored.
const KNOWN_REFUSE_FEATURES: u32 = 0;

/// Bytes of a bundle's header.
pub const HEADER_BYTES: usize = 8 + 2 + 4 + 4 + 32 + 32 + 4 * 4 + 4 + 8;
/// Bytes of a bundle's trailer.
pub const TRAILER_BYTES: usize = 32 + 8;
/// Plain bytes that one frame may make: little, since nothing of a frame can be used before all of it is there.
pub const FRAME_PLAIN_BYTES_MAX: u64 = 1 << 20;
/// Plain bytes before a frame that are part of its base, so that small frames compress like one stream.
pub const TAIL_BYTES: usize = 2 << 20;
/// Bytes of all stretches of one frame.
pub const FRAME_BASE_BYTES_MAX: u64 = 1 << 20;
/// Parts, and stretches, of one frame.
pub const FRAME_PARTS_MAX: usize = 4096;
/// Bytes of the index when decoded.
pub const INDEX_BYTES_MAX: usize = 16 << 20;
/// Plain bytes of all pages: no start that was measured touches a quarter of it.
pub const PAGES_BYTES_MAX: u64 = 256 << 20;
/// Touches that one profile may have: every page of the largest bundle by itself.
pub const TOUCHES_MAX: usize = width::index(PAGES_BYTES_MAX / crate::proof::PAGE_BYTES as u64);

/// Consecutive pages of one object that a program touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Index into the objects of the tree's manifest.
    pub object: u32,
    /// First page.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// The fixed start of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The tree.
    pub tree: TreeId,
    /// The tree out of whose objects frames may be made, if any.
    pub from: Option<TreeId>,
    /// Whether the pages are a guess, which the first record of a real start replaces.
    pub guessed: bool,
    /// Whether it was compressed while somebody waited, and could be smaller.
    pub fast: bool,
    /// The manifest of `tree`.
    pub manifest: Part,
    /// The frames' index.
    pub index: Part,
    /// Bytes of the proofs.
    pub proofs_bytes: u32,
    /// Bytes of all frames.
    pub frames_bytes: u64,
}

/// Some pages of one chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// Index into the objects of the manifest.
    pub object: u32,
    /// Which chunk.
    pub chunk: u32,
    /// Which pages of it, ascending, not touching.
    pub runs: Vec<PageRun>,
}

/// What one frame makes, and out of what. Its base is the plain bytes before it ([`TAIL_BYTES`] at most), then the stretches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The pages that it makes, one after another.
    pub makes: Vec<Pages>,
    /// Stretches of objects of `from`.
    pub stretches: Vec<Stretch>,
    /// Control and differences of the patch.
    pub patch: Part,
    /// Bytes that lie over nothing of the base.
    pub literals: Part,
}

/// Why bytes are not a bundle of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleFault {
    /// They begin with something else.
    #[error("these bytes are not a start-up bundle")]
    NotABundle,
    /// Written by a later version.
    #[error("the bundle is of format {version} with features {features:#x}; this program reads format 1: upgrade it")]
    Newer {
        /// Format version found.
        version: u16,
        /// Features that a reader must know.
        features: u32,
    },
    /// The index does not decode.
    #[error("the bundle's index is damaged: {0}")]
    Index(#[from] CodecError),
    /// A rule is broken.
    #[error("malformed bundle: {0}")]
    Malformed(&'static str),
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(MAGIC);
        put(&VERSION.to_le_bytes());
        let features = [(self.guessed, GUESSED), (self.fast, FAST)].into_iter().filter(|(on, _)| *on);
        put(&features.map(|(_, bit)| bit).sum::<u32>().to_le_bytes());
        put(&[0; 4]);
        put(self.tree.as_bytes());
        put(self.from.map_or([0; 32], |from| *from.as_bytes()).as_slice());
        for part in [self.manifest, self.index] {
            put(&part.stored_bytes.to_le_bytes());
            put(&part.plain_bytes.to_le_bytes());
        }
        put(&self.proofs_bytes.to_le_bytes());
        put(&self.frames_bytes.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// It is of something else or of a newer format, or a size is out of range.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BundleFault> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let id_at = |at: usize| {
            let mut id = [0; 32];
            id.copy_from_slice(&bytes[at..at + 32]);
            id
        };
        if &bytes[..8] != MAGIC {
            return Err(BundleFault::NotABundle);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        let features = u32_at(14);
        if version != VERSION || features & !KNOWN_REFUSE_FEATURES != 0 {
            return Err(BundleFault::Newer { version, features });
        }
        let part_at = |at: usize| Part { stored_bytes: u32_at(at), plain_bytes: u32_at(at + 4) };
        let from = id_at(50);
        let header = Self {
            tree: TreeId::from_bytes(id_at(18)),
            guessed: u32_at(10) & GUESSED != 0,
            fast: u32_at(10) & FAST != 0,
            from: (from != [0; 32]).then_some(TreeId::from_bytes(from)),
            manifest: part_at(82),
            index: part_at(90),
            proofs_bytes: u32_at(98),
            frames_bytes: u64::from(u32_at(102)) | u64::from(u32_at(106)) << 32,
        };
        let in_range = |part: Part, max: usize| part.plain_bytes as usize <= max && part.stored_bytes as usize <= max;
        let proofs_max = width::index(PAGES_BYTES_MAX) / CHAINING_BYTES;
        if !in_range(header.manifest, MANIFEST_BYTES_MAX)
            || !in_range(header.index, INDEX_BYTES_MAX)
            || header.proofs_bytes as usize > proofs_max
            || !(header.proofs_bytes as usize).is_multiple_of(CHAINING_BYTES)
            || header.frames_bytes > 2 * PAGES_BYTES_MAX
        {
            return Err(BundleFault::Malformed("one of its parts is larger than it may be"));
        }
        Ok(header)
    }

    /// Bytes of the whole bundle.
    pub fn bundle_bytes(&self) -> u64 {
        let front = HEADER_BYTES as u64 + u64::from(self.manifest.stored_bytes) + u64::from(self.index.stored_bytes);
        front + u64::from(self.proofs_bytes) + self.frames_bytes + TRAILER_BYTES as u64
    }
}

/// The trailer of a bundle whose other bytes have this hash.
pub fn trailer(hash: [u8; 32]) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..32].copy_from_slice(&hash);
    bytes[32..].copy_from_slice(END_MAGIC);
    bytes
}

impl Pages {
    /// Which pages, and the length of the chunk; `None` when the tree has no such chunk or the chunk no such pages.
    pub fn of(&self, tree: &Manifest) -> Option<(PageSet, u32)> {
        let object = tree.objects.get(self.object as usize)?;
        object.chunks.get(self.chunk as usize)?;
        let chunk_bytes = object.chunk_len(self.chunk, tree.chunk_bytes)?;
        Some((PageSet::of_runs(&self.runs, chunk_bytes)?, chunk_bytes))
    }
}

impl Frame {
    /// Bytes as they lie in the bundle.
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.patch.stored_bytes) + u64::from(self.literals.stored_bytes)
    }

    /// Bytes that it makes, and chaining values that prove them; `None` when a part is not of this tree.
    pub fn sizes(&self, tree: &Manifest) -> Option<(u64, usize)> {
        self.makes.iter().try_fold((0_u64, 0_usize), |(plain, proof), pages| {
            let (set, chunk_bytes) = pages.of(tree)?;
            Some((plain + u64::from(set.bytes(chunk_bytes)), proof + proof_len(chunk_bytes, &set)))
        })
    }

    /// Bytes of its stretches.
    pub fn stretch_bytes(&self) -> u64 {
        self.stretches.iter().map(|stretch| u64::from(stretch.bytes)).sum()
    }

    fn fault(&self, from: Option<&Manifest>, (plain_bytes, _): (u64, usize)) -> Option<&'static str> {
        if self.makes.is_empty() || self.makes.len() > FRAME_PARTS_MAX || self.stretches.len() > FRAME_PARTS_MAX {
            return Some("a frame makes nothing, or has more than 4096 parts or stretches");
        }
        if plain_bytes > FRAME_PLAIN_BYTES_MAX {
            return Some("a frame makes more than 1 MiB");
        }
        let exists = |stretch: &Stretch| {
            let object = from?.objects.get(stretch.object as usize)?;
            let end = stretch.offset.checked_add(u64::from(stretch.bytes))?;
            (stretch.bytes > 0 && end <= object.bytes).then_some(())
        };
        if self.stretches.iter().any(|stretch| exists(stretch).is_none())
            || self.stretch_bytes() > FRAME_BASE_BYTES_MAX
        {
            return Some("a stretch is not of the old tree, or a frame's stretches are larger than 1 MiB");
        }
        let sizes =
            [self.patch.plain_bytes, self.patch.stored_bytes, self.literals.plain_bytes, self.literals.stored_bytes];
        let too_large = sizes.into_iter().any(|bytes| u64::from(bytes) > 2 * plain_bytes + 1024);
        too_large.then_some("a frame's part is larger than what it makes")
    }
}

/// The bytes of an index.
///
/// # Errors
/// It is larger than an index may be.
pub fn encode_index(frames: &[Frame]) -> Result<Vec<u8>, CodecError> {
    let bytes = codec::encode(&frames)?;
    match bytes.len() {
        got if got > INDEX_BYTES_MAX => Err(CodecError::TooLarge { got, max: INDEX_BYTES_MAX }),
        _ => Ok(bytes),
    }
}

/// Reads an index and checks it against the manifests: afterwards every part and stretch is known to exist, and every
/// size is within its bound. `from` is the manifest of the header's `from`.
///
/// # Errors
/// It does not decode, or breaks a rule.
pub fn decode_index(
    bytes: &[u8],
    header: &Header,
    from: Option<&Manifest>,
    tree: &Manifest,
) -> Result<Vec<Frame>, BundleFault> {
    let frames: Vec<Frame> = codec::decode::<_, INDEX_BYTES_MAX>(bytes)?;
    let (mut frames_bytes, mut plain_bytes, mut proofs) = (0_u64, 0_u64, 0_usize);
    for frame in &frames {
        let sizes = frame.sizes(tree);
        let sizes = sizes.ok_or(BundleFault::Malformed("a frame makes pages that the tree does not have"))?;
        if let Some(fault) = frame.fault(from, sizes) {
            return Err(BundleFault::Malformed(fault));
        }
        frames_bytes = frames_bytes.saturating_add(frame.stored_bytes());
        plain_bytes += sizes.0;
        proofs += sizes.1;
    }
    if plain_bytes > PAGES_BYTES_MAX {
        return Err(BundleFault::Malformed("it has more pages than a bundle may have"));
    }
    if frames_bytes == header.frames_bytes && proofs * CHAINING_BYTES == header.proofs_bytes as usize {
        Ok(frames)
    } else {
        Err(BundleFault::Malformed("its frames or proofs do not add up to what its header says"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_what_is_newer_is_refused() {
        let header = Header {
            tree: TreeId::of(b"tree"),
            from: Some(TreeId::of(b"from")),
            guessed: true,
            fast: true,
            manifest: Part { stored_bytes: 1, plain_bytes: 2 },
            index: Part { stored_bytes: 3, plain_bytes: 4 },
            proofs_bytes: 64,
            frames_bytes: 5 << 20,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        let without = Header { from: None, ..header };
        assert_eq!(Header::decode(&without.encode()), Ok(without));
        let mut newer = bytes;
        newer[8] = 2;
        assert!(matches!(Header::decode(&newer), Err(BundleFault::Newer { version: 2, .. })));
        let mut odd = bytes;
        odd[98] = 65;
        assert!(matches!(Header::decode(&odd), Err(BundleFault::Malformed(_))));
        assert_eq!(Header::decode(&[0; HEADER_BYTES]), Err(BundleFault::NotABundle));
    }
}
