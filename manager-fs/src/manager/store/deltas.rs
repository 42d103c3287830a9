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
