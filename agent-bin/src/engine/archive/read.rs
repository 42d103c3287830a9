//! Files read: each from one descriptor, to the end that it had when it was opened.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;

use super::super::facts::Facts;
use super::super::format::id::Id;
use super::super::format::index::BlobKind;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::{At, node_of};
use super::super::source::Source;
use super::checkpoint::{Checkpoint, GoOn};
use super::folder::{Complete, Folder};
use super::{Archive, ArchiveFault};

/// Between two looks whether the backup is to be stopped.
const READ_BYTES: usize = 1 << 20;
/// Files that the kernel makes up have no size (`/proc`); of those this much is read.
const SIZELESS_BYTES_MAX: u64 = 16 << 20;

/// A file that must be read.
pub(super) struct FileTask<'a> {
    /// What it is read beneath.
    pub(super) source: &'a Source,
    /// What its node was made of.
    pub(super) facts: Facts,
    pub(super) entry: Entry,
}

/// An entry of a directory whose content is to come.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) node: Node,
    pub(super) folder: Arc<Folder>,
    pub(super) place: usize,
    pub(super) is_new: bool,
}

/// A piece of a large file, to be stored by any thread.
pub(super) struct Piece {
    bytes: Vec<u8>,
    number: usize,
    file: Arc<OpenFile>,
}

/// A file of which not every piece is stored yet.
struct OpenFile {
    entry: Mutex<Option<Entry>>,
    pieces: Mutex<Vec<Option<Id>>>,
    /// Pieces that are not stored, and one for whoever reads.
    open: AtomicUsize,
    /// It could not be read to its end.
    lost: AtomicBool,
    /// Where it is noted how far it came.
    checkpoint: Option<Arc<Checkpoint>>,
}

/// The bytes of one file that are still to be read.
pub(super) struct Bytes {
    file: File,
    left: u64,
    ended: bool,
    /// What it was when it was opened; none: it is no file, but what a command prints.
    before: Option<Facts>,
}

impl Bytes {
    /// All that comes.
    pub(super) fn printed(file: File) -> Self {
        Self { file, left: u64::MAX, ended: false, before: None }
    }
}

impl OpenFile {
    fn new(go_on: Option<GoOn>) -> Self {
        let (checkpoint, pieces) = go_on.map_or_else(Default::default, |on| (Some(on.checkpoint), on.pieces));
        Self {
            entry: Mutex::new(None),
            pieces: Mutex::new(pieces.into_iter().map(Some).collect()),
            open: AtomicUsize::new(1),
            lost: AtomicBool::new(false),
            checkpoint,
        }
    }

    fn reserve(&self) -> usize {
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push(None);
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.reserve();
        }
        pieces.len() - 1
    }
}

impl<'a> Archive<'a> {
    pub(super) fn file(&self, mut task: FileTask<'a>, buffer: &mut Vec<u8>) -> Result<(), ArchiveFault> {
        self.meter.at(&task.entry.path);
        let opened = self.open(&mut task);
        let FileTask { facts, entry, .. } = task;
        let file = match opened {
            Ok(opened) => opened,
            Err(error) => return self.lost(&entry, &error),
        };
        let left = if facts.size == 0 { SIZELESS_BYTES_MAX } else { facts.size };
        let mut bytes = Bytes { file, left, ended: false, before: Some(facts) };
        buffer.clear();
        if let Some(go_on) = self.checkpoints.and_then(|all| all.begin(&entry.path, &facts, self.blobs.index())) {
            return self.further(entry, bytes, go_on, buffer);
        }
        // Most files are one piece, which needs none of what follows.
        if let Err(error) = self.fill(&mut bytes, buffer, self.chunker.min().saturating_add(1))? {
            return self.lost(&entry, &error);
        }
        if bytes.ended && buffer.len() <= self.chunker.min() {
            let content = if buffer.is_empty() { Vec::new() } else { vec![self.packs.add(BlobKind::Data, buffer)?] };
            let read = buffer.len() as u64;
            self.look_again(&bytes, &entry.path, read);
            return self.complete(self.settle(entry, content, read));
        }
        self.pieces(entry, bytes, None, buffer)
    }

    /// Reads what an earlier run has not.
    fn further(&self, entry: Entry, mut bytes: Bytes, go_on: GoOn, buffer: &mut Vec<u8>) -> Result<(), ArchiveFault> {
        if let Err(error) = bytes.file.seek(SeekFrom::Start(go_on.offset)) {
            return self.lost(&entry, &error);
        }
        bytes.left = bytes.left.saturating_sub(go_on.offset);
        bytes.ended = bytes.left == 0;
        self.meter.advance(go_on.offset);
        self.pieces(entry, bytes, Some(go_on), buffer)
    }

