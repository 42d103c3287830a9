//! The manager's store: packs of chunks and the manifests of trees, immutable and named by their content.
//!
//! ```text
//! publish ──ContentWriter──> pack ─┐                  ┌─> chunk, manifest ──> hosts
//!                 manifest ────────┴──> PackStore ────┤
//!                                  (directory, S3 …)  └─> verify, gc
//! ```
//! Nothing is changed in place. A crash at any moment leaves at most a draft, which the next start removes, or a blob
//! that no generation needs, which [`Store::gc`] removes.

mod batch;
mod bundles;
mod deltas;
mod format;
mod gc;
mod index;
mod pack;
mod pack_id;
mod pack_store;
mod pipeline;
mod repack;
mod repair;
mod source;
mod take;
mod upload;
mod verify;
mod whole_blobs;
mod writer;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use proto::bulk::Encoding;
use proto::limits::MANIFEST_BYTES_MAX;
use proto::{ChunkId, Manifest, TreeId};

pub use gc::{GcPass, GcReport};
pub use index::PublishGuard;
pub use pack_id::PackId;
pub use pack_store::{BlobKind, BlobName, Draft, LocalPacks, PackStore, Put};
pub use repack::Repacked;
pub use repair::{Lost, Mender, Where};
pub(crate) use source::{Dense, Piece, Source, SparseFile};
pub(crate) use take::ChunkTaker;
pub(crate) use upload::Upload;
pub use verify::{Problem, Thing, VerifyReport};
pub(crate) use whole_blobs::{Packs, become_store, check_pack, claim};
pub(crate) use writer::{AddError, ContentWriter};

use format::{Format, owned, read_format, write_format};
use index::{Index, Location, Registry};

use crate::sync::{lock, read, write};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An archive that is sent is too large.
    #[error("an archive that is sent may have {} GiB: publish it on the manager's machine", upload::UPLOAD_BYTES_MAX >> 30)]
    UploadTooLarge,
    /// The directory is something else.
    #[error("{path} is not a store: {fault}")]
    NotAStore {
        /// Path of the directory.
        path: PathBuf,
        /// What is in it that a store does not have.
        fault: String,
    },
    /// Written by a later version.
    #[error("store {path} is of format '{found}'; this program knows 'manager-fs store 2': use a newer manager-fs")]
    Newer {
        /// Path of the store.
        path: PathBuf,
        /// First line of its format file.
        found: String,
    },
    /// Another process has it.
    #[error("store {path} is in use by another process: stop that manager first, or name another --store")]
    InUse {
        /// Path of the store.
        path: PathBuf,
    },
    /// The disk has no room.
    #[error("no space left for {what} in the store: free space or run 'manager-fs gc'; nothing was published")]
    Full {
        /// What was being written.
        what: String,
    },
    /// Reading or writing failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was being read or written.
        what: String,
        /// Why it failed.
        cause: io::Error,
    },
    /// Stored bytes are not what was stored.
    #[error(
        "{what} is damaged: {fault}; 'manager-fs verify' shows what it touches, 'manager-fs verify --repair' mends it"
    )]
    Damaged {
        /// Pack, chunk or manifest.
        what: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A blob or chunk that must be there is not.
    #[error(
        "{what} is missing from the store; 'manager-fs verify' shows what it touches, 'manager-fs verify --repair' mends it"
    )]
    Missing {
        /// Chunk or manifest.
        what: String,
    },
}

impl StoreError {
    pub(crate) fn io(what: impl Into<String>, cause: io::Error) -> Self {
        let what = what.into();
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { what },
            _ => StoreError::Io { what, cause },
        }
    }
}

/// A chunk as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// How `bytes` are stored.
    pub encoding: Encoding,
    /// Length after decoding, bytes.
    pub plain_bytes: u32,
    /// As they lie in the pack and go to hosts.
    pub bytes: Vec<u8>,
}

/// Stored bytes are not those of their chunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkFault {
    /// The compression's own check, or its length.
    #[error("it does not decode: {0}")]
    Encoding(io::Error),
    /// They decode to something else.
    #[error("its hash is {0}")]
    Hash(ChunkId),
}

impl StoredChunk {
    /// Decodes the chunk and checks it against its id.
    ///
    /// # Errors
    /// The bytes do not decode to a chunk with this id.
    pub fn plain(self, id: &ChunkId) -> Result<Vec<u8>, ChunkFault> {
        let plain = match self.encoding {
            Encoding::Raw => self.bytes,
            Encoding::Zstd => {
                zstd::bulk::decompress(&self.bytes, self.plain_bytes as usize).map_err(ChunkFault::Encoding)?
            }
        };
        match ChunkId::of(&plain) {
            got if got == *id => Ok(plain),
            got => Err(ChunkFault::Hash(got)),
        }
    }
}

