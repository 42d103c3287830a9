//! Jobs: that each was ordered, sent, cancelled, and how it ended. How far it is, is an observation.

use std::collections::HashSet;

use proto::agent::{JobId, Operation, Outcome, Progress};
use proto::look::Found;
use proto::message::Unix;
use proto::{HostName, Product};
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::changes::EndedBy;
use super::{Key, State, encode};
use crate::manager::policy::definition::PolicyRun;

/// Jobs remembered. Older ones that are over are forgotten, so that the state does not grow for ever.
const JOBS_KEPT: usize = 10_000;
/// How long a job is remembered that is over, milliseconds.
const JOBS_KEPT_MS: u64 = 400 * 24 * 3600 * 1000;
/// Records of new jobs in one commit, so that any of them fits.
const COMMIT_BYTES_MAX: usize = 512 << 10;

/// Why a job cannot be read or altered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobRecordError {
    /// There is none of this number; the oldest that are over are forgotten.
    #[error("job {0} is not known; `manager-fs job list` lists those that are")]
    Unknown(JobId),
    /// Nothing can be done about it any more.
    #[error("job {id} is over already: {state:?}")]
    Over {
        /// The job that is over.
        id: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The manager's record of one storage operation on an agent. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The number under which everybody knows it; never given twice.
    pub id: JobId,
    /// The host of the agent that does it.
    pub host: HostName,
    /// Which agent does it.
    pub product: Product,
    /// What is done; paths are those of the host.
    pub operation: Operation,
    /// The policy that ordered it; `None`: a person.
    pub run: Option<PolicyRun>,
    /// How far it is.
    pub state: JobState,
    /// When it was ordered.
    pub created: Unix,
    /// When an agent was first seen at it.
    pub started: Option<Unix>,
    /// When it ended, by the manager's clock.
    pub ended: Option<Unix>,
    /// The last progress that is known.
    pub progress: Option<Progress>,
    /// How it ended; `None` while it has not.
    pub outcome: Option<Outcome>,
    /// Why it waits, for people.
    pub waiting: Option<String>,
    /// Someone asked to stop it.
    pub cancel: bool,
    /// How often the manager has sent it to the agent since it was started; at least once if it ever did. From then on
    /// an agent may be at it.
    pub sent: u32,
}

impl JobRecord {
    /// Whether it was only to say what would be done.
    pub fn is_dry_run(&self) -> bool {
        match &self.operation {
            Operation::BackupWith { options, .. } | Operation::BackupBy { options, .. } => options.dry_run,
            Operation::Forget { order, .. } => order.dry_run,
            Operation::RestoreSome { options, .. }
            | Operation::RestoreOver { options, .. }
            | Operation::RestorePaced { options, .. } => options.dry_run,
            _ => false,
        }
    }

    /// What a look at a repository found, and how much more there was.
    pub fn found(&self) -> (&[Found], u64) {
        match &self.outcome {
            Some(Outcome::Found { found, left_out, .. }) => (found, *left_out),
            _ => (&[], 0),
        }
    }
}

/// The states of a job. The last three are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Not taken by an agent yet.
    Queued,
    /// Taken by an agent.
    Running,
    /// Done to the end, maybe with problems.
    Done,
    /// Broken off by an error, or never begun.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        match self {
            JobState::Queued | JobState::Running => false,
            JobState::Done | JobState::Failed | JobState::Cancelled => true,
        }
    }
}

/// What stands under the key of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::manager::control) struct StoredJob {
    pub(in crate::manager::control) host: HostName,
    pub(in crate::manager::control) product: Product,
    pub(in crate::manager::control) operation: Operation,
    pub(in crate::manager::control) created: Unix,
    pub(in crate::manager::control) sent: Option<Unix>,
    pub(in crate::manager::control) cancel: bool,
    pub(in crate::manager::control) end: Option<StoredEnd>,
    pub(in crate::manager::control) run: Later<PolicyRun>,
}

/// The last field of a record, which records of earlier versions do not have: where they end it is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(in crate::manager::control) struct Later<T>(pub(in crate::manager::control) Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Later<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What is damaged is found by the record's check, and what is left over by the codec.
        Ok(Self(Option::deserialize(deserializer).ok().flatten()))
    }
}

/// A job that is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// On which host.
    pub host: HostName,
    /// Which agent does it.
    pub product: Product,
    /// What is done.
    pub operation: Operation,
    /// The policy that orders it; `None`: a person.
    pub run: Option<PolicyRun>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::manager::control) struct StoredEnd {
    pub(in crate::manager::control) at: Unix,
    pub(in crate::manager::control) by: EndedBy,
    pub(in crate::manager::control) outcome: Outcome,
    pub(in crate::manager::control) started: Option<Unix>,
    pub(in crate::manager::control) progress: Option<Progress>,
}