    /// Cuts a file; the pieces are stored by whoever has time.
    pub(super) fn pieces(
        &self,
        mut entry: Entry,
        mut bytes: Bytes,
        go_on: Option<GoOn>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ArchiveFault> {
        let (mut at, mut read) = (0, go_on.as_ref().map_or(0, |on| on.offset));
        let file = Arc::new(OpenFile::new(go_on));
        loop {
            if buffer.len() - at < self.chunker.max() && !bytes.ended {
                // Twice the longest piece: at most every byte is moved once.
                buffer.drain(..at);
                at = 0;
                if let Err(error) = self.fill(&mut bytes, buffer, 2 * self.chunker.max())? {
                    file.lost.store(true, Ordering::Relaxed);
                    self.not_backed_up(&entry.path, &error.to_string());
                    break;
                }
            }
            if at == buffer.len() {
                break;
            }
            let length = self.chunker.cut(&buffer[at..]);
            let number = file.reserve();
            let piece = Piece { bytes: buffer[at..at + length].to_vec(), number, file: Arc::clone(&file) };
            (at, read) = (at + length, read + length as u64);
            if let Some(piece) = self.queue.offer(piece) {
                self.piece(piece)?;
            }
        }
        if !file.lost.load(Ordering::Relaxed) {
            self.look_again(&bytes, &entry.path, read);
        }
        entry.node.size = read;
        *file.entry.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
        self.stored(&file)
    }

    pub(super) fn piece(&self, piece: Piece) -> Result<(), ArchiveFault> {
        self.go_on()?;
        let id = self.packs.add(BlobKind::Data, &piece.bytes)?;
        if let (Some(checkpoint), Some(checkpoints)) = (&piece.file.checkpoint, self.checkpoints) {
            checkpoint.stored(piece.number, id);
            checkpoints.note_if_due(self.packs);
        }
        if let Some(slot) = piece.file.pieces.lock().unwrap_or_else(PoisonError::into_inner).get_mut(piece.number) {
            *slot = Some(id);
        }
        self.stored(&piece.file)
    }

    /// One piece, or the reading itself, is done.
    fn stored(&self, file: &OpenFile) -> Result<(), ArchiveFault> {
        if file.open.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        if let Some(checkpoint) = &file.checkpoint {
            checkpoint.end();
        }
        let Some(entry) = file.entry.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        if file.lost.load(Ordering::Relaxed) {
            return self.complete(entry.folder.settle(entry.place, None));
        }
        let content = std::mem::take(&mut *file.pieces.lock().unwrap_or_else(PoisonError::into_inner));
        let read = entry.node.size;
        self.complete(self.settle(entry, content.into_iter().flatten().collect(), read))
    }

    fn settle(&self, entry: Entry, content: Vec<Id>, read: u64) -> Option<Complete> {
        let count = if entry.is_new { &self.counts.files_new } else { &self.counts.files_changed };
        count.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(read, Ordering::Relaxed);
        let Entry { mut node, folder, place, .. } = entry;
        (node.size, node.content) = (read, Some(content));
        folder.settle(place, Some(node))
    }

    fn lost(&self, entry: &Entry, error: &io::Error) -> Result<(), ArchiveFault> {
        self.not_backed_up(&entry.path, &error.to_string());
        self.complete(entry.folder.settle(entry.place, None))
    }

    /// Opens what the walk saw. What took its name meanwhile is described as it is, and never waited for: opening a
    /// FIFO would block.
    fn open(&self, task: &mut FileTask<'_>) -> io::Result<File> {
        let file = task.source.read(&task.entry.path, OFlags::empty())?;
        let facts = Facts::of(&file)?;
        if facts.kind != NodeKind::File {
            return Err(io::Error::other(format!("became a {} while the backup ran", facts.kind.word())));
        }
        if facts.identity != task.facts.identity {
            let problem = |problem| self.meter.problem(problem);
            task.entry.node = node_of(At::Open(file.as_fd()), &task.entry.path, &facts, &self.owners, problem)?;
        }
        task.facts = facts;
        Ok(file.into())
    }

    /// Reads until the buffer holds `wanted` bytes or the file ends.
    fn fill(&self, bytes: &mut Bytes, buffer: &mut Vec<u8>, wanted: usize) -> Result<io::Result<()>, ArchiveFault> {
        while !bytes.ended && buffer.len() < wanted {
            self.go_on()?;
            let step = (wanted - buffer.len()).min(READ_BYTES) as u64;
            // One byte more than is left would not tell a file that grew from one that did not: that is looked at once,
            // at the end.
            match (&mut bytes.file).take(step.min(bytes.left)).read_to_end(buffer) {
                Ok(read) => {
                    bytes.left -= read as u64;
                    bytes.ended = (read as u64) < step || bytes.left == 0;
                    self.meter.advance(read as u64);
                    self.reading.take(read);
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// What was read may be no state that the file ever had; whoever restores it should know.
    fn look_again(&self, bytes: &Bytes, path: &Path, read: u64) {
        let Some(before) = &bytes.before else { return };
        let (path, Ok(after)) = (path.display(), Facts::of(&bytes.file)) else { return };
        if after.size != before.size || (read != before.size && before.size != 0) {
            let (was, is) = (before.size, after.size);
            self.meter.problem(format!(
                "{path}: changed while it was read: it had {was} bytes, then {is}; {read} bytes are in the snapshot"
            ));
        } else if after.mtime != before.mtime {
            self.meter
                .problem(format!("{path}: was written to while it was read; its {read} bytes may not fit together"));
        }
    }
}
