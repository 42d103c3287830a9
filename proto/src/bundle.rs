//! A start-up bundle: what a program touches first, in the order in which it does. Specified in `docs/bundle-format.md`.
//!
//! ```text
//! header   preamble with magic "MFSBUND\0" | tree 32 | from 32 (zeros: nothing)
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
use crate::id::TreeId;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifest::Manifest;
use crate::preamble::{PREAMBLE_BYTES, Preamble, PreambleFault};
use crate::proof::{CHAINING_BYTES, PageRun, PageSet, proof_len};
use crate::relative::{self, FRAME_PARTS_MAX, HeaderReader, HeaderWriter, Part, Recipe, TRAILER_BYTES};
use crate::width;

const PREAMBLE: Preamble = Preamble::new(*b"MFSBUND\0");
const END_MAGIC: &[u8; 8] = b"MFSBUEND";
/// Ignorable feature: nobody has run the program yet; the pages are those that a loader is likely to touch.
const GUESSED: u32 = 1;
/// Ignorable feature: see [`Header::fast`].
const FAST: u32 = 2;
/// Ignorable feature, of a guessed bundle: what is guessed was recorded of another tree.
const CARRIED: u32 = 4;

/// Bytes of a bundle's header.
pub const HEADER_BYTES: usize = PREAMBLE_BYTES + 32 + 32 + 4 * 4 + 4 + 8;
/// Plain bytes that one frame may make: little, since nothing of a frame can be used before all of it is there.
pub const FRAME_PLAIN_BYTES_MAX: u64 = 1 << 20;
/// Plain bytes before a frame that are part of its base, so that small frames compress like one stream.
pub const TAIL_BYTES: usize = 2 << 20;
/// Bytes of all stretches of one frame.
pub const FRAME_BASE_BYTES_MAX: u64 = 1 << 20;
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
    /// First page, counted from the start of the object, of 4096 bytes each.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// How it is known which pages a start touches. What nobody has recorded of this very tree gives way to the first recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Hosts have recorded it.
    Recorded,
    /// It was recorded of another tree, and looked up in this one.
    Carried,
    /// The structure of the files says it.
    Guessed,
}

impl Origin {
    fn features(self) -> u32 {
        match self {
            Origin::Recorded => 0,
            Origin::Carried => GUESSED | CARRIED,
            Origin::Guessed => GUESSED,
        }
    }

    fn of(features: u32) -> Self {
        match (features & GUESSED, features & CARRIED) {
            (0, _) => Origin::Recorded,
            (_, 0) => Origin::Guessed,
            _ => Origin::Carried,
        }
    }
}

/// The fixed start of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The tree of whose objects the pages are.
    pub tree: TreeId,
    /// The tree out of whose objects frames may be made, if any.
    pub from: Option<TreeId>,
    /// How it is known that a start touches these pages.
    pub origin: Origin,
    /// Whether it was compressed while somebody waited, and could be smaller.
    pub fast: bool,
    /// The manifest of `tree`.
    pub manifest: Part,
    /// What each frame makes and how ([`decode_index`]).
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
    /// Index into the chunks of the object.
    pub chunk: u32,
    /// Which pages of it, ascending, not touching.
    pub runs: Vec<PageRun>,
}

/// What one frame makes, and how. Its base is the plain bytes before it ([`TAIL_BYTES`] at most), then the stretches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The pages that it makes, one after another.
    pub makes: Vec<Pages>,
    /// How, out of what came before and of objects of `from`.
    pub recipe: Recipe,
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
        /// The format version that its preamble says.
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

impl From<PreambleFault> for BundleFault {
    fn from(fault: PreambleFault) -> Self {
        match fault {
            PreambleFault::Other => BundleFault::NotABundle,
            PreambleFault::Newer { version, features } => BundleFault::Newer { version, features },
        }
    }
}

impl Header {
    /// The bytes that [`Header::decode`] reads.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let features = self.origin.features() | if self.fast { FAST } else { 0 };
        HeaderWriter::new(&PREAMBLE.encode(features))
            .put(self.tree.as_bytes())
            .put(&self.from.map_or([0; 32], |from| *from.as_bytes()))
            .part(self.manifest)
            .part(self.index)
            .put(&self.proofs_bytes.to_le_bytes())
            .put(&self.frames_bytes.to_le_bytes())
            .end()
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// It is of something else or of a newer format, or a size is out of range.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BundleFault> {
        let mut fields = HeaderReader::new(bytes);
        let features = PREAMBLE.decode(&fields.take())?;
        let (tree, from) = (fields.take(), fields.take());
        let header = Self {
            tree: TreeId::from_bytes(tree),
            from: (from != [0; 32]).then_some(TreeId::from_bytes(from)),
            origin: Origin::of(features),
            fast: features & FAST != 0,
            manifest: fields.part(),
            index: fields.part(),
            proofs_bytes: u32::from_le_bytes(fields.take()),
            frames_bytes: u64::from_le_bytes(fields.take()),
        };
        let proofs_max = width::index(PAGES_BYTES_MAX) / CHAINING_BYTES;
        if !header.manifest.fits(MANIFEST_BYTES_MAX)
            || !header.index.fits(INDEX_BYTES_MAX)
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

/// The trailer of a bundle whose other bytes have this BLAKE3.
pub fn trailer(hash: [u8; 32]) -> [u8; TRAILER_BYTES] {
    relative::trailer(hash, END_MAGIC)
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
    /// Bytes that it makes, and chaining values that prove them; `None` when a part is not of this tree.
    pub fn sizes(&self, tree: &Manifest) -> Option<(u64, usize)> {
        self.makes.iter().try_fold((0_u64, 0_usize), |(plain, proof), pages| {
            let (set, chunk_bytes) = pages.of(tree)?;
            Some((plain + u64::from(set.bytes(chunk_bytes)), proof + proof_len(chunk_bytes, &set)))
        })
    }

    fn fault(&self, from: Option<&Manifest>, plain_bytes: u64) -> Option<&'static str> {
        if self.makes.is_empty() || self.makes.len().max(self.recipe.stretches.len()) > FRAME_PARTS_MAX {
            return Some("a frame makes nothing, or has more than 4096 parts or stretches");
        }
        if plain_bytes > FRAME_PLAIN_BYTES_MAX {
            return Some("a frame makes more than 1 MiB");
        }
        if !self.recipe.is_of(from) || self.recipe.stretch_bytes() > FRAME_BASE_BYTES_MAX {
            return Some("a stretch is not of the old tree, or a frame's stretches are larger than 1 MiB");
        }
        (!self.recipe.suits(plain_bytes)).then_some("a frame's part is larger than what it makes")
    }
}

/// The bytes of an index.
///
/// # Errors
/// It is larger than an index may be.
pub fn encode_index(frames: &[Frame]) -> Result<Vec<u8>, CodecError> {
    relative::encode_index(frames, INDEX_BYTES_MAX)
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
        let (made, proof) = sizes.ok_or(BundleFault::Malformed("a frame makes pages that the tree does not have"))?;
        if let Some(fault) = frame.fault(from, made) {
            return Err(BundleFault::Malformed(fault));
        }
        frames_bytes = frames_bytes.saturating_add(frame.recipe.stored_bytes());
        plain_bytes += made;
        proofs += proof;
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