/// How much the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// How many packs there are.
    pub packs: u64,
    /// Bytes of the packs.
    pub pack_bytes: u64,
    /// Chunks, each counted once however many packs have it.
    pub chunks: u64,
    /// Bytes of the distinct chunks when decoded.
    pub plain_bytes: u64,
    /// Manifests, one a tree.
    pub manifests: u64,
    /// Bytes of the manifests.
    pub manifest_bytes: u64,
    /// Deltas, one a pair of trees that was made ready.
    pub deltas: u64,
    /// Bytes of the deltas.
    pub delta_bytes: u64,
    /// Start-up bundles, one for each pair of trees that asked.
    pub bundles: u64,
    /// Bytes of the start-up bundles.
    pub bundle_bytes: u64,
}

/// A store that this process alone has open. Share it by `Arc`; every method may be called from several threads.
pub struct Store {
    root: PathBuf,
    packs: Box<dyn PackStore>,
    index: RwLock<Index>,
    registry: Arc<Registry>,
    /// Publications commit under `read`, collection removes under `write`: a blob that "is there already" stays.
    commits: RwLock<()>,
    /// Packs whose bytes are known to be bad; a publication that writes the same pack replaces it.
    bad_packs: Mutex<HashSet<PackId>>,
    /// One collection or check at a time.
    collecting: Mutex<()>,
    _lock: File,
}

