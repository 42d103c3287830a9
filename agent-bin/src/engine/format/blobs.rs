//! Blobs read back: found, authenticated, unpacked, and held against their own names.

use std::path::PathBuf;

use super::files::{FileFault, Files};
use super::id::Id;
use super::index::{BlobKind, Index, Location};
use super::pace::Pace;
use super::seal::{Key, SealFault, expand};
use super::tree::Tree;

/// A blob cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobFault {
    #[error("{} {id:.8} is in no pack that the index names", word(*kind))]
    Unknown { kind: BlobKind, id: Id },
    #[error("pack {pack:.8}: {fault}")]
    File { pack: Id, fault: FileFault },
    #[error("pack {pack:.8}: {} {id:.8} {fault}", word(*kind))]
    Sealed { pack: Id, kind: BlobKind, id: Id, fault: SealFault },
    #[error("pack {pack:.8}: {} {id:.8} has other content than its name says", word(*kind))]
    OtherContent { pack: Id, kind: BlobKind, id: Id },
    #[error("tree {id:.8} is no directory: {what}")]
    NotATree { id: Id, what: String },
    #[error("{path} is not in the snapshot", path = path.display())]
    NoEntry { path: PathBuf },
}

fn word(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Data => "piece",
        BlobKind::Tree => "tree",
    }
}

/// A repository's content, for reading.
#[derive(Debug)]
pub(crate) struct Blobs<'a> {
    files: &'a Files,
    key: &'a Key,
    index: &'a Index,
    pace: Option<&'a Pace>,
}

impl<'a> Blobs<'a> {
    pub(crate) fn new(files: &'a Files, key: &'a Key, index: &'a Index) -> Self {
        Self { files, key, index, pace: None }
    }

    /// Reads no faster than this.
    pub(crate) fn paced(self, pace: &'a Pace) -> Self {
        Self { pace: Some(pace), ..self }
    }

    pub(crate) fn index(&self) -> &'a Index {
        self.index
    }

    /// A blob's bytes, from the first of its copies that is sound.
    pub(crate) fn read(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>, BlobFault> {
        let mut fault = BlobFault::Unknown { kind, id: *id };
        for location in self.index.find(kind, id) {
            match self.read_copy(kind, id, &location) {
                Ok(bytes) => return Ok(bytes),
                Err(of_this_copy) => fault = of_this_copy,
            }
        }
        Err(fault)
    }

    fn read_copy(&self, kind: BlobKind, id: &Id, at: &Location) -> Result<Vec<u8>, BlobFault> {
        let pack = at.pack;
        self.pace.inspect(|pace| pace.take(at.length as usize));
        let sealed = self
            .files
            .read_part(&pack, u64::from(at.offset), at.length as usize)
            .map_err(|fault| BlobFault::File { pack, fault })?;
        let sealed_fault = |fault| BlobFault::Sealed { pack, kind, id: *id, fault };
        let plain = expand(self.key.open(&sealed).map_err(sealed_fault)?, at.raw).map_err(sealed_fault)?;
        if Id::of(&plain) == *id { Ok(plain) } else { Err(BlobFault::OtherContent { pack, kind, id: *id }) }
    }

    /// A directory.
    pub(crate) fn tree(&self, id: &Id) -> Result<Tree, BlobFault> {
        let bytes = self.read(BlobKind::Tree, id)?;
        serde_json::from_slice(&bytes).map_err(|error| BlobFault::NotATree { id: *id, what: error.to_string() })
    }
}
