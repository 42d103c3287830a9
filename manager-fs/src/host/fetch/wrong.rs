//! A chunk that came and is not what was asked for.

use std::io;

use proto::ObjectId;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[error("object {object} chunk {index}: {fault}")]
pub(super) struct WrongChunk {
    pub(super) object: ObjectId,
    pub(super) index: u32,
    pub(super) fault: ChunkFault,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkFault {
    #[error("its length is not the manifest's")]
    Length,
    #[error("does not decompress: {0}")]
    Encoding(io::Error),
    #[error("wrong hash")]
    Hash,
}
