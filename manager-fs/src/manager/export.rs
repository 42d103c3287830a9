//! Answers hosts out of the store: only trees that are exported to them, and only objects of the tree that they name.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use proto::bulk::ChunkHead;
use proto::limits::{BULK_BYTES_MAX, CHUNKS_PER_REQUEST_MAX};
use proto::manifest::ManifestFault;
use proto::message::{ChunkRange, ManagerReply};
use proto::width;
use proto::{ChunkId, HostName, Manifest, ObjectId, TreeId};

use super::exports::{ExportError, Exports};
use super::store::{Store, StoreError, StoredChunk};
use super::worker::{BrokenOff, blocking};
use crate::net::{Answer, NetError};
use crate::sync::lock;

/// Trees whose manifests are kept decoded: what a rollout of a handful of products asks for at once.
const TREES_KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Bytes of chunks read from the disk in one go, while those before them are being sent; at least one chunk.
const BATCH_BYTES: usize = 512 << 10;

/// Why a host did not get all that it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It may not have it.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// More than one request may name.
    #[error("{0} chunks in one request; {CHUNKS_PER_REQUEST_MAX} are allowed")]
    TooManyChunks(u64),
    /// The tree has no such object. The same whether another tree has it or not.
    #[error("object {0}")]
    NotInTree(ObjectId),
    /// The object has no such chunks.
    #[error("object {object} has {chunks} chunks")]
    NoSuchChunks {
        /// The object of which a chunk was asked.
        object: ObjectId,
        /// How many it has.
        chunks: usize,
    },
    /// A chunk that the tree has is not in the store.
    #[error("chunk {0} is missing from the store; run `manager-fs verify`")]
    MissingChunk(ChunkId),
    /// A manifest in the store is damaged.
    #[error("the manifest of tree {tree} is damaged: {fault}")]
    Manifest {
        /// Of which tree.
        tree: TreeId,
        /// What its reader says.
        fault: ManifestFault,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest cannot be compressed.
    #[error("the manifest cannot be compressed: {0}")]
    Compress(std::io::Error),
    /// The connection ended, or the host no longer wants it.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It was not read.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// Sends manifests and chunks, with manifests at hand.
pub(crate) struct Exporter {
    store: Arc<Store>,
    exports: Arc<Exports>,
    trees: Mutex<LruCache<TreeId, Arc<ServedTree>>>,
}

/// A tree as it is served.
struct ServedTree {
    /// The manifest's bytes, one zstd frame.
    manifest: Vec<u8>,
    chunk_bytes: u32,
    /// The chunks of each object.
    objects: BTreeMap<ObjectId, Vec<ChunkId>>,
}

impl Exporter {
    /// Over a store, as far as `exports` allows.
    pub(crate) fn new(store: Arc<Store>, exports: Arc<Exports>) -> Self {
        Self { store, exports, trees: Mutex::new(LruCache::new(TREES_KEPT)) }
    }

    /// Streams the manifest of a tree that is exported to the host.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(crate) async fn send_manifest(
        self: &Arc<Self>,
        host: &HostName,
        tree: &TreeId,
        answer: &Answer,
    ) -> Result<ManagerReply, SendError> {
        let served = self.exported_tree(host, tree).await?;
        let mut frames = 0;
        for part in served.manifest.chunks(BULK_BYTES_MAX) {
            answer.bulk(&[], part.to_vec()).await?;
            frames += 1;
        }
        Ok(ManagerReply::Sent(frames))
    }

    /// Streams chunks of objects of a tree that is exported to the host.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(crate) async fn send_chunks(
        self: &Arc<Self>,
        host: &HostName,
        tree: &TreeId,
        wants: &[ChunkRange],
        answer: &Answer,
    ) -> Result<ManagerReply, SendError> {
        let served = self.exported_tree(host, tree).await?;
        let chunks = served.chunks(wants)?;
        let read = |batch: &[ChunkId]| {
            let (exporter, batch) = (Arc::clone(self), batch.to_vec());
            tokio::spawn(blocking(move || exporter.read(&batch)))
        };
        let mut sequence = 0;
        let mut batches = chunks.chunks((BATCH_BYTES / served.chunk_bytes as usize).max(1));
        let mut next = batches.next().map(read);
        // Of larger chunks two are more than one stream of a slow reader may hold.
        let reads_ahead = served.chunk_bytes as usize <= BATCH_BYTES;
        while let Some(reading) = next.take().or_else(|| batches.next().map(read)) {
            let stored = reading.await.map_err(|_| BrokenOff)??;
            if reads_ahead {
                next = batches.next().map(read);
            }
            for chunk in stored {
                let head = ChunkHead { sequence, encoding: chunk.encoding, plain_bytes: chunk.plain_bytes };
                answer.bulk(&head.encode(), chunk.bytes).await?;
                sequence += 1;
            }
        }
        Ok(ManagerReply::Sent(sequence))
    }

    async fn exported_tree(self: &Arc<Self>, host: &HostName, tree: &TreeId) -> Result<Arc<ServedTree>, SendError> {
        self.exports.check(host, tree)?;
        if let Some(served) = self.kept(tree) {
            return Ok(served);
        }
        let (exporter, tree) = (Arc::clone(self), *tree);
        blocking(move || exporter.load(&tree)).await
    }

    fn kept(&self, tree: &TreeId) -> Option<Arc<ServedTree>> {
        lock(&self.trees).get(tree).map(Arc::clone)
    }

    fn load(&self, tree: &TreeId) -> Result<Arc<ServedTree>, SendError> {
        let bytes = self.store.manifest(tree)?;
        let bytes = bytes.ok_or_else(|| StoreError::Missing { what: format!("the manifest of tree {tree}") })?;
        let decoded = Manifest::decode(&bytes, tree).map_err(|fault| SendError::Manifest { tree: *tree, fault })?;
        let chunk_bytes = decoded.chunk_bytes;
        let objects = decoded.objects.into_iter().map(|object| (object.id, object.chunks)).collect();
        let manifest = zstd::bulk::compress(&bytes, 3).map_err(SendError::Compress)?;
        let served = Arc::new(ServedTree { manifest, chunk_bytes, objects });
        lock(&self.trees).put(*tree, Arc::clone(&served));
        Ok(served)
    }

    fn read(&self, chunks: &[ChunkId]) -> Result<Vec<StoredChunk>, SendError> {
        chunks.iter().map(|id| self.store.chunk(id)?.ok_or(SendError::MissingChunk(*id))).collect()
    }
}

impl ServedTree {
    /// The ids of the wanted chunks, in the order of the request.
    fn chunks(&self, wants: &[ChunkRange]) -> Result<Vec<ChunkId>, SendError> {
        let count: u64 = wants.iter().map(|want| u64::from(want.count)).sum();
        if count > CHUNKS_PER_REQUEST_MAX as u64 {
            return Err(SendError::TooManyChunks(count));
        }
        let mut chunks = Vec::with_capacity(width::index(count));
        for want in wants {
            let object = self.objects.get(&want.object).ok_or(SendError::NotInTree(want.object))?;
            let range = want.first as usize..want.first as usize + want.count as usize;
            let part = object.get(range).filter(|part| !part.is_empty());
            let no_such = SendError::NoSuchChunks { object: want.object, chunks: object.len() };
            chunks.extend(part.ok_or(no_such)?);
        }
        Ok(chunks)
    }
}
