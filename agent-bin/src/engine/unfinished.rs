//! Restores that were cut off: which snapshot into which directory. Kept in the agent's state and not in the target,
//! where any name may be a file of the snapshot.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::beneath::{Beneath, PathFault};
use super::fault::{EngineError, Refusal};
use super::format::id::Id;

/// What earlier versions kept in the target itself.
const OLD_MARKER: &str = ".manager-fs-restoring";
/// An id and a line break, and a little more, so that a longer one is not taken for it.
const MARKER_BYTES_MAX: u64 = 80;

/// A restore under way, or cut off.
#[derive(Debug)]
pub(super) struct Unfinished {
    record: PathBuf,
    /// Where to.
    pub(super) target: Beneath,
    /// An earlier run began it.
    pub(super) continued: bool,
    /// It goes over what is there.
    pub(super) over: Option<OverRecord>,
}

/// What a restore over what is there knows of itself when it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OverRecord {
    /// What the names begin with of the files that it is writing.
    pub(super) draft: String,
    /// It made the target.
    pub(super) made: bool,
}

/// What is on the disk of it. The directory's numbers tell it from another one that got its name later.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    target: PathBuf,
    device: u64,
    inode: u64,
    snapshot: Id,
    #[serde(default)]
    over: Option<OverRecord>,
}

impl Unfinished {
    /// Readies a target, which must be new, empty, or hold the unfinished restore of the same snapshot; or, for one `over`
    /// what is there, anything but an unfinished restore of another kind, which may have left half a file.
    ///
    /// # Errors
    /// It holds something else, or it or the state directory cannot be used.
    pub(super) fn begin(state: &Path, target: &Path, snapshot: Id, over: bool) -> Result<Self, EngineError> {
        let fault = |error| EngineError::io(target, error);
        if !target.is_absolute() || target.components().any(|part| part == Component::ParentDir) {
            return Err(EngineError::refused(target, Refusal::TargetNotAbsolute));
        }
        let beneath = Beneath::make(target).map_err(|found| match found {
            PathFault::Link(link) => EngineError::refused(target, Refusal::TargetBehindLink(link)),
            other => other.into(),
        })?;
        let (device, inode) = beneath.look(Path::new("")).map_err(fault)?.facts.identity;
        let mut own = Record { target: target.into(), device, inode, snapshot, over: None };
        let record = state.join("restores").join(Id::of(target.as_os_str().as_bytes()).to_string());
        let before = fs::read(&record).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let before = before.filter(|before| (before.device, before.inode) == (own.device, own.inode));
        if over {
            let before = match before {
                Some(Record { over: None, snapshot, .. }) => {
                    return Err(EngineError::refused(target, Refusal::TargetUnfinished(snapshot.to_string())));
                }
                before => before.and_then(|before| before.over),
            };
            let continued = before.is_some();
            let new = || Ok(OverRecord { draft: draft_name()?, made: beneath.is_new() });
            own.over = Some(before.map_or_else(new, Ok).map_err(fault)?);
            write(&record, &own).map_err(|error| EngineError::io(&record, error))?;
            return Ok(Self { record, target: beneath, continued, over: own.over });
        }
        let continued = before.as_ref() == Some(&own) || begun_by_old(&beneath, &snapshot).map_err(fault)?;
        if !continued && !beneath.names(Path::new("")).map_err(fault)?.is_empty() {
            let why = match before {
                Some(before) => Refusal::TargetUnfinished(before.snapshot.to_string()),
                None => Refusal::TargetNotEmpty,
            };
            return Err(EngineError::refused(target, why));
        }
        write(&record, &own).map_err(|error| EngineError::io(&record, error))?;
        Ok(Self { record, target: beneath, continued, over: None })
    }

    /// The restore is over.
    pub(super) fn end(self) -> Result<(), EngineError> {
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EngineError::io(&self.record, error)),
            _ => Ok(()),
        }
    }
}

/// Takes over what a version left behind that kept a marker in the target. One that somebody else put there, or a link
/// in its place, says nothing.
fn begun_by_old(target: &Beneath, snapshot: &Id) -> io::Result<bool> {
    let marker = Path::new(OLD_MARKER);
    let Ok(file) = target.open(marker, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, 0) else {
        return Ok(false);
    };
    let file = File::from(file);
    let metadata = file.metadata()?;
    let mut text = String::new();
    if !metadata.is_file()
        || metadata.uid() != rustix::process::geteuid().as_raw()
        || file.take(MARKER_BYTES_MAX).read_to_string(&mut text).is_err()
        || text != format!("{snapshot}\n")
    {
        return Ok(false);
    }
    target.remove(marker).map(|()| true)
}

