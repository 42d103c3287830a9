//! A repository that is open and locked for one operation.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::RepositoryName;
use proto::agent::{JobOrigin, Repository as Location};
use proto::door::Door;
use proto::location::Location as Site;

use super::fault::{EngineError, PasswordFault, Refusal};
use super::format::blobs::{BlobFault, Blobs};
use super::format::files::{FileKind, Files, Store};
use super::format::id::Id;
use super::format::index::Index;
use super::format::locks::{Access, Lock, LockFault, Me};
use super::format::pace::Pace;
use super::format::packs::StoreFault;
use super::format::seal::Key;
use super::library::{self, Opened};
use super::remote::{OUTAGE_MAX, Remote};
use super::snapshots::{ReferenceFault, Snapshots};
use super::stores::store;
use super::{Mark, SharedMeter};
use crate::draft;
use crate::kept::Kept;

/// How often it is looked whether an agent of an earlier version, which knows no locks in the repository, has ended.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// A password file is a line.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// A repository that is open and locked for one operation. The lock goes last.
pub(super) struct Session {
    pub(super) path: PathBuf,
    pub(super) repository: Opened,
    pub(super) key: Key,
    pub(super) files: Arc<Files>,
    pub(super) lock: Option<Lock>,
    /// Out of the sources, into the repository, and out of it.
    pub(super) reading: Pace,
    pub(super) upload: Pace,
    pub(super) download: Pace,
    /// Where there is no lock that has it.
    _old_lock: Option<File>,
}

