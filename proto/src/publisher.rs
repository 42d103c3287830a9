//! Whose signature is believed: the public keys of publishers, and the text in which a host keeps them.

use std::fmt;

use ed25519_compact::{PublicKey, Signature};

use crate::id::TreeId;

/// A publisher's ed25519 public key (RFC 8032): a point in its canonical form, and none of those few with which a
/// signature of anything can be made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublisherKey(PublicKey);

impl PublisherKey {
    /// The key with these bytes; `None` where they are none.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        let key = PublicKey::new(*bytes);
        key.validate().is_ok().then_some(Self(key))
    }

    /// Its bytes, as records and certificates' answers carry them.
    pub fn to_bytes(&self) -> [u8; 32] {
        *self.0
    }

    /// Whether this publisher has signed these bytes.
    pub(crate) fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.0.verify(bytes, &signature).is_ok())
    }

    pub(crate) fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Debug for PublisherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublisherKey({})", self.hex())
    }
}

#[cfg(feature = "signing")]
impl From<ed25519_dalek::VerifyingKey> for PublisherKey {
    fn from(key: ed25519_dalek::VerifyingKey) -> Self {
        Self(PublicKey::new(key.to_bytes()))
    }
}

/// The publishers whose records a host believes: the content of `STATE/identity/publishers`.
///
/// Text: one ed25519 public key a line, 64 lowercase hex digits; empty lines and lines that begin with `#` are
/// passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publishers(Vec<PublisherKey>);

/// A line of `STATE/identity/publishers` is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not an ed25519 public key: want 64 lowercase hex digits")]
pub struct PublishersFault {
    /// The line, counted from 1; in a certificate's answer the key.
    pub line: usize,
}

impl Publishers {
    /// Publishers as they come in a certificate's answer.
    ///
    /// # Errors
    /// One of them is not a public key; `line` counts from 1.
    pub fn from_keys(keys: &[[u8; 32]]) -> Result<Self, PublishersFault> {
        let keys = keys.iter().enumerate();
        let keys = keys.map(|(i, key)| PublisherKey::from_bytes(key).ok_or(PublishersFault { line: i + 1 }));
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// The first line that is not a public key.
    pub fn parse(text: &str) -> Result<Self, PublishersFault> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.parse::<TreeId>().ok().and_then(|id| PublisherKey::from_bytes(id.as_bytes()));
            keys.push(key.ok_or(PublishersFault { line: i + 1 })?);
        }
        Ok(Self(keys))
    }

    /// The text of the file, which [`Publishers::parse`] reads.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|key| key.hex() + "\n").collect()
    }

    /// The keys, for [`crate::SignedRecord::verify`].
    pub fn keys(&self) -> &[PublisherKey] {
        &self.0
    }
}

/// A key's bytes for people.
pub(crate) fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*bytes).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn key(text: &str) -> Option<PublisherKey> {
        PublisherKey::from_bytes(&bytes(text).try_into().unwrap())
    }

    /// RFC 8032, section 7.1: public key, message, signature.
    const VECTORS: [(&str, &str, &str); 3] = [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ];

    #[test]
    fn the_standards_signatures_are_right_and_any_other_bit_is_wrong() {
        for (public, message, signature) in VECTORS {
            let (key, message, signature) = (key(public).unwrap(), bytes(message), bytes(signature));
            assert!(key.has_signed(&message, &signature));
            for bit in 0..signature.len() * 8 {
                let mut changed = signature.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!key.has_signed(&message, &changed), "bit {bit}");
            }
            assert!(!key.has_signed(&[message.as_slice(), b"x"].concat(), &signature));
            assert!(!key.has_signed(&message, &signature[..63]));
        }
    }

    /// The order of the group added to a signature's scalar gives another text for the same signature, and with a point
    /// of small order as the key "signatures" of everything can be made.
    #[test]
    fn nobody_can_make_a_second_signature_or_a_key_that_signs_everything() {
        let order = bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        let (public, message, signature) = VECTORS[1];
        let mut second = bytes(signature);
        let mut carry = 0;
        for (digit, add) in second[32..].iter_mut().zip(order) {
            let sum = u16::from(*digit) + u16::from(add) + carry;
            (*digit, carry) = (sum.to_le_bytes()[0], sum >> 8);
        }
        assert!(!key(public).unwrap().has_signed(&bytes(message), &second));
        for small in [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            // Not canonical.
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            assert_eq!(key(small), None, "{small}");
        }
    }

    #[test]
    fn publishers_round_trip_and_a_bad_line_is_named() {
        let publishers = Publishers::from_keys(&[key(VECTORS[0].0).unwrap().to_bytes()]).unwrap();
        assert_eq!(Publishers::parse(&format!("# ours\n\n{}", publishers.to_text())), Ok(publishers.clone()));
        assert_eq!(publishers.keys(), [key(VECTORS[0].0).unwrap()]);
        assert_eq!(Publishers::parse("\nabc\n"), Err(PublishersFault { line: 2 }));
        let weak = Publishers::parse(&"0".repeat(64)).unwrap_err();
        assert_eq!(weak, PublishersFault { line: 1 });
    }
}
