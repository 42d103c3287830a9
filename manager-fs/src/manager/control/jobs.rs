//! Jobs: the manager's record of each storage operation.

use proto::agent::{JobId, Operation, Outcome, Progress};
use proto::message::Unix;
use proto::{HostName, Product};
use serde::{Deserialize, Serialize};

use super::{Change, ControlError, Expect, State};

/// Jobs remembered. Older ones that are over are forgotten, so that the state does not grow for ever.
const JOBS_KEPT: usize = 10_000;
/// How often it is looked whether some can be forgotten.
const FORGET_EVERY: u64 = 500;

/// Why a job cannot be read or altered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobRecordError {
    /// There is none of this number; the oldest that are over are forgotten.
    #[error("job {} is not known; `manager-fs job list` lists those that are", .0.0)]
    Unknown(JobId),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// One storage operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// On which host.
    pub host: HostName,
    /// Which agent does it.
    pub product: Product,
    /// What.
    pub operation: Operation,
    /// How far it is.
    pub state: JobState,
    /// When it was ordered.
    pub created: Unix,
    /// When an agent first took it.
    pub started: Option<Unix>,
    /// When it ended.
    pub ended: Option<Unix>,
    /// The last progress that was saved.
    pub progress: Option<Progress>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Why it waits, for people.
    pub waiting: Option<String>,
    /// Someone asked to stop it.
    pub cancel: bool,
    /// How often it was sent to the agent.
    pub sent: u32,
}

/// The states of a job. The last three are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Not taken by an agent yet.
    Queued,
    /// Taken by an agent.
    Running,
    /// Done.
    Done,
    /// Failed.
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

impl JobRecord {
    /// Ends the job, once: a second outcome changes nothing.
    pub fn end(&mut self, outcome: &Outcome, now: Unix) {
        if self.state.is_final() {
            return;
        }
        self.state = match outcome {
            Outcome::Done(_) => JobState::Done,
            Outcome::Cancelled(_) => JobState::Cancelled,
            Outcome::Failed(_) => JobState::Failed,
        };
        self.outcome = Some(outcome.clone());
        self.ended = Some(now);
        self.waiting = None;
    }
}

impl State {
    /// Records a new job.
    ///
    /// # Errors
    /// The control state failed.
    pub fn add_job(
        &self,
        host: &HostName,
        product: &Product,
        operation: &Operation,
        now: Unix,
    ) -> Result<JobRecord, ControlError> {
        let record = JobRecord {
            id: JobId(self.next_number("job")?),
            host: host.clone(),
            product: product.clone(),
            operation: operation.clone(),
            state: JobState::Queued,
            created: now,
            started: None,
            ended: None,
            progress: None,
            outcome: None,
            waiting: None,
            cancel: false,
            sent: 0,
        };
        self.update(&key(record.id), |_: Option<JobRecord>| Ok::<_, ControlError>((Some(record.clone()), ())))?;
        if record.id.0.is_multiple_of(FORGET_EVERY) {
            self.forget_jobs()?;
        }
        Ok(record)
    }

    /// One job.
    ///
    /// # Errors
    /// [`JobRecordError::Unknown`], or the control state failed.
    pub fn job(&self, id: JobId) -> Result<JobRecord, JobRecordError> {
        let found = self.read(&key(id))?;
        found.map(|(record, _)| record).ok_or(JobRecordError::Unknown(id))
    }

    /// Every job, oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub fn jobs(&self) -> Result<Vec<JobRecord>, ControlError> {
        Ok(self.read_all("job/")?.into_iter().map(|(_, record)| record).collect())
    }

    fn forget_jobs(&self) -> Result<(), ControlError> {
        let all = self.jobs()?;
        let surplus = all.len().saturating_sub(JOBS_KEPT);
        let over = all.iter().take(surplus).filter(|record| record.state.is_final());
        let forgotten: Vec<Change> = over.map(|record| Change::delete(key(record.id), Expect::Any)).collect();
        if !forgotten.is_empty() {
            self.store().commit(&forgotten)?;
        }
        Ok(())
    }

    /// Alters one job and returns it as it is then.
    ///
    /// # Errors
    /// [`JobRecordError::Unknown`], or the control state failed.
    pub fn alter_job(&self, id: JobId, alter: impl Fn(&mut JobRecord)) -> Result<JobRecord, JobRecordError> {
        self.update(&key(id), |record: Option<JobRecord>| match record {
            Some(mut record) => {
                alter(&mut record);
                Ok((Some(record.clone()), record))
            }
            None => Err(JobRecordError::Unknown(id)),
        })
    }
}

/// Hex of fixed width, so that keys are in the order of numbers.
fn key(id: JobId) -> String {
    format!("job/{:016x}", id.0)
}
