//! Deltas between trees, as they lie in the store. They can all be made again, so a damaged one is removed.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use proto::TreeId;
use proto::delta::{HEADER_BYTES, Header, trailer};
use proto::relative::TRAILER_BYTES;

use super::gc::{GcPass, GcReport};
use super::pack_store::{BlobKind, BlobName, Draft, Put};
use super::verify::{REMOVED, Thing, VerifyReport};
use super::{Store, StoreError};
use crate::manager::monitor::Monitor;
use crate::sync::read;

/// Bytes read at once to check a delta.
const PIECE_BYTES: u64 = 1 << 20;

impl Store {
    /// The header of the delta from one tree to another, whose bytes were all checked; `None` when there is none. A
    /// damaged one is removed and counts as none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn delta(&self, from: &TreeId, to: &TreeId) -> Result<Option<Header>, StoreError> {
        let failed = |source| StoreError::io(format!("delta {from} to {to}"), source);
        let name = BlobName::Delta(*from, *to);
        let Some(bytes) = self.packs.size(&name).map_err(failed)? else { return Ok(None) };
        match self.check_delta(&name, bytes, from, to) {
            Ok(Ok(header)) => Ok(Some(header)),
            Ok(Err(fault)) => {
                tracing::error!(%from, %to, fault, "a delta is damaged; it is removed and can be made again");
                self.packs.delete(&name).map_err(failed)?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether there is a delta from one tree to another; its bytes are not looked at.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn has_delta(&self, from: &TreeId, to: &TreeId) -> Result<bool, StoreError> {
        let failed = |source| StoreError::io(format!("delta {from} to {to}"), source);
        Ok(self.packs.size(&BlobName::Delta(*from, *to)).map_err(failed)?.is_some())
    }

    /// A part of a delta, as it lies; see [`Store::delta`].
    ///
    /// # Errors
    /// It is not there, is shorter, or cannot be read.
    pub fn delta_bytes(&self, from: &TreeId, to: &TreeId, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let failed = |source| StoreError::io(format!("delta {from} to {to}"), source);
        self.packs.get(&BlobName::Delta(*from, *to), range).map_err(failed)
    }

    /// How many bytes a chunk has as it is stored; `None` when the store does not have it.
    pub(crate) fn stored_bytes(&self, chunk: &proto::ChunkId) -> Option<u64> {
        self.index().first(chunk).map(|place| u64::from(place.stored_bytes))
    }

    /// Bytes that nobody sees yet.
    pub(crate) fn draft(&self) -> io::Result<Box<dyn Draft>> {
        self.packs.create()
    }

    /// Stores a delta durably, unless there is one already or one of its trees has been removed meanwhile.
    pub(crate) fn put_delta(&self, draft: Box<dyn Draft>, from: &TreeId, to: &TreeId) -> Result<Put, StoreError> {
        let failed = |source| StoreError::io(format!("delta {from} to {to}"), source);
        let _commit = read(&self.commits);
        for tree in [from, to] {
            if self.packs.size(&BlobName::Manifest(*tree)).map_err(failed)?.is_none() {
                return Err(StoreError::Missing { what: format!("manifest {tree}") });
            }
        }
        draft.commit(&BlobName::Delta(*from, *to)).map_err(failed)
    }

    /// Checks every delta; a damaged one is removed, and made again when a host asks for it.
    pub(super) fn verify_deltas(&self, monitor: &dyn Monitor, report: &mut VerifyReport) -> Result<(), StoreError> {
        let listed = |source| StoreError::io("the list of deltas", source);
        for name in self.packs.list(BlobKind::Delta).map_err(listed)? {
            let BlobName::Delta(from, to) = name else { continue };
            let bytes = self.packs.size(&name).map_err(listed)?;
            if bytes.is_some()
                && self.delta(&from, &to)?.is_none()
                && self.packs.size(&name).map_err(listed)?.is_none()
            {
                report.problem(monitor, Thing::Delta(from, to), REMOVED.into());
            }
            report.bytes += bytes.unwrap_or(0);
        }
        Ok(())
    }

    fn check_delta(
        &self,
        name: &BlobName,
        bytes: u64,
        from: &TreeId,
        to: &TreeId,
    ) -> io::Result<Result<Header, &'static str>> {
        let front = self.packs.get(name, 0..(HEADER_BYTES as u64).min(bytes))?;
        let header = front.first_chunk().map(Header::decode);
        let Some(Ok(header)) = header else { return Ok(Err("its header is damaged")) };
        if header.delta_bytes() != Some(bytes) || (header.from, header.to) != (*from, *to) {
            return Ok(Err("its length or its trees are not what they should be"));
        }
        let end = bytes - TRAILER_BYTES as u64;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < end {
            let piece = self.packs.get(name, at..(at + PIECE_BYTES).min(end))?;
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        if self.packs.get(name, end..bytes)? == trailer(*hasher.finalize().as_bytes()) {
            Ok(Ok(header))
        } else {
            Ok(Err("its hash is not what its trailer says"))
        }
    }
}

impl GcPass<'_> {
    /// A delta of which one tree goes is of no use any more.
    pub(super) fn collect_deltas(
        &self,
        keep: &BTreeSet<TreeId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        for name in self.list(BlobKind::Delta)? {
            let BlobName::Delta(from, to) = name else { continue };
            let needed = |tree: &TreeId| keep.contains(tree) || self.store.registry.needs_tree(tree);
            if needed(&from) && needed(&to) {
                continue;
            }
            let bytes = self.size(&name)?;
            if dry_run || self.store.remove_unless(&name, |_| needed(&from) && needed(&to))? {
                report.deltas_removed += 1;
                report.bytes_freed += bytes;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use proto::relative::Part;
    use proto::width;

    use super::super::tests::{open_unreadable, publish_plain, source, stored_bytes};
    use super::*;
    use crate::manager::monitor::Quiet;
    use crate::manager::testing::Fixture;

    /// As long as its header says, and more than is read at once; what is in it nobody asks here.
    fn made(from: TreeId, to: TreeId) -> (Header, Vec<u8>) {
        let part = |bytes| Part { stored_bytes: bytes, plain_bytes: bytes };
        let header = Header { from, to, manifest: part(3), index: part(4), frames_bytes: PIECE_BYTES * 5 / 2 };
        let rest = width::index(header.delta_bytes().unwrap()) - HEADER_BYTES - TRAILER_BYTES;
        let front = [header.encode().as_slice(), &::tests::noise(1, rest)].concat();
        let end = trailer(*blake3::hash(&front).as_bytes());
        (header, [front.as_slice(), &end].concat())
    }

    fn put(store: &Store, from: TreeId, to: TreeId) -> Result<Put, StoreError> {
        let mut draft = store.draft().unwrap();
        draft.append(&made(from, to).1).unwrap();
        store.put_delta(draft, &from, &to)
    }

    fn trees(store: &Store, dir: &Path) -> [TreeId; 2] {
        [("a", 1), ("b", 2)].map(|(name, seed)| publish_plain(store, &source(dir, name, &[seed])).unwrap().tree)
    }

    fn file(store: &Store, from: TreeId, to: TreeId) -> PathBuf {
        let (shard, rest) = from.to_shard();
        store.root().join("deltas").join(shard).join(format!("{rest}-{to}"))
    }

    #[test]
    fn a_delta_is_read_as_it_was_put_and_only_between_trees_that_are_there() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        assert!(!store.has_delta(&a, &b).unwrap() && store.delta(&a, &b).unwrap().is_none());
        assert_eq!(put(store, a, b).unwrap(), Put::Stored);
        assert_eq!(put(store, a, b).unwrap(), Put::AlreadyThere);
        assert!(store.has_delta(&a, &b).unwrap() && !store.has_delta(&b, &a).unwrap());
        let (header, bytes) = made(a, b);
        assert_eq!(store.delta(&a, &b).unwrap(), Some(header));
        assert_eq!(store.delta_bytes(&a, &b, 7..bytes.len() as u64).unwrap(), bytes[7..]);
        assert!(store.delta_bytes(&a, &b, 7..bytes.len() as u64 + 1).is_err());
        let unknown = TreeId::of(b"unknown");
        for (from, to) in [(a, unknown), (unknown, a)] {
            let refused = put(store, from, to);
            assert!(matches!(refused, Err(StoreError::Missing { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_damaged_delta_counts_as_none_and_is_removed_whoever_finds_it() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        put(store, a, b).unwrap();
        let path = file(store, a, b);
        let whole = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let places = [0, 20, 60, HEADER_BYTES + 5, whole.len() / 2, whole.len() - 40, whole.len() - 1];
        let mut damaged: Vec<Vec<u8>> = places.into_iter().map(flipped).collect();
        damaged.extend([0, HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1].map(|length| whole[..length].to_vec()));
        for (number, bytes) in damaged.iter().enumerate() {
            fs::write(&path, bytes).unwrap();
            assert_eq!(store.delta(&a, &b).unwrap(), None, "{number}");
            assert!(!path.exists(), "{number}");
            fs::write(&path, bytes).unwrap();
            let problems = store.verify(&Quiet).unwrap().problems;
            assert!(matches!(problems[..], [super::super::Problem { thing: Thing::Delta(..), .. }]), "{problems:?}");
            assert!(!path.exists(), "{number}");
        }
        // A sound one, under the name of another.
        put(store, b, a).unwrap();
        fs::write(file(store, b, a), &whole).unwrap();
        assert_eq!(store.delta(&b, &a).unwrap(), None);
    }

    #[test]
    fn a_delta_that_goes_while_it_is_read_is_none_and_one_that_cannot_be_read_is_told_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (fails, store) = open_unreadable(&dir.path().join("store"));
        let [a, b] = trees(&store, dir.path());
        put(&store, a, b).unwrap();
        *crate::sync::lock(&fails) = Some(io::ErrorKind::NotFound);
        assert_eq!(store.delta(&a, &b).unwrap(), None);
        *crate::sync::lock(&fails) = Some(io::ErrorKind::PermissionDenied);
        assert!(store.delta(&a, &b).is_err());
        *crate::sync::lock(&fails) = None;
        assert_eq!(store.delta(&a, &b).unwrap(), Some(made(a, b).0));
    }

    #[test]
    fn a_verification_reads_every_delta() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        let before = store.verify(&Quiet).unwrap().bytes;
        put(store, a, b).unwrap();
        put(store, b, a).unwrap();
        let report = store.verify(&Quiet).unwrap();
        assert_eq!((report.bytes - before, report.problems), (store.usage().unwrap().delta_bytes, vec![]));
    }

    #[test]
    fn a_delta_is_collected_when_one_of_its_trees_is() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        put(store, a, b).unwrap();
        put(store, b, a).unwrap();
        assert_eq!(store.gc(&[a, b].into(), false, &Quiet).unwrap().deltas_removed, 0);
        // A publication that runs needs its tree as much as one that is kept.
        let guard = store.guard();
        guard.pin_tree(a);
        assert_eq!(store.gc(&[b].into(), false, &Quiet).unwrap().deltas_removed, 0);
        drop(guard);
        let before = stored_bytes(store);
        let dry = store.gc(&[b].into(), true, &Quiet).unwrap();
        assert_eq!((dry.deltas_removed, stored_bytes(store)), (2, before));
        let report = store.gc(&[b].into(), false, &Quiet).unwrap();
        assert_eq!((report.deltas_removed, report.bytes_freed), (2, before - stored_bytes(store)));
        assert_eq!((dry.bytes_freed, store.usage().unwrap().deltas), (report.bytes_freed, 0));
    }

    #[test]
    fn a_chunk_s_stored_bytes_are_known_without_reading_it() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, _] = trees(store, fixture.dir.path());
        let chunk = store.tree(&a).unwrap().objects[0].chunks[0];
        let stored = store.chunk(&chunk).unwrap().unwrap().bytes.len() as u64;
        assert_eq!(store.stored_bytes(&chunk), Some(stored));
        assert_eq!(store.stored_bytes(&proto::ChunkId::of(b"unknown")), None);
    }
}
