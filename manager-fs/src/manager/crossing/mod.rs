//! Generations that cross a gap which no network does: one file, carried by hand.
//!
//! ```text
//! far:  load --have ──> text of trees ──┐
//! near: records, manifests, chunks <────┴── save ──> one file ──load──> far: verified, stored, signed anew, visible
//! ```
//! The file's bytes: `docs/parcel-format.md`. What is believed of it: its records, if one of the named publishers signed
//! them; a manifest, if it is the one of a record; a chunk, if a manifest needs it and it has its hash.

mod have;
mod load;
mod save;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use proto::preamble::Preamble;
use proto::{ChunkId, TreeId};
use serde::{Deserialize, Serialize};

use super::parcel::ParcelFault;
use super::store::StoreError;

pub(crate) use have::list;
pub use have::{Have, HaveFault};
#[cfg(test)]
pub(crate) use load::Received;
#[cfg(any(test, fuzzing))]
pub(crate) use load::read_any;
pub(crate) use load::receive;
#[cfg(any(test, fuzzing))]
pub(crate) use save::sample;
pub(crate) use save::save;
pub use save::{Order, Saved};

/// What a file begins with.
const FORMAT: Preamble = Preamble::new(*b"MFSSAVE\0");
const WHAT: &str = "saved generations";
/// Kinds of frames.
const FACTS: u8 = 1;
const RECORD: u8 = 2;
const MANIFEST: u8 = 3;
const PIECE: u8 = 4;
const CHUNK: u8 = 5;
/// Bytes before a chunk's stored bytes: its id, its plain length, and how it is stored.
const CHUNK_HEAD_BYTES: usize = 32 + 4 + 1;
/// Records of one file.
const RECORDS_MAX: usize = 1024;
/// Trees that a file may rely on.
const RELIED_MAX: usize = 16_384;

/// What the first frame says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// By which version of the program it was made.
    software: String,
    /// How many records follow.
    records: u32,
    /// Trees that the other side has, and chunks of which are left out.
    relies_on: Vec<TreeId>,
}

/// A manifest that follows in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestHead {
    tree: TreeId,
    bytes: u64,
}

/// Why nothing was saved, or nothing became visible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrossingError {
    /// The path would depend on where the manager stands.
    #[error("{} is not absolute", .0.display())]
    Relative(PathBuf),
    /// Something has the name.
    #[error("{} is there already: name another file, or remove it", .0.display())]
    Exists(PathBuf),
    /// More than one file carries.
    #[error("{0} generations at once; one file carries {RECORDS_MAX}")]
    TooMany(usize),
    /// What the other side has is no list of that.
    #[error("{path}: {fault}", path = path.display())]
    Have {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: HaveFault,
    },
    /// A file cannot be read or written.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file is not what was saved.
    #[error("{path}: {fault}; nothing of it is visible", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ParcelFault,
    },
    /// Somebody signed it of whom this manager does not know.
    #[error(
        "{path}: its records are signed by publisher {publisher}, who is not this manager: compare that with what \
         `manager-fs show` says where it was saved, and then name it with --publisher {publisher}",
        path = path.display()
    )]
    Publisher {
        /// The file.
        path: PathBuf,
        /// The key, hex.
        publisher: String,
    },
    /// It was saved for a side that has more.
    #[error(
        "{path}: it leaves out what tree {tree} has, which is not whole in this store: save it again with a new list of \
         `manager-fs load --have`, or without one",
        path = path.display()
    )]
    ReliesOn {
        /// The file.
        path: PathBuf,
        /// A tree that is not there.
        tree: TreeId,
    },
    /// It does not bring all that it must.
    #[error("{path}: {chunks} chunks are neither in it nor in this store, such as {first}; nothing of it is visible",
        path = path.display())]
    Lacks {
        /// The file.
        path: PathBuf,
        /// How many.
        chunks: usize,
        /// One of them.
        first: ChunkId,
    },
    /// Whoever asked is gone.
    #[error("cancelled; what was copied by then is not copied again")]
    Cancelled,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CrossingError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_path_buf(), cause }
    }
}
