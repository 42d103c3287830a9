//! The tar formats that exist: v7, ustar, GNU and pax, with sparse files. Parsed here and not by a library, since a
//! tree needs what libraries drop (nanoseconds, attributes, duplicates) and hostile archives need bounds on all of it.

use std::collections::BTreeMap;
use std::io::{self, Read};

use proto::TreePath;
use proto::manifest::{NodeKind, Xattr};
use proto::path::printable;

use super::archive::Budget;
use super::sparse::{self, Extent, SparseReader};
use super::tree::{Attributes, take_xattr};
use super::{IngestError, Intake};

pub(super) const BLOCK: usize = 512;
/// Bytes of one pax header or GNU long name. Attributes are the largest: the kernel allows 64 KiB for each.
const EXTENSION_BYTES_MAX: u64 = 4 << 20;

/// Pax records by key; those of a global header hold for all that follows.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether these bytes begin a tar archive (an empty one is two blocks of zeros).
pub(super) fn is_header(head: &[u8]) -> bool {
    head.len() == BLOCK && (head.iter().all(|byte| *byte == 0) || checksum_fits(head))
}

/// Reads a tar stream into the intake.
pub(super) fn read(intake: &mut Intake<'_, '_>, source: impl Read, budget: Budget) -> Result<(), IngestError> {
    Reader { source, budget, global: Records::new() }.run(intake)
}

struct Reader<R> {
    source: R,
    budget: Budget,
    global: Records,
}

/// A header block, read but not yet believed.
struct Header {
    block: [u8; BLOCK],
    size: u64,
}

/// What came before a header and belongs to it.
#[derive(Default)]
struct Pending {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    fn run(mut self, intake: &mut Intake<'_, '_>) -> Result<(), IngestError> {
        let mut pending = Pending::default();
        let mut last = Vec::new();
        while let Some(header) = self.header(intake, &last)? {
            let name = header.name();
            match header.kind() {
                b'x' | b'X' => {
                    let bytes = self.extension(intake, &header)?;
                    let records = parse_records(&bytes).map_err(|fault| intake.refused(&name, fault))?;
                    pending.records.extend(records);
                }
                b'g' => {
                    let bytes = self.extension(intake, &header)?;
                    let records = parse_records(&bytes).map_err(|fault| intake.refused(&name, fault))?;
                    self.global.extend(records);
                }
                b'L' => pending.long_name = Some(cut_nul(&self.extension(intake, &header)?)),
                b'K' => pending.long_link = Some(cut_nul(&self.extension(intake, &header)?)),
                _ => last = self.entry(intake, &header, std::mem::take(&mut pending))?,
            }
        }
        if !pending.records.is_empty() || pending.long_name.is_some() || pending.long_link.is_some() {
            return Err(intake.refused(&last, "the archive ends after an entry's extended header: it is cut off"));
        }
        // To the end, so that the checksums of the compression are checked too.
        io::copy(&mut self.source, &mut io::sink()).map_err(|error| intake.unread(b"", error))?;
        Ok(())
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self, intake: &Intake<'_, '_>, last: &[u8]) -> Result<Option<Header>, IngestError> {
        if intake.is_cancelled() {
            return Err(IngestError::Cancelled);
        }
        let mut block = [0; BLOCK];
        self.source.read_exact(&mut block).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => intake.refused(last, "the archive ends after this entry: it is cut off"),
            _ => intake.unread(last, error),
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !checksum_fits(&block) {
            return Err(intake.refused(last, "the header after this entry is damaged: its checksum is wrong"));
        }
        let size = number(&block[124..136]).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| intake.refused(last, "the size of the entry after this one is no number"))?;
        Ok(Some(Header { block, size }))
    }

    fn extension(&mut self, intake: &Intake<'_, '_>, header: &Header) -> Result<Vec<u8>, IngestError> {
        if header.size > EXTENSION_BYTES_MAX {
            return Err(intake.refused(&header.name(), "an extended header of more than 4 MiB"));
        }
        let mut bytes = vec![0; header.size as usize];
        self.source.read_exact(&mut bytes).map_err(|error| intake.unread(&header.name(), error))?;
        self.skip_padding(header.size).map_err(|error| intake.unread(&header.name(), error))?;
        Ok(bytes)
    }

    fn skip_padding(&mut self, size: u64) -> io::Result<()> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.source.read_exact(&mut [0; BLOCK][..padding as usize])
    }

    /// Takes one entry in; returns its name.
    fn entry(
        &mut self,
        intake: &mut Intake<'_, '_>,
        header: &Header,
        pending: Pending,
    ) -> Result<Vec<u8>, IngestError> {
        let entry = Described::new(header, pending, &self.global);
        let entry = entry.map_err(|(name, fault)| intake.refused(&name, fault))?;
        let refused = |intake: &Intake<'_, '_>, fault: &str| Err(intake.refused(&entry.name, fault));
        let path = tree_path(&entry.name).map_err(|fault| intake.refused(&entry.name, fault))?;
        match header.kind() {
            b'0' | 0 | b'7' if entry.name.ends_with(b"/") => {
                intake.enter(path, NodeKind::Directory, entry.attributes)?;
            }
            b'0' | 0 | b'7' | b'S' => {
                let name = entry.name.clone();
                self.file(intake, header, path, entry)?;
                return Ok(name);
            }
            b'5' => {
                intake.enter(path, NodeKind::Directory, entry.attributes)?;
            }
            b'2' => {
                intake.enter(path, NodeKind::Symlink(entry.link), entry.attributes)?;
            }
            b'1' if entry.size != 0 => return refused(intake, "a hard link that brings content of its own"),
            b'1' => {
                let target = tree_path(&entry.link).map_err(|fault| {
                    intake.refused(&entry.name, format!("hard link to '{}': {fault}", printable(&entry.link)))
                })?;
                intake.link_to(path, &target)?;
            }
            b'3' | b'4' | b'6' => {
                return refused(intake, "devices, sockets and pipes do not belong into a tree");
            }
            other => return refused(intake, &format!("an entry of the unknown type '{}'", other.escape_ascii())),
        }
        Ok(entry.name)
    }

    fn file(
        &mut self,
        intake: &mut Intake<'_, '_>,
        header: &Header,
        path: TreePath,
        entry: Described,
    ) -> Result<(), IngestError> {
        let name = &entry.name;
        let mut extents = None;
        let mut stored = entry.size;
        if header.kind() == b'S' {
            let found = sparse::gnu_map(&header.block, &mut self.source);
            extents = Some(found.map_err(|error| intake.unread(name, error))?);
        } else if let Some(map) = &entry.sparse {
            let mut data = (&mut self.source).take(stored);
            let found = sparse::pax_map(map, &mut data);
            extents = Some((found.map_err(|error| intake.unread(name, error))?, map.real_size));
            stored = data.limit();
        }
        let mut data = (&mut self.source).take(stored);
        let (kind, bytes, expected) = match extents {
            None => {
                let (kind, bytes) = intake.content(&path, &mut data)?;
                (kind, bytes, stored)
            }
            Some((extents, real_size)) => {
                let budget = self.budget.clone();
                let sparse = SparseReader::new(&mut data, extents, stored, real_size, budget);
                let mut sparse = sparse.map_err(|error| intake.unread(name, error))?;
                let (kind, bytes) = intake.content(&path, &mut sparse)?;
                (kind, bytes, real_size)
            }
        };
        if bytes != expected {
            return Err(intake.refused(name, "the archive ends inside this file: it is cut off"));
        }
        self.skip_padding(entry.size).map_err(|error| intake.unread(name, error))?;
        intake.enter(path, kind, entry.attributes)?;
        Ok(())
    }
}

