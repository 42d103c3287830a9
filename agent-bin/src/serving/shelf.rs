//! The files of one repository that is served: read as they lie, added whole under the name of their content.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::far::{self, Far, OUTAGE_MAX};
use super::fault::{LOCKS_MAX, ShelfFault};
use crate::draft;
use crate::engine::format::files::{Directory, FileKind, Store};
use crate::engine::format::id::Id;
use crate::engine::{EngineError, SharedMeter, password_of, store};
use crate::kept::Kept;

/// How long nobody has written to a draft that was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);
/// Bytes that are read and written at once.
const PIECE_BYTES: usize = 64 << 10;

/// One repository.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) kept: Kept,
    state: PathBuf,
    lies: Lies,
}

/// Where its files are.
#[derive(Debug, Clone)]
pub(super) enum Lies {
    Here(Arc<Directory>),
    Far(Arc<Far>),
}

impl Shelf {
    pub(super) fn new(state: &Path, kept: Kept) -> Result<Self, EngineError> {
        let location = kept.location();
        let lies = if location.is_directory() {
            Lies::Here(Arc::new(Directory { root: kept.path.clone() }))
        } else {
            Lies::Far(Arc::new(Far::new(store(state, &location, &SharedMeter::default(), OUTAGE_MAX)?)))
        };
        Ok(Self { kept, state: state.to_owned(), lies })
    }

    /// The same files, of which something else is kept.
    pub(super) fn kept_as(&self, kept: Kept) -> Self {
        Self { kept, state: self.state.clone(), lies: self.lies.clone() }
    }

    /// Where its files are, if that is elsewhere.
    pub(super) fn far(&self) -> Option<&Far> {
        if let Lies::Far(far) = &self.lies { Some(far) } else { None }
    }

    fn store(&self) -> &dyn Store {
        match &self.lies {
            Lies::Here(directory) => &**directory,
            Lies::Far(far) => &*far.store,
        }
    }

    pub(super) fn password(&self) -> Result<String, EngineError> {
        password_of(&Kept::password_file(&self.state, &self.kept.name))
    }

    pub(super) fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>, ShelfFault> {
        match &self.lies {
            Lies::Here(directory) => Ok(directory.list(kind)?),
            Lies::Far(far) => far.store.list(kind).map_err(far::fault),
        }
    }

