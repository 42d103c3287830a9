//! The one-time enrolment token, as it is printed on the manager and typed on a host.
//!
//! ```text
//! "mfs1-" base32( secret [20] | BLAKE3 of the authority's certificate [32] | checksum [3] )
//! ```
//! The secret authorises one enrolment; the fingerprint lets the host recognise the manager before it tells the secret.

use std::fmt;
use std::str::FromStr;

/// Bytes of the secret.
pub const SECRET_BYTES: usize = 20;
const PREFIX: &str = "mfs1-";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHECKSUM_BYTES: usize = 3;

/// What a host needs for its enrolment: the right to it, and whom to tell the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Known to the token's holder alone; the manager keeps its hash.
    pub secret: [u8; SECRET_BYTES],
    /// BLAKE3 of the authority's certificate, DER.
    pub authority: [u8; 32],
}

/// A text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is not a token: it begins with '{PREFIX}' and has only letters and the digits 2 to 7")]
    Shape,
    /// A character was lost or changed.
    #[error("the token is incomplete or mistyped (its checksum is wrong): copy all of it")]
    Checksum,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = [self.secret.as_slice(), &self.authority].concat();
        let checksum = checksum(&body);
        write!(f, "{PREFIX}{}", base32(&[body.as_slice(), &checksum].concat()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(from_base32).ok_or(TokenError::Shape)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Checksum)?;
        if checksum(body) != *sum {
            return Err(TokenError::Checksum);
        }
        let (secret, authority) = body.split_first_chunk::<SECRET_BYTES>().ok_or(TokenError::Checksum)?;
        let authority = authority.try_into().map_err(|_| TokenError::Checksum)?;
        Ok(Self { secret: *secret, authority })
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, ..] = *blake3::hash(body).as_bytes();
    [a, b, c]
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::new();
    let (mut bits, mut have) = (0u32, 0u32);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        have += 8;
        while have >= 5 {
            have -= 5;
            text.push(char::from(ALPHABET[(bits >> have & 31) as usize]));
        }
    }
    if have > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - have) & 31) as usize]));
    }
    text
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut have) = (0u32, 0u32);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        bits = bits << 5 | u32::try_from(value).ok()?;
        have += 5;
        if have >= 8 {
            have -= 8;
            // The byte that is complete; the bits of earlier ones are above it.
            bytes.push((bits >> have).to_le_bytes()[0]);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PINNED: &str =
        "mfs1-gaytemzugu3doobzgaytemzugu3doobzuws2ljnfuws2ljnfuws2ljnfuws2ljnfuws2ljnfuws2ljnfuwst7ifm";

    proptest! {
        #[test]
        fn tokens_round_trip(secret in any::<[u8; SECRET_BYTES]>(), authority in any::<[u8; 32]>()) {
            let token = Token { secret, authority };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn any_text_parses_or_fails_without_panic(text in ".*") {
            drop(text.parse::<Token>());
            drop(format!("{PREFIX}{text}").parse::<Token>());
        }
    }

    /// As an operator copies it from one terminal into another; a change would void every token that was printed.
    #[test]
    fn the_text_of_a_token_is_pinned() {
        let token = Token { secret: *b"01234567890123456789", authority: [0xa5; 32] };
        let text = token.to_string();
        assert_eq!(text, PINNED);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" \n{text}\t").parse(), Ok(token.clone()), "with what came along when it was copied");
        assert_eq!(format!("{token:?}"), "Token(…)", "no log has the secret");
        assert_eq!(base32(b""), "");
        // RFC 4648, section 10, in small letters and without padding.
        let samples = [("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("fooba", "mzxw6ytb")];
        for (plain, text) in samples {
            assert_eq!(base32(plain.as_bytes()), text);
            assert_eq!(from_base32(text).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(from_base32("m1"), None, "1 is no digit of it");
        assert_eq!(from_base32("MY"), None);
    }

    #[test]
    fn a_token_with_the_right_sum_and_the_wrong_length_is_none() {
        for length in [0, 1, SECRET_BYTES - 1, SECRET_BYTES, SECRET_BYTES + 31, SECRET_BYTES + 33, 200] {
            let body = vec![7; length];
            let text = format!("{PREFIX}{}", base32(&[body.as_slice(), &checksum(&body)].concat()));
            assert_eq!(text.parse::<Token>(), Err(TokenError::Checksum), "{length} bytes");
        }
        let body = vec![7; SECRET_BYTES + 32];
        let mut sum = checksum(&body);
        sum[2] ^= 1;
        let text = format!("{PREFIX}{}", base32(&[body.as_slice(), &sum].concat()));
        assert_eq!(text.parse::<Token>(), Err(TokenError::Checksum));
    }

    #[test]
    fn a_lost_or_changed_character_is_noticed() {
        let text = Token { secret: [7; SECRET_BYTES], authority: [9; 32] }.to_string();
        assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(TokenError::Checksum));
        assert_eq!(text.replacen("a", "b", 1).parse::<Token>(), Err(TokenError::Checksum));
        assert_eq!(text[5..].parse::<Token>(), Err(TokenError::Shape));
        assert_eq!("mfs1-".parse::<Token>(), Err(TokenError::Checksum));
    }
}
