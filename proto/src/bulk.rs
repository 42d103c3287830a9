//! Chunks on the wire and in packs: a small fixed head, then the stored bytes.
//!
//! ```text
//! sequence u32 | encoding u8 | plain length u32 | bytes
//! ```
//! `sequence` counts the chunks of the request in the order in which it named them. The receiver knows the id and the
//! plain length of each from the signed manifest and believes nothing else.

/// Bytes of a chunk's head.
pub const CHUNK_HEAD_BYTES: usize = 9;

/// How a chunk's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// The plain bytes themselves, where compressing gains nothing.
    Raw,
    /// One zstd frame, which decodes to exactly the plain length that stands beside it.
    Zstd,
}

impl Encoding {
    /// The byte that stands for it.
    pub fn code(self) -> u8 {
        match self {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
        }
    }

    /// The encoding for which this byte stands.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Encoding::Raw),
            1 => Some(Encoding::Zstd),
            _ => None,
        }
    }
}

/// The head of one chunk in a bulk frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// Which of the wanted chunks, counted from 0.
    pub sequence: u32,
    /// How the bytes are stored.
    pub encoding: Encoding,
    /// Length after decoding, bytes.
    pub plain_bytes: u32,
}

impl ChunkHead {
    /// The bytes that stand before the chunk's stored bytes.
    pub fn encode(&self) -> [u8; CHUNK_HEAD_BYTES] {
        let mut bytes = [0; CHUNK_HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[4] = self.encoding.code();
        bytes[5..].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes
    }

    /// Splits a bulk frame's body into head and stored bytes; `None` when it is no chunk.
    pub fn split(body: &[u8]) -> Option<(Self, &[u8])> {
        let (head, stored) = body.split_first_chunk::<CHUNK_HEAD_BYTES>()?;
        let [s0, s1, s2, s3, encoding, p0, p1, p2, p3] = *head;
        let head = Self {
            sequence: u32::from_le_bytes([s0, s1, s2, s3]),
            encoding: Encoding::from_code(encoding)?,
            plain_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
        };
        Some((head, stored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_head_of_a_chunk_is_pinned() {
        let head = ChunkHead { sequence: 0x0403_0201, encoding: Encoding::Zstd, plain_bytes: 0x0807_0605 };
        assert_eq!(head.encode(), [1, 2, 3, 4, 1, 5, 6, 7, 8]);
        let raw = ChunkHead { encoding: Encoding::Raw, ..head };
        assert_eq!(raw.encode(), [1, 2, 3, 4, 0, 5, 6, 7, 8]);
        for (head, code) in [(raw, 0), (head, 1)] {
            assert_eq!(head.encoding.code(), code);
            let body = [head.encode().as_slice(), b"stored"].concat();
            assert_eq!(ChunkHead::split(&body), Some((head, b"stored".as_slice())));
        }
    }

    #[test]
    fn what_is_no_chunk_is_none() {
        let bytes = ChunkHead { sequence: 1, encoding: Encoding::Raw, plain_bytes: 2 }.encode();
        assert_eq!(ChunkHead::split(&bytes).map(|(_, stored)| stored.len()), Some(0), "a chunk of no bytes");
        for cut in 0..CHUNK_HEAD_BYTES {
            assert_eq!(ChunkHead::split(&bytes[..cut]), None, "{cut} bytes");
        }
        for code in 2..=u8::MAX {
            let mut other = bytes;
            other[4] = code;
            assert_eq!((ChunkHead::split(&other), Encoding::from_code(code)), (None, None));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_written_the_same_way(body in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some((head, stored)) = ChunkHead::split(&body) {
                prop_assert_eq!([head.encode().as_slice(), stored].concat(), body);
            }
        }
    }
}
