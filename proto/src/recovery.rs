//! A repository's password, sealed to somebody who keeps the key to it elsewhere, so that a host that is lost loses no
//! repository. Whoever carries or stores it meanwhile cannot read it.
//!
//! ```text
//! key     "manager-fs-recovery-1:" hex( X25519 public key [32] | check [4] )
//! secret  "manager-fs-recovery-secret-1:" hex( X25519 private key [32] | check [4] )
//! sealed  "manager-fs-sealed-1:" NAME ":" ID ":" KEY ":" hex( encapsulated key [32] | ciphertext )
//! ```
//! `check` is the first bytes of the BLAKE3 of what stands before it, the text included. Sealed is by HPKE (RFC 9180) in
//! its base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, with [`INFO`] and, as associated data, all of
//! the text before its last part. So any other program of that standard opens it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::RepositoryName;

/// What these are sealed for, and nothing else.
pub const INFO: &[u8] = b"manager-fs 2026 password of a repository";

const KEY: &str = "manager-fs-recovery-1:";
#[cfg(feature = "sealing")]
const SECRET: &str = "manager-fs-recovery-secret-1:";
const SEALED: &str = "manager-fs-sealed-1:";
const CHECK_BYTES: usize = 4;
/// Bytes of an encapsulated key.
const ENCAPSULATED: usize = 32;
/// Bytes of a password that is sealed; a line of a file.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Bytes of what authenticates.
const TAG: usize = 16;

/// To whom a password is sealed: the public half, which is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecoveryKey(pub [u8; 32]);

/// A text is none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no {what}: one begins with '{begins}', and is whole")]
pub struct NotOne {
    what: &'static str,
    begins: &'static str,
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&checked(KEY, &self.0))
    }
}

impl FromStr for RecoveryKey {
    type Err = NotOne;
    fn from_str(text: &str) -> Result<Self, NotOne> {
        unchecked(KEY, text).map(Self).ok_or(NotOne { what: "recovery key", begins: KEY })
    }
}

/// A password that only the owner of a recovery key can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What the repository is called.
    pub repository: RepositoryName,
    /// Which it is: restic's own id, 64 hex digits.
    pub id: String,
    /// Which of its keys the password opens: 64 hex digits.
    pub key: String,
    sealed: Vec<u8>,
}

impl Sealed {
    /// What is authenticated, and not sealed.
    fn head(repository: &RepositoryName, id: &str, key: &str) -> String {
        format!("{SEALED}{repository}:{id}:{key}:")
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::head(&self.repository, &self.id, &self.key))?;
        f.write_str(&hex(&self.sealed))
    }
}

impl FromStr for Sealed {
    type Err = NotOne;
    fn from_str(text: &str) -> Result<Self, NotOne> {
        let read = || {
            let mut parts = text.strip_prefix(SEALED)?.split(':');
            let [repository, id, key, sealed] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
            let is_id = |text: &str| text.len() == 64 && from_hex(text).is_some();
            let sealed = from_hex(sealed)?;
            let fits = (ENCAPSULATED + TAG..=ENCAPSULATED + TAG + PASSWORD_BYTES_MAX).contains(&sealed.len());
            (parts.next().is_none() && is_id(id) && is_id(key) && fits).then_some(())?;
            Some(Self { repository: repository.parse().ok()?, id: id.to_owned(), key: key.to_owned(), sealed })
        };
        read().ok_or(NotOne { what: "sealed password", begins: SEALED })
    }
}

fn checked(begins: &str, bytes: &[u8; 32]) -> String {
    let check = blake3::hash(&[begins.as_bytes(), bytes].concat());
    format!("{begins}{}{}", hex(bytes), hex(&check.as_bytes()[..CHECK_BYTES]))
}

fn unchecked(begins: &str, text: &str) -> Option<[u8; 32]> {
    let bytes = from_hex(text.strip_prefix(begins)?)?;
    let key: [u8; 32] = bytes.get(..32)?.try_into().ok()?;
    (checked(begins, &key) == text).then_some(key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// In lower case alone, and of a bounded length: each text of these has one form.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    let bound = 2 * (ENCAPSULATED + TAG + PASSWORD_BYTES_MAX);
    if text.len() > bound || !text.len().is_multiple_of(2) || text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    text.chunks_exact(2).map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()).collect()
}

