//! What a host needs to make one tree out of another. Specified in `docs/delta-format.md`.
//!
//! ```text
//! header   preamble with magic "MFSDELT\0" | from 32 | to 32
//!          | manifest stored u32, plain u32 | index stored u32, plain u32 | frames u64
//! manifest one zstd frame: the manifest of `to`, with that of `from` as prefix
//! index    one zstd frame: bincode of Vec<Frame>
//! frames   stored bytes of the frames, one after another
//! trailer  BLAKE3 of all of the above | magic "MFSDLEND"
//! ```
//! Nothing in it is believed: the manifest is checked against the tree id of a signed record, and every chunk that a
//! frame makes against the chunk id in that manifest. Chunks that no frame makes are fetched as they are.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::TreeId;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifest::Manifest;
use crate::preamble::{PREAMBLE_BYTES, Preamble, PreambleFault};
use crate::relative::{self, FRAME_PARTS_MAX, HeaderReader, HeaderWriter, Part, Recipe, TRAILER_BYTES};

const PREAMBLE: Preamble = Preamble::new(*b"MFSDELT\0");
const END_MAGIC: &[u8; 8] = b"MFSDLEND";

/// Bytes of a delta's header.
pub const HEADER_BYTES: usize = PREAMBLE_BYTES + 32 + 32 + 4 * 4 + 8;
/// Plain bytes that one frame may make: what a host holds in memory for one frame, and at least one chunk of any size.
pub const FRAME_PLAIN_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all stretches of one frame: the window that a decoder of one frame needs stays at 4 MiB.
pub const FRAME_BASE_BYTES_MAX: u64 = 2 << 20;
/// Bytes of the index when decoded: a tree of the largest size, all of it new in frames of 64 KiB with ten stretches.
pub const INDEX_BYTES_MAX: usize = 64 << 20;

/// The fixed start of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The tree that a host has.
    pub from: TreeId,
    /// The tree that it wants.
    pub to: TreeId,
    /// The manifest of `to`.
    pub manifest: Part,
    /// What each frame makes and how ([`decode_index`]).
    pub index: Part,
    /// Bytes of all frames.
    pub frames_bytes: u64,
}

/// What one frame makes, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The chunks that it makes, one after another.
    pub makes: Vec<Run>,
    /// How, out of objects of `from` alone.
    pub recipe: Recipe,
}

/// Consecutive chunks of one object of `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Index into the objects of the manifest of `to`.
    pub object: u32,
    /// Index of the first into the chunks of the object.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// Why bytes are not a delta between two trees.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaFault {
    /// They begin with something else.
    #[error("these bytes are not a delta")]
    NotADelta,
    /// Written by a later version.
    #[error("the delta is of format {version} with features {features:#x}; this program reads format 1: upgrade it")]
    Newer {
        /// The format version that its preamble says.
        version: u16,
        /// Features that a reader must know.
        features: u32,
    },
    /// It is between other trees.
    #[error("the delta is from tree {from} to tree {to}, which is not what was asked for")]
    OtherTrees {
        /// The tree that it starts from.
        from: TreeId,
        /// The tree that it makes.
        to: TreeId,
    },
    /// The index does not decode.
    #[error("the delta's index is damaged: {0}")]
    Index(#[from] CodecError),
    /// A rule is broken.
    #[error("malformed delta: {0}")]
    Malformed(&'static str),
}

impl From<PreambleFault> for DeltaFault {
    fn from(fault: PreambleFault) -> Self {
        match fault {
            PreambleFault::Other => DeltaFault::NotADelta,
            PreambleFault::Newer { version, features } => DeltaFault::Newer { version, features },
        }
    }
}

impl Header {
    /// The bytes that [`Header::decode`] reads.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        HeaderWriter::new(&PREAMBLE.encode(0))
            .put(self.from.as_bytes())
            .put(self.to.as_bytes())
            .part(self.manifest)
            .part(self.index)
            .put(&self.frames_bytes.to_le_bytes())
            .end()
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// It is of something else or of a newer format, or a size is out of range.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DeltaFault> {
        let mut fields = HeaderReader::new(bytes);
        PREAMBLE.decode(&fields.take())?;
        let header = Self {
            from: TreeId::from_bytes(fields.take()),
            to: TreeId::from_bytes(fields.take()),
            manifest: fields.part(),
            index: fields.part(),
            frames_bytes: u64::from_le_bytes(fields.take()),
        };
        if !header.manifest.fits(MANIFEST_BYTES_MAX) || !header.index.fits(INDEX_BYTES_MAX) {
            return Err(DeltaFault::Malformed("its manifest or its index is larger than one may be"));
        }
        Ok(header)
    }

    /// Bytes before the first frame.
    pub fn front_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.manifest.stored_bytes) + u64::from(self.index.stored_bytes)
    }

    /// Bytes of the whole delta; `None` when no file has that many.
    pub fn delta_bytes(&self) -> Option<u64> {
        self.frames_bytes.checked_add(self.front_bytes() + TRAILER_BYTES as u64)
    }
}

