//! Packets of SFTP, version 3 (draft-ietf-secsh-filexfer-02), as every server of OpenSSH speaks it: what is asked, and what
//! is answered. Nothing of an answer is believed before its length is within what it may have.
//!
//! ```text
//! packet  length: u32, kind: u8, number of the request: u32, the rest    (numbers are big-endian)
//! string  length: u32, that many bytes
//! ```

use std::io::{self, Read};

/// Bytes of a packet: what OpenSSH's own client and server take.
pub(super) const PACKET_BYTES_MAX: usize = 256 << 10;
/// The version that is spoken.
pub(super) const VERSION: u32 = 3;

/// A file is to be read.
pub(super) const READ: u32 = 1;
/// A file is to be written, and must not be there yet.
pub(super) const WRITE_NEW: u32 = 2 | 8 | 32;

/// An answer is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketFault {
    #[error("a packet of {0} bytes, where 1 to {PACKET_BYTES_MAX} may come")]
    Length(u32),
    #[error("a packet ends before what it says of itself")]
    Cut,
    #[error("a packet goes on behind its end")]
    Longer,
    #[error("a packet of kind {0}, which is no answer")]
    Kind(u8),
}

/// What a server answers, without the number of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Status { code: u32, message: String },
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<Named>),
    Attributes(Attributes),
}

/// What a server says of itself first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: u32,
    /// Names and what is said with each.
    pub(super) extensions: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: Vec<u8>,
    pub(super) attributes: Attributes,
}

/// What is said of a file, of what is needed here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// Seconds since 1970.
    pub(super) mtime: Option<u32>,
}

/// A request that is being put together.
#[derive(Debug)]
pub(super) struct Asked(Vec<u8>);

impl Asked {
    fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    pub(super) fn hello() -> Self {
        Self::new(1).number(VERSION)
    }

    pub(super) fn open(number: u32, path: &str, how: u32) -> Self {
        // Mode 0600, where a file is made.
        Self::new(3).number(number).string(path.as_bytes()).number(how).number(4).number(0o600)
    }

    pub(super) fn close(number: u32, handle: &[u8]) -> Self {
        Self::new(4).number(number).string(handle)
    }

    pub(super) fn read(number: u32, handle: &[u8], offset: u64, bytes: u32) -> Self {
        Self::new(5).number(number).string(handle).long(offset).number(bytes)
    }

    pub(super) fn write(number: u32, handle: &[u8], offset: u64, bytes: &[u8]) -> Self {
        Self::new(6).number(number).string(handle).long(offset).string(bytes)
    }

    pub(super) fn look_at_open(number: u32, handle: &[u8]) -> Self {
        Self::new(8).number(number).string(handle)
    }

    pub(super) fn open_directory(number: u32, path: &str) -> Self {
        Self::new(11).number(number).string(path.as_bytes())
    }

    pub(super) fn read_directory(number: u32, handle: &[u8]) -> Self {
        Self::new(12).number(number).string(handle)
    }

    pub(super) fn remove(number: u32, path: &str) -> Self {
        Self::new(13).number(number).string(path.as_bytes())
    }

    pub(super) fn make_directory(number: u32, path: &str) -> Self {
        Self::new(14).number(number).string(path.as_bytes()).number(4).number(0o700)
    }

    pub(super) fn look(number: u32, path: &str) -> Self {
        Self::new(17).number(number).string(path.as_bytes())
    }

    /// Fails where something has the new name.
    pub(super) fn rename(number: u32, from: &str, to: &str) -> Self {
        Self::new(18).number(number).string(from.as_bytes()).string(to.as_bytes())
    }

    /// An extension of OpenSSH's: what was written is on the disk when it is answered.
    pub(super) fn sync(number: u32, handle: &[u8]) -> Self {
        Self::new(200).number(number).string(b"fsync@openssh.com").string(handle)
    }

    fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn long(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// What is asked for is our own, and never as long as a number can say.
    fn string(self, bytes: &[u8]) -> Self {
        let mut with = self.number(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        with.0.extend_from_slice(bytes);
        with
    }

    /// As it is sent.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// The next packet, without its length.
pub(super) fn next(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    let bytes = usize::try_from(length).ok().filter(|bytes| (1..=PACKET_BYTES_MAX).contains(bytes));
    let mut packet = vec![0; bytes.ok_or_else(|| invalid(PacketFault::Length(length)))?];
    from.read_exact(&mut packet)?;
    Ok(packet)
}

/// A server that does not keep to the protocol.
pub(super) fn invalid(fault: PacketFault) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it does not speak SFTP: {fault}"))
}

/// The first answer.
pub(super) fn hello(packet: &[u8]) -> Result<Hello, PacketFault> {
    let mut rest = packet;
    match byte(&mut rest)? {
        2 => {}
        other => return Err(PacketFault::Kind(other)),
    }
    let version = number(&mut rest)?;
    let mut extensions = Vec::new();
    while !rest.is_empty() {
        extensions.push((string(&mut rest)?.to_vec(), string(&mut rest)?.to_vec()));
    }
    Ok(Hello { version, extensions })
}

/// Any other answer, and the number of the request.
pub(super) fn reply(packet: &[u8]) -> Result<(u32, Reply), PacketFault> {
    let mut rest = packet;
    let (kind, of) = (byte(&mut rest)?, number(&mut rest)?);
    let reply = match kind {
        101 => {
            let code = number(&mut rest)?;
            // Servers of old versions say no more.
            let message = if rest.is_empty() { &b""[..] } else { string(&mut rest)? };
            let _language = if rest.is_empty() { &b""[..] } else { string(&mut rest)? };
            Reply::Status { code, message: String::from_utf8_lossy(message).into_owned() }
        }
        102 => Reply::Handle(string(&mut rest)?.to_vec()),
        103 => Reply::Data(string(&mut rest)?.to_vec()),
        104 => {
            let count = number(&mut rest)?;
            let mut names = Vec::new();
            for _ in 0..count {
                let name = string(&mut rest)?.to_vec();
                let _line = string(&mut rest)?;
                names.push(Named { name, attributes: attributes(&mut rest)? });
            }
            Reply::Names(names)
        }
        105 => Reply::Attributes(attributes(&mut rest)?),
        other => return Err(PacketFault::Kind(other)),
    };
    if rest.is_empty() { Ok((of, reply)) } else { Err(PacketFault::Longer) }
}

fn attributes(rest: &mut &[u8]) -> Result<Attributes, PacketFault> {
    let flags = number(rest)?;
    let has = |flag: u32| flags & flag != 0;
    let mut found = Attributes::default();
    if has(1) {
        found.size = Some(u64::from(number(rest)?) << 32 | u64::from(number(rest)?));
    }
    if has(2) {
        let _owner = (number(rest)?, number(rest)?);
    }
    if has(4) {
        let _mode = number(rest)?;
    }
    if has(8) {
        let _accessed = number(rest)?;
        found.mtime = Some(number(rest)?);
    }
    if has(1 << 31) {
        for _ in 0..number(rest)? {
            let _extended = (string(rest)?, string(rest)?);
        }
    }
    Ok(found)
}

fn byte(rest: &mut &[u8]) -> Result<u8, PacketFault> {
    let (first, behind) = rest.split_first().ok_or(PacketFault::Cut)?;
    *rest = behind;
    Ok(*first)
}

fn number(rest: &mut &[u8]) -> Result<u32, PacketFault> {
    let (first, behind) = rest.split_first_chunk::<4>().ok_or(PacketFault::Cut)?;
    *rest = behind;
    Ok(u32::from_be_bytes(*first))
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], PacketFault> {
    let length = usize::try_from(number(rest)?).map_err(|_| PacketFault::Cut)?;
    let (string, behind) = rest.split_at_checked(length).ok_or(PacketFault::Cut)?;
    *rest = behind;
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(of: &[&[u8]]) -> Vec<u8> {
        of.iter().fold(Asked(Vec::new()), |all, one| all.string(one)).0
    }

    /// One of every kind.
    fn packets() -> Vec<(Vec<u8>, Reply)> {
        let status = Reply::Status { code: 2, message: "No such file".into() };
        let size = Attributes { size: Some(1 << 33 | 7), ..Attributes::default() };
        let all = Attributes { size: Some(9), mtime: Some(1_234_567_890) };
        let attributes = |asked: Asked| asked.number(1).number(2).number(7);
        let full = |asked: Asked| {
            let asked = asked.number(1 | 2 | 4 | 8 | 1 << 31).long(9).number(0).number(0).number(0o100_600);
            asked.number(5).number(1_234_567_890).number(1).string(b"name").string(b"value")
        };
        let head = |kind: u8| Asked(vec![kind]).number(77);
        vec![
            (head(101).number(2).string(b"No such file").string(b"en").0, status),
            (head(101).number(1).0, Reply::Status { code: 1, message: String::new() }),
            (head(102).string(&[0, 0, 0, 5]).0, Reply::Handle(vec![0, 0, 0, 5])),
            (head(103).string(b"content").0, Reply::Data(b"content".to_vec())),
            (head(104).number(0).0, Reply::Names(Vec::new())),
            (
                full(attributes(head(104).number(2).string(b"a").string(b"-rw")).string(b"b").string(b"")).0,
                Reply::Names(vec![
                    Named { name: b"a".to_vec(), attributes: size },
                    Named { name: b"b".to_vec(), attributes: all },
                ]),
            ),
            (full(head(105)).0, Reply::Attributes(all)),
        ]
    }

    #[test]
    fn every_kind_of_answer_is_read() {
        for (bytes, expected) in packets() {
            assert_eq!(reply(&bytes), Ok((77, expected)));
        }
        let mut first = vec![2, 0, 0, 0, 3];
        first.extend(strings(&[b"fsync@openssh.com", b"1"]));
        let said = hello(&first).unwrap();
        assert_eq!((said.version, said.extensions.len()), (3, 1));
        assert_eq!(hello(&[1, 0, 0, 0, 3]), Err(PacketFault::Kind(1)));
    }

    #[test]
    fn whatever_is_cut_changed_or_longer_is_named_and_takes_no_more_than_it_has() {
        for (bytes, _) in packets() {
            for length in 0..bytes.len() {
                // A status may end before its message.
                let cut = reply(&bytes[..length]);
                assert!(cut.is_err() || bytes[0] == 101, "{cut:?}");
            }
            assert!(reply(&[&bytes[..], &[0]].concat()).is_err());
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    drop((reply(&changed), hello(&changed)));
                }
            }
        }
        // What says that it has four milliards of entries has none.
        assert_eq!(reply(&Asked(vec![104]).number(1).number(u32::MAX).0), Err(PacketFault::Cut));
        assert_eq!(reply(&Asked(vec![103]).number(1).number(u32::MAX).0), Err(PacketFault::Cut));
    }

    #[test]
    fn a_packet_is_no_longer_than_it_may_be() {
        let read = |bytes: &[u8]| next(&mut &bytes[..]);
        assert_eq!(read(&[0, 0, 0, 2, 7, 8]).unwrap(), [7, 8]);
        for length in [[0, 0, 0, 0], [0, 4, 0, 1], [255; 4]] {
            assert_eq!(read(&[&length[..], &[9; 64]].concat()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(read(&[0, 0, 0, 2, 7]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        assert_eq!(Asked::hello().into_bytes(), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
        let sync = Asked::sync(5, b"h").into_bytes();
        assert_eq!(sync[..9], [0, 0, 0, 31, 200, 0, 0, 0, 5]);
        assert_eq!(sync[9..], strings(&[b"fsync@openssh.com", b"h"]));
        let write = Asked::write(1, b"h", 1 << 40, b"xy").into_bytes();
        assert_eq!(write[4..], [6, 0, 0, 0, 1, 0, 0, 0, 1, b'h', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, b'x', b'y']);
    }
}
