//! A start-up bundle as it arrives, into verified pages.
//!
//! ```text
//! bytes ──Reader──> manifest (hash = tree id) ──> index, proofs ──> frames ──> pages (BLAKE3 slices of the chunk ids)
//!                                                 what came before, old objects ──┘
//! ```
//! Nothing that a bundle says is believed: the manifest must hash to the tree's id, and the pages, with their proof, to
//! the chunk ids in it. What turns out wrong is fetched as it is.

use proto::bundle::{BundleFault, Frame, HEADER_BYTES, Header, Origin, TAIL_BYTES, decode_index};
use proto::manifest::{ManifestFault, Object};
use proto::proof::{CHAINING_BYTES, PageSet, verify};
use proto::width;
use proto::{Manifest, TreeId};

use super::delta::ReadOld;
use crate::patch::{self, PatchError};

/// A bundle could not be used. What was made of it before is right; the rest is fetched as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The bytes break the format.
    #[error(transparent)]
    Format(#[from] BundleFault),
    /// The manifest is not the tree's.
    #[error("the bundle's manifest is wrong: {0}")]
    Manifest(#[from] ManifestFault),
    /// A part does not decode.
    #[error("the bundle does not decode: {0}")]
    Decode(String),
    /// Pages are not of the chunk that the manifest names.
    #[error("the bundle has pages of object {object} that have a wrong hash")]
    WrongHash {
        /// Of which object.
        object: proto::ObjectId,
    },
    /// The bundle wants a tree that is not here, or an object of it cannot be read.
    #[error("old tree: {0}")]
    Old(String),
}

impl From<PatchError> for BundleError {
    fn from(error: PatchError) -> Self {
        Self::Decode(error.to_string())
    }
}

/// What a [`Reader`] has found next.
#[derive(Debug)]
pub enum Arrived {
    /// Which tree it is of, and how it is known what its start touches.
    Tree(TreeId, Origin),
    /// The manifest's bytes, checked against the tree's id.
    Manifest(Vec<u8>),
    /// The index: every page that will come is known now.
    Index,
    /// A frame with its stored bytes and its proofs; checked against the manifests.
    Frame(Frame, Vec<u8>),
    /// The last frame has been given.
    End,
}

/// An old tree that this host has, with the bytes of its manifest.
pub struct OldTree {
    id: TreeId,
    manifest: Manifest,
    bytes: Vec<u8>,
}

impl OldTree {
    /// Reads it.
    ///
    /// # Errors
    /// The bytes are not the manifest of this tree.
    pub fn new(id: TreeId, bytes: Vec<u8>) -> Result<Self, ManifestFault> {
        Ok(Self { id, manifest: Manifest::decode(&bytes, &id)?, bytes })
    }
}

/// Takes verified pages: of which object and chunk, which, and their bytes one after another.
pub type PageSink<'a> = dyn FnMut(&Object, u32, &PageSet, &[u8]) + 'a;

/// Takes a bundle's bytes as they come.
pub struct Reader {
    old: Option<OldTree>,
    /// The manifest, from the bundle or from the cache.
    tree: Option<Manifest>,
    buffer: Vec<u8>,
    header: Option<Header>,
    frames: Option<std::vec::IntoIter<Frame>>,
    proofs: std::vec::IntoIter<[u8; CHAINING_BYTES]>,
    tail: Vec<u8>,
}

impl Reader {
    /// `old` is the tree that was named in the request, `tree` the manifest if it is here already.
    pub fn new(old: Option<OldTree>, tree: Option<Manifest>) -> Self {
        let (buffer, tail, proofs) = (Vec::new(), Vec::new(), Vec::new().into_iter());
        Self { old, tree, buffer, header: None, frames: None, proofs, tail }
    }

    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The tree's manifest, once it has come.
    pub fn tree(&self) -> Option<&Manifest> {
        self.tree.as_ref()
    }

    /// Frames that have not been given yet.
    pub fn frames(&self) -> &[Frame] {
        self.frames.as_ref().map_or(&[], std::vec::IntoIter::as_slice)
    }

    /// What has come next; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are not a bundle, or not a right one.
    pub fn arrived(&mut self) -> Result<Option<Arrived>, BundleError> {
        let Some(header) = self.header else {
            let Some(front) = self.take(HEADER_BYTES) else { return Ok(None) };
            let header = front.first_chunk().map_or(Err(BundleFault::NotABundle), Header::decode)?;
            if let Some(from) = header.from
                && self.old.as_ref().is_none_or(|old| old.id != from)
            {
                return Err(BundleError::Old(format!("the bundle starts from tree {from}, which was not named")));
            }
            self.header = Some(header);
            return Ok(Some(Arrived::Tree(header.tree, header.origin)));
        };
        let Some(tree) = &self.tree else { return self.manifest(&header) };
        if header.manifest.stored_bytes > 0 {
            // One that was wanted has been read, and is no longer in the header.
            return Err(BundleFault::Malformed("a manifest that was not asked for").into());
        }
        if self.frames.is_none() {
            let (index, proofs) = (header.index.stored_bytes as usize, header.proofs_bytes as usize);
            if self.buffer.len() < index + proofs {
                return Ok(None);
            }
            let plain = patch::decompress(&self.buffer[..index], &[], header.index.plain_bytes as usize)?;
            let old = self.old.as_ref().filter(|_| header.from.is_some()).map(|old| &old.manifest);
            self.frames = Some(decode_index(&plain, &header, old, tree)?.into_iter());
            let values: Vec<_> = self.buffer[index..index + proofs].as_chunks::<CHAINING_BYTES>().0.to_vec();
            self.proofs = values.into_iter();
            self.buffer.drain(..index + proofs);
            return Ok(Some(Arrived::Index));
        }
        let Some(stored_bytes) = self.frames().first().map(|frame| frame.recipe.stored_bytes()) else {
            // It would be kept for as long as it comes.
            let ended = self.buffer.is_empty();
            return if ended {
                Ok(Some(Arrived::End))
            } else {
                Err(BundleFault::Malformed("more than it says").into())
            };
        };
        let Some(stored) = self.take(width::index(stored_bytes)) else { return Ok(None) };
        Ok(self.frames.as_mut().and_then(Iterator::next).map(|frame| Arrived::Frame(frame, stored)))
    }

    fn manifest(&mut self, header: &Header) -> Result<Option<Arrived>, BundleError> {
        let Some(stored) = self.take(header.manifest.stored_bytes as usize) else { return Ok(None) };
        let prefix = self.old.as_ref().filter(|_| header.from.is_some()).map_or(&[][..], |old| &old.bytes);
        let bytes = patch::decompress_manifest(&stored, prefix, header.manifest.plain_bytes as usize)?;
        self.tree = Some(Manifest::decode(&bytes, &header.tree)?);
        if let Some(header) = &mut self.header {
            header.manifest = Default::default();
        }
        Ok(Some(Arrived::Manifest(bytes)))
    }

    /// Decodes the frame that was given last and gives the pages of each chunk, verified, to `sink`.
    ///
    /// # Errors
    /// An old object cannot be read, or the frame does not make what it should.
    pub fn make(
        &mut self,
        frame: &Frame,
        stored: &[u8],
        read_old: &mut ReadOld<'_>,
        sink: &mut PageSink<'_>,
    ) -> Result<(), BundleError> {
        // `decode_index` has checked that these exist and how large they are.
        let malformed = || BundleFault::Malformed("a frame of another bundle");
        let tree = self.tree.as_ref().ok_or_else(malformed)?;
        let mut base = self.tail.clone();
        for stretch in &frame.recipe.stretches {
            let old = self.old.as_ref().and_then(|old| old.manifest.objects.get(stretch.object as usize));
            let (object, start) = (old.ok_or_else(malformed)?, base.len());
            base.resize(start + stretch.bytes as usize, 0);
            read_old(object, stretch.offset, &mut base[start..])
                .map_err(|error| BundleError::Old(format!("object {}: {error}", object.id)))?;
        }
        let (plain_bytes, _) = frame.sizes(tree).ok_or_else(malformed)?;
        let (patch, literals) = (frame.recipe.patch, frame.recipe.literals);
        let plain = patch::decode(&base, patch, literals, stored, width::index(plain_bytes))?;
        let mut rest = plain.as_slice();
        for part in &frame.makes {
            let (set, chunk_bytes) = part.of(tree).ok_or_else(malformed)?;
            let object = tree.objects.get(part.object as usize).ok_or_else(malformed)?;
            let (pages, after) = rest.split_at_checked(set.bytes(chunk_bytes) as usize).ok_or_else(malformed)?;
            rest = after;
            let proof: Vec<_> = self.proofs.by_ref().take(proto::proof::proof_len(chunk_bytes, &set)).collect();
            let id = verify(chunk_bytes, &set, pages, &proof);
            if id.is_none() || id.as_ref() != object.chunks.get(part.chunk as usize) {
                return Err(BundleError::WrongHash { object: object.id });
            }
            sink(object, part.chunk, &set, pages);
        }
        self.tail.extend_from_slice(&plain);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        (self.buffer.len() >= bytes).then(|| self.buffer.drain(..bytes).collect())
    }
}
