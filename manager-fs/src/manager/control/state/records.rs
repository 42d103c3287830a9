//! A value of the control store: its format (1 byte), a check over key and body (4 bytes), and the record's encoding.
//!
//! The check finds a flipped bit, and a value that stands under another's key, before anything believes it.

use proto::codec::{self, CodecError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::contract::{ControlError, VALUE_BYTES_MAX};

/// Another first byte is a later format. (1 was that of stores before `manager-fs store 2`.)
const RECORD_FORMAT: u8 = 2;
const CHECK_BYTES: usize = 4;

/// Why a value is no record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::manager::control) enum ValueFault {
    #[error("it is empty")]
    Empty,
    #[error("it has format {0}; this program knows {RECORD_FORMAT}")]
    Format(u8),
    #[error("it is cut off")]
    CutOff,
    #[error("its check does not match its bytes")]
    Check,
    #[error(transparent)]
    Encoding(#[from] CodecError),
}

/// # Errors
/// [`ControlError::Unfit`]: it could not be read again.
pub(in crate::manager::control) fn encode<T: Serialize + DeserializeOwned>(
    key: &str,
    value: &T,
) -> Result<Vec<u8>, ControlError> {
    let unfit = |fault: ValueFault| ControlError::Unfit { key: key.to_owned(), reason: fault.to_string() };
    let body = codec::encode(value).map_err(|error| unfit(error.into()))?;
    let bytes = [&[RECORD_FORMAT], check(key, &body).as_slice(), &body].concat();
    // The bounds of a record apply when it is read: what breaks them must be refused before it is written.
    if body.len() <= VALUE_BYTES_MAX {
        decode::<T>(key, &bytes).map_err(unfit)?;
    }
    Ok(bytes)
}

/// # Errors
/// See [`ValueFault`].
pub(in crate::manager::control) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, ValueFault> {
    let (format, rest) = bytes.split_first().ok_or(ValueFault::Empty)?;
    if *format != RECORD_FORMAT {
        return Err(ValueFault::Format(*format));
    }
    let (found, body) = rest.split_first_chunk::<CHECK_BYTES>().ok_or(ValueFault::CutOff)?;
    if *found != check(key, body) {
        return Err(ValueFault::Check);
    }
    Ok(codec::decode::<T, VALUE_BYTES_MAX>(body)?)
}

/// Whether a value is one of this format and undamaged, whatever it is of.
pub(in crate::manager::control) fn is_whole(key: &str, bytes: &[u8]) -> bool {
    let Some((&RECORD_FORMAT, rest)) = bytes.split_first() else { return false };
    rest.split_first_chunk::<CHECK_BYTES>().is_some_and(|(found, body)| *found == check(key, body))
}

/// What tells that a body belongs to its key and is undamaged.
pub(in crate::manager::control) fn check(key: &str, body: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key.as_bytes()).update(body);
    let mut check = [0; CHECK_BYTES];
    hasher.finalize_xof().fill(&mut check);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_other_key_is_noticed() {
        let good = encode("host/a", &(7_u64, String::from("x"))).unwrap();
        assert_eq!(decode("host/a", &good), Ok((7_u64, String::from("x"))));
        assert!(decode::<(u64, String)>("host/b", &good).is_err());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(u64, String)>("host/a", &bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(decode::<(u64, String)>("host/a", &good[..length]).is_err(), "{length} bytes");
        }
    }
}
