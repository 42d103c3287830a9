//! Where immutable bytes lie: a directory here, an object store later.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proto::TreeId;
use rustix::fs::RenameFlags;

use super::pack_id::PackId;
use crate::moments::{self, Moment};
use crate::sync::lock;

/// The name of an immutable blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobName {
    /// Chunks and their index.
    Pack(PackId),
    /// The bytes of a tree's manifest.
    Manifest(TreeId),
    /// What turns the first tree into the second.
    Delta(TreeId, TreeId),
    /// What the start of the second tree touches first, for hosts that have the first, or nothing.
    Bundle(Option<TreeId>, TreeId),
}

/// Which blobs to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobKind {
    /// Packs of chunks; each is immutable, and named by its index's hash.
    Pack,
    /// Manifests, named by the tree.
    Manifest,
    /// Deltas, named by the trees that they are from and to.
    Delta,
    /// All start-up bundles.
    Bundle,
}

/// What became of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now, durably.
    Stored,
    /// It was there already; the draft was dropped.
    AlreadyThere,
}

/// Immutable blobs: put if absent, get a range, list, delete.
///
/// Every method may be called from several threads at once. A blob becomes visible whole or not at all.
pub trait PackStore: Send + Sync {
    /// Starts a blob that nobody sees before [`Draft::commit`].
    fn create(&self) -> io::Result<Box<dyn Draft>>;
    /// The length of a blob, bytes; `None` when it is not there.
    fn size(&self, name: &BlobName) -> io::Result<Option<u64>>;
    /// A part of a blob. [`io::ErrorKind::NotFound`] when it is not there, `UnexpectedEof` when it is shorter.
    fn get(&self, name: &BlobName, range: Range<u64>) -> io::Result<Vec<u8>>;
    /// Every blob of this kind, in order.
    fn list(&self, kind: BlobKind) -> io::Result<Vec<BlobName>>;
    /// Removes a blob; one that is not there is no error.
    fn delete(&self, name: &BlobName) -> io::Result<()>;
}

/// A blob that is being written. Dropping it leaves nothing behind.
pub trait Draft: Send {
    /// Writes these bytes after what was appended before.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Reads back what was appended.
    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>>;
    /// Makes it durable and visible under `name`, unless something is there already.
    fn commit(self: Box<Self>, name: &BlobName) -> io::Result<Put>;
    /// As [`Draft::commit`], in the place of what is there, in one step: at every moment one of the two is.
    fn replace(self: Box<Self>, name: &BlobName) -> io::Result<()>;
}

/// Open packs kept for reading; more would only hold descriptors.
const OPEN_FILES_MAX: usize = 128;

/// Blobs as files below one directory: `packs/<2 hex>/<62 hex>.pack`, `manifests/<2 hex>/<62 hex>`,
/// `deltas/<2 hex>/<62 hex>-<64 hex>` (from, to), `bundles/<2 hex>/<62 hex>` with `-<64 hex>` where it starts from another
/// tree, drafts in `tmp/`.
pub struct LocalPacks {
    layout: Layout,
    drafts: AtomicU64,
    open: Arc<OpenFiles>,
}

type OpenFiles = Mutex<HashMap<BlobName, Arc<File>>>;

impl LocalPacks {
    /// Makes the directories, and removes the drafts that a crash has left. The caller holds the store's lock.
    ///
    /// # Errors
    /// A directory cannot be made, or a draft cannot be removed.
    pub fn open(root: &Path) -> io::Result<Self> {
        for name in ["packs", "manifests", "deltas", "bundles", "tmp"] {
            make_dir(&root.join(name))?;
        }
        for draft in fs::read_dir(root.join("tmp"))? {
            let draft = draft?;
            let path = draft.path();
            if draft.file_type()?.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        let layout = Layout { root: root.to_path_buf() };
        Ok(Self { layout, drafts: AtomicU64::new(0), open: Arc::default() })
    }

    fn file(&self, name: &BlobName) -> io::Result<Arc<File>> {
        if let Some(file) = lock(&self.open).get(name) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.layout.path(name))?);
        if matches!(name, BlobName::Pack(_)) {
            let mut open = lock(&self.open);
            if open.len() >= OPEN_FILES_MAX {
                open.clear();
            }
            open.insert(*name, file.clone());
        }
        Ok(file)
    }
}

