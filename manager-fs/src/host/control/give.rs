//! What the manager has lost and this host still has: manifests and chunks, given back when it asks for them.
//!
//! Each is verified before it is sent. Nothing is fetched for it, and one request is answered at a time.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proto::bulk::{ChunkHead, Encoding};
use proto::limits::{BULK_BYTES_MAX, CHUNKS_PER_REQUEST_MAX};
use proto::manifest::Object;
use proto::message::{ChunkRange, Fault, HostReply, numbered};
use proto::{ChunkId, TreeId, width};
use tokio::sync::Mutex;

use crate::host::blocking;
use crate::host::fetch::Wanted;
use crate::host::objects::{Objects, Tree};
use crate::net::Answer;

/// Gives what is here.
pub(crate) struct Giver {
    objects: Arc<Objects>,
    one_at_a_time: Mutex<()>,
}

impl Giver {
    /// Over the objects of this host.
    pub(crate) fn new(objects: Arc<Objects>) -> Self {
        Self { objects, one_at_a_time: Mutex::default() }
    }

    /// Sends a tree's manifest, if it is here.
    pub(crate) async fn manifest(&self, tree: TreeId, answer: &Answer) -> Result<HostReply, Fault> {
        let _turn = self.one_at_a_time.lock().await;
        let path = self.objects.fetcher().cache().manifest_path(&tree);
        let stored = blocking(move || {
            let bytes = std::fs::read(path).ok().filter(|bytes| TreeId::of(bytes) == tree);
            let bytes = bytes.ok_or_else(|| Fault::NotFound(format!("the manifest of tree {tree} is not here")))?;
            zstd::bulk::compress(&bytes, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(|e| Fault::Failed(e.to_string()))
        });
        let mut sent = 0;
        for part in stored.await?.chunks(BULK_BYTES_MAX) {
            answer.bulk(&[], part.to_vec()).await.map_err(|error| Fault::Unavailable(error.to_string()))?;
            sent += 1;
        }
        Ok(HostReply::Sent(sent))
    }

    /// Sends those of the chunks of a tree that are here.
    pub(crate) async fn chunks(
        &self,
        tree: TreeId,
        wants: &[ChunkRange],
        answer: &Answer,
    ) -> Result<HostReply, Fault> {
        let _turn = self.one_at_a_time.lock().await;
        let count: u64 = wants.iter().map(|want| u64::from(want.count)).sum();
        if count > CHUNKS_PER_REQUEST_MAX as u64 {
            return Err(Fault::BadRequest(format!("{count} chunks; {CHUNKS_PER_REQUEST_MAX} are allowed")));
        }
        let objects = Arc::clone(&self.objects);
        let loaded = blocking(move || Ok(objects.load_kept(&tree)));
        let not_here = || Fault::NotFound(format!("the manifest of tree {tree} is not here"));
        let loaded = loaded.await?.ok_or_else(not_here)?;
        let mut sent = 0;
        for (sequence, object, index) in numbered(wants) {
            let (objects, tree) = (Arc::clone(&self.objects), Arc::clone(&loaded));
            let read = blocking(move || {
                Ok(tree.manifest().object(&object).and_then(|object| here(&objects, &tree, object, index)))
            });
            if let Some(plain) = read.await? {
                let head = ChunkHead { sequence, encoding: Encoding::Raw, plain_bytes: width::count(plain.len()) };
                let passed = answer.bulk(&head.encode(), plain).await;
                passed.map_err(|error| Fault::Unavailable(error.to_string()))?;
                sent += 1;
            }
        }
        Ok(HostReply::Sent(sent))
    }
}

/// A chunk, if its bytes are on this host's disk and right.
fn here(objects: &Objects, tree: &Tree, object: &Object, index: u32) -> Option<Vec<u8>> {
    let (manifest, fetcher) = (tree.manifest(), objects.fetcher());
    let len = object.chunk_len(index, manifest.chunk_bytes)?;
    let offset = u64::from(index) * u64::from(manifest.chunk_bytes);
    let plain = match fetcher.cache().open_local(object, manifest.chunk_bytes) {
        Some(file) => {
            let mut plain = vec![0; len as usize];
            file.read_exact_at(&mut plain, offset).ok().map(|()| plain)
        }
        None => fetcher.read_present(Wanted::of(tree.id(), manifest, object), offset, len).and_then(Result::ok),
    };
    plain.filter(|plain| object.chunks.get(index as usize) == Some(&ChunkId::of(plain)))
}
