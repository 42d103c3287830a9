//! Received files to a stored tree: contents into a pack, entries into a manifest, programs into metadata.
//!
//! Order: read everything, inspect it, then make the pack durable, then the manifest. Whatever fails before the pack
//! leaves the store as it was; whatever fails after leaves blobs that nothing names, which `gc` removes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::limits::{CHUNK_BYTES, RECORD_BYTES_MAX};
use proto::manifest::ManifestFault;
use proto::record::{Metadata, RecordFault};
use proto::{Manifest, TreeId};

use super::ingest::{self, IngestError, Reading};
use super::metadata::{Inspection, MetadataError};
use super::monitor::Monitor;
use super::store::{PublishGuard, Store, StoreError};

/// What may be chosen at a publication.
#[derive(Debug, Clone, Default)]
pub struct PublishOptions {
    /// The source is a service pack, laid over this tree.
    pub onto: Option<TreeId>,
    /// Path of the program to start, instead of the descriptor's or the obvious one.
    pub entry_point: Option<String>,
    /// Chunk size, bytes; a power of two. `None`: that of `onto`, else the default.
    pub chunk_bytes: Option<u32>,
    /// Refuse a tar archive that has a path twice, instead of taking the later entry as tar does.
    pub strict: bool,
    /// Of an image for several architectures the one to take; `None`: that of this machine, or else the first.
    pub architecture: Option<String>,
}

/// A tree that lies in the store, durably, and that no generation names yet.
#[derive(Debug)]
pub struct Published {
    /// The id of the tree that was stored.
    pub tree: TreeId,
    /// Length of its manifest, bytes.
    pub manifest_bytes: u64,
    /// What was found out about it.
    pub metadata: Metadata,
    /// Of an image for several architectures: the one that was taken, and those that are left to take.
    pub architectures: Vec<String>,
    /// What the publication did.
    pub stats: PublishStats,
    /// Keeps `gc` away; drop it when the generation's record is committed.
    pub guard: PublishGuard,
}

/// What a publication read and wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PublishStats {
    /// Bytes of content read from the source.
    pub read_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Bytes of these chunks in the store, compressed.
    pub stored_bytes: u64,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The source cannot be taken in.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// Entry point or descriptor are wrong.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The tree breaks a rule or a limit of the format.
    #[error("the tree cannot be stored: {0}")]
    Tree(#[from] ManifestFault),
    /// The metadata is larger than a record may be.
    #[error("the metadata has {bytes} bytes, and a record at most 8 MiB: the tree has too many executables")]
    MetadataTooLarge {
        /// How many bytes it has, encoded.
        bytes: usize,
    },
    /// A text or a list of the metadata is beyond its bound.
    #[error("the tree's metadata cannot be used: {0}")]
    MetadataRefused(#[from] proto::codec::CodecError),
    /// The tree to lay the service pack over is not in the store.
    #[error("there is no tree {0} in the store to lay the service pack over")]
    UnknownBase(TreeId),
    /// The chunk size cannot be used.
    #[error("a chunk size of {0} bytes: want a power of two from 4096 to 1048576, and with --onto that of its tree")]
    ChunkBytes(u32),
    /// The record cannot be signed.
    #[error("the generation's record cannot be signed: {0}")]
    Record(RecordFault),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    /// Whether the caller gave up.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            PublishError::Ingest(IngestError::Cancelled) | PublishError::Metadata(MetadataError::Cancelled)
        )
    }
}

/// Takes a directory or archive in. The tree is then in the store, durably; it becomes visible when its record is
/// signed and committed, until which [`Published::guard`] must be held.
///
/// # Errors
/// See [`PublishError`]. Nothing has become visible.
pub fn publish(
    store: &Store,
    source: &Path,
    options: &PublishOptions,
    monitor: &dyn Monitor,
    cancelled: &AtomicBool,
) -> Result<Published, PublishError> {
    let guard = store.guard();
    let base = options.onto.map(|tree| base_tree(store, tree, &guard)).transpose()?;
    let chunk_bytes = chunk_bytes(options, base.as_ref())?;
    let (received, contents) = store.write_contents(chunk_bytes, &guard, monitor, cancelled, |writer| {
        let architecture = options.architecture.as_deref();
        ingest::read_source(source, Reading { base: base.as_ref(), strict: options.strict, architecture }, writer)
    })?;
    let object = |id: &_| {
        let earlier = || base.as_ref().and_then(|base| base.object(id).cloned());
        contents.objects.get(id).cloned().or_else(earlier)
    };
    let architectures = received.architectures;
    let manifest = received.tree.into_manifest(chunk_bytes, object);
    let manifest = manifest.map_err(|id| StoreError::Missing { what: format!("object {id}") })?;
    let chunk = |id: &_| contents.plain_chunk(store, id);
    let inspection = Inspection { manifest: &manifest, heads: &contents.heads, chunk: &chunk, monitor, cancelled };
    let metadata = inspection.run(options.entry_point.as_deref(), received.start.as_ref())?;
    if metadata.entry_point.is_none() {
        let what = if manifest.entries.len() == 1 { "the tree is empty" } else { "no program to start was found" };
        monitor.problem(&format!("{what}: it cannot be launched, or upgraded to; name one with --entrypoint PATH"));
    }
    let (bytes, tree) = manifest.encode()?;
    let metadata = as_hosts_read(&metadata)?;
    // From here on it is a matter of the disk's speed.
    if cancelled.load(Ordering::Relaxed) {
        return Err(IngestError::Cancelled.into());
    }
    let (new_chunks, stored_bytes) = contents.new_chunks();
    let stats = PublishStats { read_bytes: contents.bytes, new_chunks, stored_bytes };
    contents.commit(store, &guard)?;
    store.put_manifest(&tree, &bytes, &guard)?;
    Ok(Published { tree, manifest_bytes: bytes.len() as u64, metadata, architectures, stats, guard })
}

