//! Contents into the store: read and hash, cut and compress, write. Memory is bounded by a fixed number of batches.
//!
//! ```text
//! caller: read, hash object ─batch─> workers: hash chunks, compress the new ones ─batch─> writer: pack, in order
//!    ^──────────────────────────────── empty batches ────────────────────────────────────────┘
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use proto::manifest::{NodeKind, Object};
use proto::width;
use proto::{ChunkId, ObjectId};

use super::batch::{BATCH_BYTES, Batch, Chunk};
use super::index::Slot;
use super::pack::{PackWriter, SealedPack};
use super::pipeline::{work, write};
use super::source::{Piece, Source};
use super::{PublishGuard, Store, StoreError, StoredChunk};
use crate::manager::monitor::{Monitor, Task};
use crate::sync::{self, lock, read};

/// Zeros that are hashed in one go: enough for every lane of BLAKE3, few enough to stay in the cache.
static ZEROS: [u8; 128 << 10] = [0; 128 << 10];
/// Chunks of one batch: those that are holes take no room in it.
const BATCH_CHUNKS_MAX: usize = 8192;

/// Why a content was not taken in.
#[derive(Debug)]
pub(crate) enum AddError {
    /// The source could not be read.
    Source(io::Error),
    /// It has more bytes than were allowed.
    TooLarge,
    /// The caller gave up.
    Cancelled,
    /// The pipeline has failed; its error is the one that counts.
    Broken,
}

/// One file's content, as it was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// [`NodeKind::File`], or [`NodeKind::EmptyFile`].
    pub(crate) kind: NodeKind,
    /// Length, bytes.
    pub(crate) bytes: u64,
}

/// Where the chunks of one object stand in the order of all chunks.
struct Span {
    bytes: u64,
    first: u64,
    chunks: u64,
}

/// Takes contents in, one after another.
pub(crate) struct ContentWriter<'a> {
    chunk_bytes: usize,
    to_workers: SyncSender<Batch>,
    empty: Receiver<Batch>,
    batch: Option<Batch>,
    next_sequence: u64,
    chunks: u64,
    bytes: u64,
    spans: HashMap<ObjectId, Span>,
    heads: HashMap<ObjectId, [u8; 4]>,
    monitor: &'a dyn Monitor,
    cancelled: &'a AtomicBool,
}