impl Store {
    /// Opens the store in this directory, or makes one in a directory that is empty or missing.
    ///
    /// # Errors
    /// The directory is something else, of a newer format, in use, or cannot be read. A damaged pack is no error here:
    /// its chunks are missing, and [`Store::verify`] says so.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, |root| Ok(Box::new(LocalPacks::open(root)?)))
    }

    /// As [`Store::open`], with the blobs elsewhere.
    ///
    /// # Errors
    /// As [`Store::open`], and those of `packs`.
    pub fn open_with(
        root: &Path,
        packs: impl FnOnce(&Path) -> io::Result<Box<dyn PackStore>>,
    ) -> Result<Self, StoreError> {
        let failed = |cause| StoreError::io(format!("store {}", root.display()), cause);
        fs::create_dir_all(root).map_err(failed)?;
        let format = read_format(root)?;
        let lock = owned(root)?;
        // Before anything is brought over: an older program must not take what it does not know for an empty store.
        if format != Format::Current {
            write_format(root).map_err(failed)?;
        }
        let packs = packs(root).map_err(failed)?;
        let mut index = Index::default();
        let mut bad_packs = HashSet::new();
        for name in packs.list(BlobKind::Pack).map_err(failed)? {
            let BlobName::Pack(id) = name else { continue };
            match pack::read_index(packs.as_ref(), &id) {
                Ok(found) => {
                    index.add(id, &found);
                }
                Err(fault) => {
                    tracing::error!(pack = %id, %fault, "a pack of the store cannot be read");
                    bad_packs.insert(id);
                }
            }
        }
        Ok(Self {
            root: root.to_path_buf(),
            packs,
            index: RwLock::new(index),
            registry: Arc::default(),
            commits: RwLock::default(),
            bad_packs: Mutex::new(bad_packs),
            collecting: Mutex::default(),
            _lock: lock,
        })
    }

    /// Path of the store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bytes of a tree's manifest, checked against its id; `None` when the store does not have it.
    ///
    /// # Errors
    /// They cannot be read, or are damaged.
    pub fn manifest(&self, tree: &TreeId) -> Result<Option<Vec<u8>>, StoreError> {
        let name = BlobName::Manifest(*tree);
        let what = || format!("manifest {tree}");
        let failed = |cause| StoreError::io(what(), cause);
        let Some(bytes) = self.packs.size(&name).map_err(failed)? else { return Ok(None) };
        if bytes > MANIFEST_BYTES_MAX as u64 {
            return Err(StoreError::Damaged { what: what(), fault: "it is larger than a manifest may be".into() });
        }
        let bytes = match self.packs.get(&name, 0..bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(failed)?,
        };
        match TreeId::of(&bytes) {
            got if got == *tree => Ok(Some(bytes)),
            got => Err(StoreError::Damaged { what: what(), fault: format!("its hash is {got}") }),
        }
    }

    /// A tree's manifest, decoded.
    ///
    /// # Errors
    /// It is missing, damaged, or of a newer format.
    pub fn tree(&self, tree: &TreeId) -> Result<Manifest, StoreError> {
        let what = || format!("manifest {tree}");
        let bytes = self.manifest(tree)?.ok_or_else(|| StoreError::Missing { what: what() })?;
        Manifest::decode(&bytes, tree).map_err(|fault| StoreError::Damaged { what: what(), fault: fault.to_string() })
    }

    /// A chunk as it is stored; `None` when the store does not have it. Its stored bytes are checked for damage, but
    /// not decoded: whoever decodes checks the plain bytes against the id.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn chunk(&self, id: &ChunkId) -> Result<Option<StoredChunk>, StoreError> {
        let mut result = Ok(None);
        // A second look when `gc` has moved the chunk between ours at the index and the file.
        for _ in 0..3 {
            let places = self.index().places(id);
            let mut moved = false;
            for (pack, place) in places {
                match self.read_place(&pack, &place) {
                    Ok(chunk) => return Ok(Some(chunk)),
                    Err(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => moved = true,
                    Err(error) => {
                        // From now on whoever publishes the same bytes puts them back.
                        if matches!(error, StoreError::Damaged { .. }) {
                            self.mark_bad(&pack);
                        }
                        result = Err(error);
                    }
                }
            }
            if !moved {
                return result;
            }
        }
        result.and(Err(StoreError::Missing { what: format!("chunk {id}") }))
    }

    /// A chunk's content, checked against its id.
    ///
    /// # Errors
    /// It is missing, cannot be read, or is damaged.
    pub fn plain_chunk(&self, id: &ChunkId) -> Result<Vec<u8>, StoreError> {
        let what = || format!("chunk {id}");
        let chunk = self.chunk(id)?.ok_or_else(|| StoreError::Missing { what: what() })?;
        chunk.plain(id).map_err(|fault| StoreError::Damaged { what: what(), fault: fault.to_string() })
    }

    /// The trees whose manifests the store has, named or not.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn trees(&self) -> Result<Vec<TreeId>, StoreError> {
        let names = self.packs.list(BlobKind::Manifest).map_err(|e| StoreError::io("the list of manifests", e))?;
        Ok(names
            .into_iter()
            .filter_map(|name| if let BlobName::Manifest(id) = name { Some(id) } else { None })
            .collect())
    }

    /// How much the store holds.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        for (kind, count, bytes) in [
            (BlobKind::Pack, &mut usage.packs, &mut usage.pack_bytes),
            (BlobKind::Manifest, &mut usage.manifests, &mut usage.manifest_bytes),
            (BlobKind::Delta, &mut usage.deltas, &mut usage.delta_bytes),
            (BlobKind::Bundle, &mut usage.bundles, &mut usage.bundle_bytes),
        ] {
            for name in self.packs.list(kind).map_err(|e| StoreError::io("the list of blobs", e))? {
                *count += 1;
                *bytes += self.packs.size(&name).map_err(|e| StoreError::io("a blob's size", e))?.unwrap_or(0);
            }
        }
        let index = self.index();
        usage.chunks = index.len() as u64;
        usage.plain_bytes = index.iter().map(|(_, place)| u64::from(place.plain_bytes)).sum();
        Ok(usage)
    }

    /// Begins a publication; see [`PublishGuard`].
    pub fn guard(&self) -> PublishGuard {
        self.registry.guard()
    }

    /// Pins a chunk for a publication; false when the store does not have it.
    pub(crate) fn pin(&self, chunk: &ChunkId, guard: &PublishGuard) -> bool {
        // The index stays locked while the pin is set: collection cannot come in between.
        let index = self.index();
        let bad = lock(&self.bad_packs);
        // What lies in a damaged pack is written again, though it may still be readable.
        let sound =
            |place: &&Location| bad.is_empty() || index.name(place.slot).is_none_or(|pack| !bad.contains(&pack));
        let place = index.places_of(chunk).find(sound);
        if let Some(place) = place {
            guard.pin_pack(place.slot);
        }
        place.is_some()
    }

    /// Stores a manifest durably. Its chunks must be there already.
    pub(crate) fn put_manifest(&self, tree: &TreeId, bytes: &[u8], guard: &PublishGuard) -> Result<Put, StoreError> {
        let failed = |cause| StoreError::io(format!("manifest {tree}"), cause);
        guard.pin_tree(*tree);
        let _commit = read(&self.commits);
        match self.manifest(tree) {
            Ok(Some(_)) => return Ok(Put::AlreadyThere),
            Err(StoreError::Damaged { .. }) => {
                let mut draft = self.packs.create().map_err(failed)?;
                draft.append(bytes).map_err(failed)?;
                return draft.replace(&BlobName::Manifest(*tree)).map(|()| Put::Stored).map_err(failed);
            }
            _ => {}
        }
        let mut draft = self.packs.create().map_err(failed)?;
        draft.append(bytes).map_err(failed)?;
        draft.commit(&BlobName::Manifest(*tree)).map_err(failed)
    }

    fn read_place(&self, pack: &PackId, place: &Location) -> Result<StoredChunk, StoreError> {
        let range = place.offset..place.offset + u64::from(place.stored_bytes);
        let bytes = self.packs.get(&BlobName::Pack(*pack), range.clone());
        let bytes = bytes.map_err(|cause| StoreError::io(format!("pack {pack}"), cause))?;
        if pack::check_of(&bytes) != place.check {
            let fault = format!("its bytes {} to {} are not what was stored", range.start, range.end);
            return Err(StoreError::Damaged { what: format!("pack {pack}"), fault });
        }
        Ok(StoredChunk { encoding: place.encoding, plain_bytes: place.plain_bytes, bytes })
    }

    /// Whether some of this pack's bytes are known to be damaged.
    fn is_bad(&self, pack: &PackId) -> bool {
        lock(&self.bad_packs).contains(pack)
    }

    fn mark_bad(&self, pack: &PackId) {
        lock(&self.bad_packs).insert(*pack);
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        read(&self.index)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        write(&self.index)
    }
}

/// For `tests/fuzz`: a pack's index, whose id is beyond the reach of chance.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_pack_index(index: &[u8], frames_bytes: u64) -> bool {
    pack::read_any_index(index, frames_bytes)
}

#[cfg(test)]
mod tests;