/// An entry as header and extensions together describe it.
struct Described {
    name: Vec<u8>,
    link: Vec<u8>,
    size: u64,
    attributes: Attributes,
    sparse: Option<sparse::PaxMap>,
}

impl Described {
    fn new(header: &Header, pending: Pending, global: &Records) -> Result<Self, (Vec<u8>, String)> {
        let mut records = global.clone();
        records.extend(pending.records);
        // An empty value takes an earlier one back.
        let value = |key: &[u8]| records.get(key).filter(|value| !value.is_empty());
        let sparse_name = value(b"GNU.sparse.name");
        let name = sparse_name.or(value(b"path")).cloned().or(pending.long_name).unwrap_or_else(|| header.name());
        let fault = |what: &str| (name.clone(), what.to_owned());
        let link =
            value(b"linkpath").cloned().or(pending.long_link).unwrap_or_else(|| cut_nul(&header.block[157..257]));
        let field = |key: &[u8], range: std::ops::Range<usize>| match value(key) {
            Some(text) => decimal(text),
            None => number(&header.block[range]),
        };
        let id = |key: &[u8], range| field(key, range).and_then(|id| u32::try_from(id).ok());
        let mtime = match value(b"mtime") {
            Some(text) => decimal_time(text),
            None => number(&header.block[136..148]).map(|seconds| (seconds, 0)),
        };
        let mut xattrs: Vec<Xattr> = Vec::new();
        for (key, value) in &records {
            if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.".as_slice()) {
                take_xattr(&mut xattrs, &unescaped(attribute), value.clone()).map_err(|what| fault(&what))?;
            }
            if key.starts_with(b"SCHILY.acl.") && !records.contains_key(acl_attribute(key)) {
                let attribute = super::acl::from_text(key, value).map_err(|what| fault(&what))?;
                xattrs.extend(attribute);
            }
        }
        let attributes = Attributes {
            mode: number(&header.block[100..108]).ok_or_else(|| fault("its mode is no number"))? as u32 & 0o7777,
            uid: id(b"uid", 108..116).ok_or_else(|| fault("its owner is no number of 32 bits"))?,
            gid: id(b"gid", 116..124).ok_or_else(|| fault("its group is no number of 32 bits"))?,
            mtime: mtime.ok_or_else(|| fault("its modification time is no number"))?,
            xattrs,
        };
        let size = field(b"size", 124..136).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| fault("its size is no number"))?;
        let sparse = sparse::PaxMap::new(|key| value(key).map(Vec::as_slice)).map_err(fault)?;
        Ok(Self { size, link, attributes, sparse, name })
    }
}

