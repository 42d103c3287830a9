//! Bytes to a checked manifest and back.

use super::{Manifest, ManifestFault};
use crate::codec;
use crate::id::TreeId;
use crate::limits::MANIFEST_BYTES_MAX;

const MAGIC: &[u8; 8] = b"MFSTREE\0";
const VERSION: u16 = 1;
/// Features that a reader must know (`refuse`): none in version 1. Unknown `ignorable` features are ignored.
const KNOWN_REFUSE_FEATURES: u32 = 0;
const HEADER_BYTES: usize = 8 + 2 + 4 + 4;

impl Manifest {
    /// Checks the tree and returns its canonical bytes with their id.
    ///
    /// # Errors
    /// The tree breaks a rule of the format (order, bounds, references), or is larger than a manifest may be.
    pub fn encode(&self) -> Result<(Vec<u8>, TreeId), ManifestFault> {
        self.validate()?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&codec::encode(self)?);
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestFault::TooLarge(bytes.len()));
        }
        let id = TreeId::of(&bytes);
        Ok((bytes, id))
    }

    /// Reads and checks the manifest of the tree `id`.
    ///
    /// # Errors
    /// The bytes do not hash to `id`, are of a newer format, or do not describe a well-formed tree.
    pub fn decode(bytes: &[u8], id: &TreeId) -> Result<Self, ManifestFault> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestFault::TooLarge(bytes.len()));
        }
        let got = TreeId::of(bytes);
        if got != *id {
            return Err(ManifestFault::WrongId { want: *id, got });
        }
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(ManifestFault::NotAManifest)?;
        if &header[..8] != MAGIC {
            return Err(ManifestFault::NotAManifest);
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        let refuse = u32::from_le_bytes([header[14], header[15], header[16], header[17]]);
        if version != VERSION || refuse & !KNOWN_REFUSE_FEATURES != 0 {
            return Err(ManifestFault::Newer { version, features: refuse });
        }
        let manifest: Manifest = codec::decode::<_, MANIFEST_BYTES_MAX>(body)?;
        manifest.validate()?;
        Ok(manifest)
    }
}