impl ContentWriter<'_> {
    /// Whom to tell of what is noticed on the way.
    pub(crate) fn monitor(&self) -> &dyn Monitor {
        self.monitor
    }

    /// Reads `source` to its end, which must come after at most `bytes_max` bytes.
    pub(crate) fn add(&mut self, source: &mut dyn Source, bytes_max: u64) -> Result<Content, AddError> {
        let first = self.chunks;
        let mut file = Taken::default();
        loop {
            if self.is_cancelled() {
                return Err(AddError::Cancelled);
            }
            let piece = self.fill(source, &mut file)?;
            if file.bytes > bytes_max {
                return Err(AddError::TooLarge);
            }
            match piece {
                Piece::Data(_) => {}
                Piece::Hole(zeros) if zeros > bytes_max - file.bytes => return Err(AddError::TooLarge),
                Piece::Hole(zeros) => self.hole(zeros, &mut file)?,
                Piece::End => break,
            }
        }
        self.end_chunk(&mut file);
        let Taken { hasher, bytes, head, .. } = file;
        self.bytes += bytes;
        self.monitor.progress(Task::Read, self.bytes, 0);
        if bytes == 0 {
            return Ok(Content { kind: NodeKind::EmptyFile, bytes });
        }
        let id = ObjectId::from_bytes(*hasher.finalize().as_bytes());
        self.spans.entry(id).or_insert(Span { bytes, first, chunks: self.chunks - first });
        self.heads.insert(id, head);
        Ok(Content { kind: NodeKind::File(id), bytes })
    }

    /// Reads data until the batch is full; returns what comes then, or `Data` if that is more of it.
    fn fill(&mut self, source: &mut dyn Source, file: &mut Taken) -> Result<Piece, AddError> {
        let chunk_bytes = self.chunk_bytes;
        let batch = self.batch_with_room(file)?;
        let begun = batch.used;
        // Whole chunks, counted from the start of the one under way.
        let end = begun - file.open + (BATCH_BYTES - (begun - file.open)) / chunk_bytes * chunk_bytes;
        let mut next = Piece::Data(0);
        while batch.used < end {
            next = source.piece(&mut batch.plain[batch.used..end]).map_err(AddError::Source)?;
            let Piece::Data(bytes) = next else { break };
            batch.used += bytes;
        }
        let piece = &batch.plain[begun..batch.used];
        file.hasher.update(piece);
        file.note_head(piece);
        file.bytes += piece.len() as u64;
        let whole = (file.open + piece.len()) / chunk_bytes;
        file.open = (file.open + piece.len()) % chunk_bytes;
        batch.chunks.extend(std::iter::repeat_n(Chunk::Plain(width::count(chunk_bytes)), whole));
        self.chunks += whole as u64;
        Ok(next)
    }

    /// Takes zeros in that nobody has written: whole chunks of them are neither copied nor hashed as chunks. The object's
    /// own hash is over every byte, and BLAKE3 numbers its blocks, so that it cannot leave any out.
    fn hole(&mut self, zeros: u64, file: &mut Taken) -> Result<(), AddError> {
        let mut left = zeros;
        while left > 0 {
            if self.is_cancelled() {
                return Err(AddError::Cancelled);
            }
            let chunk_bytes = self.chunk_bytes;
            let batch = self.batch_with_room(file)?;
            let part = if file.open == 0 && left >= chunk_bytes as u64 {
                let room = BATCH_CHUNKS_MAX - batch.chunks.len();
                let whole = usize::try_from(left / chunk_bytes as u64).unwrap_or(usize::MAX).min(room);
                batch.chunks.extend(std::iter::repeat_n(Chunk::Zeros, whole));
                self.chunks += whole as u64;
                whole as u64 * chunk_bytes as u64
            } else {
                let part = width::index(left.min((chunk_bytes - file.open) as u64));
                batch.plain[batch.used..batch.used + part].fill(0);
                batch.used += part;
                file.open += part;
                if file.open == chunk_bytes {
                    self.end_chunk(file);
                }
                part as u64
            };
            file.note_head(&ZEROS[..part.min(4) as usize]);
            file.hash_zeros(part);
            file.bytes += part;
            left -= part;
        }
        Ok(())
    }

    /// Ends the chunk under way, if there is one.
    fn end_chunk(&mut self, file: &mut Taken) {
        if let (Some(batch), 1..) = (&mut self.batch, file.open) {
            batch.chunks.push(Chunk::Plain(width::count(file.open)));
            self.chunks += 1;
        }
        file.open = 0;
    }

    /// Whether the caller has given up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The batch that has the chunk under way, or room for another one.
    fn batch_with_room(&mut self, file: &Taken) -> Result<&mut Batch, AddError> {
        let full =
            |batch: &Batch| BATCH_BYTES - batch.used < self.chunk_bytes || batch.chunks.len() >= BATCH_CHUNKS_MAX;
        if file.open == 0 && self.batch.as_ref().is_some_and(full) {
            self.flush()?;
        }
        if self.batch.is_none() {
            let mut batch = self.empty.recv().map_err(|_| AddError::Broken)?;
            batch.reset(self.next_sequence);
            self.next_sequence += 1;
            self.batch = Some(batch);
        }
        self.batch.as_mut().ok_or(AddError::Broken)
    }

    fn flush(&mut self) -> Result<(), AddError> {
        match self.batch.take() {
            Some(batch) => self.to_workers.send(batch).map_err(|_| AddError::Broken),
            None => Ok(()),
        }
    }
}

/// One content on its way.
#[derive(Default)]
struct Taken {
    hasher: blake3::Hasher,
    bytes: u64,
    head: [u8; 4],
    /// Bytes of the chunk under way; they stand at the end of the batch.
    open: usize,
}

