//! Chunks that come as they are stored elsewhere.

use proto::{ChunkId, width};

use super::pack::{Effort, Frame, PackWriter, check_of};
use super::{PublishGuard, Store, StoreError, StoredChunk};

/// Bytes of a pack after which it is made durable and another one begun: so much is copied again at most when it is
/// broken off.
const PACK_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// Takes chunks into new packs.
pub(crate) struct ChunkTaker<'a> {
    store: &'a Store,
    guard: &'a PublishGuard,
    pack: Option<PackWriter>,
    pack_bytes: u64,
    /// How many were taken.
    pub(crate) chunks: u64,
    /// Their stored bytes.
    pub(crate) bytes: u64,
}

impl Store {
    /// Begins to take chunks. They stay as long as the guard is held, and longer where a generation needs them.
    pub(crate) fn taker<'a>(&'a self, guard: &'a PublishGuard) -> ChunkTaker<'a> {
        ChunkTaker { store: self, guard, pack: None, pack_bytes: 0, chunks: 0, bytes: 0 }
    }
}

impl ChunkTaker<'_> {
    /// Takes a chunk that the caller has checked against its id.
    ///
    /// # Errors
    /// The store cannot be written.
    pub(crate) fn take(&mut self, id: ChunkId, chunk: &StoredChunk) -> Result<(), StoreError> {
        let failed = |cause| StoreError::io("the new pack", cause);
        let frame = Frame {
            chunk: id,
            offset: 0,
            stored_bytes: width::count(chunk.bytes.len()),
            plain_bytes: chunk.plain_bytes,
            encoding: chunk.encoding,
            check: check_of(&chunk.bytes),
        };
        let pack = match &mut self.pack {
            Some(pack) => pack,
            None => self.pack.insert(PackWriter::create(self.store.packs.as_ref(), Effort::Fast).map_err(failed)?),
        };
        pack.append_many([frame], &chunk.bytes).map_err(failed)?;
        self.chunks += 1;
        self.bytes += chunk.bytes.len() as u64;
        self.pack_bytes += chunk.bytes.len() as u64;
        if self.pack_bytes < PACK_BYTES { Ok(()) } else { self.finish() }
    }

    /// Makes what was taken durable, and readers find it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub(crate) fn finish(&mut self) -> Result<(), StoreError> {
        self.pack_bytes = 0;
        self.pack.take().map_or(Ok(()), |pack| self.store.commit_pack(pack, self.guard))
    }
}

#[cfg(test)]
mod tests {
    use proto::bulk::Encoding;

    use super::*;

    #[test]
    fn what_is_taken_is_there_when_a_pack_is_full_or_it_is_finished_and_every_byte_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let guard = store.guard();
        let mut taker = store.taker(&guard);
        let half = width::index(PACK_BYTES / 2);
        let chunks = [1, 2, 3].map(|seed| {
            let bytes = ::tests::noise(seed, half);
            (ChunkId::of(&bytes), StoredChunk { encoding: Encoding::Raw, plain_bytes: width::count(half), bytes })
        });
        let there = || chunks.each_ref().map(|(id, _)| store.chunk(id).unwrap().is_some());
        for (number, expected) in [(0, [false; 3]), (1, [true, true, false]), (2, [true, true, false])] {
            let (id, chunk) = &chunks[number];
            taker.take(*id, chunk).unwrap();
            assert_eq!(there(), expected, "after {number}");
            assert_eq!((taker.chunks, taker.bytes), (number as u64 + 1, (number as u64 + 1) * half as u64));
        }
        taker.finish().unwrap();
        assert_eq!((there(), store.usage().unwrap().packs), ([true; 3], 2));
        taker.finish().unwrap();
        assert_eq!(store.chunk(&chunks[2].0).unwrap().as_ref(), Some(&chunks[2].1));
    }
}
