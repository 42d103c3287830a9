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
