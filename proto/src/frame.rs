//! Length-prefixed frames over byte slices. "Need more bytes" is not an error.
//!
//! ```text
//! "MFS\x01" | kind u8 | flags u8 = 0 | reserved u16 = 0 | request u64 | length u32 | body
//! ```
//! Integers are little-endian. The same frames run over TLS and over the local sockets; each side numbers its own
//! requests, and `Response`, `Event` and `Bulk` carry the number of the request that they answer.

use crate::limits::{BULK_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::width;

/// Magic with the version of the framing.
const MAGIC: [u8; 4] = *b"MFS\x01";
/// Bytes before the body.
pub const HEADER_BYTES: usize = 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A message that wants one `Response`.
    Request,
    /// The last answer to a request.
    Response,
    /// A message on the way to the response.
    Event,
    /// Raw bytes on the way to the response.
    Bulk,
    /// The requester no longer wants the answer; a response still follows. Empty body.
    Cancel,
}

/// What a frame's first [`HEADER_BYTES`] bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: FrameKind,
    /// The requester's number, under which every frame of the answer comes.
    pub request: u64,
    /// Bytes of the body.
    pub length: usize,
}

/// The peer broke the framing; the connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// Not our magic and version.
    #[error("the peer does not speak this protocol (frame begins with {0:02x?})")]
    Magic([u8; 4]),
    /// Unknown kind, or bits that must be zero.
    #[error("malformed frame: kind {kind}, flags {flags}, reserved {reserved}")]
    Malformed {
        /// The byte that should name a [`FrameKind`].
        kind: u8,
        /// The byte after it, which must be 0.
        flags: u8,
        /// The two bytes after that, which must be 0.
        reserved: u16,
    },
    /// Longer than its kind may be.
    #[error("a {kind:?} frame of {length} bytes; at most {max} are allowed")]
    TooLong {
        /// What the frame carries, which decides how long it may be.
        kind: FrameKind,
        /// Bytes of the body that its header claims.
        length: usize,
        /// Bytes that a body of this kind may have.
        max: usize,
    },
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            FrameKind::Request => 1,
            FrameKind::Response => 2,
            FrameKind::Event => 3,
            FrameKind::Bulk => 4,
            FrameKind::Cancel => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [FrameKind::Request, FrameKind::Response, FrameKind::Event, FrameKind::Bulk, FrameKind::Cancel]
            .into_iter()
            .find(|kind| kind.code() == code)
    }

    fn length_max(self) -> usize {
        match self {
            FrameKind::Request | FrameKind::Response | FrameKind::Event => MESSAGE_BYTES_MAX,
            FrameKind::Bulk => BULK_BYTES_MAX,
            FrameKind::Cancel => 0,
        }
    }
}

