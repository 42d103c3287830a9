//! Whole blobs, for what carries them to another store.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use proto::TreeId;

use super::format::{owned, write_format};
use super::pack::read_index;
use super::pack_store::{BlobKind, BlobName, PackStore};
use super::{PackId, PublishGuard, Store, StoreError};
use crate::sync::lock;

/// The packs that some trees lie in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Packs {
    /// They stay, whatever is collected or compressed anew, as long as the guard is held.
    pub(crate) packs: BTreeSet<PackId>,
    /// Chunks and manifests that no sound pack has.
    pub(crate) missing: u64,
}

impl Store {
    /// Where these trees lie; pins them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn packs_of(&self, trees: &BTreeSet<TreeId>, guard: &PublishGuard) -> Result<Packs, StoreError> {
        let mut found = Packs::default();
        for tree in trees {
            guard.pin_tree(*tree);
            let manifest = match self.tree(tree) {
                Err(StoreError::Damaged { .. } | StoreError::Missing { .. }) => {
                    found.missing += 1;
                    continue;
                }
                manifest => manifest?,
            };
            // The index stays locked while the pins are set: collection cannot come in between.
            let index = self.index();
            let bad = lock(&self.bad_packs);
            for chunk in manifest.objects.iter().flat_map(|object| &object.chunks) {
                let places = index.places_of(chunk).filter_map(|place| Some((place.slot, index.name(place.slot)?)));
                match places.filter(|(_, pack)| !bad.contains(pack)).last() {
                    Some((slot, pack)) => {
                        guard.pin_pack(slot);
                        found.packs.insert(pack);
                    }
                    None => found.missing += 1,
                }
            }
        }
        Ok(found)
    }

    /// The start-up bundles of these trees.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub(crate) fn bundles_of(&self, trees: &BTreeSet<TreeId>) -> Result<Vec<BlobName>, StoreError> {
        let mut names = self.packs.list(BlobKind::Bundle).map_err(|e| StoreError::io("the list of bundles", e))?;
        names.retain(|name| matches!(name, BlobName::Bundle(_, tree) if trees.contains(tree)));
        Ok(names)
    }

    /// Length of a blob, bytes; `None` when it is not there.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn blob_bytes(&self, name: &BlobName) -> Result<Option<u64>, StoreError> {
        self.packs.size(name).map_err(|cause| StoreError::io("a blob's size", cause))
    }

    /// A part of a blob, as it lies.
    ///
    /// # Errors
    /// It is not there, is shorter, or cannot be read.
    pub(crate) fn blob(&self, name: &BlobName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.packs.get(name, range).map_err(|cause| StoreError::io("a blob", cause))
    }
}

/// Whether a pack's header and index are those of its id; what is wrong with it, for people.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_pack(packs: &dyn PackStore, id: &PackId) -> Result<(), String> {
    read_index(packs, id).map(drop).map_err(|fault| fault.to_string())
}

/// Takes a directory that becomes a store for this process alone, as long as the file lives.
///
/// # Errors
/// Another process has it.
pub(crate) fn claim(root: &Path) -> Result<File, StoreError> {
    owned(root)
}

/// Makes a directory a store whose parts are in their places, durably.
///
/// # Errors
/// The disk fails.
pub(crate) fn become_store(root: &Path) -> io::Result<()> {
    write_format(root)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{publish_plain, source};
    use super::*;
    use crate::manager::testing::Fixture;

    #[test]
    fn the_packs_of_trees_are_told_and_what_no_sound_one_has_is_counted() {
        let fixture = Fixture::new();
        let (store, dir) = (&fixture.store, fixture.dir.path());
        let [a, b] =
            [("a", 1), ("b", 2)].map(|(name, seed)| publish_plain(store, &source(dir, name, &[seed])).unwrap().tree);
        let chunks = |tree| store.tree(&tree).unwrap().objects[0].chunks.clone();
        let [pack_a, pack_b] = [a, b].map(|tree| store.index().places(&chunks(tree)[0])[0].0);
        let guard = store.guard();
        let all = |packs: &[PackId], missing| Packs { packs: packs.iter().copied().collect(), missing };
        assert_eq!(store.packs_of(&[a, b].into(), &guard).unwrap(), all(&[pack_a, pack_b], 0));
        assert_eq!(store.packs_of(&[b].into(), &guard).unwrap(), all(&[pack_b], 0));
        // They stay as long as the guard is held, whatever is collected.
        store.gc(&BTreeSet::new(), false, &crate::manager::monitor::Quiet).unwrap();
        assert_eq!(store.packs_of(&[a, b].into(), &guard).unwrap(), all(&[pack_a, pack_b], 0));
        store.mark_bad(&pack_a);
        let lost = chunks(a).len() as u64;
        let unknown = TreeId::of(b"unknown");
        assert_eq!(store.packs_of(&[a, b, unknown].into(), &guard).unwrap(), all(&[pack_b], lost + 1));
    }

    #[test]
    fn the_bundles_of_trees_are_those_that_lead_to_them() {
        let fixture = Fixture::new();
        let (store, dir) = (&fixture.store, fixture.dir.path());
        let [a, b] =
            [("a", 1), ("b", 2)].map(|(name, seed)| publish_plain(store, &source(dir, name, &[seed])).unwrap().tree);
        for (from, tree) in [(None, a), (Some(a), b), (None, b)] {
            store.put_bundle(from.as_ref(), &tree, b"bundle").unwrap();
        }
        assert_eq!(store.bundles_of(&[a].into()).unwrap(), [BlobName::Bundle(None, a)]);
        let of_b = store.bundles_of(&[b].into()).unwrap();
        assert_eq!(BTreeSet::from_iter(of_b), [BlobName::Bundle(None, b), BlobName::Bundle(Some(a), b)].into());
    }

    #[test]
    fn a_blob_is_read_as_it_lies_and_a_pack_is_checked_by_its_id() {
        let fixture = Fixture::new();
        let store = &fixture.store;
        let tree = publish_plain(store, &source(fixture.dir.path(), "a", &[1])).unwrap().tree;
        let (manifest, bytes) = (BlobName::Manifest(tree), store.manifest(&tree).unwrap().unwrap());
        let length = bytes.len() as u64;
        assert_eq!(store.blob_bytes(&manifest).unwrap(), Some(length));
        assert_eq!(store.blob(&manifest, 3..length).unwrap(), bytes[3..]);
        assert!(store.blob(&manifest, 3..length + 1).is_err());
        assert_eq!(store.blob_bytes(&BlobName::Manifest(TreeId::of(b"unknown"))).unwrap(), None);
        let pack = store.index().packs().into_iter().next().unwrap();
        check_pack(store.packs.as_ref(), &pack).unwrap();
        let other: PackId = "ab".repeat(32).parse().unwrap();
        assert!(check_pack(store.packs.as_ref(), &other).is_err());
    }

    #[test]
    fn a_directory_that_has_become_a_store_is_one_process_s_and_opens() {
        let dir = tempfile::tempdir().unwrap();
        let held = claim(dir.path()).unwrap();
        assert!(matches!(claim(dir.path()), Err(StoreError::InUse { .. })));
        become_store(dir.path()).unwrap();
        assert!(dir.path().join("format").exists());
        drop(held);
        super::super::tests::opened(|| Store::open(dir.path()));
    }
}
