//! One object being filled: a sparse file in which every present chunk, or page of a chunk, was verified.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::ObjectId;
use proto::id::ChunkId;
use proto::manifest::Object;
use proto::proof::{PAGE_BYTES, PageSet};
use proto::width;
use rustix::fs::SeekFrom;

use super::{CacheError, make_private_dir};
use crate::sync::lock;

/// An object of which some chunks may be missing.
#[derive(Debug)]
pub struct Partial {
    pub(super) object: ObjectId,
    pub(super) bytes: u64,
    pub(super) chunk_bytes: u32,
    /// For reading only: an executable that anyone has open for writing cannot be executed (`ETXTBSY`).
    pub(super) reader: File,
    /// Gone once the object is whole.
    writer: Mutex<Option<File>>,
    pub(super) path: PathBuf,
    chunks: Mutex<Chunks>,
    /// End of the last read, for recognising sequential readers.
    pub(crate) next_offset: AtomicU64,
    /// How far ahead to fetch, bytes.
    pub(crate) window_bytes: AtomicU64,
}

#[derive(Debug)]
struct Chunks {
    states: Vec<ChunkState>,
    present: usize,
    /// Pages of chunks that are not present. They cannot be verified alone, so a later process knows nothing of them.
    pages: HashMap<u32, PageSet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Absent,
    /// The file has data there from an earlier process. No bitmap is trusted: it is hashed before its first use.
    Unverified,
    Present,
}

impl Partial {
    pub(super) fn open(root: &Path, object: &Object, chunk_bytes: u32) -> Result<Self, CacheError> {
        let path = partial_path(root, &object.id, chunk_bytes);
        let fail = |e| CacheError::io("open", &path, e);
        make_private_dir(path.parent().unwrap_or(root))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        let reader = File::open(&path).map_err(fail)?;
        let mut states = vec![ChunkState::Absent; object.chunks.len()];
        if file.metadata().map_err(fail)?.len() == object.bytes {
            mark_candidates(&file, chunk_bytes, &mut states).map_err(fail)?;
        } else {
            file.set_len(0).and_then(|()| file.set_len(object.bytes)).map_err(fail)?;
        }
        Ok(Self {
            object: object.id,
            bytes: object.bytes,
            chunk_bytes,
            reader,
            writer: Mutex::new(Some(file)),
            path,
            chunks: Mutex::new(Chunks { states, present: 0, pages: HashMap::new() }),
            next_offset: AtomicU64::new(0),
            window_bytes: AtomicU64::new(0),
        })
    }

    /// Whether the chunk can be read here. One that an earlier process left is hashed first and dropped if wrong.
    pub(crate) fn has(&self, index: u32, id: &ChunkId) -> bool {
        match self.state(index) {
            ChunkState::Present => true,
            ChunkState::Absent => false,
            ChunkState::Unverified => {
                let right = self.read_chunk(index).is_ok_and(|bytes| ChunkId::of(&bytes) == *id);
                self.set_state(index, if right { ChunkState::Present } else { ChunkState::Absent });
                right
            }
        }
    }

    /// Whether these bytes can be read here, chunk by chunk or page by page.
    pub(crate) fn has_range(&self, object: &Object, offset: u64, len: usize) -> bool {
        let (chunk, end) = (u64::from(self.chunk_bytes), offset + len as u64);
        (offset / chunk..end.div_ceil(chunk)).all(|index| {
            let start = index * chunk;
            let (first, past) = (offset.max(start) - start, end.min(start + chunk) - start);
            let pages =
                width::count(first / u64::from(PAGE_BYTES))..width::count(past.div_ceil(u64::from(PAGE_BYTES)));
            let index = width::count(index);
            self.has_pages(index, pages) || object.chunks.get(index as usize).is_some_and(|id| self.has(index, id))
        })
    }

    fn has_pages(&self, index: u32, mut pages: std::ops::Range<u32>) -> bool {
        let chunks = lock(&self.chunks);
        chunks.pages.get(&index).is_some_and(|set| pages.all(|page| set.contains(page)))
    }

    /// Writes verified pages of a chunk (`plain`: their bytes, one after another); returns by how many bytes the file
    /// has grown.
    pub(super) fn write_pages(&self, index: u32, pages: &PageSet, plain: &[u8]) -> io::Result<u64> {
        if self.state(index) == ChunkState::Present {
            return Ok(0);
        }
        let start = u64::from(index) * u64::from(self.chunk_bytes);
        let writer = lock(&self.writer);
        let file = writer.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut rest = plain;
        for run in pages.runs() {
            let len = (usize::from(run.count) * PAGE_BYTES as usize).min(rest.len());
            let (bytes, after) = rest.split_at(len);
            file.write_all_at(bytes, start + u64::from(run.first) * u64::from(PAGE_BYTES))?;
            rest = after;
        }
        drop(writer);
        let mut chunks = lock(&self.chunks);
        let known = chunks.pages.entry(index).or_default();
        pages
            .runs()
            .iter()
            .flat_map(|run| run.first..run.first + run.count)
            .for_each(|page| known.insert(page.into()));
        Ok(plain.len() as u64)
    }

