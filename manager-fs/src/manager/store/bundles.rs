//! Start-up bundles, as they lie in the store. They can all be made again, so a damaged one is removed.

use std::collections::BTreeSet;
use std::io;

use proto::TreeId;
use proto::bundle::{HEADER_BYTES, Header, trailer};
use proto::relative::TRAILER_BYTES;

use super::gc::{GcPass, GcReport};
use super::pack_store::{BlobKind, BlobName};
use super::verify::{REMOVED, Thing, VerifyReport};
use super::{Store, StoreError};
use crate::manager::monitor::Monitor;
use crate::sync::read;

impl Store {
    /// The bundle of a tree for hosts that have `from`, without its trailer, whose bytes were all checked; `None` when
    /// there is none. A damaged one is removed and counts as none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn bundle(&self, from: Option<&TreeId>, tree: &TreeId) -> Result<Option<(Header, Vec<u8>)>, StoreError> {
        let failed = |source| StoreError::io(format!("start-up bundle of {tree}"), source);
        let name = BlobName::Bundle(from.copied(), *tree);
        let Some(bytes) = self.packs.size(&name).map_err(failed)? else { return Ok(None) };
        let mut stored = match self.packs.get(&name, 0..bytes) {
            Ok(stored) => stored,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match check(&stored, from, tree) {
            Ok(header) => {
                stored.truncate(stored.len() - TRAILER_BYTES);
                Ok(Some((header, stored)))
            }
            Err(fault) => {
                tracing::error!(%tree, fault, "a start-up bundle is damaged; it is removed and can be made again");
                self.packs.delete(&name).map_err(failed)?;
                Ok(None)
            }
        }
    }

    /// What the header of a tree's bundle for any host says, unchecked; `None` when there is none, or it cannot be one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn bundle_header(&self, tree: &TreeId) -> Result<Option<Header>, StoreError> {
        match self.packs.get(&BlobName::Bundle(None, *tree), 0..HEADER_BYTES as u64) {
            Ok(bytes) => Ok(bytes.first_chunk().and_then(|bytes| Header::decode(bytes).ok())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => Ok(None),
            Err(error) => Err(StoreError::io(format!("start-up bundle of {tree}"), error)),
        }
    }

    /// Stores a bundle (without its trailer) durably in the place of the one that was there, unless the tree has been
    /// removed meanwhile.
    ///
    /// # Errors
    /// The tree is gone, or the disk failed.
    pub fn put_bundle(&self, from: Option<&TreeId>, tree: &TreeId, bundle: &[u8]) -> Result<(), StoreError> {
        let failed = |source| StoreError::io(format!("start-up bundle of {tree}"), source);
        let _commit = read(&self.commits);
        for tree in from.into_iter().chain([tree]) {
            if self.packs.size(&BlobName::Manifest(*tree)).map_err(failed)?.is_none() {
                return Err(StoreError::Missing { what: format!("manifest {tree}") });
            }
        }
        let mut draft = self.packs.create().map_err(failed)?;
        draft.append(bundle).map_err(failed)?;
        draft.append(&trailer(*blake3::hash(bundle).as_bytes())).map_err(failed)?;
        draft.replace(&BlobName::Bundle(from.copied(), *tree)).map_err(failed)
    }