impl Taken {
    /// Notes the first four bytes of the content; `piece` comes next.
    fn note_head(&mut self, piece: &[u8]) {
        let at = usize::try_from(self.bytes).unwrap_or(4).min(4);
        self.head[at..].iter_mut().zip(piece).for_each(|(head, byte)| *head = *byte);
    }

    fn hash_zeros(&mut self, mut bytes: u64) {
        while bytes > 0 {
            let part = bytes.min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..width::index(part)]);
            bytes -= part;
        }
    }
}

/// What has been taken in: objects, and a pack of their new chunks that is not yet visible.
pub(crate) struct Contents {
    pack: Option<PackWriter>,
    pending: HashMap<ChunkId, usize>,
    /// Every object that was read.
    pub(crate) objects: HashMap<ObjectId, Object>,
    /// The first bytes of every object.
    pub(crate) heads: HashMap<ObjectId, [u8; 4]>,
    /// Bytes read.
    pub(crate) bytes: u64,
}

impl Contents {
    /// A chunk's content, out of the new pack or the store; checked.
    pub(crate) fn plain_chunk(&self, store: &Store, id: &ChunkId) -> Result<Vec<u8>, StoreError> {
        let (Some(pack), Some(at)) = (&self.pack, self.pending.get(id)) else { return store.plain_chunk(id) };
        let frame = &pack.frames()[*at];
        let bytes = pack.read(frame).map_err(|cause| StoreError::io("the new pack", cause))?;
        let chunk = StoredChunk { encoding: frame.encoding, plain_bytes: frame.plain_bytes, bytes };
        chunk.plain(id).map_err(|fault| StoreError::Damaged { what: "the new pack".into(), fault: fault.to_string() })
    }

    /// How many chunks the store did not have, and their stored bytes.
    pub(crate) fn new_chunks(&self) -> (u64, u64) {
        let frames = self.pack.as_ref().map_or(&[][..], PackWriter::frames);
        (frames.len() as u64, frames.iter().map(|frame| u64::from(frame.stored_bytes)).sum())
    }

    /// Makes the new chunks durable and visible to other publications.
    pub(crate) fn commit(self, store: &Store, guard: &PublishGuard) -> Result<(), StoreError> {
        match self.pack {
            Some(pack) => store.commit_pack(pack, guard),
            None => Ok(()),
        }
    }
}

