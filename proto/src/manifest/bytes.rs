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
        check_length(bytes.len())?;
        let id = TreeId::of(&bytes);
        Ok((bytes, id))
    }

    /// Reads and checks the manifest of the tree `id`.
    ///
    /// # Errors
    /// The bytes do not hash to `id`, are of a newer format, or do not describe a well-formed tree.
    pub fn decode(bytes: &[u8], id: &TreeId) -> Result<Self, ManifestFault> {
        check_length(bytes.len())?;
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

/// Refuses what has more bytes than a manifest may have.
fn check_length(bytes: usize) -> Result<(), ManifestFault> {
    if bytes > MANIFEST_BYTES_MAX { Err(ManifestFault::TooLarge(bytes)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_may_have_all_of_its_256_mib_and_no_more() {
        assert_eq!(check_length(MANIFEST_BYTES_MAX), Ok(()));
        assert_eq!(check_length(MANIFEST_BYTES_MAX + 1), Err(ManifestFault::TooLarge(MANIFEST_BYTES_MAX + 1)));
    }
}
