//! Bytes to a checked manifest and back.

use super::{Manifest, ManifestFault};
use crate::codec;
use crate::id::TreeId;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::preamble::Preamble;

const PREAMBLE: Preamble = Preamble::new(*b"MFSTREE\0");

impl Manifest {
    /// Checks the tree and returns its canonical bytes with their id.
    ///
    /// # Errors
    /// The tree breaks a rule of the format (order, bounds, references), or is larger than a manifest may be.
    pub fn encode(&self) -> Result<(Vec<u8>, TreeId), ManifestFault> {
        self.validate()?;
        let bytes = [PREAMBLE.encode(0).as_slice(), &codec::encode(self)?].concat();
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
        let (preamble, body) = bytes.split_first_chunk().ok_or(ManifestFault::NotAManifest)?;
        PREAMBLE.decode(preamble)?;
        let manifest: Manifest = codec::decode::<_, MANIFEST_BYTES_MAX>(body)?;
        manifest.validate()?;
        Ok(manifest)
    }
}
