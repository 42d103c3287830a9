//! Writing a backup, while the manager serves or while none does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::{TreeId, codec};
use serde::{Deserialize, Serialize};

use super::{
    ABSENT, BackedUp, ENTRY, FACTS, FILE, FORMAT, Facts, FileHead, FileName, KEY_BYTES_MAX, PIECE, UpkeepError,
    count_kinds,
};
use crate::manager::control::{CONTROL_FILE, ControlError, ControlStore, Entry, LocalStore, list_all, trees_of};
use crate::manager::monitor::{Monitor, Task};
use crate::manager::now;
use crate::manager::parcel::{PIECE_BYTES, ParcelWriter};
use crate::manager::store::{BlobName, PackId, Packs, PublishGuard, Store, StoreError};
use crate::manager::worker::waiting;
use crate::moments::{self, Moment};
use crate::version;

/// How often it is looked again where the packs are, while generations are taken back and collected.
const TRIES: usize = 3;

/// What an operator wants copied, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Absolute path of a file that is not there yet, as raw bytes.
    pub file: Vec<u8>,
    /// With the packs and start-up bundles, instead of the packs' names alone.
    pub packs: bool,
}

/// Writes all that a manager knows into one file: its decisions as of one moment, its keys, the manifests of its
/// generations, and their packs if that is wanted. Waits for the disk, and for the control store, which may serve meanwhile.
///
/// # Errors
/// See [`UpkeepError`]; there is no file then.
pub fn backup(
    store: &Store,
    decisions: &dyn ControlStore,
    (file, packs): (&Path, bool),
    monitor: &dyn Monitor,
    cancelled: &AtomicBool,
) -> Result<BackedUp, UpkeepError> {
    if !file.is_absolute() {
        return Err(UpkeepError::Relative(file.to_path_buf()));
    }
    if fs::symlink_metadata(file).is_ok() {
        return Err(UpkeepError::Exists(file.to_path_buf()));
    }
    let draft = Draft::new(file)?;
    // Before the decisions are read: what they name is not collected from then on.
    let guard = store.guard();
    let (entries, needed) = copied(store, decisions, &guard)?;
    let mut report = write(store, &draft, (&entries, &needed.packs), packs, monitor, cancelled)?;
    report.missing = needed.missing;
    draft.commit(file)?;
    Ok(report)
}

fn write(
    store: &Store,
    draft: &Draft,
    (entries, needed): (&BTreeMap<String, Vec<u8>>, &BTreeSet<PackId>),
    packs: bool,
    monitor: &dyn Monitor,
    cancelled: &AtomicBool,
) -> Result<BackedUp, UpkeepError> {
    let to = BufWriter::with_capacity(PIECE_BYTES, &draft.file);
    let writer = ParcelWriter::begin(to, FORMAT).map_err(UpkeepError::io(&draft.path))?;
    let mut writing = Writing { store, writer, path: &draft.path, report: BackedUp::default(), monitor, cancelled };
    let trees = trees_of(entries);
    writing.facts()?;
    writing.entries(entries)?;
    writing.keys()?;
    writing.manifests(&trees)?;
    writing.packs(needed, packs)?;
    if packs {
        store.bundles_of(&trees)?.iter().try_for_each(|name| writing.bundle(name))?;
    }
    let (mut to, bytes) = writing.writer.end().map_err(UpkeepError::io(&draft.path))?;
    to.flush().map_err(UpkeepError::io(&draft.path))?;
    Ok(BackedUp { bytes, ..writing.report })
}

/// As [`backup`], of a store that no manager has open.
///
/// # Errors
/// As [`backup`]; another process has it open, or there is none.
pub async fn backup_of_idle(
    root: PathBuf,
    file: PathBuf,
    packs: bool,
    monitor: Arc<dyn Monitor>,
) -> Result<BackedUp, UpkeepError> {
    let work = move || {
        // Opening would make one.
        if !root.join("format").exists() || !root.join(CONTROL_FILE).exists() {
            return Err(UpkeepError::NoStore(root));
        }
        let store = Store::open(&root)?;
        let decisions = LocalStore::open(&root.join(CONTROL_FILE))?;
        backup(&store, &decisions, (&file, packs), monitor.as_ref(), &AtomicBool::new(false))
    };
    let broken = || ControlError::Closed.into();
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(broken()))
}

/// The decisions of one revision, and where the trees that they name lie, which stay there from now on.
fn copied(
    store: &Store,
    decisions: &dyn ControlStore,
    guard: &PublishGuard,
) -> Result<(BTreeMap<String, Vec<u8>>, Packs), UpkeepError> {
    let mut tries = 1;
    loop {
        let (entries, revision) = waiting(list_all(decisions, ""))?;
        let entries: BTreeMap<_, _> = entries.into_iter().map(|Entry { key, value, .. }| (key, value)).collect();
        let needed = store.packs_of(&trees_of(&entries), guard)?;
        // A generation may have been taken back and collected before it was pinned; then it is not decided any more.
        if needed.missing == 0 || tries == TRIES || waiting(list_all(decisions, ""))?.1 == revision {
            return Ok((entries, needed));
        }
        tries += 1;
    }
}

