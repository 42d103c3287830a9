//! What deltas and bundles have in common: both make files of one tree out of those of another.
//!
//! ```text
//! preamble | fixed header | parts and frames | BLAKE3 of all before 32 | end magic 8
//! ```

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::manifest::Manifest;

/// Bytes of the trailer of a delta or a bundle.
pub const TRAILER_BYTES: usize = 32 + 8;
/// Stretches of one frame, and runs or pages that it makes.
pub const FRAME_PARTS_MAX: usize = 4096;

/// Bytes of one part of a file, stored and decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// As they lie in the file; 0: the part is not there.
    pub stored_bytes: u32,
    /// Its length when decoded (one zstd frame).
    pub plain_bytes: u32,
}

impl Part {
    /// Whether it has at most so many bytes, stored and decoded.
    pub(crate) fn fits(self, bytes_max: usize) -> bool {
        self.stored_bytes as usize <= bytes_max && self.plain_bytes as usize <= bytes_max
    }
}

/// Consecutive bytes of one object of the old tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Index into the objects of the old tree's manifest.
    pub object: u32,
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is, at least 1.
    pub bytes: u32,
}

impl Stretch {
    /// Whether the old tree has all of its bytes.
    fn exists_in(&self, old: &Manifest) -> bool {
        let end = self.offset.checked_add(u64::from(self.bytes));
        let object = old.objects.get(self.object as usize);
        self.bytes > 0 && object.zip(end).is_some_and(|(object, end)| end <= object.bytes)
    }
}

/// How the bytes of one frame come about: its base, and the patch that makes them of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Stretches of the old tree; put one after another, they are (the end of) the base.
    pub stretches: Vec<Stretch>,
    /// Control and differences of the patch.
    pub patch: Part,
    /// Bytes that lie over nothing of the base.
    pub literals: Part,
}

impl Recipe {
    /// Bytes of the patch, as they lie in the file.
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.patch.stored_bytes) + u64::from(self.literals.stored_bytes)
    }

    /// Bytes of all stretches.
    pub fn stretch_bytes(&self) -> u64 {
        self.stretches.iter().map(|stretch| u64::from(stretch.bytes)).sum()
    }

    /// Whether every stretch is of the old tree; without an old tree there can be none.
    pub(crate) fn is_of(&self, old: Option<&Manifest>) -> bool {
        self.stretches.iter().all(|stretch| old.is_some_and(|old| stretch.exists_in(old)))
    }

    /// Whether no part is larger than makes sense for so many bytes made: control takes less than the bytes that it
    /// saves, and both parts together stay near what they make.
    pub(crate) fn suits(&self, made_bytes: u64) -> bool {
        let sizes =
            [self.patch.plain_bytes, self.patch.stored_bytes, self.literals.plain_bytes, self.literals.stored_bytes];
        sizes.into_iter().all(|bytes| u64::from(bytes) <= 2 * made_bytes + 1024)
    }
}

/// The trailer of a file whose other bytes have this hash.
pub(crate) fn trailer(hash: [u8; 32], end_magic: &[u8; 8]) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..32].copy_from_slice(&hash);
    bytes[32..].copy_from_slice(end_magic);
    bytes
}

/// The bytes of an index of frames.
///
/// # Errors
/// They are more than `bytes_max`.
pub(crate) fn encode_index<F: Serialize>(frames: &[F], bytes_max: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = codec::encode(&frames)?;
    match bytes.len() {
        got if got > bytes_max => Err(CodecError::TooLarge { got, max: bytes_max }),
        _ => Ok(bytes),
    }
}

/// Writes the fields of a fixed header one after another.
pub(crate) struct HeaderWriter<const BYTES: usize> {
    bytes: [u8; BYTES],
    at: usize,
}

impl<const BYTES: usize> HeaderWriter<BYTES> {
    /// Begins with the preamble.
    pub(crate) fn new(preamble: &[u8]) -> Self {
        Self { bytes: [0; BYTES], at: 0 }.put(preamble)
    }

    /// The next field.
    pub(crate) fn put(mut self, field: &[u8]) -> Self {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }

    /// Both lengths of a part.
    pub(crate) fn part(self, part: Part) -> Self {
        self.put(&part.stored_bytes.to_le_bytes()).put(&part.plain_bytes.to_le_bytes())
    }

    /// The whole header, which must have been filled.
    pub(crate) fn end(self) -> [u8; BYTES] {
        self.bytes
    }
}

/// Reads the fields of a fixed header one after another.
pub(crate) struct HeaderReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> HeaderReader<'a> {
    /// Begins at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next field, which the header must be long enough for.
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }

    /// Both lengths of a part.
    pub(crate) fn part(&mut self) -> Part {
        let stored_bytes = u32::from_le_bytes(self.take());
        Part { stored_bytes, plain_bytes: u32::from_le_bytes(self.take()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_its_bound_when_it_is_written() {
        // Eight bytes for the number of frames; here each of them has one.
        let frames = [7_u8; 100];
        assert_eq!(encode_index(&frames, 108).map(|bytes| bytes.len()), Ok(108));
        assert_eq!(encode_index(&frames, 107), Err(CodecError::TooLarge { got: 108, max: 107 }));
        assert_eq!(encode_index::<u8>(&[], 8), Ok(vec![0; 8]));
    }
}
