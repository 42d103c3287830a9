//! What the files of one format begin with: manifests, packs, deltas and bundles have it in common.
//!
//! ```text
//! preamble  magic 8 | version u16 | ignorable u32 | refuse u32
//! ```
//! The last two are sets of features: a reader passes over those of `ignorable` that it does not know, and refuses the
//! file when it does not know one of `refuse`. In version 1 of every format there is none of the latter.

/// Bytes of a preamble.
pub const PREAMBLE_BYTES: usize = 8 + 2 + 4 + 4;

/// The one version that this program reads and writes, of every format.
const VERSION: u16 = 1;

/// What the files of one format begin with.
#[derive(Debug, Clone, Copy)]
pub struct Preamble {
    magic: [u8; 8],
}

/// Why bytes do not begin as a format does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PreambleFault {
    /// They are of something else.
    #[error("the first bytes are of something else")]
    Other,
    /// They are of this format, and written by a later version.
    #[error("of format {version} with features {features:#x}; this program reads format 1: upgrade it")]
    Newer {
        /// The format version that it says.
        version: u16,
        /// Features found that a reader must know.
        features: u32,
    },
}

impl Preamble {
    /// Of the format whose files begin with these bytes.
    pub const fn new(magic: [u8; 8]) -> Self {
        Self { magic }
    }

    /// The preamble of a file with these ignorable features.
    pub fn encode(self, ignorable: u32) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..8].copy_from_slice(&self.magic);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..14].copy_from_slice(&ignorable.to_le_bytes());
        bytes
    }

    /// The ignorable features of a file that begins with these bytes, known or not.
    ///
    /// # Errors
    /// They are of something else, or of a version that this program does not read.
    pub fn decode(self, bytes: &[u8; PREAMBLE_BYTES]) -> Result<u32, PreambleFault> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..8] != self.magic {
            return Err(PreambleFault::Other);
        }
        let (version, features) = (u16::from_le_bytes([bytes[8], bytes[9]]), u32_at(14));
        if version != VERSION || features != 0 {
            return Err(PreambleFault::Newer { version, features });
        }
        Ok(u32_at(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_says_what_follows_and_who_may_read_it() {
        let ours = Preamble::new(*b"MFSTEST\0");
        let bytes = ours.encode(0x8000_0001);
        assert_eq!(&bytes, b"MFSTEST\0\x01\0\x01\0\0\x80\0\0\0\0");
        assert_eq!(ours.decode(&bytes), Ok(0x8000_0001));
        let changed = |at: usize, byte: u8| {
            let mut bytes = ours.encode(0);
            bytes[at] = byte;
            ours.decode(&bytes)
        };
        for at in 0..8 {
            assert_eq!(changed(at, b'?'), Err(PreambleFault::Other));
        }
        assert_eq!(changed(8, 2), Err(PreambleFault::Newer { version: 2, features: 0 }));
        assert_eq!(changed(9, 1), Err(PreambleFault::Newer { version: 257, features: 0 }));
        for (at, feature) in [(14, 1), (15, 1 << 8), (16, 1 << 16), (17, 1 << 24)] {
            assert_eq!(changed(at, 1), Err(PreambleFault::Newer { version: 1, features: feature }));
            assert_eq!(changed(at - 4, 1), Ok(feature), "what may be ignored is no reason to refuse");
        }
        let newer = changed(17, 0x80).unwrap_err().to_string();
        assert!(newer.contains("features 0x80000000") && newer.contains("upgrade it"), "{newer}");
    }
}
