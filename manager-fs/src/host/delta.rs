//! A delta as it arrives, into verified chunks.
//!
//! ```text
//! bytes ──Reader──> manifest (hash = tree id) ──> index ──> frames ──make──> chunks (BLAKE3 = chunk id)
//!                                                 old objects on this host ──┘
//! ```
//! Nothing that a delta says is believed: the manifest must hash to the id of a signed record, and each chunk to its
//! id in that manifest. What turns out wrong or is not there is fetched as it is.

use proto::delta::{DeltaFault, Frame, HEADER_BYTES, Header, decode_index};
use proto::manifest::{ManifestFault, Object};
use proto::width;
use proto::{ChunkId, Manifest, TreeId};

use crate::patch::{self, PatchError};

/// A delta could not be used. What was made of it before is right; the rest is fetched as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The bytes break the format.
    #[error(transparent)]
    Format(#[from] DeltaFault),
    /// The manifest is not the tree's.
    #[error("the delta's manifest is wrong: {0}")]
    Manifest(#[from] ManifestFault),
    /// A part does not decode.
    #[error("the delta does not decode: {0}")]
    Decode(String),
    /// A chunk is not what the manifest says.
    #[error("the delta makes a chunk of object {object} that has a wrong hash")]
    WrongHash {
        /// Of which object.
        object: proto::ObjectId,
    },
    /// The old object cannot be read here.
    #[error("old object {object}: {source}")]
    Old {
        /// The object of the old tree.
        object: proto::ObjectId,
        /// What reading it said.
        source: std::io::Error,
    },
}

impl From<PatchError> for DeltaError {
    fn from(error: PatchError) -> Self {
        Self::Decode(error.to_string())
    }
}

/// What a [`Reader`] has found next.
#[derive(Debug)]
pub enum Arrived {
    /// The new tree's manifest; its bytes are checked against the tree's id.
    Manifest(Vec<u8>),
    /// A frame with its stored bytes; the index was checked against both manifests.
    Frame(Frame, Vec<u8>),
    /// The last frame has been given.
    End,
}

/// Takes a delta's bytes as they come.
pub struct Reader {
    from: TreeId,
    to: TreeId,
    old_bytes: Vec<u8>,
    old: Manifest,
    new: Option<Manifest>,
    buffer: Vec<u8>,
    header: Option<Header>,
    frames: Option<std::vec::IntoIter<Frame>>,
}

impl Reader {
    /// A reader for the delta from a tree that is here to another one. `old_bytes` are the bytes of the old manifest.
    ///
    /// # Errors
    /// They are not the manifest of `from`.
    pub fn new(from: TreeId, to: TreeId, old_bytes: Vec<u8>) -> Result<Self, DeltaError> {
        let old = Manifest::decode(&old_bytes, &from)?;
        Ok(Self { from, to, old_bytes, old, new: None, buffer: Vec::new(), header: None, frames: None })
    }

    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The manifest of the tree that the delta begins with.
    pub fn old(&self) -> &Manifest {
        &self.old
    }

    /// The new tree, once its manifest has come.
    pub fn new_tree(&self) -> Option<&Manifest> {
        self.new.as_ref()
    }

    /// What has come next; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are not a delta between these trees, or not a right one.
    pub fn arrived(&mut self) -> Result<Option<Arrived>, DeltaError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(front) = self.take(HEADER_BYTES) else { return Ok(None) };
                let header = front.first_chunk().map_or(Err(DeltaFault::NotADelta), Header::decode)?;
                if (header.from, header.to) != (self.from, self.to) {
                    return Err(DeltaFault::OtherTrees { from: header.from, to: header.to }.into());
                }
                *self.header.insert(header)
            }
        };
        let Some(new) = &self.new else {
            let Some(stored) = self.take(header.manifest.stored_bytes as usize) else { return Ok(None) };
            let plain_bytes = header.manifest.plain_bytes as usize;
            let bytes = patch::decompress_manifest(&stored, &self.old_bytes, plain_bytes)?;
            self.new = Some(Manifest::decode(&bytes, &self.to)?);
            self.old_bytes = Vec::new();
            return Ok(Some(Arrived::Manifest(bytes)));
        };
        if self.frames.is_none() {
            if self.buffer.len() < header.index.stored_bytes as usize {
                return Ok(None);
            }
            let stored = &self.buffer[..header.index.stored_bytes as usize];
            let index = patch::decompress(stored, &[], header.index.plain_bytes as usize)?;
            self.frames = Some(decode_index(&index, &header, &self.old, new)?.into_iter());
            self.buffer.drain(..header.index.stored_bytes as usize);
        }
        let next = self.frames.as_ref().and_then(|frames| frames.as_slice().first());
        let Some(stored_bytes) = next.map(|frame| frame.recipe.stored_bytes()) else {
            // It would be kept for as long as it comes.
            let ended = self.buffer.is_empty();
            return if ended {
                Ok(Some(Arrived::End))
            } else {
                Err(DeltaFault::Malformed("more than it says").into())
            };
        };
        let Some(stored) = self.take(width::index(stored_bytes)) else { return Ok(None) };
        Ok(self.frames.as_mut().and_then(Iterator::next).map(|frame| Arrived::Frame(frame, stored)))
    }

    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        (self.buffer.len() >= bytes).then(|| self.buffer.drain(..bytes).collect())
    }
}

