//! Content ids. Each is the BLAKE3 hash of something else, so each is a type of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A string is not the 64 lowercase hex digits of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id: want 64 lowercase hex digits")]
pub struct IdError(pub String);

macro_rules! content_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The id of these bytes.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// The id whose hash was computed elsewhere, by streaming.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the hash.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 lowercase hex digits, as `b3sum` prints them.
            pub fn to_hex(&self) -> String {
                blake3::Hash::from_bytes(self.0).to_hex().to_string()
            }

            /// The directory and file name under which content is laid out on disk: `<2 hex>`, `<62 hex>`.
            pub fn to_shard(&self) -> (String, String) {
                let mut hex = self.to_hex();
                let rest = hex.split_off(2);
                (hex, rest)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &self.to_hex()[..12])
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                match blake3::Hash::from_hex(text) {
                    Ok(hash) if lower => Ok(Self(*hash.as_bytes())),
                    _ => Err(IdError(crate::text::line(text, 120))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.serialize_str(&self.to_hex()) } else { self.0.serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(d).map(Self)
                }
            }
        }
    };
}

content_id!(
    /// One piece of an object: BLAKE3 of its plain bytes.
    ChunkId
);
content_id!(
    /// One file's whole content: BLAKE3 of the file, as `b3sum` prints it.
    ObjectId
);
content_id!(
    /// One tree: BLAKE3 of the bytes of its manifest, as stored.
    TreeId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_what_is_not_an_id() {
        let id = ObjectId::of(b"");
        assert_eq!(id.to_hex(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(id.to_hex().parse::<ObjectId>(), Ok(id));
        assert!(id.to_hex().to_uppercase().parse::<ObjectId>().is_err());
        assert!("af13".parse::<ObjectId>().is_err());
        let rest = "1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(id.to_shard(), ("af".to_owned(), rest.to_owned()));
        assert_eq!(format!("{id}"), id.to_hex());
        assert_eq!(format!("{id:?}"), "ObjectId(af1349b9f5f9)");
        assert_eq!(format!("{:?}", TreeId::of(b"")), "TreeId(af1349b9f5f9)");
        assert_eq!(ObjectId::from_bytes(*id.as_bytes()), id);
    }

    #[test]
    fn a_text_that_is_no_id_is_shown_short_and_harmless() {
        let hex = ChunkId::of(b"").to_hex();
        let mut odd = vec![hex[1..].to_owned(), format!("{hex}0"), format!(" {}", &hex[1..]), String::new()];
        odd.extend(["g", "A", "/", ":", "`", "é"].map(|other| format!("{other}{}", &hex[other.len()..])));
        for text in odd {
            let error = text.parse::<ChunkId>().unwrap_err();
            assert_eq!(error, IdError(text.clone()), "{text:?}");
            assert_eq!(error.to_string(), format!("'{text}' is not an id: want 64 lowercase hex digits"));
        }
        let hostile = format!("\x1b[2J{}", "0".repeat(500));
        let IdError(shown) = hostile.parse::<ChunkId>().unwrap_err();
        assert!(shown.len() <= 120 && shown.starts_with("\\x1b[2J000"), "{shown}");
    }

    /// 32 bytes in the codec, hex digits wherever people read.
    #[test]
    fn an_id_is_bytes_for_programs_and_hex_for_people() {
        use serde::de::value::{Error, StrDeserializer};
        struct Shown(TreeId);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.serialize(f)
            }
        }
        let id = TreeId::of(b"tree");
        assert_eq!(crate::codec::encode(&id).unwrap(), id.as_bytes());
        assert_eq!(crate::codec::decode::<TreeId, 32>(id.as_bytes()), Ok(id));
        assert!(crate::codec::decode::<TreeId, 32>(&id.as_bytes()[1..]).is_err());
        assert_eq!(Shown(id).to_string(), id.to_hex());
        let read = |text: &str| TreeId::deserialize(StrDeserializer::<Error>::new(text));
        assert_eq!(read(&id.to_hex()), Ok(id));
        assert!(read("tree").unwrap_err().to_string().contains("'tree' is not an id"));
    }
}
