//! The key of a repository whose password was drawn: one that costs little to be opened.
//!
//! What a person chose is stretched for half a second with 128 MiB, so that guessing costs; the library does that of every
//! password. One of 256 random bits cannot be guessed, however cheap a guess is, and an agent opens its repository for
//! each operation.

use std::io;

use rustic_core::repofile::MasterKey;
use scrypt::Params;

use super::format::files::{FileFault, FileKind, Files};
use super::format::seal::{Key, SealFault};

/// scrypt's cost, N = 2^10 with blocks of 1 KiB: a millisecond and 1 MiB.
const LOG_N: u8 = 10;
const R: u32 = 8;
const P: u32 = 1;
/// Hexadecimal digits of 256 bits.
const DIGITS: usize = 64;

/// A light key is not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LightKeyFault {
    #[error(transparent)]
    File(#[from] FileFault),
    #[error("its master key {0}")]
    Seal(#[from] SealFault),
    #[error("its master key cannot be written down: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("the kernel gives no random bytes")]
    Random,
    #[error("scrypt refuses what it is told")]
    Scrypt,
}

/// Whether a password is one that an agent drew.
pub(super) fn is_drawn(password: &str) -> bool {
    password.len() == DIGITS && password.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Gives a repository that was just made this one key.
pub(super) fn put(files: &Files, master: &MasterKey, password: &str) -> Result<(), LightKeyFault> {
    let mut salt = [0; 64];
    let drawn = rustix::rand::getrandom(&mut salt[..], rustix::rand::GetRandomFlags::empty());
    if drawn != Ok(salt.len()) {
        return Err(LightKeyFault::Random);
    }
    let params = Params::new(LOG_N, R, P).map_err(|_| LightKeyFault::Scrypt)?;
    let mut stretched = [0; 64];
    scrypt::scrypt(password.as_bytes(), &salt, &params, &mut stretched).map_err(|_| LightKeyFault::Scrypt)?;
    let (encrypt, (k, r)) = (&stretched[..32], stretched[32..].split_at(16));
    let mut wrapping = MasterKey::new();
    (wrapping.encrypt, wrapping.mac.k, wrapping.mac.r) = (encrypt.to_vec(), k.to_vec(), r.to_vec());
    let sealed = Key::new(&wrapping).ok_or(LightKeyFault::Scrypt)?;
    let sealed = sealed.seal_document(&serde_json::to_vec(master)?, None)?;
    let base64 = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let file = serde_json::json!({
        "username": "manager-fs",
        "kdf": "scrypt",
        "N": 1u32 << LOG_N,
        "r": R,
        "p": P,
        "salt": base64(&salt),
        "data": base64(&sealed),
    });
    let id = files.write(FileKind::Key, &serde_json::to_vec(&file)?)?;
    // The library's own, and what an interrupted making left behind: nothing is sealed by that yet.
    let others = files.list(FileKind::Key)?.into_iter().filter(|(other, _)| *other != id);
    for (other, _) in others {
        match files.remove(FileKind::Key, &other) {
            // A storage that lets nobody remove anything: then it costs what it did before.
            Err(fault) if fault.source.kind() == io::ErrorKind::PermissionDenied => {
                tracing::info!("{fault}: it costs as much as before to open the repository");
            }
            removed => removed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_drawn_is_taken_for_random() {
        assert!(is_drawn(&"0123456789abcdef".repeat(4)));
        for chosen in ["", "secret", &"a".repeat(63), &"a".repeat(65), &"A".repeat(64), &"correct horse ba".repeat(4)]
        {
            assert!(!is_drawn(chosen), "{chosen}");
        }
    }
}
