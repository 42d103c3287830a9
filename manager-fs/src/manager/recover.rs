//! Builds the control state anew when it is damaged or gone: from its copy, and from the records that lie as files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proto::TreeId;
use serde::Serialize;

use super::control::backup::{self, BACKUP_FILE, Backup};
use super::control::{CONTROL_FILE, ControlError, LocalStore};
use super::now;
use super::record_files::RecordFiles;
use super::store::{Store, StoreError};
use crate::moments::{self, Moment};

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The control state is in order.
    #[error("the control state of {} can be read: there is nothing to recover", .0.display())]
    NotDamaged(PathBuf),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new control state cannot be written, or another manager has the old one open.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file of the store cannot be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file of the store.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// What the control state was built from anew, and what is missing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Recovered {
    /// Records by kind: the first part of their keys.
    pub records: BTreeMap<String, usize>,
    /// Generations that only their record files had.
    pub from_files: Vec<String>,
    /// Generations whose trees the store does not have: publish their files again.
    pub without_tree: Vec<String>,
    /// How old the copy of the decisions is, milliseconds; `None`: there was none. What was decided since is lost.
    pub copy_age_ms: Option<u64>,
    /// Lines of the copy that could not be read.
    pub damaged_lines: usize,
    /// Record files that could not be read.
    pub damaged_files: Vec<String>,
    /// Where the damaged control state lies now.
    pub kept: Option<PathBuf>,
}

/// Builds the control state of a store anew, while no manager has it open. Waits for the disk.
///
/// # Errors
/// See [`RecoverError`]; nothing is changed then.
pub fn recover(root: &Path) -> Result<Recovered, RecoverError> {
    // Also takes the lock: nobody else may write meanwhile.
    let store = Store::open(root)?;
    let control = root.join(CONTROL_FILE);
    if control.exists() {
        match LocalStore::open(&control) {
            Ok(_) => return Err(RecoverError::NotDamaged(root.to_path_buf())),
            Err(ControlError::Broken { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (copy, copy_age_ms) = read_copy(&root.join(BACKUP_FILE))?;
    let mut recovered = Recovered { copy_age_ms, damaged_lines: copy.damaged, ..Recovered::default() };
    let mut entries = copy.entries;
    let records = RecordFiles::of(root);
    let found = records.all().map_err(|cause| io_error(root, cause))?;
    recovered.damaged_files = found.damaged;
    let mut sequence = 0;
    let mut records = found.records;
    // The first of each version before what came to it.
    records.sort_by_key(|(_, _, is_also)| *is_also);
    for (record, signed, is_also) in records {
        sequence = sequence.max(record.sequence);
        if super::control::add_record(&mut entries, &record, is_also, signed)? {
            recovered.from_files.push(record.name());
        }
    }
    super::control::raise_sequence(&mut entries, sequence)?;
    super::control::raise_lists(&mut entries, now())?;
    let trees: BTreeSet<TreeId> = store.trees()?.into_iter().collect();
    recovered.without_tree = super::control::names_without(&entries, &trees);
    for key in entries.keys() {
        *recovered.records.entry(key.split('/').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    recovered.kept = put_in_place(root, &control, entries)?;
    Ok(recovered)
}

fn read_copy(path: &Path) -> Result<(Backup, Option<u64>), RecoverError> {
    let copy = match backup::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Backup::default(), None)),
        copy => copy.map_err(|cause| io_error(path, cause))?,
    };
    let written = fs::metadata(path).and_then(|facts| facts.modified()).map_err(|cause| io_error(path, cause))?;
    let age = SystemTime::now().duration_since(written).unwrap_or_default();
    Ok((copy, Some(proto::width::millis(age))))
}

/// Writes the new control state, keeps the damaged one beside it, and puts the new one in its place.
fn put_in_place(
    root: &Path,
    control: &Path,
    entries: BTreeMap<String, Vec<u8>>,
) -> Result<Option<PathBuf>, RecoverError> {
    let fresh = root.join("control.redb.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&fresh, error)),
        _ => {}
    }
    LocalStore::fill(&fresh, &entries.into_iter().collect::<Vec<_>>())?;
    let aside = root.join(format!("{CONTROL_FILE}.damaged-{}", now()));
    let kept = match fs::hard_link(control, &aside) {
        Ok(()) => Some(aside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io_error(&aside, error)),
    };
    let renamed = moments::reach(Moment::ControlRecover, control).and_then(|()| fs::rename(&fresh, control));
    renamed.map_err(|cause| io_error(control, cause))?;
    fs::File::open(root).and_then(|directory| directory.sync_all()).map_err(|cause| io_error(root, cause))?;
    Ok(kept)
}

fn io_error(path: &Path, cause: io::Error) -> RecoverError {
    RecoverError::Io { path: path.to_path_buf(), cause }
}