impl StoredJob {
    #[cfg(test)]
    pub(super) fn of_a_person(host: HostName, product: Product, operation: Operation, created: Unix) -> Self {
        let (sent, cancel, end, run) = (None, false, None, Later(None));
        Self { host, product, operation, created, sent, cancel, end, run }
    }

    fn record(self, id: JobId) -> JobRecord {
        let state = match &self.end {
            None => JobState::Queued,
            Some(end) => match end.outcome {
                Outcome::Done(_)
                | Outcome::OwnDone(_)
                | Outcome::BackedUp { .. }
                | Outcome::BackedUpBy { .. }
                | Outcome::Found { .. } => JobState::Done,
                Outcome::Cancelled(_) => JobState::Cancelled,
                Outcome::Failed(_) => JobState::Failed,
            },
        };
        let (mut ended, mut outcome, mut started, mut progress) = (None, None, None, None);
        if let Some(end) = self.end {
            (ended, outcome, started, progress) = (Some(end.at), Some(end.outcome), end.started, end.progress);
        }
        JobRecord {
            id,
            host: self.host,
            product: self.product,
            operation: self.operation,
            run: self.run.0,
            state,
            created: self.created,
            started,
            ended,
            progress,
            outcome,
            waiting: None,
            cancel: self.cancel,
            sent: u32::from(self.sent.is_some()),
        }
    }
}

impl State {
    /// Records a job that a person orders.
    ///
    /// # Errors
    /// [`ControlError::TooLong`]: it names more than a record holds. The control state failed.
    pub async fn add_job(
        &self,
        host: &HostName,
        product: &Product,
        operation: &Operation,
        now: Unix,
    ) -> Result<JobRecord, ControlError> {
        let (host, product, operation) = (host.clone(), product.clone(), operation.clone());
        let mut records = self.add_jobs(vec![NewJob { host, product, operation, run: None }], now).await?;
        records.pop().ok_or(ControlError::Closed)
    }

    /// Records new jobs, in as few commits as they fit into.
    ///
    /// # Errors
    /// As [`State::add_job`]; some may be recorded then.
    pub async fn add_jobs(&self, jobs: Vec<NewJob>, now: Unix) -> Result<Vec<JobRecord>, ControlError> {
        let mut records = Vec::with_capacity(jobs.len());
        let mut commits: Vec<Vec<StoredJob>> = Vec::new();
        let mut bytes = COMMIT_BYTES_MAX;
        for NewJob { host, product, operation, run } in jobs {
            let (sent, cancel, end) = (None, false, None);
            let run = Later(run);
            let stored = StoredJob { host, product, operation, created: now, sent, cancel, end, run };
            let length = encode("job/0000000000000000", &stored)?.len();
            bytes += length;
            match commits.last_mut() {
                Some(commit) if bytes <= COMMIT_BYTES_MAX && commit.len() < CHANGES_MAX => commit.push(stored),
                _ => {
                    bytes = length;
                    commits.push(vec![stored]);
                }
            }
        }
        for commit in commits {
            records.extend(self.add_some(commit, now).await?);
        }
        Ok(records)
    }