/// A beginning of names that nobody else gives.
fn draft_name() -> io::Result<String> {
    let mut bits = [0; 8];
    rustix::rand::getrandom(&mut bits[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".manager-fs-{:016x}-", u64::from_le_bytes(bits)))
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let draft = path.with_extension("draft");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_restore_into_the_same_directory_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let (state, target) = (dir.path().join("state"), dir.path().join("target"));
        let (snapshot, other) = (Id::of(b"snapshot"), Id::of(b"other"));
        assert!(!Unfinished::begin(&state, &target, snapshot, false).unwrap().continued);
        fs::write(target.join("file"), "half").unwrap();
        let refused = Unfinished::begin(&state, &target, other, false).unwrap_err().to_string();
        assert!(refused.contains(&snapshot.to_string()), "{refused}");
        let again = Unfinished::begin(&state, &target, snapshot, false).unwrap();
        assert!(again.continued);
        again.end().unwrap();
        let refused = Unfinished::begin(&state, &target, snapshot, false).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");

        // Another directory of the same name, which somebody made meanwhile.
        let again = dir.path().join("again");
        Unfinished::begin(&state, &again, snapshot, false).unwrap();
        fs::rename(&again, dir.path().join("moved")).unwrap();
        fs::create_dir(&again).unwrap();
        fs::write(again.join("mine"), "precious").unwrap();
        let refused = Unfinished::begin(&state, &again, snapshot, false).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
    }

    #[test]
    fn a_restore_over_what_is_there_keeps_its_drafts_name_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (state, target) = (dir.path().join("state"), dir.path().join("target"));
        let (snapshot, other) = (Id::of(b"snapshot"), Id::of(b"other"));
        let begin = |snapshot, over| Unfinished::begin(&state, &target, snapshot, over);
        let first = begin(snapshot, true).unwrap();
        assert!(!first.continued && first.over.as_ref().unwrap().made);
        fs::write(target.join("mine"), "mine").unwrap();
        assert!(begin(snapshot, false).unwrap_err().to_string().contains("unfinished restore"));
        let again = begin(other, true).unwrap();
        assert!(again.continued && again.over == first.over, "its drafts are swept, whatever is restored now");
        again.end().unwrap();
        let new = begin(snapshot, true).unwrap();
        assert!(!new.continued && !new.over.as_ref().unwrap().made && new.over != first.over);
        new.end().unwrap();
        // What a restore of the other kind left may be half a file under its own name.
        fs::remove_file(target.join("mine")).unwrap();
        begin(snapshot, false).unwrap();
        assert!(begin(snapshot, true).unwrap_err().to_string().contains("unfinished restore"));
    }

    #[test]
    fn what_an_earlier_version_began_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = Id::of(b"snapshot");
        fs::write(dir.path().join(OLD_MARKER), format!("{snapshot}\n")).unwrap();
        assert!(Unfinished::begin(&dir.path().join("state"), dir.path(), snapshot, false).unwrap().continued);
        assert!(!dir.path().join(OLD_MARKER).exists());
    }

    #[test]
    fn a_link_in_the_markers_place_is_neither_read_nor_named() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, target) = (dir.path().join("secret"), dir.path().join("target"));
        let snapshot = Id::of(b"snapshot");
        fs::write(&secret, format!("{snapshot}\n")).unwrap();
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&secret, target.join(OLD_MARKER)).unwrap();
        let refused = Unfinished::begin(&dir.path().join("state"), &target, snapshot, false).unwrap_err().to_string();
        assert!(refused.contains("is not empty") && !refused.contains(&snapshot.to_string()), "{refused}");
        assert!(secret.exists());
    }

    #[test]
    fn a_target_behind_a_link_is_refused_by_the_links_name() {
        let dir = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (dir.path().join("elsewhere"), dir.path().join("link"));
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        for target in [link.clone(), link.join("new")] {
            let refused = Unfinished::begin(&dir.path().join("state"), &target, Id::of(b"x"), false).unwrap_err();
            let named = format!("{} is a symbolic link", link.display());
            assert!(refused.to_string().contains(&named), "{refused}");
        }
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
