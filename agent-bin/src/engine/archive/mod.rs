//! A backup: directories walked, files read and cut, pieces stored, directories stored behind their entries.
//!
//! One thread walks and looks at metadata; some more read, hash, compress and seal. Nothing waits for order: a directory
//! is stored by whoever finishes its last entry ([`folder`]). The size that is stored is what was read.

mod checkpoint;
mod folder;
mod output;
mod queue;
mod read;
mod scan;
mod sources;
mod walk;

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustic_core::jiff::Timestamp;

use super::SharedMeter;
use super::fault::panic_text;
use super::format::blobs::Blobs;
use super::format::chunker::Chunker;
use super::format::id::Id;
use super::format::index::BlobKind;
use super::format::pace::Pace;
use super::format::packs::{Packs, StoreFault};
use super::live::Owners;
use super::selection::Selection;
use super::source::Source;
pub(super) use checkpoint::Checkpoints;
use folder::{Complete, Folder};
use queue::{Queue, Work};
use read::{FileTask, Piece};
use sources::Branch;

/// Threads that read, hash and compress: one a processor, but two at least, so that one can wait for the disk.
const THREADS: std::ops::RangeInclusive<usize> = 2..=16;
/// The most that somebody can ask for.
const THREADS_MAX: usize = 64;

/// What is backed up.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// What lies there.
    Sources(&'a [Source]),
    /// What comes out of it, as the one file at an absolute path.
    Output(&'a Path, &'a File),
}

/// What is backed up, and how.
pub(super) struct Order<'a> {
    pub(super) input: Input<'a>,
    /// How fast it may be read.
    pub(super) reading: &'a Pace,
    pub(super) parent: Option<Parent>,
    /// What of them is left out.
    pub(super) selection: &'a Selection,
    /// How many threads read; none: as many as there are processors.
    pub(super) readers: Option<u8>,
    /// Where large files go on; none: at their beginning.
    pub(super) checkpoints: Option<&'a Checkpoints>,
}

/// The snapshot that unchanged files are taken from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parent {
    /// Its tree.
    pub(super) tree: Id,
    /// When it began. A file that was changed no more than a moment before may have been changed again after it was
    /// read, within one tick of the clock that stamps files; it is read anew.
    pub(super) began: Timestamp,
}

/// What a backup did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) files_new: u64,
    pub(super) files_changed: u64,
    pub(super) files_unmodified: u64,
    pub(super) dirs_new: u64,
    pub(super) dirs_changed: u64,
    pub(super) dirs_unmodified: u64,
    pub(super) bytes: u64,
}

/// Why a backup ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveFault {
    #[error("stopped on request")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreFault),
    #[error("a directory cannot be written down: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("what a command prints cannot be read: {0}")]
    Output(io::Error),
    #[error("a thread of the backup failed: {0}")]
    Panicked(String),
}

struct Archive<'a> {
    blobs: &'a Blobs<'a>,
    packs: &'a Packs<'a>,
    chunker: &'a Chunker,
    meter: &'a SharedMeter,
    owners: Owners,
    parent: Option<Parent>,
    selection: &'a Selection,
    reading: &'a Pace,
    checkpoints: Option<&'a Checkpoints>,
    queue: Queue<FileTask<'a>, Piece>,
    ended: Mutex<Option<Result<Id, ArchiveFault>>>,
    end: Condvar,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    files_new: AtomicU64,
    files_changed: AtomicU64,
    files_unmodified: AtomicU64,
    dirs_new: AtomicU64,
    dirs_changed: AtomicU64,
    dirs_unmodified: AtomicU64,
    bytes: AtomicU64,
}

