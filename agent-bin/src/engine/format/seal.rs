//! What every byte of a repository goes through: AES-256 in counter mode, authenticated by Poly1305-AES, and zstd.
//!
//! Sealed bytes are a random nonce of 16 bytes, the ciphertext, and an authentication code of 16 bytes (restic's
//! design document, "Keys, Encryption and MAC").

use std::io::Read;
use std::num::NonZeroU32;

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key as RawKey, Nonce, Tag};
use rustic_core::repofile::MasterKey;

use super::compression;

/// What sealing adds: nonce and authentication code, bytes.
pub(super) const SEAL_BYTES: usize = 32;
const NONCE_BYTES: usize = 16;
/// An index file, snapshot or lock is never larger, unpacked; an index of ten million blobs is about this large.
const DOCUMENT_BYTES_MAX: u64 = 2 << 30;
/// Marks a compressed document; plain ones begin with `{` or `[`.
const COMPRESSED: u8 = 2;

/// Sealed bytes cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealFault {
    /// Shorter than what sealing alone adds.
    #[error("is too short ({0} bytes)")]
    Short(usize),
    /// The authentication code does not fit: at least one bit is not what was written, or the key is another one.
    #[error("is damaged (its authentication code does not fit)")]
    Damaged,
    /// What was authenticated does not decompress.
    #[error("cannot be decompressed: {0}")]
    Compression(String),
    /// A document of an unknown kind.
    #[error("is compressed in an unknown way (first byte {0})")]
    Unknown(u8),
    /// The operating system gave no random bytes, or a buffer is too large for the cipher.
    #[error("cannot be sealed")]
    Seal,
}

/// A repository's master key.
#[derive(Clone)]
pub(crate) struct Key(Aes256CtrPoly1305Aes);

impl std::fmt::Debug for Key {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Key")
    }
}

impl Key {
    /// `None` if a part has the wrong length.
    pub(crate) fn new(master: &MasterKey) -> Option<Self> {
        let parts = [&master.encrypt[..], &master.mac.k, &master.mac.r].concat();
        (parts.len() == 64 && master.encrypt.len() == 32 && master.mac.k.len() == 16)
            .then(|| Self(Aes256CtrPoly1305Aes::new(RawKey::from_slice(&parts))))
    }

    /// Seals `plain`.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        let mut nonce = [0u8; NONCE_BYTES];
        let random = rustix::rand::getrandom(&mut nonce[..], rustix::rand::GetRandomFlags::empty());
        if random != Ok(NONCE_BYTES) {
            return Err(SealFault::Seal);
        }
        let mut sealed = Vec::with_capacity(plain.len() + SEAL_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let code = self
            .0
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), &[], &mut sealed[NONCE_BYTES..])
            .map_err(|_| SealFault::Seal)?;
        sealed.extend_from_slice(&code);
        Ok(sealed)
    }

    /// Opens what [`Key::seal`] made.
    pub(super) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, SealFault> {
        let Some(body_len) = sealed.len().checked_sub(SEAL_BYTES) else {
            return Err(SealFault::Short(sealed.len()));
        };
        let (nonce, rest) = sealed.split_at(NONCE_BYTES);
        let (body, code) = rest.split_at(body_len);
        let mut plain = body.to_vec();
        self.0
            .decrypt_in_place_detached(Nonce::from_slice(nonce), &[], &mut plain, Tag::from_slice(code))
            .map_err(|_| SealFault::Damaged)?;
        Ok(plain)
    }

    /// Opens a document (index, snapshot, lock), compressed or not.
    pub(crate) fn open_document(&self, sealed: &[u8]) -> Result<Vec<u8>, SealFault> {
        let plain = self.open(sealed)?;
        match plain.first() {
            Some(b'{' | b'[') => Ok(plain),
            Some(&COMPRESSED) => {
                let fault = |error: std::io::Error| SealFault::Compression(error.to_string());
                let mut decoder = zstd::stream::read::Decoder::new(&plain[1..]).map_err(fault)?;
                let mut document = Vec::new();
                decoder.by_ref().take(DOCUMENT_BYTES_MAX).read_to_end(&mut document).map_err(fault)?;
                Ok(document)
            }
            Some(&other) => Err(SealFault::Unknown(other)),
            None => Err(SealFault::Short(sealed.len())),
        }
    }

    /// Seals a document, compressed if `level` says so (repositories of version 1 know no compression).
    pub(crate) fn seal_document(&self, document: &[u8], level: Option<i32>) -> Result<Vec<u8>, SealFault> {
        let Some(level) = level else { return self.seal(document) };
        let packed = compression::compress(document, level).map_err(|e| SealFault::Compression(e.to_string()))?;
        let mut plain = vec![COMPRESSED];
        plain.extend_from_slice(&packed);
        self.seal(&plain)
    }
}

/// Undoes a blob's compression. `raw` is its plain length, which the index says; it bounds what is allocated.
pub(super) fn expand(packed: Vec<u8>, raw: Option<NonZeroU32>) -> Result<Vec<u8>, SealFault> {
    let Some(raw) = raw else { return Ok(packed) };
    compression::decompress(&packed, raw.get() as usize).map_err(|error| SealFault::Compression(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_a_flipped_bit_is_noticed() {
        let key = Key::new(&MasterKey::new()).unwrap();
        for plain in [&b""[..], b"x", &[7; 100_000]] {
            let sealed = key.seal(plain).unwrap();
            assert_eq!(sealed.len(), plain.len() + SEAL_BYTES);
            assert_eq!(key.open(&sealed).unwrap(), plain);
            for at in [0, 16, sealed.len() / 2, sealed.len() - 1] {
                let mut flipped = sealed.clone();
                flipped[at] ^= 1;
                assert_eq!(key.open(&flipped), Err(SealFault::Damaged), "byte {at}");
            }
        }
        assert_eq!(key.open(&[0; 31]), Err(SealFault::Short(31)));
    }

    #[test]
    fn documents_open_whether_compressed_or_not() {
        let key = Key::new(&MasterKey::new()).unwrap();
        for level in [None, Some(3)] {
            let sealed = key.seal_document(b"{\"a\":1}", level).unwrap();
            assert_eq!(key.open_document(&sealed).unwrap(), b"{\"a\":1}");
        }
        assert_eq!(key.open_document(&key.seal(b"\x07").unwrap()), Err(SealFault::Unknown(7)));
    }
}