impl PackStore for LocalPacks {
    fn create(&self) -> io::Result<Box<dyn Draft>> {
        let number = self.drafts.fetch_add(1, Ordering::Relaxed);
        let path = self.layout.root.join("tmp").join(format!("{number:016x}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Box::new(LocalDraft { layout: self.layout.clone(), open: Arc::clone(&self.open), path, file }))
    }

    fn size(&self, name: &BlobName) -> io::Result<Option<u64>> {
        match fs::metadata(self.layout.path(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn get(&self, name: &BlobName, range: Range<u64>) -> io::Result<Vec<u8>> {
        read_range(&*self.file(name)?, range)
    }

    fn list(&self, kind: BlobKind) -> io::Result<Vec<BlobName>> {
        let (folder, suffix) = match kind {
            BlobKind::Pack => ("packs", ".pack"),
            BlobKind::Manifest => ("manifests", ""),
            BlobKind::Delta => ("deltas", ""),
            BlobKind::Bundle => ("bundles", ""),
        };
        let mut names = Vec::new();
        for shard in fs::read_dir(self.layout.root.join(folder))? {
            let shard = shard?;
            if !shard.file_type()?.is_dir() {
                continue;
            }
            for blob in fs::read_dir(shard.path())? {
                let (shard, rest) = (shard.file_name(), blob?.file_name());
                let hex = shard.to_str().zip(rest.to_str().and_then(|rest| rest.strip_suffix(suffix)));
                // What is no blob's name was put there by someone else: it is neither read nor removed.
                let Some(hex) = hex.map(|(shard, rest)| format!("{shard}{rest}")) else { continue };
                names.extend(match kind {
                    BlobKind::Pack => hex.parse().map(BlobName::Pack).ok(),
                    BlobKind::Manifest => hex.parse().map(BlobName::Manifest).ok(),
                    BlobKind::Delta => hex
                        .split_once('-')
                        .and_then(|(from, to)| Some(BlobName::Delta(from.parse().ok()?, to.parse().ok()?))),
                    BlobKind::Bundle => match hex.split_once('-') {
                        None => hex.parse().map(|to| BlobName::Bundle(None, to)).ok(),
                        Some((to, from)) => {
                            from.parse().ok().zip(to.parse().ok()).map(|(from, to)| BlobName::Bundle(Some(from), to))
                        }
                    },
                });
            }
        }
        names.sort();
        Ok(names)
    }

    fn delete(&self, name: &BlobName) -> io::Result<()> {
        lock(&self.open).remove(name);
        let path = self.layout.path(name);
        let moment = if matches!(name, BlobName::Pack(_)) { Moment::PackRemove } else { Moment::BlobRemove };
        moments::reach(moment, &path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

#[derive(Clone)]
struct Layout {
    root: PathBuf,
}

impl Layout {
    fn path(&self, name: &BlobName) -> PathBuf {
        let (folder, (shard, rest)) = match name {
            BlobName::Pack(id) => ("packs", id.to_shard()),
            BlobName::Manifest(id) => ("manifests", id.to_shard()),
            BlobName::Bundle(from, to) => {
                let (shard, rest) = to.to_shard();
                ("bundles", (shard, from.map_or_else(|| rest.clone(), |from| format!("{rest}-{from}"))))
            }
            BlobName::Delta(from, to) => {
                let (shard, rest) = from.to_shard();
                ("deltas", (shard, format!("{rest}-{to}")))
            }
        };
        let rest = if matches!(name, BlobName::Pack(_)) { rest + ".pack" } else { rest };
        self.root.join(folder).join(shard).join(rest)
    }
}

struct LocalDraft {
    layout: Layout,
    open: Arc<OpenFiles>,
    path: PathBuf,
    file: File,
}

impl Draft for LocalDraft {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        read_range(&self.file, range)
    }

    fn commit(self: Box<Self>, name: &BlobName) -> io::Result<Put> {
        let target = self.layout.path(name);
        let shard = target.parent().map(Path::to_path_buf).unwrap_or_default();
        if target.exists() {
            return Ok(Put::AlreadyThere);
        }
        moments::reach(put_of(name), &target)?;
        make_dir(&shard)?;
        // Content before name, name before the answer: after a power cut the blob is there whole or not at all.
        self.file.sync_all()?;
        let put = rename_if_absent(&self.path, &target)?;
        sync_dir(&shard)?;
        Ok(put)
    }

    fn replace(self: Box<Self>, name: &BlobName) -> io::Result<()> {
        let target = self.layout.path(name);
        let shard = target.parent().map(Path::to_path_buf).unwrap_or_default();
        moments::reach(put_of(name), &target)?;
        make_dir(&shard)?;
        self.file.sync_all()?;
        fs::rename(&self.path, &target)?;
        // Whoever opens it from now on must not be given what was there.
        lock(&self.open).remove(name);
        sync_dir(&shard)
    }
}

impl Drop for LocalDraft {
    fn drop(&mut self) {
        // After a commit there is nothing to remove; a draft that cannot be removed goes at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

fn put_of(name: &BlobName) -> Moment {
    match name {
        BlobName::Pack(_) => Moment::PackPut,
        BlobName::Manifest(_) => Moment::ManifestPut,
        BlobName::Delta(..) => Moment::DeltaPut,
        BlobName::Bundle(..) => Moment::BundlePut,
    }
}

fn rename_if_absent(from: &Path, to: &Path) -> io::Result<Put> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Put::Stored),
        Err(rustix::io::Errno::EXIST) => Ok(Put::AlreadyThere),
        // Some file systems (NFS) do not know the flag. The store's lock makes us the only writer, and equal names
        // mean equal bytes, so a plain rename loses nothing.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to).map(|()| Put::Stored),
        Err(error) => Err(error.into()),
    }
}

/// Reads exactly this part of a file.
pub(super) fn read_range(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let bytes = usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| io::ErrorKind::InvalidInput)?;
    // A damaged index must not make us allocate what no file has.
    if range.end > file.metadata()?.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut buffer = vec![0; bytes];
    file.read_exact_at(&mut buffer, range.start)?;
    Ok(buffer)
}

/// Makes a directory that only we can read (files in it may be of trees whose files are not public), durably.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes renames into a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: usize) -> BlobName {
        BlobName::Pack(format!("{number:064x}").parse().unwrap())
    }

    #[test]
    fn as_many_packs_stay_open_as_may_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalPacks::open(dir.path()).unwrap();
        make_dir(&dir.path().join("packs/00")).unwrap();
        for number in 0..=OPEN_FILES_MAX {
            fs::write(store.layout.path(&pack(number)), [7; 10]).unwrap();
            assert_eq!(store.get(&pack(number), 3..5).unwrap(), [7, 7]);
            let open = lock(&store.open).len();
            assert_eq!(open, if number < OPEN_FILES_MAX { number + 1 } else { 1 });
        }
    }

    #[test]
    fn only_what_is_not_there_counts_as_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalPacks::open(dir.path()).unwrap();
        assert_eq!(store.size(&pack(1)).unwrap(), None);
        store.delete(&pack(1)).unwrap();
        // Somebody's file stands where the directory of such packs would.
        fs::write(dir.path().join("packs/00"), "").unwrap();
        assert!(store.size(&pack(1)).is_err() && store.delete(&pack(1)).is_err());
    }

    #[test]
    fn a_directory_that_is_there_is_made_and_one_that_cannot_be_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        make_dir(&path).unwrap();
        make_dir(&path).unwrap();
        assert!(make_dir(&dir.path().join("b/c")).is_err());
    }
}
