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
