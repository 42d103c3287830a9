//! One job in memory. Three things that are kept apart on purpose: what is asked of it (two words that no lock guards),
//! what watchers see (a lock that is held for moments only), and what is on disk (a lock that may be held over a sync).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::Version;
use proto::agent::{JobId, JobOrigin, Operation, Outcome, Progress};

use super::record::{JobRecord, Paper};
use crate::durable::FileFault;
use crate::moments::Moment;
use crate::operations::{Demand, Underlying};

/// How far a drain is, for all jobs at once: one word that only the drain writes.
#[derive(Debug, Clone, Default)]
pub(super) struct DrainStage(Arc<AtomicU8>);

impl DrainStage {
    /// One of [`Demand::None`], [`Demand::Finish`] and [`Demand::Checkpoint`].
    pub(super) fn set(&self, demand: Demand) {
        self.0.store(demand as u8, Ordering::Release);
    }

    pub(super) fn get(&self) -> Demand {
        match self.0.load(Ordering::Acquire) {
            0 => Demand::None,
            1 => Demand::Finish,
            _ => Demand::Checkpoint,
        }
    }
}

/// One operation under way: what is wanted of it, how far it is, and who waits for it.
pub(crate) struct Job {
    id: JobId,
    /// As the order said; not on disk, where the operation itself may keep what it needs.
    origin: Option<JobOrigin>,
    operation: Operation,
    version: Version,
    schema: u32,
    /// Set once and never taken back: a drain writes another word, so it cannot overwrite this one.
    cancelled: AtomicBool,
    drain: DrainStage,
    seen: Mutex<Seen>,
    changed: Condvar,
    paper: Mutex<Paper>,
}

/// What watchers see.
#[derive(Default)]
struct Seen {
    progress: Option<Progress>,
    /// Grows with every change that a watcher wants to know.
    news: u64,
    /// Left by a change-over that is about to exec; watchers are told to ask again afterwards.
    suspended: bool,
    /// It was never begun, because its record could not be written.
    withdrawn: Option<String>,
    outcome: Option<Outcome>,
}

/// What a watcher of a job is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// How far it is; the number is for the next [`Job::wait`].
    Progress(u64, Progress),
    Ended(Outcome),
    /// It goes on after the change-over.
    Suspended,
    /// It could not be begun, and why. Asked again, it may be.
    Withdrawn(String),
    /// Nothing within the time.
    Nothing,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({}, {})", self.id.0, self.operation.kind())
    }
}

impl Underlying for Job {
    fn id(&self) -> JobId {
        self.id
    }

    fn origin(&self) -> Option<&JobOrigin> {
        self.origin.as_ref()
    }

    fn demand(&self) -> Demand {
        if self.is_cancelled() { Demand::Cancel } else { self.drain.get() }
    }

    fn checkpoint(&self, resume: &[u8]) -> Result<(), FileFault> {
        let mut paper = self.paper();
        paper.record.resume = Some((self.schema, resume.to_vec()));
        paper.record.starts = 0;
        paper.write(Moment::JobCheckpoint)
    }

    fn progress(&self, mut progress: Progress) {
        progress.version = self.version.to_string();
        let mut seen = self.seen();
        seen.progress = Some(progress);
        seen.news += 1;
        self.changed.notify_all();
    }
}

impl Job {
    /// A job as its record has it. `schema`: in which its next checkpoint is written.
    pub(super) fn new(record: JobRecord, path: PathBuf, version: Version, schema: u32, drain: DrainStage) -> Self {
        Self {
            id: record.id,
            origin: None,
            operation: record.operation.clone(),
            version,
            schema,
            cancelled: AtomicBool::new(record.cancelled),
            drain,
            seen: Mutex::new(Seen { outcome: record.outcome.clone(), ..Seen::default() }),
            changed: Condvar::new(),
            paper: Mutex::new(Paper::new(path, record)),
        }
    }

    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    /// On whose behalf it was ordered.
    pub(super) fn ordered_by(self, origin: JobOrigin) -> Self {
        Self { origin: Some(origin), ..self }
    }

    pub(super) fn operation(&self) -> &Operation {
        &self.operation
    }

    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    /// The demand stands when this returns, whatever becomes of the record.
    pub(super) fn cancel(&self) -> Result<(), FileFault> {
        self.ask_to_cancel();
        let mut paper = self.paper();
        if paper.record.outcome.is_some() {
            return Ok(());
        }
        paper.record.cancelled = true;
        paper.write(Moment::JobCancel)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn ask_to_cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Waits for something that the watcher, who knows news up to `known`, does not know yet.
    pub(crate) fn wait(&self, known: u64, at_most: Duration) -> News {
        let quiet = |s: &mut Seen| s.news == known && !s.is_over();
        let waited = self.changed.wait_timeout_while(self.seen(), at_most, quiet);
        let (seen, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match (&seen.outcome, &seen.progress) {
            (Some(outcome), _) => News::Ended(outcome.clone()),
            (None, _) if seen.suspended => News::Suspended,
            (None, _) if seen.withdrawn.is_some() => News::Withdrawn(seen.withdrawn.clone().unwrap_or_default()),
            (None, Some(progress)) if seen.news != known => News::Progress(seen.news, progress.clone()),
            (None, _) => News::Nothing,
        }
    }

    /// Waits up to `at_most` for the end of the job alone: what keeps the rate of progress bounded.
    pub(crate) fn wait_end(&self, at_most: Duration) {
        drop(self.changed.wait_timeout_while(self.seen(), at_most, |s| !s.is_over()));
    }

    pub(super) fn has_outcome(&self) -> bool {
        self.seen().outcome.is_some()
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.seen().suspended
    }

    pub(super) fn suspend(&self, suspended: bool) {
        self.seen().suspended = suspended;
        self.changed.notify_all();
    }

    pub(super) fn withdraw(&self, why: String) {
        self.seen().withdrawn = Some(why);
        self.changed.notify_all();
    }

    /// Tells watchers. The outcome is on disk by then, if the disk took it.
    pub(super) fn tell_outcome(&self, outcome: Outcome) {
        self.seen().outcome = Some(outcome);
        self.changed.notify_all();
    }

    /// The record. Held over a sync: whoever must not wait for a disk does not ask for it.
    pub(super) fn paper(&self) -> MutexGuard<'_, Paper> {
        // A panic of the embedder's code never happens under this lock.
        self.paper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn is_over(&self) -> bool {
        self.suspended || self.withdrawn.is_some() || self.outcome.is_some()
    }
}