#[cfg(feature = "sealing")]
pub use sealing::{RecoverySecret, SealFault};

#[cfg(feature = "sealing")]
mod sealing {
    use std::convert::Infallible;

    use hpke::aead::ChaCha20Poly1305;
    use hpke::kdf::HkdfSha256;
    use hpke::kem::X25519HkdfSha256;
    use hpke::rand_core::{TryCryptoRng, TryRng};
    use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

    use super::*;

    /// A password is not sealed, or not opened.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
    pub enum SealFault {
        /// More than a line.
        #[error("a password of more than {PASSWORD_BYTES_MAX} bytes is not sealed")]
        TooLong,
        /// Not a key that anybody has the secret to.
        #[error("the recovery key is none that anything can be sealed to")]
        Key,
        /// Sealed to another key, or changed since.
        #[error("it was sealed to another recovery key, or changed since")]
        Foreign,
    }

    /// What opens a sealed password.
    #[derive(Clone, PartialEq, Eq)]
    pub struct RecoverySecret([u8; 32]);

    impl fmt::Debug for RecoverySecret {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("RecoverySecret(…)")
        }
    }

    impl RecoverySecret {
        /// Out of 32 random bytes.
        pub fn derive(random: &[u8; 32]) -> Self {
            let (secret, _) = X25519HkdfSha256::derive_keypair(random);
            Self(secret.to_bytes().into())
        }

        /// What others seal to.
        ///
        /// # Errors
        /// [`SealFault::Key`]: it is no secret.
        pub fn key(&self) -> Result<RecoveryKey, SealFault> {
            let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&self.0).map_err(|_| SealFault::Key)?;
            Ok(RecoveryKey(X25519HkdfSha256::sk_to_pk(&secret).to_bytes().into()))
        }

        /// The text to be kept.
        pub fn text(&self) -> String {
            checked(SECRET, &self.0)
        }
    }

    impl FromStr for RecoverySecret {
        type Err = NotOne;
        fn from_str(text: &str) -> Result<Self, NotOne> {
            unchecked(SECRET, text).map(Self).ok_or(NotOne { what: "recovery secret", begins: SECRET })
        }
    }

    impl Sealed {
        /// Seals the password of a repository's key. `random` is drawn for this call.
        ///
        /// # Errors
        /// The password is too long, or nobody can have the secret to the key.
        pub fn seal(
            to: &RecoveryKey,
            (repository, id, key): (&RepositoryName, &str, &str),
            password: &str,
            random: [u8; 32],
        ) -> Result<Self, SealFault> {
            if password.len() > PASSWORD_BYTES_MAX {
                return Err(SealFault::TooLong);
            }
            let to = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&to.0).map_err(|_| SealFault::Key)?;
            let (repository, id, key) = (repository.clone(), id.to_owned(), key.to_owned());
            let head = Self::head(&repository, &id, &key);
            let mut stream = Stream(blake3::Hasher::new_keyed(&random).finalize_xof());
            let (encapsulated, ciphertext) =
                hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                    &OpModeS::Base,
                    &to,
                    INFO,
                    password.as_bytes(),
                    head.as_bytes(),
                    &mut stream,
                )
                .map_err(|_| SealFault::Key)?;
            let encapsulated: [u8; ENCAPSULATED] = encapsulated.to_bytes().into();
            Ok(Self { repository, id, key, sealed: [&encapsulated[..], &ciphertext].concat() })
        }

        /// The password.
        ///
        /// # Errors
        /// [`SealFault::Foreign`].
        pub fn open(&self, secret: &RecoverySecret) -> Result<String, SealFault> {
            let foreign = |_| SealFault::Foreign;
            let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&secret.0).map_err(foreign)?;
            let (encapsulated, ciphertext) = self.sealed.split_at_checked(ENCAPSULATED).ok_or(SealFault::Foreign)?;
            let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated).map_err(foreign)?;
            let password = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                &OpModeR::Base,
                &secret,
                &encapsulated,
                INFO,
                ciphertext,
                Self::head(&self.repository, &self.id, &self.key).as_bytes(),
            );
            String::from_utf8(password.map_err(foreign)?).map_err(|_| SealFault::Foreign)
        }
    }

    /// Random bytes out of a seed that was drawn before, so that drawing cannot fail here.
    struct Stream(blake3::OutputReader);

    impl TryRng for Stream {
        type Error = Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            let mut bytes = [0; 4];
            self.0.fill(&mut bytes);
            Ok(u32::from_le_bytes(bytes))
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            let mut bytes = [0; 8];
            self.0.fill(&mut bytes);
            Ok(u64::from_le_bytes(bytes))
        }
        fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
            self.0.fill(to);
            Ok(())
        }
    }

    impl TryCryptoRng for Stream {}
}

