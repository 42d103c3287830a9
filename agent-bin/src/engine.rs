//! What the agent asks of a backup engine, and how a running operation is watched and stopped.
//!
//! The one implementation is [`rustic::Rustic`]: repositories of restic's format. Everything that knows its library is
//! below `engine/`, because that library's interface still moves.

mod compare;
mod gate;
pub(crate) mod rustic;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proto::agent::Repository;

/// How many lines of problems an operation reports; a tree full of unreadable files must not become a message that
/// nobody can send.
pub(crate) const PROBLEMS_MAX: usize = 200;

/// One operation's counters, shared between the engine's threads and whoever reports them.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes_done: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
    activity: Mutex<String>,
    problems: Mutex<Problems>,
}

#[derive(Debug, Default)]
struct Problems {
    lines: Vec<String>,
    left_out: u64,
}

impl Meter {
    /// Asks the engine to end at the next place where ending loses nothing; the call then fails with
    /// [`EngineError::Stopped`].
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Bytes done and bytes in all (0 while unknown) of the current activity, and its name.
    pub(crate) fn read(&self) -> (u64, u64, String) {
        let activity = self.activity.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        (self.bytes_done.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed), activity)
    }

    fn begin(&self, activity: &str) {
        self.bytes_done.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        if !activity.is_empty() {
            let mut current = self.activity.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            activity.trim_end_matches('.').clone_into(&mut current);
        }
    }

    fn expect(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes something that went wrong without ending the operation.
    fn problem(&self, line: String) {
        let mut problems = self.problems.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if problems.lines.len() < PROBLEMS_MAX {
            problems.lines.push(line);
        } else {
            problems.left_out += 1;
        }
    }

    /// The problems noted so far, which are then forgotten.
    pub(crate) fn take_problems(&self) -> Vec<String> {
        let problems = std::mem::take(&mut *self.problems.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let mut lines = problems.lines;
        if problems.left_out > 0 {
            lines.push(format!("and {} more problems like these", problems.left_out));
        }
        lines
    }
}

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// [`Meter::stop`] was called. Whatever was finished by then stays; nothing half-done is visible.
    #[error("stopped on request")]
    Stopped,
    /// A file or directory of the host could not be used.
    #[error("{path}: {what}")]
    Path { path: PathBuf, what: String },
    /// The password file could not be read or made.
    #[error("password file {path}: {what}")]
    Password { path: PathBuf, what: String },
    /// Another process on this host works on the repository in a way that does not go together with this operation.
    #[error("repository {path} is in use by another operation on this host; try again when it has ended")]
    InUse { path: PathBuf },
    /// There is no repository where one is needed.
    #[error("repository {path}: there is no repository here (a backup makes one)")]
    NoRepository { path: PathBuf },
    /// The engine failed.
    #[error("repository {path}: {what}")]
    Failed { path: PathBuf, what: String },
}

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
}

/// Marks the snapshots of one job, so that a rerun finds those it had finished before it was cut off.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// Becomes a tag of the snapshot.
    pub(crate) tag: String,
    /// Only a snapshot that is no older is the job's own; milliseconds since 1970.
    pub(crate) since_unix_ms: u64,
    /// Whether an earlier run of the job may have finished the unit already.
    pub(crate) look: bool,
}

/// Storage operations on one repository. Every call blocks until it is done, has failed or was stopped through `meter`,
/// which also collects what went wrong without ending it.
pub(crate) trait BackupEngine: Send + Sync {
    /// Backs up one source (a directory or a file) into one snapshot, incrementally against the source's newest one.
    /// Makes the repository if there is none.
    fn backup(&self, at: &Repository, source: &Path, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Restores the content of a snapshot's source into `target`.
    fn restore(
        &self,
        at: &Repository,
        snapshot: &str,
        target: &Path,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError>;
    /// Compares a snapshot with its source as it is now. Differences are problems.
    fn verify(&self, at: &Repository, snapshot: &str, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Checks the repository's structure, with `read_data` every byte. Faults are problems.
    fn check(&self, at: &Repository, read_data: bool, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Removes all but the newest `keep_last` snapshots of each source; their data stays until [`BackupEngine::reclaim`].
    fn forget(&self, at: &Repository, keep_last: u32, meter: &SharedMeter) -> Result<Work, EngineError>;
    /// Frees what no snapshot needs.
    fn reclaim(&self, at: &Repository, meter: &SharedMeter) -> Result<Work, EngineError>;
}

/// A [`Meter`] as the engine's own threads hold it.
pub(crate) type SharedMeter = std::sync::Arc<Meter>;

/// Whether a panic in one of the engine's threads is how a stopped operation ends there.
pub(crate) fn was_stopped(panic: &str) -> bool {
    panic.contains(gate::STOPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_bounded_and_counted() {
        let meter = Meter::default();
        for n in 0..PROBLEMS_MAX + 3 {
            meter.problem(format!("file {n} cannot be read"));
        }
        let lines = meter.take_problems();
        assert_eq!(lines.len(), PROBLEMS_MAX + 1);
        assert_eq!(lines[PROBLEMS_MAX], "and 3 more problems like these");
        assert!(meter.take_problems().is_empty());
    }
}
