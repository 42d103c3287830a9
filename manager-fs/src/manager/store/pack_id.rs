//! How a pack is named.

use std::fmt;
use std::str::FromStr;

use proto::ObjectId;
use proto::id::IdError;

/// A pack: BLAKE3 of its header, index and sizes; the checks in the index pin the frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub(super) ObjectId);

impl PackId {
    /// 64 lowercase hex digits.
    pub fn to_hex(&self) -> String {
        self.0.to_hex()
    }

    /// The id as bytes of its own.
    pub(crate) fn object(self) -> ObjectId {
        self.0
    }

    /// The pack whose id these bytes are.
    pub(crate) fn of_object(id: ObjectId) -> Self {
        Self(id)
    }

    pub(super) fn to_shard(self) -> (String, String) {
        self.0.to_shard()
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({})", &self.to_hex()[..12])
    }
}

impl FromStr for PackId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_written_as_it_is_read_and_shortened_where_only_programmers_look() {
        let text = "0123456789abcdef".repeat(4);
        let id: PackId = text.parse().unwrap();
        assert_eq!((id.to_string(), id.to_hex()), (text.clone(), text));
        assert_eq!(format!("{id:?}"), "PackId(0123456789ab)");
    }
}
