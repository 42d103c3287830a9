//! Files read: each from one descriptor, to the end that it had when it was opened.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;

use super::super::facts::Facts;
use super::super::format::id::Id;
use super::super::format::index::BlobKind;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::{At, node_of};
use super::super::source::Source;
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
    pub(super) path: PathBuf,
    pub(super) node: Node,
    /// What `node` was made of.
    pub(super) facts: Facts,
    pub(super) folder: Arc<Folder>,
    pub(super) place: usize,
    pub(super) is_new: bool,
}

/// A piece of a large file, to be stored by any thread.
pub(super) struct Piece<'a> {
    bytes: Vec<u8>,
    number: usize,
    file: Arc<OpenFile<'a>>,
}

/// A file of which not every piece is stored yet.
struct OpenFile<'a> {
    task: Mutex<Option<FileTask<'a>>>,
    pieces: Mutex<Vec<Option<Id>>>,
    /// Pieces that are not stored, and one for whoever reads.
    open: AtomicUsize,
    /// It could not be read to its end.
    lost: AtomicBool,
}

/// The bytes of one file that are still to be read.
struct Bytes {
    file: File,
    left: u64,
    ended: bool,
}

impl OpenFile<'_> {
    fn reserve(&self) -> usize {
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push(None);
        pieces.len() - 1
    }
}

impl<'a> Archive<'a> {
    pub(super) fn file(&self, mut task: FileTask<'a>, buffer: &mut Vec<u8>) -> Result<(), ArchiveFault> {
        self.meter.at(&task.path);
        let opened = match self.open(&mut task) {
            Ok(opened) => opened,
            Err(error) => return self.lost(&task, &error),
        };
        let size = task.facts.size;
        let left = if size == 0 { SIZELESS_BYTES_MAX } else { size };
        let mut bytes = Bytes { file: opened, left, ended: false };
        buffer.clear();
        // Most files are one piece, which needs none of what follows.
        if let Err(error) = self.fill(&mut bytes, buffer, self.chunker.min().saturating_add(1))? {
            return self.lost(&task, &error);
        }
        if bytes.ended && buffer.len() <= self.chunker.min() {
            let content = if buffer.is_empty() { Vec::new() } else { vec![self.packs.add(BlobKind::Data, buffer)?] };
            let read = buffer.len() as u64;
            self.look_again(&bytes.file, &task, read);
            return self.complete(self.settle(task, content, read));
        }
        self.pieces(task, bytes, buffer)
    }

    /// Cuts a file; the pieces are stored by whoever has time.
    fn pieces(&self, mut task: FileTask<'a>, mut bytes: Bytes, buffer: &mut Vec<u8>) -> Result<(), ArchiveFault> {
        let file = Arc::new(OpenFile {
            task: Mutex::new(None),
            pieces: Mutex::default(),
            open: AtomicUsize::new(1),
            lost: AtomicBool::new(false),
        });
        let (mut at, mut read) = (0, 0u64);
        loop {
            if buffer.len() - at < self.chunker.max() && !bytes.ended {
                // Twice the longest piece: at most every byte is moved once.
                buffer.drain(..at);
                at = 0;
                if let Err(error) = self.fill(&mut bytes, buffer, 2 * self.chunker.max())? {
                    file.lost.store(true, Ordering::Relaxed);
                    self.not_backed_up(&task.path, &error.to_string());
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
            self.look_again(&bytes.file, &task, read);
        }
        task.node.size = read;
        *file.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        self.stored(&file)
    }

    pub(super) fn piece(&self, piece: Piece<'a>) -> Result<(), ArchiveFault> {
        self.go_on()?;
        let id = self.packs.add(BlobKind::Data, &piece.bytes)?;
        if let Some(slot) = piece.file.pieces.lock().unwrap_or_else(PoisonError::into_inner).get_mut(piece.number) {
            *slot = Some(id);
        }
        self.stored(&piece.file)
    }

    /// One piece, or the reading itself, is done.
    fn stored(&self, file: &OpenFile<'a>) -> Result<(), ArchiveFault> {
        if file.open.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let Some(task) = file.task.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        if file.lost.load(Ordering::Relaxed) {
            return self.complete(task.folder.settle(task.place, None));
        }
        let content = std::mem::take(&mut *file.pieces.lock().unwrap_or_else(PoisonError::into_inner));
        let read = task.node.size;
        self.complete(self.settle(task, content.into_iter().flatten().collect(), read))
    }

    fn settle(&self, task: FileTask<'a>, content: Vec<Id>, read: u64) -> Option<Complete> {
        let count = if task.is_new { &self.counts.files_new } else { &self.counts.files_changed };
        count.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(read, Ordering::Relaxed);
        let FileTask { mut node, folder, place, .. } = task;
        (node.size, node.content) = (read, Some(content));
        folder.settle(place, Some(node))
    }

    fn lost(&self, task: &FileTask<'_>, error: &io::Error) -> Result<(), ArchiveFault> {
        self.not_backed_up(&task.path, &error.to_string());
        self.complete(task.folder.settle(task.place, None))
    }

    /// Opens what the walk saw. What took its name meanwhile is described as it is, and never waited for: opening a
    /// FIFO would block.
    fn open(&self, task: &mut FileTask<'_>) -> io::Result<File> {
        let file = task.source.read(&task.path, OFlags::empty())?;
        let facts = Facts::of(&file)?;
        if facts.kind != NodeKind::File {
            return Err(io::Error::other(format!("became a {} while the backup ran", facts.kind.word())));
        }
        if facts.identity != task.facts.identity {
            let problem = |problem| self.meter.problem(problem);
            task.node = node_of(At::Open(file.as_fd()), &task.path, &facts, &self.owners, problem)?;
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
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// What was read may be no state that the file ever had; whoever restores it should know.
    fn look_again(&self, file: &File, task: &FileTask<'_>, read: u64) {
        let (before, path) = (&task.facts, task.path.display());
        let Ok(after) = Facts::of(file) else { return };
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
