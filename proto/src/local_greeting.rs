//! The greeting of local sockets: which build is on the other side, known before anything else is understood.
//!
//! Its bytes never change, and its first four are no number of a variant, so that it is told apart from every request.

use serde::{Deserialize, Serialize};

use crate::bounded::{Word, within};
use crate::codec;
use crate::limits::{MESSAGE_BYTES_MAX, VERSION_BYTES_MAX};

/// Sent by the side that asks, and answered by the other side with its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    magic: [u8; 4],
    /// Version of the program, such as `1.4.0`.
    #[serde(deserialize_with = "within::<_, Word<VERSION_BYTES_MAX>>")]
    pub version: String,
    /// Which messages the program was built with: equal where both sides have the same.
    pub messages: [u8; 16],
}

impl Greeting {
    /// First bytes of every greeting.
    pub const MAGIC: [u8; 4] = *b"MFSG";

    /// That of a program.
    pub fn new(version: &str, messages: [u8; 16]) -> Self {
        Self { magic: Self::MAGIC, version: version.to_owned(), messages }
    }

    /// Reads a greeting; `None` where the bytes are something else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let read = codec::decode::<Self, MESSAGE_BYTES_MAX>(bytes).ok()?;
        (read.magic == Self::MAGIC).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::DaemonRequest;

    #[test]
    fn a_greeting_is_told_apart_from_everything_else() {
        let greeting = Greeting::new("1.4.0", [7; 16]);
        let bytes = codec::encode(&greeting).unwrap_or_default();
        assert_eq!(Greeting::read(&bytes), Some(greeting));
        for request in [DaemonRequest::Status, DaemonRequest::Unmount] {
            assert_eq!(Greeting::read(&codec::encode(&request).unwrap_or_default()), None);
        }
        for end in 0..bytes.len() {
            assert_eq!(Greeting::read(&bytes[..end]), None, "{end}");
        }
        let other = [b"MFSH".as_slice(), &bytes[4..]].concat();
        assert_eq!(Greeting::read(&other), None);
        let long = Greeting::new(&"1".repeat(VERSION_BYTES_MAX + 1), [0; 16]);
        assert_eq!(Greeting::read(&codec::encode(&long).unwrap_or_default()), None);
    }
}
