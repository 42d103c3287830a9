//! The headers of an RPM package: tags with numbers and texts
//! (<https://rpm-software-management.github.io/rpm/manual/format_header.html>). The sizes in them are hostile: nothing is
//! allocated that has not come, and nothing is looked for outside of what came.

use std::collections::HashMap;
use std::io::{self, Read};

use proto::limits::ENTRIES_MAX;
use proto::width;
use sha2::{Digest, Sha256};

const MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 1];
const INTRO_BYTES: usize = 16;
const INDEX_BYTES: usize = 16;
/// Tags of one header: rpm itself takes no more (`hdrchkTags`, lib/header.c).
const TAGS_MAX: usize = 0xffff;
/// Bytes of what the tags hold; a package of a hundred thousand files has some 20 MiB.
const STORE_BYTES_MAX: u64 = 128 << 20;

// Kinds of what a tag holds (rpmTagType).
const INT16: u32 = 3;
const INT32: u32 = 4;
const INT64: u32 = 5;
const STRING: u32 = 6;
const STRINGS: u32 = 8;
const TRANSLATED: u32 = 9;
const LISTS: [u32; 5] = [INT16, INT32, INT64, STRINGS, TRANSLATED];

/// Why a header cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderFault {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("a header of the package is damaged: {0}")]
    Damaged(&'static str),
    #[error("{0}")]
    Unfit(&'static str),
}

/// A header of a package.
pub(super) struct Header {
    tags: HashMap<u32, Index>,
    store: Vec<u8>,
    /// SHA-256 of its bytes, which the signature header may state.
    pub(super) sha256: [u8; 32],
}

#[derive(Clone, Copy)]
struct Index {
    kind: u32,
    offset: usize,
    count: usize,
}

impl Header {
    /// Reads the header that comes next.
    pub(super) fn read(source: &mut impl Read) -> Result<Self, HeaderFault> {
        let mut intro = [0; INTRO_BYTES];
        source.read_exact(&mut intro)?;
        if intro[..4] != MAGIC {
            return Err(HeaderFault::Damaged("it does not begin as one"));
        }
        let (count, bytes) = (u32_at(&intro, 8), u64::from(u32_at(&intro, 12)));
        let count = width::index(u64::from(count));
        if count > TAGS_MAX || bytes > STORE_BYTES_MAX {
            return Err(HeaderFault::Damaged("it says that it is larger than any header is"));
        }
        let index = exactly(source, (count * INDEX_BYTES) as u64)?;
        let store = exactly(source, bytes)?;
        let tags = index.chunks_exact(INDEX_BYTES).map(|entry| {
            let field = |at: usize| u32_at(entry, at);
            let at = |at: usize| width::index(u64::from(field(at)));
            (field(0), Index { kind: field(4), offset: at(8), count: at(12) })
        });
        let tags: HashMap<u32, Index> = tags.collect();
        // Numbers and texts are lists with an item for each file.
        if tags.values().any(|index| index.count > ENTRIES_MAX && LISTS.contains(&index.kind)) {
            return Err(HeaderFault::Damaged("it has lists of more than a million items"));
        }
        let sha256 = Sha256::new().chain_update(intro).chain_update(&index).chain_update(&store).finalize().into();
        Ok(Self { tags, store, sha256 })
    }

    /// Bytes that follow the signature header, so that the next one begins at a multiple of eight.
    pub(super) fn padding_bytes(&self) -> usize {
        (8 - self.store.len() % 8) % 8
    }

    /// The whole numbers of a tag (of 16, 32 or 64 bits); none where it is not there.
    pub(super) fn numbers(&self, tag: u32) -> Result<Vec<u64>, HeaderFault> {
        let Some(index) = self.tags.get(&tag) else { return Ok(Vec::new()) };
        let bytes = match index.kind {
            INT16 => 2,
            INT32 => 4,
            INT64 => 8,
            _ => return Err(HeaderFault::Damaged("it has something else where numbers belong")),
        };
        let all = index.count.checked_mul(bytes).and_then(|all| self.store.get(index.offset..)?.get(..all));
        let all = all.ok_or(HeaderFault::Damaged("it has fewer numbers than it says"))?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
        Ok(all.chunks_exact(bytes).map(number).collect())
    }

    /// The texts of a tag; none where it is not there.
    pub(super) fn texts(&self, tag: u32) -> Result<Vec<&[u8]>, HeaderFault> {
        let Some(index) = self.tags.get(&tag) else { return Ok(Vec::new()) };
        let count = match index.kind {
            STRING => 1,
            STRINGS | TRANSLATED => index.count,
            _ => return Err(HeaderFault::Damaged("it has something else where texts belong")),
        };
        let cut = || HeaderFault::Damaged("it has fewer texts than it says");
        let mut rest = self.store.get(index.offset..).ok_or_else(cut)?;
        // Every text has at least its end.
        let mut texts = Vec::with_capacity(count.min(rest.len()));
        for _ in 0..count {
            let end = rest.iter().position(|byte| *byte == 0).ok_or_else(cut)?;
            texts.push(&rest[..end]);
            rest = &rest[end + 1..];
        }
        Ok(texts)
    }

    /// The only text of a tag.
    pub(super) fn text(&self, tag: u32) -> Result<Option<&[u8]>, HeaderFault> {
        Ok(self.texts(tag)?.first().copied())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// As many bytes as a header says that it has.
fn exactly(source: &mut impl Read, bytes: u64) -> Result<Vec<u8>, HeaderFault> {
    let mut got = Vec::new();
    source.take(bytes).read_to_end(&mut got)?;
    if got.len() as u64 == bytes { Ok(got) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) }
}