/// The trailer of a delta whose other bytes have this BLAKE3.
pub fn trailer(hash: [u8; 32]) -> [u8; TRAILER_BYTES] {
    relative::trailer(hash, END_MAGIC)
}

impl Frame {
    /// Bytes that it makes; `None` when a run is not of this manifest.
    pub fn plain_bytes(&self, to: &Manifest) -> Option<u64> {
        self.makes.iter().try_fold(0_u64, |sum, run| sum.checked_add(run.plain_bytes(to)?))
    }
}

impl Run {
    /// Bytes of these chunks; `None` when they are not of this manifest.
    pub fn plain_bytes(&self, to: &Manifest) -> Option<u64> {
        let object = to.objects.get(self.object as usize)?;
        let past = self.first.checked_add(self.count).filter(|_| self.count > 0)?;
        (past as usize <= object.chunks.len()).then_some(())?;
        let chunk = u64::from(to.chunk_bytes);
        Some((u64::from(past) * chunk).min(object.bytes) - u64::from(self.first) * chunk)
    }
}

/// The bytes of an index.
///
/// # Errors
/// It is larger than an index may be.
pub fn encode_index(frames: &[Frame]) -> Result<Vec<u8>, CodecError> {
    relative::encode_index(frames, INDEX_BYTES_MAX)
}

/// Reads an index and checks it against both manifests: afterwards every run and stretch is known to exist, and every
/// size is within its bound.
///
/// # Errors
/// It does not decode, or breaks a rule.
pub fn decode_index(bytes: &[u8], header: &Header, from: &Manifest, to: &Manifest) -> Result<Vec<Frame>, DeltaFault> {
    let frames: Vec<Frame> = codec::decode::<_, INDEX_BYTES_MAX>(bytes)?;
    let mut frames_bytes = 0_u64;
    for frame in &frames {
        if let Some(fault) = frame.fault(from, to) {
            return Err(DeltaFault::Malformed(fault));
        }
        frames_bytes = frames_bytes.saturating_add(frame.recipe.stored_bytes());
    }
    if frames_bytes == header.frames_bytes {
        Ok(frames)
    } else {
        Err(DeltaFault::Malformed("its frames do not add up to what its header says"))
    }
}

impl Frame {
    fn fault(&self, from: &Manifest, to: &Manifest) -> Option<&'static str> {
        if self.makes.is_empty() || self.makes.len().max(self.recipe.stretches.len()) > FRAME_PARTS_MAX {
            return Some("a frame makes nothing, or has more than 4096 runs or stretches");
        }
        let Some(plain_bytes) = self.plain_bytes(to).filter(|bytes| *bytes <= FRAME_PLAIN_BYTES_MAX) else {
            return Some("a frame makes chunks that the tree does not have, or more than 1 MiB");
        };
        if !self.recipe.is_of(Some(from)) || self.recipe.stretch_bytes() > FRAME_BASE_BYTES_MAX {
            return Some("a stretch is not of the old tree, or a frame's base is larger than 2 MiB");
        }
        (!self.recipe.suits(plain_bytes)).then_some("a frame's part is larger than what it makes")
    }
}