    /// Whether every chunk is present (and was verified by this process).
    pub(crate) fn is_complete(&self) -> bool {
        let chunks = lock(&self.chunks);
        chunks.present == chunks.states.len()
    }

    /// Fills `into` from `offset`; the caller has made sure of the chunks.
    pub(crate) fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.reader.read_exact_at(into, offset)
    }

    /// Writes a verified chunk and returns by how many bytes the file has grown.
    pub(super) fn write(&self, index: u32, bytes: &[u8]) -> io::Result<u64> {
        if self.state(index) == ChunkState::Present {
            return Ok(0);
        }
        let writer = lock(&self.writer);
        let file = writer.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let offset = u64::from(index) * u64::from(self.chunk_bytes);
        // A file that is sparse in its source stays sparse here.
        if bytes.iter().any(|byte| *byte != 0) || punch_hole(file, offset, bytes.len()).is_err() {
            file.write_all_at(bytes, offset)?;
        }
        drop(writer);
        let pages = lock(&self.chunks).pages.get(&index).map_or(0, |set| set.bytes(width::count(bytes.len())));
        self.set_state(index, ChunkState::Present);
        Ok((bytes.len() as u64).saturating_sub(pages.into()))
    }

    /// Whether it has pages that would be lost if it were closed.
    pub(super) fn has_lone_pages(&self) -> bool {
        !lock(&self.chunks).pages.is_empty()
    }

    /// Forgets everything: the whole did not hash to the object's id.
    pub(super) fn reset(&self) -> io::Result<()> {
        let mut chunks = lock(&self.chunks);
        chunks.states.fill(ChunkState::Absent);
        chunks.present = 0;
        chunks.pages.clear();
        match lock(&self.writer).as_ref() {
            Some(file) => file.set_len(0).and_then(|()| file.set_len(self.bytes)),
            None => Ok(()),
        }
    }

    /// Ends writing: read-only for everyone, durable if `sync`. `false` if another thread has done it.
    pub(super) fn seal(&self, sync: bool) -> io::Result<bool> {
        let Some(file) = lock(&self.writer).take() else { return Ok(false) };
        file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
        if sync {
            file.sync_all()?;
        }
        Ok(true)
    }

    /// Whether the object has been sealed: it is local, or about to be.
    pub(super) fn is_sealed(&self) -> bool {
        lock(&self.writer).is_none()
    }

    /// Notes a read and returns how many bytes after it are worth fetching ahead: nothing until a reader is seen to
    /// go on where it stopped, then twice as much each time, up to `max_bytes`.
    pub(crate) fn note_read(&self, offset: u64, len: u64, max_bytes: u64) -> u64 {
        let expected = self.next_offset.swap(offset + len, Ordering::Relaxed);
        if offset != expected || offset == 0 {
            self.window_bytes.store(0, Ordering::Relaxed);
            return 0;
        }
        let grown = (self.window_bytes.load(Ordering::Relaxed) * 2).clamp(256 << 10, max_bytes.max(256 << 10));
        self.window_bytes.store(grown, Ordering::Relaxed);
        grown.min(max_bytes)
    }

    fn read_chunk(&self, index: u32) -> io::Result<Vec<u8>> {
        let start = u64::from(index) * u64::from(self.chunk_bytes);
        let len = (self.bytes - start).min(u64::from(self.chunk_bytes));
        let mut bytes = vec![0; width::index(len)];
        self.reader.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }

    fn state(&self, index: u32) -> ChunkState {
        lock(&self.chunks).states.get(index as usize).copied().unwrap_or(ChunkState::Absent)
    }

    fn set_state(&self, index: u32, state: ChunkState) {
        let mut chunks = lock(&self.chunks);
        let Some(slot) = chunks.states.get_mut(index as usize) else { return };
        let was = std::mem::replace(slot, state);
        if state == ChunkState::Present {
            chunks.pages.remove(&index);
        }
        match (was == ChunkState::Present, state == ChunkState::Present) {
            (false, true) => chunks.present += 1,
            (true, false) => chunks.present -= 1,
            _ => {}
        }
    }
}

/// Makes a range read as zeros without a byte on the disk, whatever lay there.
fn punch_hole(file: &File, offset: u64, len: usize) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, len as u64)?)
}

pub(super) fn partial_path(root: &Path, object: &ObjectId, chunk_bytes: u32) -> PathBuf {
    let (shard, rest) = object.to_shard();
    root.join(shard).join(format!("{rest}.{chunk_bytes}"))
}