/// Under which record the same list stands as an attribute, which is exact and so preferred.
fn acl_attribute(key: &[u8]) -> &'static [u8] {
    if key == b"SCHILY.acl.default" {
        b"SCHILY.xattr.system.posix_acl_default"
    } else {
        b"SCHILY.xattr.system.posix_acl_access"
    }
}

impl Header {
    fn kind(&self) -> u8 {
        self.block[156]
    }

    fn name(&self) -> Vec<u8> {
        let name = cut_nul(&self.block[..100]);
        // GNU archives keep other things where ustar has the prefix.
        match cut_nul(&self.block[345..500]) {
            prefix if &self.block[257..263] == b"ustar\0" && !prefix.is_empty() => {
                [&prefix, b"/".as_slice(), &name].concat()
            }
            _ => name,
        }
    }
}

/// A name of an archive as a path of the tree: without `./` at its start and `/` at its end, which archivers add.
pub(super) fn tree_path(name: &[u8]) -> Result<TreePath, String> {
    let mut bare = name;
    while let Some(rest) = bare.strip_prefix(b"./") {
        bare = rest;
    }
    bare = bare.strip_suffix(b"/").unwrap_or(bare);
    if bare == b"." || (bare.is_empty() && name.starts_with(b".")) {
        return Ok(TreePath::root());
    }
    if bare.is_empty() {
        return Err(if name.is_empty() { "an entry without a name" } else { "is absolute" }.into());
    }
    TreePath::parse(bare).map_err(|error| error.fault.to_owned())
}

fn checksum_fits(block: &[u8]) -> bool {
    let Some(stored) = number(&block[148..156]) else { return false };
    let plain = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
    let unsigned: i64 = (0..BLOCK).map(|at| i64::from(plain(at))).sum();
    // Some old archivers summed signed characters.
    let signed: i64 = (0..BLOCK).map(|at| i64::from(plain(at) as i8)).sum();
    stored == unsigned || stored == signed
}

/// A number field: octal text, or two's complement with the highest bit set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        0x80 | 0xff => {
            let negative = field[0] == 0xff;
            let mut value: i128 = if negative { -1 } else { 0 };
            for byte in &field[1..] {
                value = (value << 8) | i128::from(*byte);
                i64::try_from(value).ok()?;
            }
            i64::try_from(value).ok()
        }
        _ => {
            let text = field.split(|byte| *byte == 0).next()?;
            let digits = text.trim_ascii();
            if digits.is_empty() {
                return Some(0);
            }
            i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok().filter(|_| digits[0].is_ascii_digit())
        }
    }
}

fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, such as `1700000000.25` or `-1.5`; digits after the ninth are dropped, as in the kernel.
fn decimal_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = if whole == "-" { 0 } else { whole.parse().ok()? };
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (negative, nanoseconds) {
        (false, _) | (true, 0) => Some((seconds, nanoseconds)),
        (true, _) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
    }
}

/// Pax records: `length key=value\n`, where the length counts itself.
fn parse_records(mut bytes: &[u8]) -> Result<Records, &'static str> {
    const FAULT: &str = "an extended header that does not parse";
    let mut records = Records::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(FAULT)?;
        let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(FAULT)?;
        let record = bytes.get(space + 1..length).ok_or(FAULT)?;
        let (key, value) = record.strip_suffix(b"\n").and_then(split_once).ok_or(FAULT)?;
        if key.starts_with(b"GNU.sparse.offset") || key.starts_with(b"GNU.sparse.numbytes") {
            return Err("a sparse file of the outdated GNU format 0.0; pack it with a newer tar");
        }
        records.insert(key.to_vec(), value.to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// GNU tar writes `=` in a key, which would end it, as `%3D`, and `%` as `%25`.
fn unescaped(key: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match after {
            [b'3', b'D', after @ ..] if *first == b'%' => (b'=', after),
            [b'2', b'5', after @ ..] if *first == b'%' => (b'%', after),
            _ => (*first, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

fn split_once(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..]))
}

fn cut_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// See [`sparse`].
pub(super) type Extents = Vec<Extent>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000755\0"), Some(0o755));
        assert_eq!(number(b" 755 \0\0\0"), Some(0o755));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "more than 63 bits");
        assert_eq!(number(b"0000799\0"), None);
        assert_eq!(number(b"-000755\0"), None);
        assert_eq!(number(b"+000755\0"), None);
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(decimal_time(b"12"), Some((12, 0)));
        assert_eq!(decimal_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(decimal_time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(decimal_time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(decimal_time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(decimal_time(b"-3"), Some((-3, 0)));
        for bad in [b"".as_slice(), b"x", b"1.x", b"1.-5", b"99999999999999999999"] {
            assert_eq!(decimal_time(bad), None, "{}", printable(bad));
        }
    }

    #[test]
    fn keys_of_attributes_are_unescaped() {
        assert_eq!(unescaped(b"user.a%3Db%25%2"), b"user.a=b%%2");
    }
}
