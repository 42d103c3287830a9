//! The stages behind the reader: workers that compress what is new, and the writer that puts it in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender};

use proto::bulk::Encoding;
use proto::{ChunkId, width};

use super::batch::{Batch, Chunk};
use super::pack::{Effort, Frame, PackWriter, check_of};
use super::{PublishGuard, Store, StoreError};
use crate::sync::lock;

/// A frame that saves less than this part of its chunk is stored raw: decoding it would cost more than it saves.
const MIN_GAIN: usize = 32;

/// By which batch a new chunk will be written.
pub(super) type Claims = Mutex<HashMap<ChunkId, u64>>;

/// Whether a batch has to bring a chunk: unless an earlier one does. A later one that was faster brings it too, and the
/// writer drops that, so that where a chunk stands does not depend on which thread was faster.
fn claim(claimed: &Claims, id: ChunkId, sequence: u64) -> bool {
    let mut claimed = lock(claimed);
    let first = claimed.entry(id).or_insert(sequence);
    let mine = sequence <= *first;
    *first = sequence.min(*first);
    mine
}

/// A whole chunk of zeros, made when the first one comes.
struct ZeroChunk {
    chunk_bytes: u32,
    made: Option<(Vec<u8>, ChunkId)>,
}

impl ZeroChunk {
    fn new(chunk_bytes: u32) -> Self {
        Self { chunk_bytes, made: None }
    }

    fn chunk(&mut self) -> (&[u8], ChunkId) {
        let (plain, id) = self.made.get_or_insert_with(|| {
            let plain = vec![0; self.chunk_bytes as usize];
            let id = ChunkId::of(&plain);
            (plain, id)
        });
        (plain, *id)
    }
}

/// A worker: names every chunk of a batch, and compresses those that neither the store nor this publication has.
pub(super) fn work(
    store: &Store,
    chunk_bytes: u32,
    guard: &PublishGuard,
    claimed: &Claims,
    batches: &Mutex<Receiver<Batch>>,
    to_writer: &SyncSender<Batch>,
) {
    let mut compressor = zstd::bulk::Compressor::new(Effort::Fast.level()).ok();
    let mut zeros = ZeroChunk::new(chunk_bytes);
    loop {
        let batch = lock(batches).recv();
        let Ok(mut batch) = batch else { return };
        let (mut from, mut to) = (0, 0);
        let mut zeros_seen = false;
        for chunk in std::mem::take(&mut batch.chunks) {
            let (plain, id) = match chunk {
                Chunk::Plain(bytes) => {
                    let plain = &batch.plain[from..from + bytes as usize];
                    from += plain.len();
                    (plain, ChunkId::of(plain))
                }
                Chunk::Zeros => zeros.chunk(),
            };
            batch.ids.push(id);
            let again = matches!(chunk, Chunk::Zeros) && std::mem::replace(&mut zeros_seen, true);
            if again || store.pin(&id, guard) || !claim(claimed, id, batch.sequence) {
                continue;
            }
            // Zeros take no room among the plain bytes, so there may be none left among the stored ones.
            if batch.stored.len() - to < plain.len() {
                batch.stored.resize(to + plain.len(), 0);
            }
            let (encoding, stored_bytes) = compress(compressor.as_mut(), plain, &mut batch.stored[to..]);
            let stored = &batch.stored[to..to + stored_bytes];
            to += stored_bytes;
            batch.frames.push(Frame {
                chunk: id,
                offset: 0,
                stored_bytes: width::count(stored_bytes),
                plain_bytes: width::count(plain.len()),
                encoding,
                check: check_of(stored),
            });
        }
        batch.stored.truncate(to);
        if to_writer.send(batch).is_err() {
            return;
        }
    }
}

/// Writes a chunk's stored bytes to the start of `out`, which has at least the chunk's length.
pub(super) fn compress(
    compressor: Option<&mut zstd::bulk::Compressor<'_>>,
    plain: &[u8],
    out: &mut [u8],
) -> (Encoding, usize) {
    let room = plain.len() - plain.len().div_ceil(MIN_GAIN);
    // A frame that does not fit into what pays is an error of the compressor, and means raw.
    if let Some(Ok(bytes)) = compressor.map(|zstd| zstd.compress_to_buffer(plain, &mut out[..room]))
        && bytes > 0
    {
        return (Encoding::Zstd, bytes);
    }
    out[..plain.len()].copy_from_slice(plain);
    (Encoding::Raw, plain.len())
}

