//! What a host needs to make one tree out of another. Specified in `docs/delta-format.md`.
//!
//! ```text
//! header   magic "MFSDELT\0" | version u16 | ignorable u32 | refuse u32 | from 32 | to 32
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

const MAGIC: &[u8; 8] = b"MFSDELT\0";
const END_MAGIC: &[u8; 8] = b"MFSDLEND";
const VERSION: u16 = 1;
/// Features that a reader must know: none in version 1. Unknown ignorable features are ignored.
const KNOWN_REFUSE_FEATURES: u32 = 0;

/// Bytes of a delta's header.
pub const HEADER_BYTES: usize = 8 + 2 + 4 + 4 + 32 + 32 + 4 * 4 + 8;
/// Bytes of a delta's trailer.
pub const TRAILER_BYTES: usize = 32 + 8;
/// Plain bytes that one frame may make: what a host holds in memory for one frame, and at least one chunk of any size.
pub const FRAME_PLAIN_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all stretches of one frame: the window that a decoder of one frame needs stays at 4 MiB.
pub const FRAME_BASE_BYTES_MAX: u64 = 2 << 20;
/// Runs of chunks, and stretches, of one frame.
pub const FRAME_PARTS_MAX: usize = 4096;
/// Bytes of the index when decoded: a tree of the largest size, all of it new in frames of 64 KiB with ten stretches.
pub const INDEX_BYTES_MAX: usize = 64 << 20;

/// Bytes of one part, stored and decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// As they lie in the delta.
    pub stored_bytes: u32,
    /// When decoded.
    pub plain_bytes: u32,
}

/// The fixed start of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The tree that a host has.
    pub from: TreeId,
    /// The tree that it wants.
    pub to: TreeId,
    /// The manifest of `to`.
    pub manifest: Part,
    /// The frames' index.
    pub index: Part,
    /// Bytes of all frames.
    pub frames_bytes: u64,
}

/// What one frame makes, and out of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The chunks that it makes, one after another.
    pub makes: Vec<Run>,
    /// Stretches of old objects; put one after another, they are the base.
    pub stretches: Vec<Stretch>,
    /// Control and differences of the patch.
    pub patch: Part,
    /// Bytes that lie over nothing of the base.
    pub literals: Part,
}

/// Consecutive chunks of one object of `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Index into the objects of the manifest of `to`.
    pub object: u32,
    /// First chunk.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// Consecutive bytes of one object of `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Index into the objects of the manifest of `from`.
    pub object: u32,
    /// Where it begins.
    pub offset: u64,
    /// How long it is, at least 1.
    pub bytes: u32,
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
        /// Format version found.
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
        put(&[0; 8]);
        put(self.from.as_bytes());
        put(self.to.as_bytes());
        for part in [self.manifest, self.index] {
            put(&part.stored_bytes.to_le_bytes());
            put(&part.plain_bytes.to_le_bytes());
        }
        put(&self.frames_bytes.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// It is of something else or of a newer format, or a size is out of range.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DeltaFault> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let tree_at = |at: usize| {
            let mut id = [0; 32];
            id.copy_from_slice(&bytes[at..at + 32]);
            TreeId::from_bytes(id)
        };
        if &bytes[..8] != MAGIC {
            return Err(DeltaFault::NotADelta);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        let features = u32_at(14);
        if version != VERSION || features & !KNOWN_REFUSE_FEATURES != 0 {
            return Err(DeltaFault::Newer { version, features });
        }
        let part_at = |at: usize| Part { stored_bytes: u32_at(at), plain_bytes: u32_at(at + 4) };
        let header = Self {
            from: tree_at(18),
            to: tree_at(50),
            manifest: part_at(82),
            index: part_at(90),
            frames_bytes: u64::from(u32_at(98)) | u64::from(u32_at(102)) << 32,
        };
        let in_range = |part: Part, max: usize| part.plain_bytes as usize <= max && part.stored_bytes as usize <= max;
        if !in_range(header.manifest, MANIFEST_BYTES_MAX) || !in_range(header.index, INDEX_BYTES_MAX) {
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

/// The trailer of a delta whose other bytes have this hash.
pub fn trailer(hash: [u8; 32]) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..32].copy_from_slice(&hash);
    bytes[32..].copy_from_slice(END_MAGIC);
    bytes
}

impl Frame {
    /// Bytes as they lie in the delta.
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.patch.stored_bytes) + u64::from(self.literals.stored_bytes)
    }

    /// Bytes that it makes; `None` when a run is not of this manifest.
    pub fn plain_bytes(&self, to: &Manifest) -> Option<u64> {
        self.makes.iter().try_fold(0_u64, |sum, run| sum.checked_add(run.plain_bytes(to)?))
    }

    /// Bytes of its base.
    pub fn base_bytes(&self) -> u64 {
        self.stretches.iter().map(|stretch| u64::from(stretch.bytes)).sum()
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
    let bytes = codec::encode(&frames)?;
    match bytes.len() {
        got if got > INDEX_BYTES_MAX => Err(CodecError::TooLarge { got, max: INDEX_BYTES_MAX }),
        _ => Ok(bytes),
    }
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
        frames_bytes = frames_bytes.saturating_add(frame.stored_bytes());
    }
    if frames_bytes == header.frames_bytes {
        Ok(frames)
    } else {
        Err(DeltaFault::Malformed("its frames do not add up to what its header says"))
    }
}

impl Frame {
    fn fault(&self, from: &Manifest, to: &Manifest) -> Option<&'static str> {
        if self.makes.is_empty() || self.makes.len() > FRAME_PARTS_MAX || self.stretches.len() > FRAME_PARTS_MAX {
            return Some("a frame makes nothing, or has more than 4096 runs or stretches");
        }
        let Some(plain_bytes) = self.plain_bytes(to).filter(|bytes| *bytes <= FRAME_PLAIN_BYTES_MAX) else {
            return Some("a frame makes chunks that the tree does not have, or more than 1 MiB");
        };
        let exists = |stretch: &Stretch| {
            let object = from.objects.get(stretch.object as usize)?;
            let end = stretch.offset.checked_add(u64::from(stretch.bytes))?;
            (stretch.bytes > 0 && end <= object.bytes).then_some(())
        };
        if self.stretches.iter().any(|stretch| exists(stretch).is_none()) || self.base_bytes() > FRAME_BASE_BYTES_MAX
        {
            return Some("a stretch is not of the old tree, or a frame's base is larger than 2 MiB");
        }
        // Control takes less than the bytes that it saves; both parts together stay near what they make.
        let sizes =
            [self.patch.plain_bytes, self.patch.stored_bytes, self.literals.plain_bytes, self.literals.stored_bytes];
        let too_large = sizes.into_iter().any(|bytes| u64::from(bytes) > 2 * plain_bytes + 1024);
        too_large.then_some("a frame's part is larger than what it makes")
    }
}