/// The metadata within the bounds of its fields: texts from inside the files are cleaned, and what a host would refuse is
/// refused here.
fn as_hosts_read(metadata: &Metadata) -> Result<Metadata, PublishError> {
    let encoded = metadata.to_bytes()?;
    // Room for the rest of the record and its signature.
    match encoded.len() {
        bytes if bytes > RECORD_BYTES_MAX - 4096 => Err(PublishError::MetadataTooLarge { bytes }),
        _ => Ok(Metadata::from_bytes(&encoded)?),
    }
}

fn base_tree(store: &Store, tree: TreeId, guard: &PublishGuard) -> Result<Manifest, PublishError> {
    let manifest = store.tree(&tree).map_err(|error| match error {
        StoreError::Missing { .. } => PublishError::UnknownBase(tree),
        error => PublishError::Store(error),
    })?;
    // Collection must leave what the new tree shares with the old one, even if the old one is dropped meanwhile.
    for chunk in manifest.objects.iter().flat_map(|object| &object.chunks) {
        if !store.pin(chunk, guard) {
            return Err(StoreError::Missing { what: format!("chunk {chunk} of tree {tree}") }.into());
        }
    }
    Ok(manifest)
}

fn chunk_bytes(options: &PublishOptions, base: Option<&Manifest>) -> Result<u32, PublishError> {
    let bytes = options.chunk_bytes.or(base.map(|base| base.chunk_bytes)).unwrap_or(CHUNK_BYTES);
    let sizes = proto::limits::CHUNK_BYTES_MIN..=proto::limits::CHUNK_BYTES_MAX;
    let fits = base.is_none_or(|base| base.chunk_bytes == bytes);
    if bytes.is_power_of_two() && sizes.contains(&bytes) && fits {
        Ok(bytes)
    } else {
        Err(PublishError::ChunkBytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::monitor::Quiet;
    use super::*;

    fn publish_dir(store: &Store, source: &Path) -> Result<Published, PublishError> {
        publish(store, source, &PublishOptions::default(), &Quiet, &AtomicBool::new(false))
    }

    #[test]
    fn a_directory_is_published_verified_and_collected() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("bin")).unwrap();
        let big: Vec<u8> = (0..5_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        fs::write(source.join("data"), &big).unwrap();
        fs::write(source.join("bin/run"), "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(source.join("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("run", source.join("bin/link")).unwrap();
        fs::hard_link(source.join("data"), source.join("same")).unwrap();

        let store = Store::open(&dir.path().join("store")).unwrap();
        let published = publish_dir(&store, &source).unwrap();
        assert_eq!(published.metadata.entry_point.as_ref().unwrap().to_string(), "bin/run");
        assert_eq!(published.metadata.scripts[0].interpreter, "/bin/sh");
        let manifest = store.tree(&published.tree).unwrap();
        let object = manifest.objects.iter().find(|object| object.bytes == big.len() as u64).unwrap();
        assert_eq!(object.id, proto::ObjectId::of(&big));
        let plain: Vec<u8> = object.chunks.iter().flat_map(|id| store.plain_chunk(id).unwrap()).collect();
        assert_eq!(plain, big);
        let again = publish_dir(&store, &source).unwrap();
        assert_eq!((again.tree, again.stats.new_chunks), (published.tree, 0));

        let report = store.verify(&Quiet).unwrap();
        assert_eq!((report.problems.len(), report.manifests), (0, 1));
        assert_eq!(store.gc(&BTreeSet::new(), false, &Quiet).unwrap().packs_removed, 0, "the guards hold");
        drop((published, again));
        assert_eq!(store.gc(&BTreeSet::new(), false, &Quiet).unwrap().packs_removed, 1);
        assert_eq!(store.usage().unwrap(), Default::default());
    }
}
