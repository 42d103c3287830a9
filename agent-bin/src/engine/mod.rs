//! What the agent asks of a backup engine, and how a running operation is watched and stopped.
//!
//! The one implementation is [`restic::Restic`]: repositories of restic's format. What reads and writes their bytes is
//! in [`mod@format`]; `rustic_core` opens, checks and prunes them, and what knows that library stays below `engine/`,
//! because its interface still moves.

mod again;
mod archive;
mod beneath;
mod command;
mod compare;
mod elsewhere;
mod facts;
mod fault;
pub(crate) mod format;
mod gate;
mod keys;
mod library;
mod light_key;
mod live;
mod meter;
mod patterns;
mod remote;
pub(crate) mod restic;
mod restore;
mod retention;
mod s3;
mod selection;
mod session;
mod sftp;
mod snapshots;
mod source;
mod stores;
mod unfinished;
mod wanted;

use std::path::Path;
use std::sync::{Arc, Once};

use agent_core::Permits;
use proto::RepositoryName;
use proto::agent::{JobOrigin, Repository, SnapshotRef};
use proto::backup::{BackupCounts, BackupOptions};
use proto::keeping::{Keeping, Refused};
use proto::look::{Forget, Found, Query};
use proto::means::{Commands, Pace, Ran};
use proto::restore::{Over, RestoreOptions};

use crate::kept::Kept;
pub(crate) use command::around;
pub(crate) use fault::EngineError;
pub(crate) use meter::{Problems, SharedMeter};
pub(crate) use stores::store;

/// What one call of the engine did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Snapshots made or read.
    pub(crate) snapshots: Vec<String>,
    /// Files read or written.
    pub(crate) files: u64,
    /// Bytes read or written.
    pub(crate) bytes: u64,
    /// Bytes added to the repository, or freed by prune.
    pub(crate) repository_bytes: u64,
    /// Of a backup.
    pub(crate) counts: BackupCounts,
    /// Commands that ran for it.
    pub(crate) ran: Vec<Ran>,
    /// Of a look.
    pub(crate) found: Vec<Found>,
    /// How much more there was.
    pub(crate) left_out: u64,
    /// Of a repository that is served: what is shown to programs that are no agents.
    pub(crate) certificate: Option<String>,
    /// What was asked of a repository that is served, beside its data: names and texts.
    pub(crate) said: Vec<(String, String)>,
}

/// On whose behalf an operation is done, which its snapshots say, and what the host permits it.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// The manager's number.
    pub(crate) job: u64,
    /// Host, product and policy.
    pub(crate) origin: JobOrigin,
    /// Only a snapshot that is no older is the job's own; milliseconds since 1970.
    pub(crate) since_unix_ms: u64,
    /// Whether an earlier run of the job may have finished the unit already.
    pub(crate) look: bool,
    /// What may be read of the host, and where.
    pub(crate) permits: Arc<Permits>,
    /// How fast it may be.
    pub(crate) pace: Pace,
}

/// What a restore goes to, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Onto<'a> {
    /// An absolute path.
    pub(crate) target: &'a Path,
    /// Which part of the snapshot.
    pub(crate) options: &'a RestoreOptions,
    /// What becomes of what is there; `None`: nothing may be there.
    pub(crate) over: Option<Over>,
}

/// How large the sample of a snapshot is at most that a restore test takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SampleBounds {
    pub(crate) files: u32,
    pub(crate) bytes: u64,
}