    pub(super) fn open(&self, kind: FileKind, id: &Id) -> Result<File, ShelfFault> {
        File::open(self.store().path(kind, id)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ShelfFault::NotThere,
            _ => error.into(),
        })
    }

    /// Takes a file whose content comes from `from`. On the disk when this returns. One that is there already, and as
    /// long, stays as it is; one of another length was damaged, and what has the right hash is put in its place.
    pub(super) fn add(&self, kind: FileKind, id: &Id, bytes: u64, from: &mut impl Read) -> Result<(), ShelfFault> {
        if let Lies::Far(far) = &self.lies {
            return far.add(kind, id, bytes, from);
        }
        let path = self.store().path(kind, id);
        let draft = Draft::new(&path)?;
        draft.fill(id, bytes, from)?;
        if fs::metadata(&path).is_ok_and(|there| there.len() == bytes) {
            return Ok(());
        }
        draft.file.sync_all()?;
        fs::rename(&draft.path, &path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    /// The same of a lock, whose owner may remove it.
    pub(super) fn add_lock(&self, id: &Id, bytes: u64, from: &mut impl Read, owner: &str) -> Result<(), ShelfFault> {
        if self.list(FileKind::Lock)?.len() >= LOCKS_MAX {
            return Err(ShelfFault::TooManyLocks);
        }
        let notes = self.kept.locks(&self.state);
        DirBuilder::new().recursive(true).mode(0o700).create(&notes)?;
        let note = notes.join(id.to_string());
        match fs::read_to_string(&note) {
            Ok(known) if known != owner => return Err(ShelfFault::NotYours),
            _ => {}
        }
        // First: a lock whose owner is not known stays until it counts as left behind.
        fs::write(&note, owner)?;
        self.add(FileKind::Lock, id, bytes, from)?;
        self.forget_notes(&notes);
        Ok(())
    }

    pub(super) fn remove_lock(&self, id: &Id, owner: &str) -> Result<(), ShelfFault> {
        if !self.store().is_there(FileKind::Lock, id) {
            return Err(ShelfFault::NotThere);
        }
        let note = self.kept.locks(&self.state).join(id.to_string());
        match fs::read_to_string(&note) {
            Ok(known) if known == owner => {
                self.store().remove(FileKind::Lock, id).map_err(far::fault)?;
                // Without its lock a note means nothing.
                drop(fs::remove_file(&note));
                Ok(())
            }
            _ => Err(ShelfFault::NotYours),
        }
    }

    /// Removes drafts that nobody has written to for an hour: whoever made them was killed, since every body that comes
    /// has a pace to keep. Also those of other programs that call theirs so, as restic does.
    pub(super) fn sweep(&self, now: SystemTime) {
        let Lies::Here(root) = &self.lies else { return };
        let mut swept = 0_u32;
        for kind in FileKind::WITH_ID {
            let directory = root.root.join(kind.name());
            let below = entries(&directory).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            for entry in below.flat_map(|entry| entries(&entry.path())).chain(entries(&directory)) {
                let name = entry.file_name();
                let is_draft = name.to_str().and_then(|name| name.split_once("-tmp-"));
                let is_draft = is_draft.is_some_and(|(id, _)| Id::parse(id).is_some());
                let written = entry.metadata().and_then(|found| found.modified()).ok();
                let age = written.and_then(|at| now.duration_since(at).ok());
                if is_draft && age.is_some_and(|age| age >= LEFT_BEHIND) && fs::remove_file(entry.path()).is_ok() {
                    swept += 1;
                }
            }
        }
        if swept > 0 {
            tracing::info!("repository {}: {swept} drafts that were left behind are removed", self.kept.name);
        }
    }

    /// Removes notes of locks that somebody else has removed since.
    fn forget_notes(&self, notes: &Path) {
        for entry in fs::read_dir(notes).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(Id::parse);
            // One that is just being made has its note first.
            let age = entry.metadata().and_then(|found| found.modified()).ok().and_then(|at| at.elapsed().ok());
            let is_old = age.is_some_and(|age| age.as_secs() > 3600);
            if is_old && id.is_some_and(|id| !self.store().is_there(FileKind::Lock, &id)) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = fs::DirEntry> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

/// A file that is not there yet; gone if it is dropped before it got its name.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(path: &Path) -> io::Result<Self> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!("-tmp-{}", draft::mark()));
        let draft = PathBuf::from(draft);
        let open = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
        let file = open().or_else(|error| match (error.kind(), path.parent()) {
            (io::ErrorKind::NotFound, Some(parent)) => {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                open()
            }
            _ => Err(error),
        })?;
        Ok(Self { path: draft, file })
    }

    fn fill(&self, id: &Id, bytes: u64, from: &mut impl Read) -> Result<(), ShelfFault> {
        let (mut hasher, mut left) = (Sha256::new(), bytes);
        let mut piece = vec![0; PIECE_BYTES];
        let mut file = &self.file;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            let read = from.read(&mut piece[..most])?;
            if read == 0 {
                return Err(ShelfFault::Cut);
            }
            hasher.update(&piece[..read]);
            file.write_all(&piece[..read])?;
            left -= read as u64;
        }
        if Id::of_digest(hasher.finalize().into()) == *id { Ok(()) } else { Err(ShelfFault::NotItsName) }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once it has its name there is nothing of this one.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use proto::door::DoorKey;

    use super::*;

    fn shelf(dir: &Path) -> Shelf {
        let (state, path) = (dir.join("state"), dir.join("repository"));
        let kept = Kept::new("vault".parse().unwrap(), "m".parse().unwrap(), path, "m:7421".into(), DoorKey([0; 32]));
        Shelf::new(&state, kept).unwrap()
    }

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).map(Iterator::count).unwrap_or_default()
    }

    #[test]
    fn what_is_added_has_the_name_of_its_content_and_comes_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path());
        let (id, locks) = (Id::of(b"content"), dir.path().join("repository/index"));
        assert!(matches!(shelf.add(FileKind::Index, &id, 7, &mut &b"CONTENT"[..]), Err(ShelfFault::NotItsName)));
        assert!(matches!(shelf.add(FileKind::Index, &id, 7, &mut &b"cont"[..]), Err(ShelfFault::Cut)));
        assert_eq!(names(&locks), 0, "nothing is left behind");
        for _ in 0..2 {
            shelf.add(FileKind::Index, &id, 7, &mut &b"content"[..]).unwrap();
            assert_eq!(shelf.list(FileKind::Index).unwrap(), [(id, 7)]);
            assert_eq!(names(&locks), 1);
        }
        fs::write(locks.join(id.to_string()), b"cut").unwrap();
        shelf.add(FileKind::Index, &id, 7, &mut &b"content"[..]).unwrap();
        let mut text = String::new();
        shelf.open(FileKind::Index, &id).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "content", "a damaged file is healed");
        assert!(matches!(shelf.open(FileKind::Pack, &id), Err(ShelfFault::NotThere)));
    }

    #[test]
    fn a_draft_that_was_left_behind_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path());
        let id = Id::of(b"content");
        shelf.add(FileKind::Pack, &id, 7, &mut &b"content"[..]).unwrap();
        let pack = shelf.store().path(FileKind::Pack, &id);
        let below = pack.parent().unwrap();
        let drafts = [below.join(format!("{id}-tmp-7-1")), dir.path().join(format!("repository/locks/{id}-tmp-8"))];
        let mine = below.join("notes-tmp-1");
        fs::create_dir_all(dir.path().join("repository/locks")).unwrap();
        drafts.iter().chain([&mine]).for_each(|path| fs::write(path, b"cut").unwrap());
        let now = SystemTime::now();
        shelf.sweep(now + LEFT_BEHIND / 2);
        assert!(drafts.iter().all(|draft| draft.exists()), "somebody may be writing to them");
        shelf.sweep(now + LEFT_BEHIND * 2);
        assert!(!drafts.iter().any(|draft| draft.exists()) && mine.exists() && pack.exists());
    }

    #[test]
    fn a_lock_is_removed_by_whoever_took_it() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path());
        let id = Id::of(b"lock");
        shelf.add_lock(&id, 4, &mut &b"lock"[..], "host a").unwrap();
        assert!(matches!(shelf.remove_lock(&id, "host b"), Err(ShelfFault::NotYours)));
        assert!(matches!(shelf.add_lock(&id, 4, &mut &b"lock"[..], "host b"), Err(ShelfFault::NotYours)));
        assert!(matches!(shelf.remove_lock(&Id::of(b"other"), "host a"), Err(ShelfFault::NotThere)));
        shelf.remove_lock(&id, "host a").unwrap();
        assert!(shelf.list(FileKind::Lock).unwrap().is_empty());
        assert_eq!(names(&dir.path().join("state/repositories/vault.locks")), 0);
        // Taken on the host itself: nobody's who comes from outside.
        shelf.add(FileKind::Lock, &id, 4, &mut &b"lock"[..]).unwrap();
        assert!(matches!(shelf.remove_lock(&id, "host a"), Err(ShelfFault::NotYours)));
    }
}