impl Store {
    /// Runs `body` with a writer for contents; what it took in becomes visible with [`Contents::commit`] only.
    ///
    /// # Errors
    /// Those of `body`, unless the pipeline failed: then its own.
    pub(crate) fn write_contents<R, E: From<StoreError>>(
        &self,
        chunk_bytes: u32,
        guard: &PublishGuard,
        monitor: &dyn Monitor,
        cancelled: &AtomicBool,
        body: impl FnOnce(&mut ContentWriter<'_>) -> Result<R, E>,
    ) -> Result<(R, Contents), E> {
        let worker_count = thread::available_parallelism().map_or(2, usize::from).min(16);
        let batch_count = 2 * worker_count + 2;
        let (to_workers, from_reader) = sync_channel::<Batch>(batch_count);
        let (to_writer, from_workers) = sync_channel::<Batch>(batch_count);
        let (to_reader, empty) = sync_channel::<Batch>(batch_count);
        for _ in 0..batch_count {
            // The channel has room for every batch, so this cannot block; its receiver is ours.
            let _ = to_reader.send(Batch::sized());
        }
        let claimed = Mutex::new(HashMap::new());
        let from_reader = Mutex::new(from_reader);
        thread::scope(|scope| {
            let (from_reader, claimed) = (&from_reader, &claimed);
            for _ in 0..worker_count {
                let to_writer = to_writer.clone();
                scope.spawn(move || work(self, chunk_bytes, guard, claimed, from_reader, &to_writer));
            }
            drop(to_writer);
            let writer = scope.spawn(move || write(self, &from_workers, &to_reader));
            let mut reader = ContentWriter {
                chunk_bytes: chunk_bytes as usize,
                to_workers,
                empty,
                batch: None,
                next_sequence: 0,
                chunks: 0,
                bytes: 0,
                spans: HashMap::new(),
                heads: HashMap::new(),
                monitor,
                cancelled,
            };
            let result = body(&mut reader);
            let flushed = reader.flush();
            let ContentWriter { to_workers, spans, heads, bytes, .. } = reader;
            drop(to_workers);
            let broken = || StoreError::io("the new pack", io::Error::other("a thread of the pipeline ended early"));
            let (pack, ids) = writer.join().map_err(|_| broken())??;
            let value = result?;
            flushed.map_err(|_| broken())?;
            let frames = pack.as_ref().map_or(&[][..], PackWriter::frames);
            let pending = frames.iter().enumerate().map(|(at, frame)| (frame.chunk, at)).collect();
            let objects = spans.into_iter().map(|(id, span)| (id, span.object(id, &ids))).collect();
            Ok((value, Contents { pack, pending, objects, heads, bytes }))
        })
    }

    pub(super) fn commit_pack(&self, pack: PackWriter, guard: &PublishGuard) -> Result<(), StoreError> {
        let failed = |cause| StoreError::io("the new pack", cause);
        let pack = pack.seal().map_err(failed)?;
        let commit = read(&self.commits);
        if self.is_bad(&pack.id()) {
            drop(commit);
            let slot = self.replace_bad(pack).map_err(failed)?;
            guard.pin_pack(slot);
            return Ok(());
        }
        let (id, index) = pack.commit().map_err(failed)?;
        guard.pin_pack(self.index_mut().add(id, &index));
        Ok(())
    }

    /// Puts a pack in the place of a damaged one with the same id, and so with the same frames at the same places. In one
    /// step: what was sound in the damaged one is in no other.
    pub(super) fn replace_bad(&self, pack: SealedPack) -> io::Result<Slot> {
        let _commit = sync::write(&self.commits);
        let (id, index) = pack.replace()?;
        lock(&self.bad_packs).remove(&id);
        Ok(self.index_mut().add(id, &index))
    }
}

impl Span {
    fn object(&self, id: ObjectId, ids: &[ChunkId]) -> Object {
        let first = width::index(self.first);
        Object { id, bytes: self.bytes, chunks: ids[first..first + width::index(self.chunks)].to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use ::tests::noise;

    use super::*;
    use crate::manager::monitor::Quiet;

    enum Given {
        Bytes(Vec<u8>),
        Zeros(u64),
    }

    struct Script(VecDeque<Given>);

    impl Source for Script {
        fn piece(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
            Ok(match self.0.pop_front() {
                None => Piece::End,
                Some(Given::Zeros(zeros)) => Piece::Hole(zeros),
                Some(Given::Bytes(mut bytes)) => {
                    let taken = bytes.len().min(buffer.len());
                    buffer[..taken].copy_from_slice(&bytes[..taken]);
                    let rest = bytes.split_off(taken);
                    if !rest.is_empty() {
                        self.0.push_front(Given::Bytes(rest));
                    }
                    Piece::Data(taken)
                }
            })
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    fn add(
        store: &Store,
        given: Vec<Given>,
        bytes_max: u64,
        cancelled: bool,
    ) -> (Result<Content, AddError>, Contents) {
        let (guard, cancelled) = (store.guard(), AtomicBool::new(cancelled));
        let body = |writer: &mut ContentWriter<'_>| Ok(writer.add(&mut Script(given.into()), bytes_max));
        store.write_contents::<_, StoreError>(4096, &guard, &Quiet, &cancelled, body).unwrap()
    }

    #[test]
    fn a_content_has_its_bound_with_its_holes_and_is_refused_before_they_are_gone_through() {
        let (_dir, store) = store();
        let (bytes, zeros) = (|n| Given::Bytes(noise(1, n)), Given::Zeros);
        let contents: [fn() -> Vec<Given>; 3] = [
            || vec![Given::Bytes(noise(1, 10_000))],
            || vec![Given::Zeros(10_000)],
            || vec![Given::Bytes(noise(1, 5_000)), Given::Zeros(5_000)],
        ];
        for content in contents {
            assert_eq!(add(&store, content(), 10_000, false).0.unwrap().bytes, 10_000);
            assert!(matches!(add(&store, content(), 9_999, false).0, Err(AddError::TooLarge)));
        }
        let endless = vec![bytes(1), zeros(1 << 62)];
        assert!(matches!(add(&store, endless, 1 << 20, false).0, Err(AddError::TooLarge)));
        assert!(matches!(add(&store, vec![bytes(1)], 1, true).0, Err(AddError::Cancelled)));
    }

    #[test]
    fn new_chunks_and_bytes_are_counted() {
        let (_dir, store) = store();
        let (content, contents) = add(&store, vec![Given::Bytes(noise(1, 6_000))], 6_000, false);
        assert_eq!((content.unwrap().bytes, contents.bytes), (6_000, 6_000));
        assert_eq!(contents.new_chunks(), (2, 6_000), "noise does not become smaller");
    }

    #[test]
    fn a_hole_of_more_chunks_than_one_batch_may_have_is_taken_in_as_a_whole() {
        let (_dir, store) = store();
        let many = BATCH_CHUNKS_MAX + 2;
        let zeros = Given::Zeros(4096 * many as u64 + 1);
        let (content, contents) = add(&store, vec![zeros], u64::MAX, false);
        let NodeKind::File(id) = content.unwrap().kind else { panic!("no file") };
        assert_eq!((contents.objects[&id].chunks.len(), contents.new_chunks().0), (many + 1, 2));
    }

    /// Zeros have no place among the plain bytes of a batch, and one among the stored ones.
    #[test]
    fn a_batch_that_is_full_of_what_does_not_become_smaller_takes_a_hole_as_well() {
        let (_dir, store) = store();
        let back = noise(1, BATCH_BYTES);
        let given = vec![Given::Zeros(4096), Given::Bytes(back.clone())];
        let (content, contents) = add(&store, given, u64::MAX, false);
        let NodeKind::File(id) = content.unwrap().kind else { panic!("no file") };
        let chunks = &contents.objects[&id].chunks;
        let plain: Vec<u8> = chunks.iter().flat_map(|chunk| contents.plain_chunk(&store, chunk).unwrap()).collect();
        assert!(plain[..4096] == [0; 4096] && plain[4096..] == back);
    }

    /// Data that begins in the middle of a chunk, on both sides of a batch's end.
    #[test]
    fn wherever_data_and_holes_meet_the_content_is_the_same() {
        let batch = BATCH_BYTES;
        let in_the_last_chunk = [batch - 4096 + 100, 50, 5_000];
        for lengths in [
            [100, 50, 2 * batch],
            [batch - 10, 5_000, 10],
            [4096, 4096, 4096],
            [1, 10_000, batch + 1],
            in_the_last_chunk,
        ] {
            let (_dir, store) = store();
            let (front, back) = (noise(1, lengths[0]), noise(2, lengths[2]));
            let plain = [front.clone(), vec![0; lengths[1]], back.clone()].concat();
            let given = vec![Given::Bytes(front), Given::Zeros(lengths[1] as u64), Given::Bytes(back)];
            let (content, contents) = add(&store, given, u64::MAX, false);
            let NodeKind::File(id) = content.unwrap().kind else { panic!("no file") };
            assert_eq!((id, contents.heads[&id].as_slice()), (ObjectId::of(&plain), &plain[..4]));
            let chunks = &contents.objects[&id].chunks;
            assert_eq!(chunks.len(), plain.len().div_ceil(4096), "{lengths:?}");
            for (chunk, piece) in chunks.iter().zip(plain.chunks(4096)) {
                assert!(contents.plain_chunk(&store, chunk).unwrap() == piece, "{lengths:?}");
            }
        }
    }
}