/// Storage operations on one repository. Every call blocks until it is done, has failed or was stopped through `meter`,
/// which also collects what went wrong without ending it.
pub(crate) trait BackupEngine: Send + Sync {
    /// Backs up sources (directories or files) into one snapshot, incrementally against the newest one of the same
    /// sources. Makes the repository if there is none, and unless it is a dry run.
    fn backup(
        &self,
        at: &Repository,
        sources: &[&Path],
        options: &BackupOptions,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// As `backup`, of what a command prints, as one file at this path. If it does not end well there is no snapshot.
    fn backup_output(
        &self,
        at: &Repository,
        path: &Path,
        options: &BackupOptions,
        commands: &Commands,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// Restores the content of a snapshot, or a part of it, into `target`; a dry run only finds what that would be.
    fn restore(
        &self,
        at: &Repository,
        snapshot: &SnapshotRef,
        target: &Path,
        options: &RestoreOptions,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// As `restore`, also over what is in the target.
    fn restore_over(
        &self,
        at: &Repository,
        snapshot: &SnapshotRef,
        onto: &Onto<'_>,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// Restores a sample of snapshots into a place of the agent's own, compares it with them and with what of it has not
    /// changed in the sources, and removes it. Differences are problems.
    fn restore_test(
        &self,
        at: &Repository,
        snapshot: &SnapshotRef,
        bounds: SampleBounds,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// Compares snapshots with their sources as they are now. Differences are problems.
    fn verify(
        &self,
        at: &Repository,
        snapshot: &SnapshotRef,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// Checks the repository's structure, with `read_data` every byte. Faults are problems.
    fn check(&self, at: &Repository, read_data: bool, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Removes all but the newest `keep_last` snapshots of each source of each host; their data stays until
    /// [`BackupEngine::reclaim`].
    fn forget(&self, at: &Repository, keep_last: u32, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Forgets snapshots by the rules of a calendar; what becomes of each is found.
    fn forget_by_rules(
        &self,
        at: &Repository,
        order: &Forget,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// Looks into the repository.
    fn look(&self, at: &Repository, query: &Query, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Frees what no snapshot needs.
    fn reclaim(&self, at: &Repository, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// The repository's own id, in the place of a snapshot's. Takes no lock: it is asked while others have theirs.
    fn identify(&self, at: &Repository, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Makes a repository, or takes the one that is there, and serves it from now on; its password is that of a file, or
    /// drawn. Its id stands in the place of a snapshot's.
    fn serve(&self, kept: &Kept, password_file: Option<&Path>, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Serves a repository no longer.
    fn unserve(&self, name: &RepositoryName) -> Result<Work, EngineError>;
    /// Something about a repository that is served, beside its data; what came of it is said.
    fn keeping(
        &self,
        name: &RepositoryName,
        order: &Keeping,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
}

/// A repository is not served, or goes on being served: why, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DeskFault(pub(crate) String);

/// What serves repositories to other hosts.
pub(crate) trait Desk: Send + Sync {
    /// From now on, and after every start. Returns the certificate that programs see which are no agents, as one line.
    ///
    /// # Errors
    /// Why it cannot, for people.
    fn begin(&self, kept: &Kept) -> Result<String, DeskFault>;
    /// No longer.
    ///
    /// # Errors
    /// Why it cannot be forgotten, for people.
    fn end(&self, name: &RepositoryName) -> Result<(), DeskFault>;
    /// Lets in nobody by these grants from now on, nor by those that were refused before.
    ///
    /// # Errors
    /// Why it cannot be kept, for people.
    fn refuse(&self, name: &RepositoryName, grants: &[Refused]) -> Result<(), DeskFault>;
}

/// From now on a panic in a thread of a library's is told to the operation that it belongs to, and is a line of the log.
pub(crate) fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        // How a stopped operation ends in the library's threads.
        if text.contains(gate::STOPPED) {
            return tracing::debug!("{text}");
        }
        tracing::error!("{text}");
        gate::panicked(panic.payload_as_str().unwrap_or(&text));
    }));
}

/// Makes what the library's threads have in common, once, before it is used.
pub(crate) fn ready() {
    static READY: Once = Once::new();
    // Otherwise a panic in what the library leaves to this pool would end the process, and every operation with it. A pool
    // that is there already is somebody else's, who has decided that.
    READY.call_once(|| drop(rayon::ThreadPoolBuilder::new().panic_handler(|_| {}).build_global()));
}

/// The repository's password in a file, which somebody whom the agent trusts has written.
pub(crate) fn password_of(path: &Path) -> Result<String, EngineError> {
    session::password(path, false)
}

/// How an operation ends in which a thread of the library's panicked.
pub(crate) fn broken(panic: &str) -> EngineError {
    EngineError::GivenUp(library::broken(panic))
}
