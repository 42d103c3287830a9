//! The only file that calls `bincode`: fixed-width little-endian integers, always with a limit, no trailing bytes.
//!
//! Without a limit nine hostile bytes can claim a vector of 2^40 elements and abort the process.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value cannot be expressed (never for types of this crate within their limits).
    #[error("cannot encode: {0}")]
    Encode(String),
    /// The bytes are not a value of the wanted type.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// The value ended before the bytes did.
    #[error("{0} trailing bytes after the value")]
    Trailing(usize),
    /// More bytes than this kind of value may have.
    #[error("{got} bytes where at most {max} are allowed")]
    TooLarge {
        /// How many bytes there are.
        got: usize,
        /// How many there may be.
        max: usize,
    },
}

fn config<const LIMIT: usize>() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<LIMIT>,
> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

/// Encodes a value. The bytes are the same on every machine.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let config = bincode::config::standard().with_little_endian().with_fixed_int_encoding();
    bincode::serde::encode_to_vec(value, config).map_err(|e| CodecError::Encode(e.to_string()))
}

/// Decodes a value that takes all of `bytes`, which may be at most `LIMIT` long.
pub fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    match decode_first::<_, LIMIT>(bytes)? {
        (value, []) => Ok(value),
        (_, rest) => Err(CodecError::Trailing(rest.len())),
    }
}

/// Decodes the value at the beginning of `bytes`, which may be at most `LIMIT` long; returns what stands behind it.
pub fn decode_first<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<(T, &[u8]), CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge { got: bytes.len(), max: LIMIT });
    }
    // Out of the bytes themselves: a reader of its own would first make room for what a text or a blob claims to have.
    let read = bincode::serde::borrow_decode_from_slice(bytes, config::<LIMIT>());
    let (value, used) = read.map_err(|e| CodecError::Decode(e.to_string()))?;
    Ok((value, bytes.get(used..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_length_is_an_error_and_not_an_abort() {
        let hostile = (1u64 << 40).to_le_bytes();
        assert!(decode::<Vec<u8>, 1024>(&hostile).is_err());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0]);
        bytes.push(0);
        assert_eq!(decode::<u32, 64>(&bytes), Err(CodecError::Trailing(1)));
        bytes.extend([0; 6]);
        let error = decode::<u32, 64>(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "7 trailing bytes after the value");
    }

    #[test]
    fn integers_are_little_endian_and_of_fixed_width_on_every_machine() {
        assert_eq!(
            encode(&(1_u16, 2_u32, 3_u64, -2_i64, true)).unwrap(),
            [1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]
        );
        assert_eq!(encode(&(Some(5_u8), "ab")).unwrap(), [1, 5, 2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
        assert!(decode::<bool, 64>(&[2]).is_err(), "neither true nor false");
        assert!(decode::<Option<u8>, 64>(&[2, 0]).is_err());
    }

    #[test]
    fn a_value_may_have_as_many_bytes_as_its_limit_says() {
        assert_eq!(decode::<[u8; 4], 4>(&[7; 4]), Ok([7; 4]));
        assert_eq!(decode::<[u8; 5], 4>(&[7; 5]), Err(CodecError::TooLarge { got: 5, max: 4 }));
        assert!(decode::<[u8; 5], 8>(&[7; 4]).is_err(), "cut short");
        let text = encode(&"x".repeat(100)).unwrap();
        assert_eq!(decode::<String, 108>(&text), Ok("x".repeat(100)));
    }
}
