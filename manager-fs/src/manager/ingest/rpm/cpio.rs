//! The archive in an RPM package: cpio in the form `newc` (cpio(5)), and rpm's own for files of 4 GiB and more, whose
//! entries have a number in the header's list of files and nothing else.

use std::io::{self, Read};

use proto::limits::PATH_BYTES_MAX;
use proto::width;

const NEWC: &[u8; 6] = b"070701";
const NEWC_SUMMED: &[u8; 6] = b"070702";
const NUMBERED: &[u8; 6] = b"07070X";
const TRAILER: &[u8] = b"TRAILER!!!";
/// Everything begins at a multiple of this many bytes.
const ALIGNMENT: usize = 4;

/// Whether these bytes begin such an archive.
pub(super) fn is_header(head: &[u8]) -> bool {
    [NEWC, NEWC_SUMMED, NUMBERED].iter().any(|magic| head.starts_with(&magic[..]))
}

/// What an entry says of itself before its content.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Named { name: Vec<u8>, bytes: u64 },
    Numbered(usize),
}

/// A cpio archive, front to back.
pub(super) struct Reader<R> {
    source: R,
    at: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, at: 0 }
    }

    /// The next entry; its content must have been read. `None` at the end of the archive.
    pub(super) fn entry(&mut self) -> io::Result<Option<Entry>> {
        self.align()?;
        let mut magic = [0; 6];
        self.read_exact(&mut magic)?;
        let entry = match &magic {
            NUMBERED => Entry::Numbered(width::index(u64::from(self.number()?))),
            NEWC | NEWC_SUMMED => {
                let mut fields = [0; 13];
                for field in &mut fields {
                    *field = self.number()?;
                }
                let [_inode, _mode, _user, _group, _links, _mtime, bytes, .., name_bytes, _sum] = fields;
                let mut name = vec![0; width::index(u64::from(name_bytes)).min(PATH_BYTES_MAX + 3)];
                if name.len() as u64 != u64::from(name_bytes) {
                    return Err(damaged("a name of more than 4095 bytes"));
                }
                self.read_exact(&mut name)?;
                if name.pop() != Some(0) || name.contains(&0) {
                    return Err(damaged("a name that does not end where it should"));
                }
                if name == TRAILER {
                    return Ok(None);
                }
                Entry::Named { name, bytes: u64::from(bytes) }
            }
            _ => return Err(damaged("what follows an entry is none")),
        };
        self.align()?;
        Ok(Some(entry))
    }

    /// A number of eight hexadecimal digits.
    fn number(&mut self) -> io::Result<u32> {
        let mut digits = [0; 8];
        self.read_exact(&mut digits)?;
        let text = std::str::from_utf8(&digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        text.and_then(|text| u32::from_str_radix(text, 16).ok()).ok_or_else(|| damaged("a number that is none"))
    }

    fn align(&mut self) -> io::Result<()> {
        let over = width::index(self.at % ALIGNMENT as u64);
        self.read_exact(&mut [0; ALIGNMENT][..(ALIGNMENT - over) % ALIGNMENT])
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read(buffer)?;
        self.at += got as u64;
        Ok(got)
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive in the package is damaged: {what}"))
}
