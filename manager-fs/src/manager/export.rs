//! Answers hosts out of the store: only what is exported to them, and only objects of the tree that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use lru::LruCache;
use proto::bulk::ChunkHead;
use proto::limits::{BULK_BYTES_MAX, CHUNKS_PER_REQUEST_MAX};
use proto::message::{ChunkRange, Fault, ManagerReply};
use proto::{ChunkId, HostName, Manifest, ObjectId, TreeId};
use std::num::NonZeroUsize;

use super::control::State;
use super::server::{Manager, blocking};
use super::store::{Store, StoredChunk};
use crate::net::Answer;

/// Trees whose manifests are kept decoded: what a rollout of a handful of products asks for at once.
const TREES_KEPT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Chunks read from the disk in one go, while those before them are being sent: 1 MiB at the default chunk size.
const BATCH: usize = 4;

/// Manifests and permissions at hand.
pub struct Exporter {
    store: Arc<Store>,
    trees: Mutex<LruCache<TreeId, Arc<ServedTree>>>,
    permissions: Mutex<Permissions>,
}

/// A tree as it is served.
pub(super) struct ServedTree {
    /// The manifest's bytes, one zstd frame.
    manifest: Vec<u8>,
    /// The chunks of each object.
    objects: BTreeMap<ObjectId, Vec<ChunkId>>,
}

/// Who may fetch what, as of one state of the keys that decide it.
#[derive(Default)]
struct Permissions {
    /// Revision of the control state up to which `trees` is known to be right.
    revision: u64,
    trees: BTreeMap<HostName, Arc<BTreeSet<TreeId>>>,
}

impl Exporter {
    /// Over a store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, trees: Mutex::new(LruCache::new(TREES_KEPT)), permissions: Mutex::default() }
    }

    /// Whether a tree is exported to a host. Looks at the state only when something that decides it has changed.
    pub(super) fn permits(&self, state: &State, host: &HostName, tree: &TreeId) -> anyhow::Result<bool> {
        let mut permissions = self.permissions.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = *state.store().revision().borrow();
        if permissions.revision != revision {
            let unchanged = state.store().history("", permissions.revision).is_ok_and(|events| {
                let deciding = ["generation/", "export/", "group/"];
                events.iter().all(|event| deciding.iter().all(|prefix| !event.key.starts_with(prefix)))
            });
            if !unchanged {
                permissions.trees.clear();
            }
            permissions.revision = revision;
        }
        if let Some(trees) = permissions.trees.get(host) {
            return Ok(trees.contains(tree));
        }
        let trees: BTreeSet<TreeId> =
            state.exported_to(host)?.iter().map(|generation| generation.record.tree).collect();
        let permitted = trees.contains(tree);
        permissions.trees.insert(host.clone(), Arc::new(trees));
        Ok(permitted)
    }

    fn tree(&self, tree: &TreeId) -> anyhow::Result<Arc<ServedTree>> {
        let kept = |trees: &Mutex<LruCache<_, _>>| {
            trees.lock().unwrap_or_else(PoisonError::into_inner).get(tree).map(Arc::clone)
        };
        if let Some(served) = kept(&self.trees) {
            return Ok(served);
        }
        let bytes = self.store.manifest(tree)?;
        let bytes = bytes.with_context(|| format!("the manifest of tree {tree} is missing from the store"))?;
        let decoded = Manifest::decode(&bytes, tree)?;
        let objects = decoded.objects.into_iter().map(|object| (object.id, object.chunks)).collect();
        let served = Arc::new(ServedTree { manifest: zstd::bulk::compress(&bytes, 3)?, objects });
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        trees.put(*tree, Arc::clone(&served));
        Ok(served)
    }

    fn read(&self, chunks: &[ChunkId]) -> anyhow::Result<Vec<StoredChunk>> {
        let read = chunks.iter().map(|id| {
            let chunk = self.store.chunk(id)?;
            chunk.with_context(|| format!("chunk {id} is missing from the store; run `manager-fs verify`"))
        });
        read.collect()
    }
}

impl ServedTree {
    /// The ids of the wanted chunks, in the order of the request.
    fn chunks(&self, wants: &[ChunkRange]) -> Result<Vec<ChunkId>, Fault> {
        let count: u64 = wants.iter().map(|want| u64::from(want.count)).sum();
        if count > CHUNKS_PER_REQUEST_MAX as u64 {
            return Err(Fault::BadRequest(format!(
                "{count} chunks in one request; {CHUNKS_PER_REQUEST_MAX} are allowed"
            )));
        }
        let mut chunks = Vec::with_capacity(count as usize);
        for want in wants {
            let object = self.objects.get(&want.object);
            let object = object.ok_or_else(|| Fault::NotExported(format!("object {}", want.object)))?;
            let range = want.first as usize..want.first as usize + want.count as usize;
            let part = object.get(range).filter(|part| !part.is_empty());
            chunks.extend(
                part.ok_or_else(|| Fault::BadRequest(format!("object {} has {} chunks", want.object, object.len())))?,
            );
        }
        Ok(chunks)
    }
}

impl Manager {
    pub(super) async fn exported_tree(
        self: &Arc<Self>,
        host: &HostName,
        tree: &TreeId,
    ) -> anyhow::Result<Arc<ServedTree>> {
        if !self.exporter.permits(&self.state, host, tree)? {
            tracing::warn!(%host, %tree, "a host asked for a tree that is not exported to it");
            return Err(Fault::NotExported(format!("tree {tree}")).into());
        }
        let (manager, tree) = (Arc::clone(self), *tree);
        blocking(move || manager.exporter.tree(&tree)).await
    }

    pub(crate) async fn send_manifest(
        self: &Arc<Self>,
        host: &HostName,
        tree: &TreeId,
        answer: &Answer,
    ) -> anyhow::Result<ManagerReply> {
        let served = self.exported_tree(host, tree).await?;
        let mut frames = 0;
        for part in served.manifest.chunks(BULK_BYTES_MAX) {
            answer.bulk(&[], part.to_vec()).await?;
            frames += 1;
        }
        Ok(ManagerReply::Sent(frames))
    }

    pub(crate) async fn send_chunks(
        self: &Arc<Self>,
        host: &HostName,
        tree: &TreeId,
        wants: &[ChunkRange],
        answer: &Answer,
    ) -> anyhow::Result<ManagerReply> {
        let served = self.exported_tree(host, tree).await?;
        let chunks = served.chunks(wants)?;
        let read = |batch: &[ChunkId]| {
            let (manager, batch) = (Arc::clone(self), batch.to_vec());
            tokio::spawn(blocking(move || manager.exporter.read(&batch)))
        };
        let mut sequence = 0;
        let mut batches = chunks.chunks(BATCH);
        let mut next = batches.next().map(read);
        while let Some(reading) = next {
            let stored = reading.await.context("reading was interrupted")??;
            next = batches.next().map(read);
            for chunk in stored {
                let head = ChunkHead { sequence, encoding: chunk.encoding, plain_bytes: chunk.plain_bytes };
                answer.bulk(&head.encode(), chunk.bytes).await?;
                sequence += 1;
            }
        }
        Ok(ManagerReply::Sent(sequence))
    }
}