/// One chunk that a frame made.
#[derive(Debug, Clone, Copy)]
pub struct MadeChunk<'a> {
    /// Of which object of the new tree.
    pub object: &'a Object,
    /// Which of its chunks.
    pub index: u32,
    /// Its bytes, checked against its id.
    pub plain: &'a [u8],
}

/// Fills a buffer from an object of the old tree, from an offset on.
pub type ReadOld<'a> = dyn FnMut(&Object, u64, &mut [u8]) -> std::io::Result<()> + 'a;

/// Decodes a frame and gives each chunk that it makes, verified, to `sink`.
///
/// # Errors
/// An old object cannot be read, or the frame does not make what it should.
pub fn make(
    frame: &Frame,
    stored: &[u8],
    (old, new): (&Manifest, &Manifest),
    read_old: &mut ReadOld<'_>,
    sink: &mut dyn FnMut(MadeChunk<'_>),
) -> Result<(), DeltaError> {
    // `decode_index` has checked that these exist and how large they are.
    let malformed = || DeltaFault::Malformed("a frame of another delta");
    let mut base = vec![0; width::index(frame.recipe.stretch_bytes())];
    let mut rest = base.as_mut_slice();
    for stretch in &frame.recipe.stretches {
        let object = old.objects.get(stretch.object as usize).ok_or_else(malformed)?;
        let (into, after) = rest.split_at_mut(stretch.bytes as usize);
        read_old(object, stretch.offset, into).map_err(|source| DeltaError::Old { object: object.id, source })?;
        rest = after;
    }
    let plain_bytes = width::index(frame.plain_bytes(new).ok_or_else(malformed)?);
    let plain = patch::decode(&base, frame.recipe.patch, frame.recipe.literals, stored, plain_bytes)?;
    let mut plain = plain.as_slice();
    for run in &frame.makes {
        let object = new.objects.get(run.object as usize).ok_or_else(malformed)?;
        for index in run.first..run.first + run.count {
            let bytes = object.chunk_len(index, new.chunk_bytes).ok_or_else(malformed)? as usize;
            let (chunk, after) = plain.split_at_checked(bytes).ok_or_else(malformed)?;
            plain = after;
            if object.chunks.get(index as usize) != Some(&ChunkId::of(chunk)) {
                return Err(DeltaError::WrongHash { object: object.id });
            }
            sink(MadeChunk { object, index, plain: chunk });
        }
    }
    Ok(())
}