    /// Removes every bundle of a tree; returns how many there were.
    ///
    /// # Errors
    /// The store cannot be listed or written.
    pub fn remove_bundles(&self, tree: &TreeId) -> Result<u64, StoreError> {
        let failed = |source| StoreError::io(format!("start-up bundles of {tree}"), source);
        let mut removed = 0;
        for name in self.packs.list(BlobKind::Bundle).map_err(failed)? {
            if matches!(name, BlobName::Bundle(_, to) if to == *tree) {
                self.packs.delete(&name).map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes the bundle of a tree for hosts that have another one, if there is one.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn remove_bundle(&self, from: &TreeId, tree: &TreeId) -> Result<(), StoreError> {
        let deleted = self.packs.delete(&BlobName::Bundle(Some(*from), *tree));
        deleted.map_err(|source| StoreError::io(format!("start-up bundle of {tree}"), source))
    }

    /// Every bundle of a tree that starts from another one.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub fn bundle_bases(&self, tree: &TreeId) -> Result<Vec<TreeId>, StoreError> {
        let listed = self.packs.list(BlobKind::Bundle).map_err(|e| StoreError::io("the list of bundles", e))?;
        let base = |name| match name {
            BlobName::Bundle(Some(from), to) if to == *tree => Some(from),
            _ => None,
        };
        Ok(listed.into_iter().filter_map(base).collect())
    }

    /// Checks every bundle; a damaged one is removed.
    pub(super) fn verify_bundles(&self, monitor: &dyn Monitor, report: &mut VerifyReport) -> Result<(), StoreError> {
        let listed = |source| StoreError::io("the list of bundles", source);
        for name in self.packs.list(BlobKind::Bundle).map_err(listed)? {
            let BlobName::Bundle(from, tree) = name else { continue };
            let Some(bytes) = self.packs.size(&name).map_err(listed)? else { continue };
            if self.bundle(from.as_ref(), &tree)?.is_none() && self.packs.size(&name).map_err(listed)?.is_none() {
                report.problem(monitor, Thing::Bundle(tree), REMOVED.into());
            }
            report.bytes += bytes;
        }
        Ok(())
    }
}

fn check(stored: &[u8], from: Option<&TreeId>, tree: &TreeId) -> Result<Header, &'static str> {
    let header = stored.first_chunk::<HEADER_BYTES>().map(Header::decode);
    let Some(Ok(header)) = header else { return Err("its header is damaged") };
    if header.bundle_bytes() != stored.len() as u64 || header.from.as_ref() != from || header.tree != *tree {
        return Err("its length or its trees are not what they should be");
    }
    let (bundle, end) = stored.split_at(stored.len() - TRAILER_BYTES);
    if end == trailer(*blake3::hash(bundle).as_bytes()) {
        Ok(header)
    } else {
        Err("its hash is not what its trailer says")
    }
}

impl GcPass<'_> {
    /// A bundle of which one tree goes is of no use any more.
    pub(super) fn collect_bundles(
        &self,
        keep: &BTreeSet<TreeId>,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        for name in self.list(BlobKind::Bundle)? {
            let BlobName::Bundle(from, tree) = name else { continue };
            let needed = |tree: &TreeId| keep.contains(tree) || self.store.registry.needs_tree(tree);
            let all_needed = || from.iter().chain([&tree]).all(needed);
            if all_needed() {
                continue;
            }
            let bytes = self.size(&name)?;
            if dry_run || self.store.remove_unless(&name, |_| all_needed())? {
                report.bundles_removed += 1;
                report.bytes_freed += bytes;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proto::bundle::Origin;
    use proto::relative::Part;
    use proto::width;

    use super::super::tests::{open_unreadable, publish_plain, source, stored_bytes};
    use super::*;
    use crate::manager::monitor::Quiet;
    use crate::manager::testing::Fixture;

    /// As long as its header says, without its trailer; what is in it nobody asks here.
    fn made(from: Option<TreeId>, tree: TreeId) -> (Header, Vec<u8>) {
        let part = |bytes| Part { stored_bytes: bytes, plain_bytes: bytes };
        let (manifest, index, origin) = (part(3), part(4), Origin::Recorded);
        let header = Header { tree, from, origin, fast: false, manifest, index, proofs_bytes: 32, frames_bytes: 6 };
        let rest = width::index(header.bundle_bytes()) - HEADER_BYTES - TRAILER_BYTES;
        (header, [header.encode().as_slice(), &vec![7; rest]].concat())
    }

    /// Two trees, `a` and `b`.
    fn trees(store: &Store, dir: &std::path::Path) -> [TreeId; 2] {
        [("a", 1), ("b", 2)].map(|(name, seed)| publish_plain(store, &source(dir, name, &[seed])).unwrap().tree)
    }

    fn put(store: &Store, from: Option<TreeId>, tree: TreeId) {
        store.put_bundle(from.as_ref(), &tree, &made(from, tree).1).unwrap();
    }

    fn file(store: &Store, from: Option<TreeId>, tree: TreeId) -> PathBuf {
        let (shard, rest) = tree.to_shard();
        let name = from.map_or_else(|| rest.clone(), |from| format!("{rest}-{from}"));
        store.root().join("bundles").join(shard).join(name)
    }

    #[test]
    fn a_bundle_is_read_as_it_was_put_and_goes_alone_or_with_all_of_its_tree() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        assert_eq!((store.bundle(None, &a).unwrap(), store.bundle_header(&a).unwrap()), (None, None));
        for (from, tree) in [(None, a), (Some(b), a), (None, b), (Some(a), b)] {
            put(store, from, tree);
            assert_eq!(store.bundle(from.as_ref(), &tree).unwrap(), Some(made(from, tree)));
        }
        assert_eq!(store.bundle_header(&a).unwrap(), Some(made(None, a).0));
        assert_eq!((store.bundle_bases(&a).unwrap(), store.bundle_bases(&b).unwrap()), (vec![b], vec![a]));
        assert_eq!(store.remove_bundles(&a).unwrap(), 2);
        assert_eq!((store.bundle_bases(&a).unwrap(), store.bundle(None, &a).unwrap()), (vec![], None));
        store.remove_bundle(&a, &b).unwrap();
        assert_eq!((store.bundle_bases(&b).unwrap(), store.bundle(None, &b).unwrap()), (vec![], Some(made(None, b))));
        let unknown = TreeId::of(b"unknown");
        for (from, tree) in [(None, unknown), (Some(unknown), a)] {
            let refused = store.put_bundle(from.as_ref(), &tree, &made(from, tree).1);
            assert!(matches!(refused, Err(StoreError::Missing { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_damaged_bundle_counts_as_none_and_is_removed_whoever_finds_it() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        put(store, None, a);
        let path = file(store, None, a);
        let whole = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let places = [0, 20, 60, HEADER_BYTES + 5, whole.len() - 40, whole.len() - 1];
        let mut damaged: Vec<Vec<u8>> = places.into_iter().map(flipped).collect();
        damaged.extend([0, HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 1].map(|length| whole[..length].to_vec()));
        damaged.push([whole.as_slice(), b"x"].concat());
        for (number, bytes) in damaged.iter().enumerate() {
            fs::write(&path, bytes).unwrap();
            assert_eq!(store.bundle(None, &a).unwrap(), None, "{number}");
            assert!(!path.exists(), "{number}");
            fs::write(&path, bytes).unwrap();
            let problems = store.verify(&Quiet).unwrap().problems;
            assert!(matches!(problems[..], [super::super::Problem { thing: Thing::Bundle(tree), .. }] if tree == a));
            assert!(!path.exists(), "{number}");
        }
        // A sound one, under the name of another.
        for (from, tree) in [(None, b), (Some(b), a)] {
            put(store, from, tree);
            fs::write(file(store, from, tree), &whole).unwrap();
            assert_eq!(store.bundle(from.as_ref(), &tree).unwrap(), None);
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(store.bundle(None, &a).unwrap(), Some(made(None, a)));
        fs::write(&path, b"short").unwrap();
        assert_eq!(store.bundle_header(&a).unwrap(), None);
    }

    #[test]
    fn a_bundle_that_goes_while_it_is_read_is_none_and_one_that_cannot_be_read_is_told_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (fails, store) = open_unreadable(&dir.path().join("store"));
        let [a, _] = trees(&store, dir.path());
        put(&store, None, a);
        *crate::sync::lock(&fails) = Some(io::ErrorKind::NotFound);
        assert_eq!((store.bundle(None, &a).unwrap(), store.bundle_header(&a).unwrap()), (None, None));
        *crate::sync::lock(&fails) = Some(io::ErrorKind::PermissionDenied);
        assert!(store.bundle(None, &a).is_err() && store.bundle_header(&a).is_err());
        *crate::sync::lock(&fails) = None;
        assert_eq!(store.bundle(None, &a).unwrap(), Some(made(None, a)));
    }

    #[test]
    fn a_verification_reads_every_bundle() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        let before = store.verify(&Quiet).unwrap().bytes;
        put(store, None, a);
        put(store, Some(a), b);
        let report = store.verify(&Quiet).unwrap();
        assert_eq!((report.bytes - before, report.problems), (store.usage().unwrap().bundle_bytes, vec![]));
    }

    #[test]
    fn a_bundle_is_collected_when_one_of_its_trees_is() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let [a, b] = trees(store, fixture.dir.path());
        let all = [(None, a), (None, b), (Some(a), b), (Some(b), a)];
        all.iter().for_each(|(from, tree)| put(store, *from, *tree));
        assert_eq!(store.gc(&[a, b].into(), false, &Quiet).unwrap().bundles_removed, 0);
        // A publication that runs needs its tree as much as one that is kept.
        let guard = store.guard();
        guard.pin_tree(a);
        assert_eq!(store.gc(&[b].into(), false, &Quiet).unwrap().bundles_removed, 0);
        drop(guard);
        let before = stored_bytes(store);
        let dry = store.gc(&[b].into(), true, &Quiet).unwrap();
        assert_eq!((dry.bundles_removed, stored_bytes(store)), (3, before));
        let report = store.gc(&[b].into(), false, &Quiet).unwrap();
        assert_eq!((report.bundles_removed, report.bytes_freed), (3, before - stored_bytes(store)));
        assert_eq!(dry.bytes_freed, report.bytes_freed);
        assert_eq!(store.bundle(None, &b).unwrap(), Some(made(None, b)));
    }
}