#[cfg(all(test, feature = "sealing"))]
#[allow(clippy::unwrap_used, reason = "panicking is how a test reports")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWORD: &str = "correct horse battery staple";

    fn sealed(secret: &RecoverySecret, random: u8) -> Sealed {
        let (id, key) = ("1d".repeat(32), "4e".repeat(32));
        let of = (&"main".parse().unwrap(), &*id, &*key);
        Sealed::seal(&secret.key().unwrap(), of, PASSWORD, [random; 32]).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_secret_alone_and_not_when_a_digit_is_another() {
        let (mine, theirs) = (RecoverySecret::derive(&[1; 32]), RecoverySecret::derive(&[2; 32]));
        let text = sealed(&mine, 3).to_string();
        assert_eq!(text.parse::<Sealed>().unwrap().open(&mine).as_deref(), Ok(PASSWORD));
        assert_eq!(text.parse::<Sealed>().unwrap().open(&theirs), Err(SealFault::Foreign));
        assert_ne!(text, sealed(&mine, 4).to_string(), "each is sealed anew");
        assert!(!text.contains(PASSWORD) && !text.contains(&hex(PASSWORD.as_bytes())));
        for at in text.match_indices(|c: char| c.is_ascii_hexdigit()).map(|(at, _)| at) {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            let read = String::from_utf8(forged).unwrap().parse::<Sealed>();
            assert!(read.is_err() || read.is_ok_and(|one| one.open(&mine) == Err(SealFault::Foreign)), "{at}");
        }
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_one_wrong_digit_is_noticed() {
        let secret = RecoverySecret::derive(&[1; 32]);
        let (key, text) = (secret.key().unwrap(), secret.text());
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(text.parse(), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "RecoverySecret(…)");
        assert!(key.to_string().parse::<RecoverySecret>().is_err() && text.parse::<RecoveryKey>().is_err());
        for at in KEY.len()..key.to_string().len() {
            let mut other = key.to_string().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert!(String::from_utf8(other).unwrap().parse::<RecoveryKey>().is_err(), "digit {at}");
        }
    }

    #[test]
    fn what_nobody_could_open_is_not_sealed() {
        let of = (&"main".parse().unwrap(), &*"1d".repeat(32), &*"4e".repeat(32));
        assert_eq!(Sealed::seal(&RecoveryKey([0; 32]), of, PASSWORD, [1; 32]), Err(SealFault::Key));
        let key = RecoverySecret::derive(&[1; 32]).key().unwrap();
        let long = "p".repeat(PASSWORD_BYTES_MAX);
        let read = Sealed::seal(&key, of, &long, [1; 32]).unwrap().to_string().parse::<Sealed>().unwrap();
        assert_eq!(read.open(&RecoverySecret::derive(&[1; 32])), Ok(long.clone()));
        assert_eq!(Sealed::seal(&key, of, &format!("{long}p"), [1; 32]), Err(SealFault::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_is_written_or_not_at_all(text in "\\PC{0,200}", hex in "[0-9a-f]{0,200}") {
            for text in [text.clone(), format!("{KEY}{hex}"), format!("{SECRET}{hex}"), format!("{SEALED}{text}"),
                format!("{SEALED}a:{0}:{0}:{hex}", "00".repeat(32))] {
                if let Ok(read) = text.parse::<Sealed>() {
                    prop_assert_eq!(read.to_string(), text);
                } else if let Ok(read) = text.parse::<RecoveryKey>() {
                    prop_assert_eq!(read.to_string(), text);
                } else if let Ok(read) = text.parse::<RecoverySecret>() {
                    prop_assert_eq!(read.text(), text);
                }
            }
        }
    }
}
