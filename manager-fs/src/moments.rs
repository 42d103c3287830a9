//! Every moment at which the manager or a host's daemon makes something durable, or does what cannot be undone: one list.
//! What it is for, and what it costs, stands in [`mod@agent_core::internal::moments`], whose hook these have too.
//!
//! `tests/tests/walls.rs` finds what makes anything durable without a moment.

use std::io;
use std::path::Path;

/// Whose moment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// `serve`, or a command that works on its store while it does not run.
    Manager,
    /// The mount daemon, which is the holder of the mount, its worker and its helper; and `enroll`.
    Host,
}

agent_core::moments! {
    /// The new authority's and publisher's keys get their name.
    KeysPut = "keys-put" by Manager,
    /// The store gets its format.
    StoreFormat = "store-format" by Manager,
    /// The address that was bound is written.
    AddressPut = "address-put" by Manager,
    /// A pack is synced and gets its name.
    PackPut = "pack-put" by Manager,
    /// A manifest is synced and gets its name.
    ManifestPut = "manifest-put" by Manager,
    /// A delta is synced and gets its name.
    DeltaPut = "delta-put" by Manager,
    /// A start-up bundle is synced and gets its name.
    BundlePut = "bundle-put" by Manager,
    /// A pack is removed.
    PackRemove = "pack-remove" by Manager,
    /// A manifest, delta or bundle is removed.
    BlobRemove = "blob-remove" by Manager,
    /// A generation is committed, or taken back.
    GenerationCommit = "generation-commit" by Manager,
    /// An export is committed, or taken back.
    ExportCommit = "export-commit" by Manager,
    /// A host's enrolment, renewal or revocation is committed.
    HostCommit = "host-commit" by Manager,
    /// A token is committed.
    TokenCommit = "token-commit" by Manager,
    /// A member of a group is committed.
    GroupCommit = "group-commit" by Manager,
    /// The order or the end of a change-over is committed.
    ChangeCommit = "change-commit" by Manager,
    /// The order or the end of a job is committed.
    JobCommit = "job-commit" by Manager,
    /// Another record is committed: a counter, a part of a long record.
    OtherCommit = "other-commit" by Manager,
    /// What hosts said is committed.
    ObservationCommit = "observation-commit" by Manager,
    /// A signed record is written beside the database.
    RecordFilePut = "record-file-put" by Manager,
    /// A signed record beside the database is removed.
    RecordFileRemove = "record-file-remove" by Manager,
    /// The copy of the decisions gets its name.
    DecisionsPut = "decisions-put" by Manager,
    /// What was decided is added to the copy.
    DecisionsAppend = "decisions-append" by Manager,
    /// A control state that was built anew takes the place of the damaged one.
    ControlRecover = "control-recover" by Manager,
    /// A backup of the manager gets its name.
    BackupPut = "backup-put" by Manager,
    /// A file of saved generations gets its name.
    SavedPut = "saved-put" by Manager,
    /// Keys and decisions of a backup get their names in a new store.
    StoreRestore = "store-restore" by Manager,
    /// A host is told to change over.
    ChangeSend = "change-send" by Manager,
    /// A host is told to run a job.
    JobSend = "job-send" by Manager,

    /// The host's identity gets its name, at enrolment and at renewal.
    IdentityPut = "identity-put" by Host,
    /// A signed record is kept.
    RecordKeep = "record-keep" by Host,
    /// A signed record is dropped.
    RecordDrop = "record-drop" by Host,
    /// The floor of a product is raised.
    FloorRaise = "floor-raise" by Host,
    /// What is attached is noted.
    AttachmentNote = "attachment-note" by Host,
    /// A report is added to those that wait for the manager.
    SpoolAdd = "spool-add" by Host,
    /// The reports that wait are written anew.
    SpoolRewrite = "spool-rewrite" by Host,
    /// A verified manifest gets its name.
    ManifestKeep = "manifest-keep" by Host,
    /// Whole objects are synced.
    ObjectSync = "object-sync" by Host,
    /// A whole object gets its name.
    ObjectPut = "object-put" by Host,
    /// What was verified in this boot is written anew.
    StampsRewrite = "stamps-rewrite" by Host,
    /// The inode numbers of the browsing view get their name.
    NumbersPut = "numbers-put" by Host,
    /// A generation's tree is mounted.
    TreeMount = "tree-mount" by Host,
    /// A generation's tree is unmounted.
    TreeUnmount = "tree-unmount" by Host,
    /// The view is mounted.
    ViewMount = "view-mount" by Host,
    /// A plain copy of a tree gets its name.
    CopyPut = "copy-put" by Host,
    /// A plain copy of a tree loses its name.
    CopyRemove = "copy-remove" by Host,
    /// The worker is started.
    WorkerStart = "worker-start" by Host,
    /// The mount helper is started.
    HelperStart = "helper-start" by Host,
    /// An agent is told to change over.
    ChangeRelay = "change-relay" by Host,
    /// An agent is told to run a job.
    JobRelay = "job-relay" by Host,
}

/// Called right before the moment, with the file that is about to change. In the programs it does nothing.
///
/// # Errors
/// What a test wants the disk to say.
pub(crate) fn reach(moment: Moment, path: &Path) -> io::Result<()> {
    agent_core::internal::moments::at(moment.name(), path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_moment_has_its_text() {
        let names: std::collections::BTreeSet<_> = Moment::ALL.iter().map(|moment| moment.name()).collect();
        assert_eq!(names.len(), Moment::ALL.len());
        assert!(Moment::ALL.iter().all(|moment| moment.text().ends_with('.')));
        let agents = agent_core::internal::moments::Moment::ALL;
        assert!(agents.iter().all(|moment| !names.contains(moment.name())), "one hook has them all");
    }
}
