//! The control state: what was decided (published, exported, enrolled, ordered), and what was observed of hosts.
//!
//! ```text
//! State (state/):   typed records ──┬─> ControlStore (contract.rs)     decisions     <── LocalStore: control.redb
//!   View: who may see what          └─> Observations (observations/)   observations  <── LocalObservations
//! ```
//! Keys, values, bounds and files: `docs/control-state.md`. No method of either contract waits on the caller's thread,
//! and what does wait (`disk`) can only be reached through them.

pub mod backup;
mod bring_over;
pub mod contract;
mod database;
mod disk;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod ids;
mod observations;
mod rebuild;
mod state;

use std::path::Path;
use std::sync::Arc;

pub use bring_over::{BroughtOver, CONTROL_FILE, OBSERVATIONS_FILE};
#[cfg(test)]
pub(crate) use contract::Revision;
pub use contract::{ControlError, ControlStore};
pub(crate) use contract::{Entry, list_all};
pub use database::LocalStore;
pub use observations::{HostStatus, JobSeen, LocalObservations, Noted, Observation, Observations};
pub(crate) use rebuild::{add_record, is_entry, leave_out, names_without, raise_lists, raise_sequence, trees_of};
pub use state::{
    Key, State, api_tokens, changes, exports, generations, groups, hosts, jobs, policies, repositories, rollouts,
    targets, tokens, turns,
};

/// The directory of the signed records in a store (`record_files.rs`).
pub(crate) const RECORDS: &str = "records";

/// The files of a control state, opened.
pub struct Files {
    /// What was decided: it is never lost.
    pub store: Arc<LocalStore>,
    /// What hosts report; lost, it costs no decision.
    pub observations: Arc<LocalObservations>,
    /// What an operator should be told of: observations that were set aside, a store that was brought over.
    pub notices: Vec<String>,
}

/// Opens the control state of a store's directory, or makes it; brings one of an older store over first. Waits for the
/// disk.
///
/// # Errors
/// The decisions are damaged, of a later format, or in use, or the disk fails.
pub fn open(root: &Path) -> Result<Files, ControlError> {
    let (control, mut notices) = (root.join(CONTROL_FILE), Vec::new());
    // An empty one in its place would soon be the only copy, too.
    if let Some(copy) = [backup::BACKUP_FILE, RECORDS].iter().map(|name| root.join(name)).find(|copy| copy.exists())
        && !control.exists()
    {
        return Err(ControlError::Gone { path: control.display().to_string(), copy: copy.display().to_string() });
    }
    if let Some(BroughtOver { records, set_aside }) = bring_over::bring_over(root)? {
        let aside = if set_aside == 0 { String::new() } else { format!(", {set_aside} could not be read") };
        notices.push(format!("the control state of an older version was brought over: {records} records{aside}"));
    }
    let store = Arc::new(LocalStore::open(&control)?);
    let opened = LocalObservations::open(&root.join(OBSERVATIONS_FILE))?;
    if let Some(set_aside) = opened.set_aside {
        notices.push(format!("what hosts had reported is lost: {set_aside}"));
    }
    Ok(Files { store, observations: Arc::new(opened.observations), notices })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FORMAT_1: &[u8] = include_bytes!("bring_over/format-1.redb.zst");

    #[test]
    fn a_state_whose_copies_are_there_without_it_is_not_begun_anew() {
        for copy in [backup::BACKUP_FILE, RECORDS] {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path();
            drop(open(root).unwrap());
            fs::write(root.join(copy), "").unwrap();
            drop(open(root).unwrap());
            fs::remove_file(root.join(CONTROL_FILE)).unwrap();
            let error = open(root).err().unwrap();
            assert!(matches!(&error, ControlError::Gone { copy: named, .. } if named.ends_with(copy)), "{error}");
            assert!(!root.join(CONTROL_FILE).exists());
        }
    }

    #[test]
    fn a_store_of_before_is_said_to_be_brought_over_and_how_much_of_it_was_not_readable() {
        for damaged in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(CONTROL_FILE);
            fs::write(&path, zstd::stream::decode_all(FORMAT_1).unwrap()).unwrap();
            if damaged {
                let database = redb::Database::create(&path).unwrap();
                let transaction = database.begin_write().unwrap();
                let values = redb::TableDefinition::<&str, &[u8]>::new("values");
                transaction.open_table(values).unwrap().insert("nothing/known", [0; 9].as_slice()).unwrap();
                transaction.commit().unwrap();
            }
            let notices = open(directory.path()).unwrap().notices;
            let [notice] = notices.as_slice() else { panic!("{notices:?}") };
            assert!(
                notice.contains("brought over") && notice.ends_with("1 could not be read") == damaged,
                "{notice}"
            );
            assert_eq!(open(directory.path()).unwrap().notices, [""; 0]);
        }
    }
}