/// The writer: puts batches back into order, so that the same input makes the same pack, and appends their frames.
pub(super) fn write(
    store: &Store,
    batches: &Receiver<Batch>,
    to_reader: &SyncSender<Batch>,
) -> Result<(Option<PackWriter>, Vec<ChunkId>), StoreError> {
    let failed = |cause| StoreError::io("the new pack", cause);
    let mut waiting = BTreeMap::new();
    let mut written: HashSet<ChunkId> = HashSet::new();
    let mut next = 0;
    let (mut pack, mut ids): (Option<PackWriter>, Vec<ChunkId>) = (None, Vec::new());
    for batch in batches {
        waiting.insert(batch.sequence, batch);
        while let Some(mut batch) = waiting.remove(&next) {
            next += 1;
            ids.append(&mut batch.ids);
            if !batch.frames.is_empty() {
                let pack = match &mut pack {
                    Some(pack) => pack,
                    None => pack.insert(PackWriter::create(store.packs.as_ref(), Effort::Fast).map_err(failed)?),
                };
                append(pack, &mut batch, &mut written).map_err(failed)?;
            }
            // The reader may have ended already.
            let _ = to_reader.send(batch);
        }
    }
    Ok((pack, ids))
}

/// Appends the frames of a batch that no earlier one has brought.
fn append(pack: &mut PackWriter, batch: &mut Batch, written: &mut HashSet<ChunkId>) -> io::Result<()> {
    let (mut frames, mut at) = (Vec::with_capacity(batch.frames.len()), 0);
    for frame in batch.frames.drain(..) {
        let end = at + frame.stored_bytes as usize;
        if written.insert(frame.chunk) {
            frames.push(frame);
            at = end;
        } else {
            batch.stored.drain(at..end);
        }
    }
    pack.append_many(frames, &batch.stored)
}

#[cfg(test)]
mod tests {
    use super::super::LocalPacks;
    use super::*;

    #[test]
    fn what_an_earlier_batch_has_brought_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let packs = LocalPacks::open(dir.path()).unwrap();
        let mut pack = PackWriter::create(&packs, Effort::Fast).unwrap();
        let frame = |plain: &[u8]| Frame {
            chunk: ChunkId::of(plain),
            offset: 0,
            stored_bytes: width::count(plain.len()),
            plain_bytes: width::count(plain.len()),
            encoding: Encoding::Raw,
            check: check_of(plain),
        };
        let mut written = HashSet::from([ChunkId::of(b"bb"), ChunkId::of(b"dddd")]);
        let chunks: [&[u8]; 5] = [b"a", b"bb", b"ccc", b"dddd", b"a"];
        let mut batch = Batch { frames: chunks.map(frame).into(), stored: chunks.concat(), ..Batch::default() };
        append(&mut pack, &mut batch, &mut written).unwrap();
        let found: Vec<Vec<u8>> = pack.frames().iter().map(|frame| pack.read(frame).unwrap()).collect();
        assert_eq!(found, [b"a".as_slice(), b"ccc"]);
        assert_eq!(pack.frames()[1].offset, pack.frames()[0].offset + 1);
    }

    #[test]
    fn a_chunk_is_compressed_if_that_saves_a_part_of_it_and_stands_as_it_is_otherwise() {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        let mut out = vec![0; 4096];
        for (plain, encoding) in
            [(vec![7; 4096], Encoding::Zstd), (::tests::noise(1, 4096), Encoding::Raw), (vec![7; 1], Encoding::Raw)]
        {
            let (found, bytes) = compress(Some(&mut compressor), &plain, &mut out);
            assert_eq!(found, encoding);
            match found {
                Encoding::Raw => assert_eq!(out[..bytes], plain),
                Encoding::Zstd => {
                    assert!(bytes <= plain.len() - plain.len() / MIN_GAIN);
                    assert_eq!(zstd::bulk::decompress(&out[..bytes], plain.len()).unwrap(), plain);
                }
            }
            assert_eq!(compress(None, &plain, &mut out), (Encoding::Raw, plain.len()));
        }
    }
}
