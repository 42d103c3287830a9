//! The files of a repository, and the gate through which they are changed. Where they lie is a [`Store`]'s affair: in a
//! directory of this host ([`Directory`]), with another host's media agent, or with a storage elsewhere.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::id::Id;
use crate::draft;

/// Kinds of files of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// There is one, which has no id.
    Config,
    Key,
    Pack,
    Index,
    Snapshot,
    Lock,
}

impl FileKind {
    /// Those that have ids.
    pub(crate) const WITH_ID: [FileKind; 5] =
        [FileKind::Key, FileKind::Pack, FileKind::Index, FileKind::Snapshot, FileKind::Lock];

    /// Its directory in a repository; of [`FileKind::Config`] the file itself.
    pub(crate) fn name(self) -> &'static str {
        match self {
            FileKind::Config => "config",
            FileKind::Key => "keys",
            FileKind::Pack => "data",
            FileKind::Index => "index",
            FileKind::Snapshot => "snapshots",
            FileKind::Lock => "locks",
        }
    }
}

/// A file of a repository cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub(crate) struct FileFault {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Where a repository's files lie. Every call waits until it is done; what it is asked for is bounded by what it has.
/// Of [`FileKind::Config`] the id means nothing.
pub(crate) trait Store: fmt::Debug + Send + Sync {
    /// How people call a file.
    fn path(&self, kind: FileKind, id: &Id) -> PathBuf;

    /// Makes the place ready for a repository, where that needs anything.
    ///
    /// # Errors
    /// It cannot be.
    fn make(&self) -> Result<(), FileFault> {
        Ok(())
    }

    /// Every file of a kind, with its size in bytes.
    ///
    /// # Errors
    /// The place cannot be read.
    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault>;

    /// All of a file.
    ///
    /// # Errors
    /// It is not there (`NotFound`), or cannot be read.
    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault>;

    /// A part of a file, of just this length.
    ///
    /// # Errors
    /// It is not there, ends before, or cannot be read.
    fn read_part(&self, kind: FileKind, id: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault>;

    /// Bytes of a file.
    ///
    /// # Errors
    /// It is not there (`NotFound`), or cannot be looked at.
    fn bytes(&self, kind: FileKind, id: &Id) -> Result<u64, FileFault>;

    /// Writes a file whole, or not at all. Once this returns it survives a power cut.
    ///
    /// # Errors
    /// The place takes nothing; a config is there already (`AlreadyExists`), where that can be told.
    fn write(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> Result<(), FileFault>;

    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// The place does not let it go (`PermissionDenied`: not by us).
    fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault>;

    /// Whether a file is there; also where nobody can say.
    fn is_there(&self, kind: FileKind, id: &Id) -> bool;

    /// When a file was written; `None`: nobody can say.
    fn written_at(&self, kind: FileKind, id: &Id) -> Option<SystemTime>;
}

/// A repository's files. They are written whole or not at all, and are on the disk when the call returns.
#[derive(Debug)]
pub(crate) struct Files {
    store: Arc<dyn Store>,
    writes: Mutex<Writes>,
    fewer: Condvar,
}

/// Writers under way, and whether no further one may begin.
#[derive(Debug, Default)]
struct Writes {
    under_way: usize,
    closed: bool,
}

impl Files {
    /// Of a directory.
    pub(crate) fn new(root: &Path) -> Self {
        Self::of(Arc::new(Directory { root: root.to_owned() }))
    }

    pub(crate) fn of(store: Arc<dyn Store>) -> Self {
        Self { store, writes: Mutex::default(), fewer: Condvar::new() }
    }

    /// Where a file is.
    #[cfg(test)]
    pub(crate) fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        self.store.path(kind, id)
    }

    /// Every file of a kind, with its size in bytes.
    pub(crate) fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault> {
        self.store.list(kind)
    }

    /// All of a file.
    pub(crate) fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault> {
        self.store.read(kind, id)
    }

    /// A part of a pack.
    pub(super) fn read_part(&self, pack: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault> {
        self.store.read_part(FileKind::Pack, pack, offset, length)
    }

    /// Writes a file under the name that its content has. Once this returns it survives a power cut.
    pub(crate) fn write(&self, kind: FileKind, bytes: &[u8]) -> Result<Id, FileFault> {
        let id = Id::of(bytes);
        let _turn = self.begin(&self.store.path(kind, &id))?;
        self.store.write(kind, &id, bytes)?;
        Ok(id)
    }

    /// Removes a file; one that is not there is removed already.
    pub(crate) fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault> {
        self.store.remove(kind, id)
    }

    pub(crate) fn is_there(&self, kind: FileKind, id: &Id) -> bool {
        self.store.is_there(kind, id)
    }

    pub(super) fn written_at(&self, kind: FileKind, id: &Id) -> Option<SystemTime> {
        self.store.written_at(kind, id)
    }

    /// Lets no further write begin, and waits until none is under way; whether that came about in time. Then the
    /// repository's lock may go, whatever the operation's threads are stuck in.
    pub(crate) fn close(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.closed = true;
        while writes.under_way > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            writes = self.fewer.wait_timeout(writes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A turn to write, which ends when it is dropped.
    pub(super) fn begin(&self, path: &Path) -> Result<Turn<'_>, FileFault> {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if writes.closed {
            let source = io::Error::other("the operation that wants to write has been given up");
            return Err(FileFault { path: path.to_owned(), source });
        }
        writes.under_way += 1;
        Ok(Turn(self))
    }
}

/// One write under way.
pub(super) struct Turn<'a>(&'a Files);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.writes.lock().unwrap_or_else(PoisonError::into_inner).under_way -= 1;
        self.0.fewer.notify_all();
    }
}

