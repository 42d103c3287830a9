//! Restores that were cut off: which snapshot into which directory. Kept in the agent's state and not in the target,
//! where any name may be a file of the snapshot.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fault::{EngineError, Refusal};
use super::format::id::Id;

/// What earlier versions kept in the target itself.
const OLD_MARKER: &str = ".manager-fs-restoring";

/// A restore under way, or cut off.
#[derive(Debug)]
pub(super) struct Unfinished {
    record: PathBuf,
    /// An earlier run began it.
    pub(super) continued: bool,
}

/// What is on the disk of it. The directory's numbers tell it from another one that got its name later.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    target: PathBuf,
    device: u64,
    inode: u64,
    snapshot: Id,
}

impl Unfinished {
    /// Readies a target, which must be new, empty, or hold the unfinished restore of the same snapshot.
    ///
    /// # Errors
    /// It holds something else, or it or the state directory cannot be used.
    pub(super) fn begin(state: &Path, target: &Path, snapshot: Id) -> Result<Self, EngineError> {
        let fault = |error| EngineError::io(target, error);
        if !target.is_absolute() {
            return Err(EngineError::refused(target, Refusal::TargetNotAbsolute));
        }
        fs::create_dir_all(target).map_err(fault)?;
        let metadata = fs::metadata(target).map_err(fault)?;
        let own = Record { target: target.into(), device: metadata.dev(), inode: metadata.ino(), snapshot };
        let record = state.join("restores").join(Id::of(target.as_os_str().as_bytes()).to_string());
        let before = fs::read(&record).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let before = before.filter(|before| (before.device, before.inode) == (own.device, own.inode));
        let continued = before.as_ref() == Some(&own) || begun_by_old(target, &snapshot).map_err(fault)?;
        if !continued && fs::read_dir(target).map_err(fault)?.next().is_some() {
            let why = match before {
                Some(before) => Refusal::TargetUnfinished(before.snapshot.to_string()),
                None => Refusal::TargetNotEmpty,
            };
            return Err(EngineError::refused(target, why));
        }
        write(&record, &own).map_err(|error| EngineError::io(&record, error))?;
        Ok(Self { record, continued })
    }

    /// The restore is over.
    pub(super) fn end(self) -> Result<(), EngineError> {
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EngineError::io(&self.record, error)),
            _ => Ok(()),
        }
    }
}

/// Takes over what a version left behind that kept a marker in the target.
fn begun_by_old(target: &Path, snapshot: &Id) -> io::Result<bool> {
    let marker = target.join(OLD_MARKER);
    match fs::read_to_string(&marker) {
        Ok(text) if text == format!("{snapshot}\n") => fs::remove_file(&marker).map(|()| true),
        _ => Ok(false),
    }
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
        assert!(!Unfinished::begin(&state, &target, snapshot).unwrap().continued);
        fs::write(target.join("file"), "half").unwrap();
        let refused = Unfinished::begin(&state, &target, other).unwrap_err().to_string();
        assert!(refused.contains(&snapshot.to_string()), "{refused}");
        let again = Unfinished::begin(&state, &target, snapshot).unwrap();
        assert!(again.continued);
        again.end().unwrap();
        let refused = Unfinished::begin(&state, &target, snapshot).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");

        // Another directory of the same name, which somebody made meanwhile.
        let again = dir.path().join("again");
        Unfinished::begin(&state, &again, snapshot).unwrap();
        fs::rename(&again, dir.path().join("moved")).unwrap();
        fs::create_dir(&again).unwrap();
        fs::write(again.join("mine"), "precious").unwrap();
        let refused = Unfinished::begin(&state, &again, snapshot).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
    }

    #[test]
    fn what_an_earlier_version_began_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = Id::of(b"snapshot");
        fs::write(dir.path().join(OLD_MARKER), format!("{snapshot}\n")).unwrap();
        assert!(Unfinished::begin(&dir.path().join("state"), dir.path(), snapshot).unwrap().continued);
        assert!(!dir.path().join(OLD_MARKER).exists());
    }
}