impl Session {
    /// Opens a repository whose own password, if no other file is named, is in the agent's state directory.
    ///
    /// # Errors
    /// It is not there (and not to be made), the password is another one, or it cannot be locked.
    pub(super) fn open(
        state: &Path,
        at: &Location,
        access: Access,
        make: bool,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Session, EngineError> {
        let place = Place::of(state, at, meter)?;
        match &place {
            Place::Directory { path, .. } if Door::is(&at.path) => mark.permits.repository(path, true)?,
            // Asked before, whatever the operation is.
            Place::Directory { .. } => {}
            // Its administrator has an entry for it.
            Place::Stored { .. } => {}
            Place::Served(_, name) => mark.permits.served(name)?,
        }
        if access == Access::Alone
            && let Place::Served(remote, _) = &place
        {
            return Err(EngineError::refused(remote.place(), Refusal::NotAlone));
        }
        let repository = place.open(make, meter)?;
        let (path, files) = (place.path(), Arc::new(place.files()));
        let broken = || EngineError::Library { path: path.clone(), what: "its key has parts of wrong length".into() };
        let key = Key::new(&repository.key()).ok_or_else(broken)?;
        let mut old_lock = match &place {
            Place::Directory { path, .. } => old_lock(path, access, meter)?,
            Place::Stored { .. } | Place::Served(..) => None,
        };
        let me =
            Me { host: mark.origin.host.to_string(), what: format!("{}, job {}", mark.origin.product, mark.job) };
        let lock = match Lock::take(&files, &key, me, access, &mut old_lock, meter) {
            Ok(lock) => Some(lock),
            Err(LockFault::Stopped(_)) => return Err(EngineError::Stopped),
            // Who cannot write cannot harm; what is removed meanwhile will be missed and named.
            Err(LockFault::File(fault)) if access == Access::Shared && !make && is_read_only(&fault.source) => {
                tracing::warn!("reading without a lock: {fault}");
                None
            }
            Err(fault) => return Err(EngineError::Lock { path, fault }),
        };
        let [reading, upload, download] =
            [mark.pace.read, mark.pace.upload, mark.pace.download].map(|rate| Pace::new(rate, meter));
        Ok(Self { path, repository, key, files, lock, reading, upload, download, _old_lock: old_lock })
    }

    /// Every snapshot; those that cannot be read are told if `tell`.
    pub(super) fn snapshots(
        &self,
        origin: &JobOrigin,
        tell: bool,
        meter: &SharedMeter,
    ) -> Result<Snapshots, EngineError> {
        let snapshots = Snapshots::load(&self.files, &self.key, origin)?;
        for (_, fault) in snapshots.damaged.iter().filter(|_| tell) {
            meter.problem(format!("{fault}; it may be newer than the one that was taken"));
        }
        Ok(snapshots)
    }

    pub(super) fn index(&self, meter: &SharedMeter) -> Result<Index, EngineError> {
        let mut faults = Vec::new();
        let index = Index::load(&self.files, &self.key, &mut faults)?;
        for fault in faults {
            meter.problem(format!("{fault}; what it named is looked for in the packs themselves"));
        }
        Ok(index)
    }

    pub(super) fn blobs<'a>(&'a self, index: &'a Index) -> Blobs<'a> {
        Blobs::new(&self.files, &self.key, index).paced(&self.download)
    }

    pub(super) fn reference_fault(&self, fault: ReferenceFault) -> EngineError {
        EngineError::Reference { path: self.path.clone(), fault }
    }

    pub(super) fn damaged(&self, what: String, fault: BlobFault) -> EngineError {
        EngineError::Damaged { path: self.path.clone(), what, fault: Box::new(fault) }
    }

    pub(super) fn store_fault(&self, fault: StoreFault, meter: &SharedMeter) -> EngineError {
        if meter.is_stopped() { EngineError::Stopped } else { EngineError::Store { path: self.path.clone(), fault } }
    }

    /// Refuses to remove anything from a repository of which not everything can be read: what only the unreadable part
    /// needs would go.
    pub(super) fn must_be_sound(&self, snapshots: &Snapshots) -> Result<(), EngineError> {
        let mut faults = Vec::new();
        Index::load(&self.files, &self.key, &mut faults)?;
        let of_index = faults.iter().map(ToString::to_string);
        let mut all = snapshots.damaged.iter().map(|(_, fault)| fault.to_string()).chain(of_index);
        match all.next() {
            None => Ok(()),
            Some(what) => Err(EngineError::NotSound { path: self.path.clone(), what, more: all.count() }),
        }
    }

    /// Number and bytes of the packs, as they lie on the disk.
    pub(super) fn packs(&self) -> Result<(u64, u64), EngineError> {
        let packs = self.files.list(FileKind::Pack)?;
        Ok((packs.len() as u64, packs.iter().map(|(_, bytes)| bytes).sum()))
    }
}

/// Where a repository lies, and what opens it.
pub(super) enum Place {
    /// In a directory of this host.
    Directory {
        path: PathBuf,
        password: PathBuf,
        /// The password is the agent's to make.
        own: bool,
    },
    /// With a storage that this host is let in to.
    Stored {
        store: Arc<dyn Store>,
        /// How people call it.
        path: PathBuf,
        password: PathBuf,
        /// The password is the agent's to make.
        own: bool,
    },
    /// With another host.
    Served(Arc<Remote>, RepositoryName),
}

impl Place {
    pub(super) fn of(state: &Path, at: &Location, meter: &SharedMeter) -> Result<Place, EngineError> {
        if Door::is(&at.path) {
            let door: Door = at.path.parse().map_err(|_| EngineError::Door)?;
            let kept = Kept::read(state, &door.repository)?;
            return Ok(match kept.filter(|kept| kept.host == door.host) {
                Some(kept) => Self::kept(state, &kept, meter)?,
                None => Place::Served(Arc::new(Remote::new(state, &door, meter)), door.repository),
            });
        }
        let path = PathBuf::from(&at.path);
        let Ok(location) = at.path.parse::<Site>() else {
            return Err(EngineError::refused(&path, Refusal::RepositoryNotAbsolute));
        };
        let own = || state.join("repository.password");
        let password = at.password_file.as_ref().map_or_else(own, PathBuf::from);
        Self::located(state, &location, password, at.password_file.is_none(), meter)
    }

    /// One that this host serves.
    pub(super) fn kept(state: &Path, kept: &Kept, meter: &SharedMeter) -> Result<Self, EngineError> {
        Self::located(state, &kept.location(), Kept::password_file(state, &kept.name), true, meter)
    }

    fn located(
        state: &Path,
        at: &Site,
        password: PathBuf,
        own: bool,
        meter: &SharedMeter,
    ) -> Result<Self, EngineError> {
        if let Site::Directory(path) = at {
            return Ok(Place::Directory { path: path.into(), password, own });
        }
        let store = store(state, at, meter, OUTAGE_MAX)?;
        Ok(Place::Stored { store, path: at.to_string().into(), password, own })
    }