/// A repository in a directory of this host.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) root: PathBuf,
}

impl Store for Directory {
    fn path(&self, kind: FileKind, id: &Id) -> PathBuf {
        let (directory, name) = (self.root.join(kind.name()), id.to_string());
        match kind {
            FileKind::Config => directory,
            // Two hundred and fifty-six directories keep each one short.
            FileKind::Pack => directory.join(&name[..2]).join(name),
            FileKind::Key | FileKind::Index | FileKind::Snapshot | FileKind::Lock => directory.join(name),
        }
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, FileFault> {
        let directory = self.root.join(kind.name());
        let mut found = Vec::new();
        if kind == FileKind::Pack {
            for entry in read_directory(&directory)? {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    files_in(&entry.path(), &mut found)?;
                }
            }
        } else if kind != FileKind::Config {
            files_in(&directory, &mut found)?;
        }
        Ok(found)
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>, FileFault> {
        let path = self.path(kind, id);
        fs::read(&path).map_err(|source| FileFault { path, source })
    }

    fn read_part(&self, kind: FileKind, id: &Id, offset: u64, length: usize) -> Result<Vec<u8>, FileFault> {
        let path = self.path(kind, id);
        let mut bytes = vec![0; length];
        match File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, offset)) {
            Ok(()) => Ok(bytes),
            Err(source) => Err(FileFault { path, source }),
        }
    }

    fn bytes(&self, kind: FileKind, id: &Id) -> Result<u64, FileFault> {
        let path = self.path(kind, id);
        fs::metadata(&path).map(|found| found.len()).map_err(|source| FileFault { path, source })
    }

    fn write(&self, kind: FileKind, id: &Id, bytes: &[u8]) -> Result<(), FileFault> {
        let path = self.path(kind, id);
        put(&path, bytes).map_err(|source| FileFault { path, source })
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<(), FileFault> {
        let path = self.path(kind, id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FileFault { path, source }),
            _ => Ok(()),
        }
    }

    fn is_there(&self, kind: FileKind, id: &Id) -> bool {
        self.path(kind, id).exists()
    }

    fn written_at(&self, kind: FileKind, id: &Id) -> Option<SystemTime> {
        fs::metadata(self.path(kind, id)).and_then(|metadata| metadata.modified()).ok()
    }
}

fn read_directory(path: &Path) -> Result<Vec<fs::DirEntry>, FileFault> {
    match fs::read_dir(path).and_then(Iterator::collect) {
        // Git and some object stores do not keep empty directories.
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(|source| FileFault { path: path.to_owned(), source }),
    }
}

fn files_in(directory: &Path, found: &mut Vec<(Id, u64)>) -> Result<(), FileFault> {
    for entry in read_directory(directory)? {
        // Drafts and strangers have other names.
        let Some(id) = entry.file_name().to_str().and_then(Id::parse) else { continue };
        match entry.metadata() {
            Ok(metadata) => found.push((id, metadata.len())),
            // Removed by someone else since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(FileFault { path: entry.path(), source }),
        }
    }
    Ok(())
}

/// Whole or not at all: under another name first, as restic does, then renamed.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!("-tmp-{}", draft::mark()));
    let draft = PathBuf::from(draft);
    let written = fill(&draft, bytes).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => fs::create_dir_all(parent).and_then(|()| fill(&draft, bytes)),
        _ => Err(error),
    });
    let put = written.and_then(|()| fs::rename(&draft, path)).and_then(|()| File::open(parent)?.sync_all());
    put.inspect_err(|_| drop(fs::remove_file(&draft)))
}

fn fill(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_listed_read_and_removed_by_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        assert!(files.list(FileKind::Pack).unwrap().is_empty());
        for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot, FileKind::Lock] {
            let id = files.write(kind, b"content").unwrap();
            assert_eq!(files.list(kind).unwrap(), [(id, 7)]);
            assert_eq!(files.read(kind, &id).unwrap(), b"content");
            files.remove(kind, &id).unwrap();
            files.remove(kind, &id).unwrap();
            assert!(files.list(kind).unwrap().is_empty());
        }
    }

    #[test]
    fn once_closed_nothing_is_written_and_a_write_under_way_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let turn = files.begin(dir.path()).unwrap();
        assert!(!files.close(Duration::from_millis(10)));
        drop(turn);
        assert!(files.close(Duration::from_secs(10)));
        let refused = files.write(FileKind::Lock, b"late").unwrap_err();
        assert!(refused.to_string().contains("given up"), "{refused}");
    }
}