/// A backup that has no name yet; without one it leaves nothing.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(file: &Path) -> Result<Self, UpkeepError> {
        let mut name = file.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        // Of a backup that was broken off. Its mode may be another.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(UpkeepError::io(&path)(error)),
            _ => {}
        }
        // It holds keys: whoever can read it is the manager.
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let file = made.map_err(UpkeepError::io(&path))?;
        Ok(Self { path, file })
    }

    fn commit(self, to: &Path) -> Result<(), UpkeepError> {
        let directory = to.parent().unwrap_or(Path::new("/"));
        let put = moments::reach(Moment::BackupPut, to);
        put.and_then(|()| self.file.sync_all())
            .and_then(|()| fs::hard_link(&self.path, to))
            .and_then(|()| File::open(directory)?.sync_all())
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => UpkeepError::Exists(to.to_path_buf()),
                _ => UpkeepError::io(to)(error),
            })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After the commit it has a second name, and before it nobody wants it.
        let _ = fs::remove_file(&self.path);
    }
}

/// A backup while it is written.
struct Writing<'a, W: io::Write> {
    store: &'a Store,
    writer: ParcelWriter<W>,
    path: &'a Path,
    report: BackedUp,
    monitor: &'a dyn Monitor,
    cancelled: &'a AtomicBool,
}

impl<W: io::Write> Writing<'_, W> {
    fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), UpkeepError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(UpkeepError::Cancelled);
        }
        self.writer.frame(kind, parts).map_err(UpkeepError::io(self.path))
    }

    fn value<T: Serialize>(&mut self, kind: u8, value: &T) -> Result<(), UpkeepError> {
        let body = codec::encode(value).map_err(|error| UpkeepError::io(self.path)(io::Error::other(error)))?;
        self.frame(kind, &[&body])
    }

    fn facts(&mut self) -> Result<(), UpkeepError> {
        self.value(FACTS, &Facts { made: now(), software: version::VERSION.to_owned() })
    }

    fn entries(&mut self, entries: &BTreeMap<String, Vec<u8>>) -> Result<(), UpkeepError> {
        self.report.records = count_kinds(entries.keys());
        for (key, value) in entries {
            let key = codec::encode(key).map_err(|error| UpkeepError::io(self.path)(io::Error::other(error)))?;
            self.frame(ENTRY, &[&key, value])?;
        }
        Ok(())
    }

    fn keys(&mut self) -> Result<(), UpkeepError> {
        let keys = self.store.root().join("keys");
        let mut names = Vec::new();
        for entry in fs::read_dir(&keys).map_err(UpkeepError::io(&keys))? {
            let entry = entry.map_err(UpkeepError::io(&keys))?;
            if entry.file_type().map_err(UpkeepError::io(&keys))?.is_file() {
                names.extend(entry.file_name().into_string().ok().filter(|name| is_key_name(name)));
            }
        }
        names.sort();
        for name in &names {
            let path = keys.join(name);
            let mut bytes = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes));
            read.map_err(UpkeepError::io(&path))?;
            if bytes.len() as u64 > KEY_BYTES_MAX {
                return Err(UpkeepError::io(&path)(io::Error::other("it is longer than a key may be")));
            }
            self.whole(FileName::Key(name.clone()), &bytes)?;
        }
        self.report.keys = names;
        Ok(())
    }

    fn manifests(&mut self, trees: &BTreeSet<TreeId>) -> Result<(), UpkeepError> {
        for tree in trees {
            match self.store.manifest(tree) {
                // It is among those that are missing.
                Ok(None) | Err(StoreError::Damaged { .. }) => {}
                Ok(Some(bytes)) => {
                    self.whole(FileName::Manifest(*tree), &bytes)?;
                    self.report.manifests += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn packs(&mut self, packs: &BTreeSet<PackId>, included: bool) -> Result<(), UpkeepError> {
        let mut sized = Vec::new();
        for pack in packs {
            let name = BlobName::Pack(*pack);
            let missing = || StoreError::Missing { what: format!("pack {pack}") };
            let bytes = self.store.blob_bytes(&name)?.ok_or_else(missing)?;
            self.report.packs += 1;
            self.report.pack_bytes += bytes;
            sized.push((name, FileHead { name: FileName::Pack(pack.object()), bytes }));
        }
        self.report.packs_included = included;
        let total = self.report.pack_bytes;
        for (name, head) in sized {
            if !included {
                self.value(ABSENT, &head)?;
                continue;
            }
            self.value(FILE, &head)?;
            let mut at = 0;
            while at < head.bytes {
                let end = head.bytes.min(at + PIECE_BYTES as u64);
                let piece = self.store.blob(&name, at..end)?;
                self.frame(PIECE, &[&piece])?;
                at = end;
                self.monitor.progress(Task::Copy, self.writer.bytes(), total);
            }
        }
        Ok(())
    }

    fn bundle(&mut self, name: &BlobName) -> Result<(), UpkeepError> {
        let BlobName::Bundle(from, tree) = *name else { return Ok(()) };
        let Some(bytes) = self.store.blob_bytes(name)? else { return Ok(()) };
        match self.store.blob(name, 0..bytes) {
            Ok(whole) => self.whole(FileName::Bundle(from, tree), &whole),
            // A better one has taken its place just now, or none: it is learned again.
            Err(_) => Ok(()),
        }
    }

    fn whole(&mut self, name: FileName, bytes: &[u8]) -> Result<(), UpkeepError> {
        self.value(FILE, &FileHead { name, bytes: bytes.len() as u64 })?;
        bytes.chunks(PIECE_BYTES).try_for_each(|piece| self.frame(PIECE, &[piece]))
    }
}

/// Whether a file of `keys/` has a name that can be put back.
pub(super) fn is_key_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.chars().all(fits)
}
