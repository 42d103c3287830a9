//! Stores of format 1 are brought over at the first start: read as they were written, and written anew.
//!
//! The new files are made beside the old one and renamed into place when they are whole and synced, the one that says
//! "done" (`control.redb`) last. A power cut at any moment leaves the old file in its place, and the next start begins
//! again, or the new one, and it goes on. The old file stays as `control.redb.format-1` until somebody removes it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

use super::contract::{ControlError, VALUE_BYTES_MAX};
use super::database::LocalStore;
use super::disk::{open_file, storage};
use super::observations::{Filling, LocalObservations};
use super::state::{Key, encode};

mod old;
#[cfg(test)]
mod tests;

/// The control state's file in a store.
pub const CONTROL_FILE: &str = "control.redb";
/// The observations' file in a store.
pub const OBSERVATIONS_FILE: &str = "observations.redb";
/// Where the control state of format 1 stays.
const OLD_FILE: &str = "control.redb.format-1";

/// Key to version (8 bytes) and value.
const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");

/// What was brought over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BroughtOver {
    /// Records that the new store has.
    pub records: usize,
    /// Records that could not be read, and are listed as set aside.
    pub set_aside: usize,
}

/// Brings a store over if it is of format 1; `None` if there is nothing to do. Waits for the disk.
///
/// # Errors
/// The old file is damaged, someone has it open, or the disk fails. The store is as it was then.
pub(super) fn bring_over(root: &Path) -> Result<Option<BroughtOver>, ControlError> {
    let path = root.join(CONTROL_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let database = open_file(&path)?;
    if !is_old(&database)? {
        return Ok(None);
    }
    let mut new = New::default();
    read_old(&database, &mut new)?;
    drop(database);
    new.put_sequence()?;
    write_new(root, &new)?;
    let done = BroughtOver { records: new.entries.len(), set_aside: new.set_aside };
    tracing::info!(records = done.records, set_aside = done.set_aside, "the control state was brought over");
    Ok(Some(done))
}

/// Why a record has no place in the new store.
#[derive(Debug, thiserror::Error)]
enum PutFault {
    #[error(transparent)]
    Unfit(#[from] ControlError),
    #[error("it has {0} bytes; {VALUE_BYTES_MAX} are allowed")]
    TooLong(usize),
}

/// What the new store will have.
#[derive(Default)]
struct New {
    entries: Vec<(String, Vec<u8>)>,
    observations: Filling,
    sequence: u64,
    set_aside: usize,
}

/// For `tests/fuzz`: a record of a store of format 1.
#[cfg(any(test, fuzzing))]
pub(super) fn convert_any(key: &str, value: &[u8]) -> bool {
    let mut new = New { entries: Vec::new(), observations: Filling::default(), sequence: 0, set_aside: 0 };
    old::convert(key, value, &mut new).is_ok()
}

impl New {
    fn put<T: serde::Serialize + serde::de::DeserializeOwned>(
        &mut self,
        key: &Key,
        value: &T,
    ) -> Result<(), PutFault> {
        let key = key.to_string();
        let value = encode(&key, value)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(PutFault::TooLong(value.len()));
        }
        self.entries.push((key, value));
        Ok(())
    }

    fn put_sequence(&mut self) -> Result<(), ControlError> {
        let sequence = self.sequence;
        self.put(&Key::Sequence, &sequence).map_err(of_ours)
    }

    /// Leaves a note of a record that could not be brought over.
    fn put_aside(&mut self, key: &str, reason: &str) -> Result<(), ControlError> {
        tracing::error!(key, reason, "a record of the older store cannot be brought over");
        self.set_aside += 1;
        let note = format!("it could not be brought over from the older store ({reason}); it is still in {OLD_FILE}");
        let key: String = key.chars().filter(|letter| !letter.is_control()).take(180).collect();
        self.put(&Key::SetAside(key), &note).map_err(of_ours)
    }
}

/// What this program makes itself always has a place.
fn of_ours(fault: PutFault) -> ControlError {
    ControlError::Storage(fault.to_string())
}

fn is_old(database: &Database) -> Result<bool, ControlError> {
    let transaction = database.begin_read().map_err(storage)?;
    let mut tables = transaction.list_tables().map_err(storage)?;
    Ok(tables.any(|table| table.name() == VALUES.name()))
}

fn read_old(database: &Database, new: &mut New) -> Result<(), ControlError> {
    let transaction = database.begin_read().map_err(storage)?;
    let values = transaction.open_table(VALUES).map_err(storage)?;
    for entry in values.iter().map_err(storage)? {
        let (key, packed) = entry.map_err(storage)?;
        if let Err(reason) = old::convert(key.value(), packed.value(), new) {
            new.put_aside(key.value(), &reason.to_string())?;
        }
    }
    Ok(())
}

fn write_new(root: &Path, new: &New) -> Result<(), ControlError> {
    let at = |name: &str| root.join(name);
    let (control, observations) = (at("control.redb.new"), at("observations.redb.new"));
    let failed = |error: io::Error| ControlError::Storage(format!("{}: {error}", root.display()));
    // Left by a start that was cut off.
    for left in [&control, &observations, &at(OLD_FILE)] {
        remove_if_there(left).map_err(failed)?;
    }
    LocalObservations::fill(&observations, &new.observations)?;
    LocalStore::fill(&control, &new.entries)?;
    let rename = || -> io::Result<()> {
        fs::rename(&observations, at(OBSERVATIONS_FILE))?;
        fs::hard_link(at(CONTROL_FILE), at(OLD_FILE))?;
        File::open(root)?.sync_all()?;
        fs::rename(&control, at(CONTROL_FILE))?;
        File::open(root)?.sync_all()
    };
    rename().map_err(failed)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