/// Chunks that lie wholly in data extents may have been written; all others were not.
fn mark_candidates(file: &File, chunk_bytes: u32, states: &mut [ChunkState]) -> io::Result<()> {
    let len = file.metadata()?.len();
    let chunk = u64::from(chunk_bytes);
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        let first = width::index(start.div_ceil(chunk));
        let past = if end >= len { states.len() } else { width::index(end / chunk) };
        if first < past {
            states[first..past].fill(ChunkState::Unverified);
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(content: &[u8], chunk: usize) -> Object {
        Object {
            id: ObjectId::of(content),
            bytes: content.len() as u64,
            chunks: content.chunks(chunk).map(ChunkId::of).collect(),
        }
    }

    #[test]
    fn after_a_restart_chunks_are_believed_only_when_they_hash_right() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8 + 1).collect();
        let object = object(&content, 4096);
        let first = Partial::open(dir.path(), &object, 4096).unwrap();
        first.write(2, &content[8192..12288]).unwrap();
        first.write(9, &content[36864..]).unwrap();
        first.write(5, &[7; 4096]).unwrap();
        drop(first);
        let second = Partial::open(dir.path(), &object, 4096).unwrap();
        let present: Vec<u32> = (0..10).filter(|i| second.has(*i, &object.chunks[*i as usize])).collect();
        assert_eq!(present, [2, 9], "5 has wrong bytes, the others were never written");
        assert!(!second.is_complete());
    }

    #[test]
    fn zeros_take_no_room_and_replace_what_lay_there() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let content = [vec![1; 65_536], vec![0; 1 << 20]].concat();
        let object = object(&content, 65_536);
        let partial = Partial::open(dir.path(), &object, 65_536).unwrap();
        partial.write(5, &[7; 65_536]).unwrap();
        drop(partial);
        let partial = Partial::open(dir.path(), &object, 65_536).unwrap();
        assert!(!partial.has(5, &object.chunks[5]), "an earlier process left wrong bytes");
        for (index, chunk) in content.chunks(65_536).enumerate() {
            partial.write(width::count(index), chunk).unwrap();
        }
        let mut read = vec![9; content.len()];
        partial.read_at(&mut read, 0).unwrap();
        assert!(partial.is_complete() && read == content);
        let on_disk = std::fs::metadata(&partial.path).unwrap().blocks() * 512;
        assert!(on_disk < 3 * 65_536, "{on_disk} bytes");
    }

    #[test]
    fn pages_are_present_before_their_chunk_is_and_not_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..150_000u32).map(|i| (i % 251) as u8 + 1).collect();
        let object = object(&content, 65_536);
        let partial = Partial::open(dir.path(), &object, 65_536).unwrap();
        let mut pages = PageSet::default();
        [0, 3, 4].into_iter().for_each(|page| pages.insert(page));
        let plain = [&content[65_536..69_632], &content[77_824..86_016]].concat();
        assert_eq!(partial.write_pages(1, &pages, &plain).unwrap(), 12_288);
        let has = |offset, len| partial.has_range(&object, offset, len);
        assert!(has(65_536, 4096) && has(78_000, 8_000) && has(77_824, 1));
        assert!(!has(65_535, 2) && !has(69_632, 1) && !has(65_536, 20_000));
        let mut read = vec![0; 8_192];
        partial.read_at(&mut read, 77_824).unwrap();
        assert_eq!(read, content[77_824..86_016]);
        partial.write(1, &content[65_536..131_072]).unwrap();
        assert!(has(65_536, 65_536) && !has(65_536, 65_537));
        drop(partial);
        let again = Partial::open(dir.path(), &object, 65_536).unwrap();
        again.write_pages(2, &PageSet::whole(18_928), &content[131_072..]).unwrap();
        drop(again);
        let again = Partial::open(dir.path(), &object, 65_536).unwrap();
        assert!(again.has_range(&object, 65_536, 65_536), "a whole chunk that hashes right");
        let mut some = PageSet::default();
        some.insert(1);
        again.write_pages(0, &some, &content[4_096..8_192]).unwrap();
        drop(again);
        assert!(!Partial::open(dir.path(), &object, 65_536).unwrap().has_range(&object, 4_096, 4_096));
    }

    #[test]
    fn read_ahead_waits_for_a_second_sequential_read_and_doubles() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::open(dir.path(), &object(&[1; 9000], 4096), 4096).unwrap();
        let max = 1 << 20;
        assert_eq!(partial.note_read(0, 100, max), 0);
        assert_eq!(partial.note_read(100, 100, max), 256 << 10);
        assert_eq!(partial.note_read(200, 100, max), 512 << 10);
        assert_eq!(partial.note_read(5000, 100, max), 0, "a jump ends it");
        assert_eq!(partial.note_read(5100, 100, 0), 0, "and it can be switched off");
    }
}
