//! Jobs: each is a durable record and, until it is over, one task that sees it through draining agents, lost
//! connections and restarts of the manager.
//!
//! ```text
//! queued ──repository free, host there──> sent ──progress──> running ──outcome──> done | failed | cancelled
//!    ^                                      │
//!    └── draining, connection lost <────────┘   (sent again; the agent joins a job that it knows)
//! ```

mod drive;
mod operation;
mod turn;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::agent::{JobId, Operation, Outcome, Progress};
use proto::{HostName, Product};

use super::connections::Connections;
use super::control::hosts::HostError;
use super::control::jobs::{JobRecord, JobRecordError, JobState};
use super::control::{ControlError, State};
use super::news::{News, NewsBoard};
use super::now;
use super::worker::BrokenOff;
use operation::check;
use turn::Repositories;

pub use operation::OperationFault;

/// How often a running job's progress is written down.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Why a job was not ordered, or cannot be stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The operation makes no sense.
    #[error(transparent)]
    Operation(#[from] OperationFault),
    /// Nothing can be done about it any more.
    #[error("job {} is over already: {state:?}", id.0)]
    Over {
        /// Which.
        id: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The host cannot have it.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no such job.
    #[error(transparent)]
    Record(#[from] JobRecordError),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Its progress was not written down.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// All jobs.
pub(crate) struct Jobs {
    state: Arc<State>,
    connections: Arc<Connections>,
    news: Arc<NewsBoard>,
    /// What is known of running jobs beside their records.
    live: Mutex<HashMap<JobId, Live>>,
    repositories: Repositories,
}

struct Live {
    progress: Progress,
    saved: Instant,
}

impl Jobs {
    /// Over the control state; [`Jobs::resume`] takes up what is in it.
    pub(crate) fn new(state: Arc<State>, connections: Arc<Connections>, news: Arc<NewsBoard>) -> Self {
        Self { state, connections, news, live: Mutex::default(), repositories: Repositories::default() }
    }

    /// Records a job and begins to see it through.
    ///
    /// # Errors
    /// The host is unknown, or the operation makes no sense.
    pub(crate) fn add(
        self: &Arc<Self>,
        host: &HostName,
        product: &Product,
        operation: &Operation,
    ) -> Result<JobRecord, JobError> {
        self.state.known_host(host)?;
        check(operation)?;
        let record = self.state.add_job(host, product, operation, now())?;
        tracing::info!(job = record.id.0, %host, %product, operation = operation.kind(), "job ordered");
        tokio::spawn(drive::drive(Arc::clone(self), record.id, None));
        Ok(record)
    }

    /// A job as it is this moment.
    ///
    /// # Errors
    /// There is no such job.
    pub(crate) fn job(&self, id: JobId) -> Result<JobRecord, JobError> {
        Ok(self.as_it_is(self.state.job(id)?))
    }

    /// The newest jobs as they are this moment, oldest of them first.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn newest(&self, limit: usize) -> Result<Vec<JobRecord>, JobError> {
        let mut all = self.state.jobs()?;
        let newest = all.split_off(all.len().saturating_sub(limit));
        Ok(newest.into_iter().map(|record| self.as_it_is(record)).collect())
    }

    /// Asks for a job to be stopped; it ends at the agent's next unit boundary, at once if it was never sent.
    ///
    /// # Errors
    /// There is no such job, or it is over.
    pub(crate) fn cancel(&self, id: JobId) -> Result<JobRecord, JobError> {
        let record = self.state.job(id)?;
        if record.state.is_final() {
            return Err(JobError::Over { id, state: record.state });
        }
        let record = self.state.alter_job(id, |record| record.cancel = true)?;
        tracing::info!(job = id.0, "cancellation asked for");
        self.news.tell(&record.host, News::Job(id));
        Ok(record)
    }

    /// After a restart: takes up every job that is not over. Those that agents may be working on get their
    /// repositories first.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<(), ControlError> {
        let mut open = self.state.jobs()?;
        open.retain(|record| !record.state.is_final());
        open.sort_by_key(|record| (record.sent == 0, record.id));
        for record in open {
            let turn = if record.sent > 0 { self.repositories.try_turn(&record) } else { None };
            tracing::info!(job = record.id.0, host = %record.host, "job taken up again");
            tokio::spawn(drive::drive(Arc::clone(self), record.id, turn));
        }
        Ok(())
    }

    /// Progress that a host reports of a job whose `Run` was cut off.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn progress_of(&self, host: &HostName, id: JobId, progress: Progress) -> Result<(), JobError> {
        if self.state.job(id).is_ok_and(|record| record.host == *host && !record.state.is_final()) {
            self.progressed(host, id, progress)?;
        }
        Ok(())
    }

    /// The end of a job, by the answer to `Run` or by a report; whichever comes second changes nothing.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) fn ended(&self, host: &HostName, id: JobId, outcome: &Outcome) -> Result<(), JobError> {
        match self.state.job(id) {
            Ok(record) if record.host == *host => self.end(id, outcome),
            // A host can only speak of its own jobs; a report of an unknown one must not be sent for ever.
            Ok(_) | Err(JobRecordError::Unknown(_)) => {
                tracing::warn!(%host, job = id.0, "outcome of a job that this host does not have");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn end(&self, id: JobId, outcome: &Outcome) -> Result<(), JobError> {
        let progress = self.live().get(&id).map(|live| live.progress.clone());
        let record = self.state.alter_job(id, |record| {
            if !record.state.is_final() {
                record.progress = progress.clone().or(record.progress.take());
                record.end(outcome, now());
            }
        })?;
        self.live().remove(&id);
        tracing::info!(job = id.0, state = ?record.state, "job ended");
        self.news.tell(&record.host, News::Job(id));
        Ok(())
    }

    /// Notes progress; writes it down when it is the first, when a unit is done, or now and then.
    fn progressed(&self, host: &HostName, id: JobId, progress: Progress) -> Result<(), JobError> {
        let save = {
            let mut live = self.live();
            let due = live.get(&id).is_none_or(|live| {
                live.progress.units_done != progress.units_done
                    || live.progress.version != progress.version
                    || live.saved.elapsed() >= SAVE_EVERY
            });
            let saved = live.get(&id).filter(|_| !due).map_or_else(Instant::now, |live| live.saved);
            live.insert(id, Live { progress: progress.clone(), saved });
            due
        };
        if save {
            self.state.alter_job(id, |record| {
                if !record.state.is_final() {
                    record.state = JobState::Running;
                    record.started.get_or_insert_with(now);
                    record.progress = Some(progress.clone());
                    record.waiting = None;
                }
            })?;
        }
        self.news.tell(host, News::Job(id));
        Ok(())
    }

    /// Notes why a job does not go on.
    fn waits(&self, id: JobId, reason: &str) -> Result<(), JobError> {
        let before = self.state.job(id)?;
        if before.waiting.as_deref() != Some(reason) && !before.state.is_final() {
            self.state.alter_job(id, |record| record.waiting = Some(reason.to_owned()))?;
            tracing::info!(job = id.0, reason, "job waits");
            self.news.tell(&before.host, News::Job(id));
        }
        Ok(())
    }

    fn as_it_is(&self, mut record: JobRecord) -> JobRecord {
        if let Some(live) = self.live().get(&record.id).filter(|_| !record.state.is_final()) {
            record.progress = Some(live.progress.clone());
        }
        record
    }

    fn live(&self) -> MutexGuard<'_, HashMap<JobId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