    /// Records new jobs in one commit.
    async fn add_some(&self, jobs: Vec<StoredJob>, now: Unix) -> Result<Vec<JobRecord>, ControlError> {
        loop {
            let (mut changes, mut ids) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
            for stored in &jobs {
                let id = JobId(self.draw(now)?);
                let key = Key::Job(id).to_string();
                changes.push(Change::put(&key, Expect::Absent, encode(&key, stored)?));
                ids.push(id);
            }
            match self.commit(changes).await {
                Ok(_) => return Ok(jobs.into_iter().zip(ids).map(|(stored, id)| stored.record(id)).collect()),
                // Another manager drew the same number in the same second.
                Err(ControlError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A number that no job has: for what an agent is asked as a job and nobody ordered.
    ///
    /// # Errors
    /// No number can be drawn.
    pub fn draw_job(&self, now: Unix) -> Result<JobId, ControlError> {
        self.draw(now).map(JobId)
    }

    /// One job, as it was decided and as far as it was seen.
    ///
    /// # Errors
    /// [`JobRecordError::Unknown`].
    pub async fn job(&self, id: JobId) -> Result<JobRecord, JobRecordError> {
        match self.read::<StoredJob>(&Key::Job(id)).await? {
            Some((stored, _)) => Ok(self.with_progress(stored.record(id)).await?),
            None => Err(JobRecordError::Unknown(id)),
        }
    }

    /// The newest jobs that can be read, oldest of them first.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn jobs(&self, limit: usize) -> Result<Vec<JobRecord>, ControlError> {
        let mut jobs = self.all_jobs().await?;
        jobs.drain(..jobs.len().saturating_sub(limit));
        for record in &mut jobs {
            // Of most nothing is left to be asked.
            if !record.state.is_final() && record.sent > 0 {
                *record = self.with_progress(record.clone()).await?;
            }
        }
        Ok(jobs)
    }

    /// Every job that is not over, oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn open_jobs(&self) -> Result<Vec<JobRecord>, ControlError> {
        let mut jobs = self.all_jobs().await?;
        jobs.retain(|record| !record.state.is_final());
        Ok(jobs)
    }

    async fn all_jobs(&self) -> Result<Vec<JobRecord>, ControlError> {
        let found = self.read_all::<StoredJob>("job/").await?;
        let records = found.into_iter().filter_map(|(key, stored)| match key {
            Key::Job(id) => Some(stored.record(id)),
            _ => None,
        });
        Ok(records.collect())
    }

    async fn with_progress(&self, mut record: JobRecord) -> Result<JobRecord, ControlError> {
        if record.state.is_final() || record.sent == 0 {
            return Ok(record);
        }
        // Without its observations a job is shown as one that nobody has taken yet; what it is asked for stays.
        if let Some(seen) = self.observations().progress(record.id).await? {
            record.state = JobState::Running;
            record.started = Some(seen.since);
            record.progress = Some(seen.progress);
        }
        Ok(record)
    }

    /// Records that a job is about to be sent for the first time: from then on an agent may be at it.
    ///
    /// # Errors
    /// [`JobRecordError::Unknown`].
    pub async fn job_sent(&self, id: JobId, now: Unix) -> Result<(), JobRecordError> {
        self.update(&Key::Job(id), |stored: Option<StoredJob>| {
            let mut stored = stored.ok_or(JobRecordError::Unknown(id))?;
            if stored.sent.is_some() {
                return Ok((None, ()));
            }
            stored.sent = Some(now);
            Ok((Some(stored), ()))
        })
        .await
    }

    /// Records the wish that a job be stopped.
    ///
    /// # Errors
    /// [`JobRecordError`]: there is none, or it is over already.
    pub async fn cancel_job(&self, id: JobId) -> Result<JobRecord, JobRecordError> {
        self.update(&Key::Job(id), |stored: Option<StoredJob>| {
            let mut stored = stored.ok_or(JobRecordError::Unknown(id))?;
            let state = stored.clone().record(id).state;
            if state.is_final() {
                return Err(JobRecordError::Over { id, state });
            }
            let known = std::mem::replace(&mut stored.cancel, true);
            let record = stored.clone().record(id);
            Ok((if known { None } else { Some(stored) }, record))
        })
        .await
    }

    /// Records how a job ended; `false` when that is known already. What an agent says replaces what the manager
    /// thought, so an outcome that comes late mends the record.
    ///
    /// # Errors
    /// [`JobRecordError::Unknown`].
    pub async fn end_job(
        &self,
        id: JobId,
        outcome: &Outcome,
        by: EndedBy,
        now: Unix,
    ) -> Result<bool, JobRecordError> {
        let seen = self.observations().progress(id).await.unwrap_or_else(|error| {
            tracing::warn!(job = %id, %error, "the job ends without its progress");
            None
        });
        let end = StoredEnd {
            at: now,
            by,
            outcome: outcome.clone(),
            started: seen.as_ref().map(|seen| seen.since),
            progress: seen.map(|seen| seen.progress),
        };
        self.update(&Key::Job(id), |stored: Option<StoredJob>| {
            let mut stored = stored.ok_or(JobRecordError::Unknown(id))?;
            if stored.end.as_ref().is_some_and(|known| known.by >= by) {
                return Ok((None, false));
            }
            stored.end = Some(end.clone());
            Ok((Some(stored), true))
        })
        .await
    }

    /// Forgets jobs that are over: those that are very old, and the oldest of very many. Those that `needed` names stay.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn forget_jobs(
        &self,
        needed: impl FnOnce(&[JobRecord]) -> HashSet<JobId>,
        now: Unix,
    ) -> Result<(), ControlError> {
        let all = self.all_jobs().await?;
        let needed = needed(&all);
        let surplus = all.len().saturating_sub(JOBS_KEPT);
        let is_old = |record: &JobRecord| record.created.saturating_add(JOBS_KEPT_MS) < now;
        let may_go = all.iter().filter(|record| record.state.is_final() && !needed.contains(&record.id));
        let goes = may_go.enumerate().filter(|(place, record)| *place < surplus || is_old(record));
        self.delete_all(goes.map(|(_, record)| Key::Job(record.id).to_string()).collect()).await
    }
}