/// Stores the sources; returns the root's tree, which a snapshot may name after [`Packs::finish`].
///
/// # Errors
/// It was stopped, or the repository does not take what is to be stored. What of a source cannot be read is a problem of
/// the meter's and no error.
pub(super) fn archive<'a>(
    blobs: &'a Blobs<'a>,
    packs: &'a Packs<'a>,
    chunker: &'a Chunker,
    order: &'a Order<'a>,
    meter: &'a SharedMeter,
) -> Result<(Id, Seen), ArchiveFault> {
    let archive = Archive {
        blobs,
        packs,
        chunker,
        meter,
        owners: Owners::default(),
        parent: order.parent,
        selection: order.selection,
        reading: order.reading,
        checkpoints: order.checkpoints,
        queue: Queue::new(),
        ended: Mutex::new(None),
        end: Condvar::new(),
        counts: Counts::default(),
    };
    let own = || std::thread::available_parallelism().map_or(2, usize::from).clamp(*THREADS.start(), *THREADS.end());
    let threads = order.readers.map_or_else(own, |readers| usize::from(readers).clamp(1, THREADS_MAX));
    let root = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| archive.work());
        }
        let root = Folder::root(order.parent.map(|parent| parent.tree));
        match order.input {
            Input::Sources(sources) => {
                // With a snapshot before, what that one had is near enough.
                if order.parent.is_none() {
                    scope.spawn(|| archive.scan(sources));
                }
                let branches = Branch::of(sources.iter().map(|source| (source.path(), source)));
                archive.guarded(|| archive.walk(&root, &branches));
            }
            Input::Output(path, from) => archive.guarded(|| archive.output(&root, path, from)),
        }
        let root = archive.wait();
        archive.queue.close();
        root
    })?;
    Ok((root, archive.counts.read()))
}

impl Archive<'_> {
    /// One of the threads that read and store.
    fn work(&self) {
        let mut buffer = Vec::new();
        while let Some(work) = self.queue.take() {
            self.guarded(|| match work {
                Work::File(task) => self.file(task, &mut buffer),
                Work::Piece(piece) => self.piece(piece),
            });
        }
    }

    /// Every error ends the backup, and so does a panic; neither leaves anybody waiting.
    fn guarded(&self, act: impl FnOnce() -> Result<(), ArchiveFault>) {
        let fault = match catch_unwind(AssertUnwindSafe(act)) {
            Ok(Ok(())) => return,
            Ok(Err(fault)) => fault,
            Err(panic) => ArchiveFault::Panicked(panic_text(&*panic)),
        };
        self.end_with(Err(fault));
    }

    /// The first end counts.
    fn end_with(&self, end: Result<Id, ArchiveFault>) {
        let failed = end.is_err();
        self.lock().get_or_insert(end);
        if failed {
            // The walk may be waiting for room.
            self.queue.close();
        }
        self.end.notify_all();
    }

    fn wait(&self) -> Result<Id, ArchiveFault> {
        let under_way = |end: &mut Option<Result<Id, ArchiveFault>>| end.is_none();
        let mut end = self.end.wait_while(self.lock(), under_way).unwrap_or_else(PoisonError::into_inner);
        end.take().unwrap_or(Err(ArchiveFault::Stopped))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<Id, ArchiveFault>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is nothing more to be done.
    fn is_over(&self) -> bool {
        self.meter.is_stopped() || self.queue.is_closed()
    }

    fn go_on(&self) -> Result<(), ArchiveFault> {
        if self.meter.is_stopped() { Err(ArchiveFault::Stopped) } else { Ok(()) }
    }

    /// Stores a directory whose entries are all there, and those above it that it completes.
    fn complete(&self, complete: Option<Complete>) -> Result<(), ArchiveFault> {
        let mut next = complete;
        while let Some(Complete { folder, tree }) = next {
            let tree = self.packs.add(BlobKind::Tree, &tree.encode()?)?;
            let count = match folder.before {
                None => &self.counts.dirs_new,
                Some(before) if before == tree => &self.counts.dirs_unmodified,
                Some(_) => &self.counts.dirs_changed,
            };
            if folder.is_root() {
                self.end_with(Ok(tree));
                return Ok(());
            }
            count.fetch_add(1, Ordering::Relaxed);
            next = folder.stored(tree);
        }
        Ok(())
    }
}

impl Counts {
    fn read(&self) -> Seen {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen {
            files_new: read(&self.files_new),
            files_changed: read(&self.files_changed),
            files_unmodified: read(&self.files_unmodified),
            dirs_new: read(&self.dirs_new),
            dirs_changed: read(&self.dirs_changed),
            dirs_unmodified: read(&self.dirs_unmodified),
            bytes: read(&self.bytes),
        }
    }
}
