//! The manager's own upkeep: a copy of what it knows, made while it serves, and put back on this machine or another.
//!
//! ```text
//! decisions of one revision, keys, manifests, packs ──backup──> one file ──restore──> an empty directory ──> serve
//! ```
//! What the file holds, byte by byte: `docs/parcel-format.md`; what an operator does with it: `docs/operations.md`.

mod backup;
mod restore;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use proto::message::Unix;
use proto::preamble::Preamble;
use proto::{ObjectId, TreeId};
use serde::{Deserialize, Serialize};

use super::control::ControlError;
use super::identity::IdentityError;
use super::parcel::ParcelFault;
use super::store::StoreError;

pub use backup::{Order, backup, backup_of_idle};
#[cfg(any(test, fuzzing))]
pub(crate) use restore::read_any;
pub use restore::restore;

/// What a backup begins with.
const FORMAT: Preamble = Preamble::new(*b"MFSBACK\0");
const WHAT: &str = "a backup of a manager";
/// Kinds of frames.
const FACTS: u8 = 1;
const ENTRY: u8 = 2;
const FILE: u8 = 3;
const PIECE: u8 = 4;
const ABSENT: u8 = 5;
/// Bytes of one file of `keys/`: a key or a certificate.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// What the first frame says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// When it was made, milliseconds since 1970.
    made: Unix,
    /// By which version of the program.
    software: String,
}

/// What a file of the store is, and how long; pieces of it follow. As an absent one: it was left where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileHead {
    name: FileName,
    bytes: u64,
}

/// A file of a store that a backup carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum FileName {
    /// A file of `keys/`.
    Key(String),
    /// The manifest of a tree.
    Manifest(TreeId),
    /// A pack, by its id.
    Pack(ObjectId),
    /// A start-up bundle of the second tree, for hosts that have the first, or nothing.
    Bundle(Option<TreeId>, TreeId),
}

/// Why there is no backup, or nothing was put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpkeepError {
    /// The path would depend on where the manager stands.
    #[error("{} is not absolute", .0.display())]
    Relative(PathBuf),
    /// Something has the name.
    #[error("{} is there already: name another file, or remove it", .0.display())]
    Exists(PathBuf),
    /// There is no store to copy.
    #[error("{} is no store: name it with --store", .0.display())]
    NoStore(PathBuf),
    /// Something else has the directory.
    #[error(
        "{path} holds '{found}': a backup is put back into a directory that is empty, missing, or holds 'packs' alone",
        path = path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Something that is in it.
        found: String,
    },
    /// A file of the manager's cannot be read or written.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The backup is not what was written.
    #[error("{path}: {fault}; nothing was put back", path = path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ParcelFault,
    },
    /// Whoever asked is gone.
    #[error("cancelled; there is no backup")]
    Cancelled,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The keys that were put back cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl UpkeepError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_path_buf(), cause }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Records by kind: the first part of their keys. All are of one moment.
    pub records: BTreeMap<String, usize>,
    /// Files of `keys/`: whoever has the backup is the manager.
    pub keys: Vec<String>,
    /// How many manifests.
    pub manifests: u64,
    /// Packs that the generations need.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
    /// Whether the packs are in the backup, or are only named.
    pub packs_included: bool,
    /// Chunks and manifests that generations need and that the store has nowhere: the backup lacks them, too.
    pub missing: u64,
}

/// What was put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When the backup was made, milliseconds since 1970. What was decided since is lost.
    pub made: Unix,
    /// Which version of the program made it.
    pub software: String,
    /// Records by kind: the first part of their keys.
    pub records: BTreeMap<String, usize>,
    /// Files of `keys/`.
    pub keys: Vec<String>,
    /// How many manifests.
    pub manifests: u64,
    /// Packs that are there now.
    pub packs: u64,
    /// Packs that the backup names and that are not there: they are to be copied from where they were.
    pub absent_packs: Vec<String>,
    /// Generations that lack bytes: not those whose packs are only to be copied yet.
    pub incomplete: Vec<String>,
}

/// For `tests/fuzz`: a small backup of these records and keys.
#[cfg(any(test, fuzzing))]
pub(crate) fn sample(entries: &[(String, Vec<u8>)], keys: &[(&str, &[u8])], pack: ObjectId) -> Vec<u8> {
    use super::parcel::ParcelWriter;
    use proto::codec::encode;
    let made = || -> io::Result<Vec<u8>> {
        let encoded = |value: Result<Vec<u8>, proto::codec::CodecError>| value.map_err(io::Error::other);
        let mut writer = ParcelWriter::begin(Vec::new(), FORMAT)?;
        let facts = Facts { made: 1_790_000_000_000, software: String::from("0.1.0") };
        writer.frame(FACTS, &[&encoded(encode(&facts))?])?;
        for (key, value) in entries {
            writer.frame(ENTRY, &[&encoded(encode(key))?, value])?;
        }
        for (name, bytes) in keys {
            let head = FileHead { name: FileName::Key((*name).to_owned()), bytes: bytes.len() as u64 };
            writer.frame(FILE, &[&encoded(encode(&head))?])?;
            writer.frame(PIECE, &[bytes])?;
        }
        writer.frame(ABSENT, &[&encoded(encode(&FileHead { name: FileName::Pack(pack), bytes: 4096 }))?])?;
        Ok(writer.end()?.0)
    };
    made().unwrap_or_default()
}

fn count_kinds<'a>(keys: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for key in keys {
        *kinds.entry(key.split('/').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    kinds
}