    /// The repository as the library has it. One in a directory is made if it is not there, and if it may be.
    pub(super) fn open(&self, make: bool, meter: &SharedMeter) -> Result<Opened, EngineError> {
        match self {
            Place::Directory { path, password: file, own } => {
                if !path.join("config").is_file() {
                    if !make {
                        return Err(EngineError::NoRepository(path.clone()));
                    }
                    library::make(path, &password(file, *own)?, meter)?;
                }
                meter.say("opening the repository");
                library::open(path, password(file, false)?, meter)
            }
            Place::Stored { store, path, password: file, own } => {
                meter.say("opening the repository");
                if make {
                    library::make_store(path, store, &password(file, *own)?, meter)?;
                } else if !store.is_there(FileKind::Config, &Id::of(&[])) {
                    return Err(EngineError::NoRepository(path.clone()));
                }
                library::open_store(path, store.clone(), true, password(file, false)?, meter)
            }
            Place::Served(remote, _) => {
                meter.say("opening the repository");
                let password = remote.password()?;
                library::open_store(remote.place(), remote.clone(), false, password, meter)
            }
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Place::Directory { path, .. } | Place::Stored { path, .. } => path.clone(),
            Place::Served(remote, _) => remote.place().to_owned(),
        }
    }

    fn files(&self) -> Files {
        match self {
            Place::Directory { path, .. } => Files::new(path),
            Place::Stored { store, .. } => Files::of(store.clone()),
            Place::Served(remote, _) => Files::of(remote.clone()),
        }
    }
}

/// The password in a file, which is made first if it may be.
pub(super) fn password(path: &Path, make: bool) -> Result<String, EngineError> {
    let fault = |why| EngineError::Password { path: path.to_owned(), why };
    if make && !path.exists() {
        make_password(path).map_err(|error| fault(PasswordFault::Make(error)))?;
    }
    let text = read_password(path).map_err(fault)?;
    if text.is_empty() {
        return Err(fault(PasswordFault::Empty));
    }
    Ok(text)
}

/// Whoever sets a repository's password can put anything into it, and an agent that is root gives away what it restores:
/// so the file must be of somebody whom the agent trusts.
fn read_password(path: &Path) -> Result<String, PasswordFault> {
    // A FIFO in its place would be waited for.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(PasswordFault::Read)?;
    let metadata = file.metadata().map_err(PasswordFault::Read)?;
    if !metadata.is_file() || metadata.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordFault::NoFile);
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if (owner != 0 && owner != rustix::process::geteuid().as_raw()) || mode & 0o002 != 0 {
        return Err(PasswordFault::NotTrusted { owner, mode });
    }
    let mut text = String::new();
    file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text).map_err(PasswordFault::Read)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The lock that agents of earlier versions take and honour: on one host, of the repository's directory.
fn old_lock(path: &Path, access: Access, meter: &SharedMeter) -> Result<Option<File>, EngineError> {
    let directory = File::open(path).map_err(|error| EngineError::io(path, error))?;
    loop {
        let locked = match access {
            Access::Shared => directory.try_lock_shared(),
            Access::Alone => directory.try_lock(),
        };
        match locked {
            Ok(()) => return Ok(Some(directory)),
            // A network file system may not know such locks; there they never worked.
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{}: {error}", path.display());
                return Ok(None);
            }
            Err(TryLockError::WouldBlock) if meter.is_stopped() => return Err(EngineError::Stopped),
            Err(TryLockError::WouldBlock) => {
                meter.say("waits for another operation of this host on the repository");
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Random bytes.
pub(super) fn drawn() -> io::Result<[u8; 32]> {
    let mut random = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random)
}

fn make_password(path: &Path) -> io::Result<()> {
    let text: String = drawn()?.iter().map(|byte| format!("{byte:02x}")).collect();
    keep_password(path, &text)
}

/// Writes a password file, unless there is one.
pub(super) fn keep_password(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    // Whole or not at all: half a password file would lock the repository for ever. `hard_link` never replaces a file
    // that another agent of this host made meanwhile.
    let draft = path.with_extension(format!("draft-{}", draft::mark()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_draw_a_password_at_once_agree_on_one() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..50 {
            let path = dir.path().join(format!("repository-{round}.password"));
            std::thread::scope(|scope| {
                for job in 0..4 {
                    let path = &path;
                    scope.spawn(move || keep_password(path, &format!("password {job}")).unwrap());
                }
            });
            let text = fs::read_to_string(&path).unwrap();
            assert!((0..4).any(|job| text == format!("password {job}\n")), "{text}");
        }
        let names = fs::read_dir(dir.path()).unwrap();
        assert_eq!(names.count(), 50, "no draft is left");
    }
}
