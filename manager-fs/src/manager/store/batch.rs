//! What passes through the pipeline of a publication: pieces of contents, and what becomes of them.

use proto::ChunkId;

use super::pack::Frame;

/// Plain bytes of one batch: large enough that passing it on costs nothing beside compressing it.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// A chunk of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chunk {
    /// So many of its plain bytes.
    Plain(u32),
    /// A whole chunk of zeros, which stand nowhere.
    Zeros,
}

/// Consecutive pieces of contents on their way through the pipeline.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) sequence: u64,
    pub(super) plain: Vec<u8>,
    pub(super) used: usize,
    pub(super) chunks: Vec<Chunk>,
    pub(super) ids: Vec<ChunkId>,
    pub(super) frames: Vec<Frame>,
    pub(super) stored: Vec<u8>,
}

impl Batch {
    /// With room for the plain bytes of one, and for as many stored ones.
    pub(super) fn sized() -> Self {
        Self { plain: vec![0; BATCH_BYTES], stored: vec![0; BATCH_BYTES], ..Self::default() }
    }

    /// Empty, and next in the order of all.
    pub(super) fn reset(&mut self, sequence: u64) {
        self.sequence = sequence;
        self.used = 0;
        self.chunks.clear();
        self.ids.clear();
        self.frames.clear();
        self.stored.resize(BATCH_BYTES, 0);
    }
}
