//! What the zip crate does not tell of an entry: who made it, its extra fields, and whether its two headers agree.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";
/// The systems of "version made by" whose programs write `\\` between directories (APPNOTE 4.4.2.2).
const FAT: u8 = 0;
const NTFS: u8 = 10;
const VFAT: u8 = 14;
/// The bit of the flags that says that sizes and sum stand behind the content.
const SIZES_FOLLOW: u16 = 1 << 3;
/// A size of this value stands in the zip64 field.
const IN_ZIP64: u32 = u32::MAX;

/// The header of an entry in the central directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CentralHeader {
    fixed: [u8; 46],
    name: Vec<u8>,
    fields: Vec<u8>,
}

impl CentralHeader {
    pub(super) fn read(file: &File, at: u64) -> io::Result<Self> {
        let mut fixed = [0; 46];
        file.read_exact_at(&mut fixed, at)?;
        if !fixed.starts_with(CENTRAL) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header of the central directory is damaged"));
        }
        let mut name = vec![0; usize::from(u16_at(&fixed, 28))];
        let mut fields = vec![0; usize::from(u16_at(&fixed, 30))];
        file.read_exact_at(&mut name, at + 46)?;
        file.read_exact_at(&mut fields, at + 46 + name.len() as u64)?;
        Ok(Self { fixed, name, fields })
    }

    /// The name as a path with `/`, which FAT and NTFS do not have in names: made there, `\\` is between directories.
    pub(super) fn name(&self) -> Vec<u8> {
        let dos = [FAT, NTFS, VFAT].contains(&self.fixed[5]);
        let plain = |byte: u8| if dos && byte == b'\\' { b'/' } else { byte };
        self.name.iter().map(|byte| plain(*byte)).collect()
    }

    pub(super) fn extra(&self) -> Extra {
        Extra::parse(&self.fields)
    }

    /// Why it is in doubt which bytes the entry has: its own header, before the content, says something else. Only what
    /// decides over names and bytes is compared; the central directory counts for all else.
    pub(super) fn doubt(&self, file: &File, local_at: u64) -> io::Result<Option<&'static str>> {
        let mut local = [0; 30];
        file.read_exact_at(&mut local, local_at)?;
        if !local.starts_with(LOCAL) {
            return Ok(Some("its own header is damaged"));
        }
        let mut name = vec![0; usize::from(u16_at(&local, 26))];
        file.read_exact_at(&mut name, local_at + 30)?;
        let sizes = [(14, 16), (18, 20), (22, 24)];
        let differs = |(local_at, central_at): &(usize, usize)| {
            let (own, central) = (u32_at(&local, *local_at), u32_at(&self.fixed, *central_at));
            own != central && own != IN_ZIP64 && central != IN_ZIP64
        };
        let sizes_follow = u16_at(&local, 6) & SIZES_FOLLOW != 0;
        Ok(match () {
            () if name != self.name => Some("the archive names it twice, in two ways"),
            () if u16_at(&local, 8) != u16_at(&self.fixed, 10) => Some("its headers differ on how it is compressed"),
            () if !sizes_follow && sizes.iter().any(differs) => Some("its headers differ on its size or checksum"),
            () => None,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What the extra fields of an entry's central header tell.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extra {
    /// Seconds since 1970.
    pub(super) mtime: Option<i64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
}

impl Extra {
    fn parse(mut fields: &[u8]) -> Self {
        let mut extra = Self::default();
        while let Some((head, rest)) = fields.split_first_chunk::<4>() {
            let bytes = usize::from(u16::from_le_bytes([head[2], head[3]]));
            let Some((field, rest)) = rest.split_at_checked(bytes) else { break };
            match (u16::from_le_bytes([head[0], head[1]]), field) {
                // "UT": flags, then the modification time if bit 0 is set.
                (0x5455, [flags, a, b, c, d, ..]) if flags & 1 != 0 => {
                    extra.mtime = Some(i64::from(i32::from_le_bytes([*a, *b, *c, *d])));
                }
                // "ux": version 1, then the sizes and values of user and group.
                (0x7875, [1, 4, u0, u1, u2, u3, 4, g0, g1, g2, g3, ..]) => {
                    extra.owner =
                        Some((u32::from_le_bytes([*u0, *u1, *u2, *u3]), u32::from_le_bytes([*g0, *g1, *g2, *g3])));
                }
                _ => {}
            }
            fields = rest;
        }
        extra
    }
}
