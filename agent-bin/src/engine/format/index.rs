//! Where each blob of a repository is: its index files, and for packs that no readable index file names, their headers.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer, Serialize};

use super::files::{FileFault, FileKind, Files};
use super::id::Id;
use super::seal::{Key, SEAL_BYTES, SealFault};

/// Kinds of blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BlobKind {
    /// A piece of a file.
    Data,
    /// A directory.
    Tree,
}

/// An index file, as its JSON has it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct IndexFile {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) packs: Vec<IndexPack>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IndexPack {
    pub(super) id: Id,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) blobs: Vec<IndexBlob>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexBlob {
    pub(super) id: Id,
    #[serde(rename = "type")]
    pub(super) kind: BlobKind,
    pub(super) offset: u32,
    pub(super) length: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uncompressed_length: Option<NonZeroU32>,
}

/// Go writes an empty list as `null`.
pub(super) fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A part of the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexFault {
    #[error("index file {id:.8} {fault}")]
    Sealed { id: Id, fault: SealFault },
    #[error("index file {id:.8} is no index: {what}")]
    NotAnIndex { id: Id, what: String },
    #[error("header of pack {pack:.8}: {fault}")]
    Header { pack: Id, fault: HeaderFault },
    #[error(transparent)]
    File(#[from] FileFault),
}

/// The header of a pack cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderFault {
    #[error("says that it is {0} bytes long, in a pack of {1}")]
    Length(u64, u64),
    #[error("has an entry of unknown kind {0}")]
    Kind(u8),
    #[error("ends within an entry")]
    Cut,
    #[error("{0}")]
    Sealed(#[from] SealFault),
    #[error(transparent)]
    File(#[from] FileFault),
}

/// Where one copy of a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pack: Id,
    pub(crate) offset: u32,
    /// Sealed bytes.
    pub(crate) length: u32,
    /// Plain bytes of a compressed blob.
    pub(crate) raw: Option<NonZeroU32>,
}

impl Location {
    /// Bytes of the blob itself.
    pub(crate) fn plain_length(&self) -> u64 {
        let sealed = u64::from(self.length).saturating_sub(SEAL_BYTES as u64);
        self.raw.map_or(sealed, |raw| u64::from(raw.get()))
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: Id,
    kind: BlobKind,
    /// Which of [`Index::packs`].
    pack: u32,
    offset: u32,
    length: u32,
    raw: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy)]
struct Pack {
    id: Id,
    /// As the file is; `None`: it is not there.
    bytes: Option<u64>,
}

/// Every blob that is known, with all of its copies.
#[derive(Debug, Default)]
pub(crate) struct Index {
    packs: Vec<Pack>,
    /// Sorted by id and kind: sixty-odd bytes a blob, found by bisection.
    entries: Vec<Entry>,
}

impl Index {
    /// Reads all index files. What cannot be read of them is told to `faults`, and made up for by reading the headers
    /// of the packs that no other index file names.
    ///
    /// # Errors
    /// The repository's directories cannot be listed.
    pub(crate) fn load(files: &Files, key: &Key, faults: &mut Vec<IndexFault>) -> Result<Self, FileFault> {
        let on_disk: HashMap<Id, u64> = files.list(FileKind::Pack)?.into_iter().collect();
        let mut index = Index::default();
        let mut named = HashSet::new();
        for (id, _) in files.list(FileKind::Index)? {
            match read_index(files, key, &id) {
                Ok(file) => {
                    for pack in file.packs {
                        // The same pack stands in two index files for a moment while one replaces the other.
                        if named.insert(pack.id) {
                            index.add(&pack, on_disk.get(&pack.id).copied());
                        }
                    }
                }
                // Replaced by another one since the directory was listed.
                Err(IndexFault::File(fault)) if fault.source.kind() == std::io::ErrorKind::NotFound => {}
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            for (id, bytes) in on_disk.iter().filter(|(id, _)| !named.contains(*id)) {
                match read_header(files, key, id, *bytes) {
                    Ok(blobs) => index.add(&IndexPack { id: *id, blobs }, Some(*bytes)),
                    Err(fault) => faults.push(IndexFault::Header { pack: *id, fault }),
                }
            }
        }
        index.entries.sort_unstable_by_key(|entry| (entry.id, entry.kind));
        Ok(index)
    }

    fn add(&mut self, pack: &IndexPack, bytes: Option<u64>) {
        let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        self.packs.push(Pack { id: pack.id, bytes });
        self.entries.extend(pack.blobs.iter().map(|blob| Entry {
            id: blob.id,
            kind: blob.kind,
            pack: number,
            offset: blob.offset,
            length: blob.length,
            raw: blob.uncompressed_length,
        }));
    }

    fn entries_of(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = (&Entry, &Pack)> {
        let wanted = (*id, kind);
        let first = self.entries.partition_point(|entry| (entry.id, entry.kind) < wanted);
        let of_it = self.entries[first..].iter().take_while(move |entry| (entry.id, entry.kind) == wanted);
        of_it.filter_map(|entry| Some((entry, self.packs.get(entry.pack as usize)?)))
    }

    /// Whether a blob can be referred to: a copy of it lies within a pack that is there.
    pub(crate) fn has(&self, kind: BlobKind, id: &Id) -> bool {
        let within = |entry: &Entry, bytes: u64| u64::from(entry.offset) + u64::from(entry.length) <= bytes;
        self.entries_of(kind, id).any(|(entry, pack)| pack.bytes.is_some_and(|bytes| within(entry, bytes)))
    }

    /// How many bytes a blob has that can be referred to.
    pub(crate) fn length(&self, kind: BlobKind, id: &Id) -> Option<u64> {
        self.find(kind, id).next().filter(|_| self.has(kind, id)).map(|location| location.plain_length())
    }

    /// Every copy of a blob.
    pub(crate) fn find(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = Location> {
        self.entries_of(kind, id).map(|(entry, pack)| Location {
            pack: pack.id,
            offset: entry.offset,
            length: entry.length,
            raw: entry.raw,
        })
    }
}

fn read_index(files: &Files, key: &Key, id: &Id) -> Result<IndexFile, IndexFault> {
    let sealed = files.read(FileKind::Index, id)?;
    let document = key.open_document(&sealed).map_err(|fault| IndexFault::Sealed { id: *id, fault })?;
    serde_json::from_slice(&document).map_err(|error| IndexFault::NotAnIndex { id: *id, what: error.to_string() })
}

/// The header is the end of a pack: its entries, sealed, and their length as a little-endian number.
fn read_header(files: &Files, key: &Key, pack: &Id, bytes: u64) -> Result<Vec<IndexBlob>, HeaderFault> {
    let Some(length_at) = bytes.checked_sub(4) else { return Err(HeaderFault::Length(0, bytes)) };
    let length = files.read_part(pack, length_at, 4)?;
    let length = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
    let Some(header_at) = length_at.checked_sub(length) else { return Err(HeaderFault::Length(length, bytes)) };
    let sealed = files.read_part(pack, header_at, usize::try_from(length).unwrap_or(usize::MAX))?;
    decode_header(&key.open(&sealed)?)
}

fn decode_header(mut plain: &[u8]) -> Result<Vec<IndexBlob>, HeaderFault> {
    let mut blobs = Vec::new();
    let mut offset = 0u32;
    while let Some((&tag, rest)) = plain.split_first() {
        let (kind, compressed) = match tag {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            other => return Err(HeaderFault::Kind(other)),
        };
        let (length, rest) = rest.split_first_chunk::<4>().ok_or(HeaderFault::Cut)?;
        let length = u32::from_le_bytes(*length);
        let (raw, rest) = match rest.split_first_chunk::<4>() {
            Some((raw, rest)) if compressed => (NonZeroU32::new(u32::from_le_bytes(*raw)), rest),
            _ if compressed => return Err(HeaderFault::Cut),
            _ => (None, rest),
        };
        let (id, rest) = rest.split_first_chunk::<32>().ok_or(HeaderFault::Cut)?;
        blobs.push(IndexBlob { id: Id::from_bytes(*id), kind, offset, length, uncompressed_length: raw });
        offset = offset.saturating_add(length);
        plain = rest;
    }
    Ok(blobs)
}

/// The plain form of the header of a pack with these blobs.
pub(super) fn encode_header(blobs: &[IndexBlob]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(blobs.len() * 41);
    for blob in blobs {
        let kind = match blob.kind {
            BlobKind::Data => 0,
            BlobKind::Tree => 1,
        };
        plain.push(kind + if blob.uncompressed_length.is_some() { 2 } else { 0 });
        plain.extend_from_slice(&blob.length.to_le_bytes());
        if let Some(raw) = blob.uncompressed_length {
            plain.extend_from_slice(&raw.get().to_le_bytes());
        }
        plain.extend_from_slice(blob.id.as_bytes());
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_a_cut_one_is_refused() {
        let blob = |n: u8, kind, raw| IndexBlob {
            id: Id::of(&[n]),
            kind,
            offset: u32::from(n) * 100,
            length: 100,
            uncompressed_length: NonZeroU32::new(raw),
        };
        let blobs = [blob(0, BlobKind::Data, 0), blob(1, BlobKind::Tree, 300), blob(2, BlobKind::Data, 7)];
        let plain = encode_header(&blobs);
        assert_eq!(plain.len(), 37 + 41 + 41);
        assert_eq!(decode_header(&plain).unwrap(), blobs);
        assert!(matches!(decode_header(&plain[..plain.len() - 1]), Err(HeaderFault::Cut)));
        assert!(matches!(decode_header(&[9]), Err(HeaderFault::Kind(9))));
    }

    #[test]
    fn only_what_lies_in_a_pack_that_is_there_can_be_referred_to() {
        let (id, pack) = (Id::of(b"blob"), Id::of(b"pack"));
        let of = |pack, offset| IndexPack {
            id: pack,
            blobs: vec![IndexBlob { id, kind: BlobKind::Data, offset, length: 50, uncompressed_length: None }],
        };
        let mut index = Index::default();
        index.add(&of(pack, 0), None);
        assert!(!index.has(BlobKind::Data, &id), "the pack is gone");
        index.add(&of(Id::of(b"cut"), 60), Some(100));
        assert!(!index.has(BlobKind::Data, &id), "the pack is cut short");
        index.add(&of(Id::of(b"good"), 50), Some(100));
        assert!(index.has(BlobKind::Data, &id) && !index.has(BlobKind::Tree, &id));
        assert_eq!(index.find(BlobKind::Data, &id).count(), 3, "reading tries every copy");
    }
}