impl FrameHeader {
    /// The bytes that [`FrameHeader::decode`] reads.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind.code();
        bytes[8..16].copy_from_slice(&self.request.to_le_bytes());
        bytes[16..].copy_from_slice(&width::count(self.length).to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`; `None` while it is not complete.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameFault> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let magic = [header[0], header[1], header[2], header[3]];
        if magic != MAGIC {
            return Err(FrameFault::Magic(magic));
        }
        let (flags, reserved) = (header[5], u16::from_le_bytes([header[6], header[7]]));
        let kind = FrameKind::from_code(header[4]).filter(|_| flags == 0 && reserved == 0);
        let kind = kind.ok_or(FrameFault::Malformed { kind: header[4], flags, reserved })?;
        let [_, _, _, _, _, _, _, _, r0, r1, r2, r3, r4, r5, r6, r7, l0, l1, l2, l3] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > kind.length_max() {
            return Err(FrameFault::TooLong { kind, length, max: kind.length_max() });
        }
        Ok(Some(Self { kind, request: u64::from_le_bytes([r0, r1, r2, r3, r4, r5, r6, r7]), length }))
    }
}

/// A whole frame: header and body in one buffer, for one write.
pub fn frame(kind: FrameKind, request: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&FrameHeader { kind, request, length: body.len() }.encode());
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(FrameHeader::decode(&bytes));
        }

        #[test]
        fn headers_round_trip(request in any::<u64>(), length in 0usize..BULK_BYTES_MAX) {
            let header = FrameHeader { kind: FrameKind::Bulk, request, length };
            let bytes = header.encode();
            prop_assert_eq!(FrameHeader::decode(&bytes), Ok(Some(header)));
            prop_assert_eq!(FrameHeader::decode(&bytes[..19]), Ok(None));
        }
    }

    const KINDS: [(FrameKind, u8, usize); 5] = [
        (FrameKind::Request, 1, MESSAGE_BYTES_MAX),
        (FrameKind::Response, 2, MESSAGE_BYTES_MAX),
        (FrameKind::Event, 3, MESSAGE_BYTES_MAX),
        (FrameKind::Bulk, 4, BULK_BYTES_MAX),
        (FrameKind::Cancel, 5, 0),
    ];

    #[test]
    fn every_kind_has_its_number_and_its_bound() {
        for (kind, code, max) in KINDS {
            let header = FrameHeader { kind, request: 0x0807_0605_0403_0201, length: max };
            let bytes = header.encode();
            assert_eq!(bytes[..8], [b'M', b'F', b'S', 1, code, 0, 0, 0]);
            assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(FrameHeader::decode(&bytes), Ok(Some(header)), "at its bound");
            let longer = FrameHeader { length: max + 1, ..header };
            let refused = Err(FrameFault::TooLong { kind, length: max + 1, max });
            assert_eq!(FrameHeader::decode(&longer.encode()), refused);
        }
        for code in (0..=u8::MAX).filter(|code| !(1..=5).contains(code)) {
            let mut bytes = FrameHeader { kind: FrameKind::Request, request: 1, length: 0 }.encode();
            bytes[4] = code;
            let refused = Err(FrameFault::Malformed { kind: code, flags: 0, reserved: 0 });
            assert_eq!(FrameHeader::decode(&bytes), refused);
        }
    }

    #[test]
    fn bits_that_must_be_zero_and_other_magic_are_refused() {
        let bytes = FrameHeader { kind: FrameKind::Event, request: 1, length: 0 }.encode();
        let with = |at: usize, value: u8| {
            let mut bytes = bytes;
            bytes[at] = value;
            FrameHeader::decode(&bytes)
        };
        assert_eq!(with(5, 1), Err(FrameFault::Malformed { kind: 3, flags: 1, reserved: 0 }));
        assert_eq!(with(6, 1), Err(FrameFault::Malformed { kind: 3, flags: 0, reserved: 1 }));
        assert_eq!(with(7, 1), Err(FrameFault::Malformed { kind: 3, flags: 0, reserved: 256 }));
        assert_eq!(with(3, 2), Err(FrameFault::Magic(*b"MFS\x02")));
        for at in 0..4 {
            assert!(matches!(with(at, b'?'), Err(FrameFault::Magic(_))), "byte {at}");
        }
        for cut in 0..HEADER_BYTES {
            assert_eq!(FrameHeader::decode(&bytes[..cut]), Ok(None), "{cut} bytes");
        }
    }

    #[test]
    fn a_whole_frame_is_its_header_and_its_body() {
        let bytes = frame(FrameKind::Response, 9, b"body");
        let header = FrameHeader { kind: FrameKind::Response, request: 9, length: 4 };
        assert_eq!(bytes, [header.encode().as_slice(), b"body"].concat());
        assert_eq!(FrameHeader::decode(&bytes), Ok(Some(header)), "what follows is left alone");
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_it_is_read() {
        let mut bytes = FrameHeader { kind: FrameKind::Request, request: 1, length: 0 }.encode();
        bytes[16..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(FrameHeader::decode(&bytes), Err(FrameFault::TooLong { .. })));
    }
}
