//! Jobs: each is a durable record and, until it is over, one task that sees it through draining agents, lost
//! connections and restarts of the manager. What was ordered, sent, cancelled and how it ended are decisions; how far it
//! is, is an observation, and why it waits is only known while it does.
//!
//! ```text
//! queued ──repository free, host there──> sent ──progress──> running ──outcome──> done | failed | cancelled
//!    ^                                      │
//!    └── draining, connection lost <────────┘   (sent again; the agent joins a job that it knows)
//! ```

pub(super) mod door;
mod drive;
mod earlier;
mod identify;
mod list;
mod operation;
mod turn;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::agent::{JobId, Operation, Outcome, Progress};
use proto::door::GrantFault;
use proto::name::Target;
use proto::{GroupName, HostName, Product};

use super::connections::Connections;
use super::control::changes::EndedBy;
use super::control::hosts::HostError;
use super::control::jobs::{JobRecord, JobRecordError, JobState, NewJob};
use super::control::repositories::RepositoryError;
use super::control::turns::KeptTurn;
use super::control::{ControlError, Observation, State};
use super::news::{News, NewsBoard};
use super::now;
use crate::manager::policy::runs::AllRuns;
use crate::sync::lock;
use earlier::Earlier;
use list::page;
use operation::check;
use turn::{Repositories, RepositoryId};

pub use list::{JobFilter, JobPage};
pub use operation::OperationFault;

/// How often a running job's progress is written down.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked whether old jobs can be forgotten: once in this many that are ordered.
const FORGET_EVERY: u32 = 500;

/// Why a job was not ordered, or cannot be stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The operation makes no sense.
    #[error(transparent)]
    Operation(#[from] OperationFault),
    /// The host cannot have it.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no such job, or it is over.
    #[error(transparent)]
    Record(#[from] JobRecordError),
    /// Nobody of a group can be ordered anything.
    #[error("no host of group '{0}' is enrolled")]
    NoHosts(GroupName),
    /// The repository that it names is not served.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// An agent cannot be let in there.
    #[error("the repository cannot be opened to the agent: {0}")]
    Grant(#[from] GrantFault),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl JobError {
    /// Whether the control state is to blame, and the same may succeed later.
    fn is_passing(&self) -> bool {
        match self {
            JobError::Control(error)
            | JobError::Record(JobRecordError::Control(error))
            | JobError::Repository(RepositoryError::Control(error)) => {
                !matches!(error, ControlError::Damaged { .. } | ControlError::Closed)
            }
            JobError::Operation(_)
            | JobError::Host(_)
            | JobError::Record(_)
            | JobError::Repository(_)
            | JobError::NoHosts(_)
            | JobError::Grant(_) => false,
        }
    }
}

/// Every job of the manager: ordered, sent to its host until it is taken, followed to its end.
pub(crate) struct Jobs {
    state: Arc<State>,
    connections: Arc<Connections>,
    news: Arc<NewsBoard>,
    /// What is known of jobs that are not over beside their records.
    live: Mutex<HashMap<JobId, Live>>,
    repositories: Arc<Repositories>,
    earlier: Mutex<Earlier>,
    ordered: AtomicU32,
}

#[derive(Default)]
struct Live {
    progress: Option<Progress>,
    /// When progress was last written down.
    saved: Option<Instant>,
    /// Why it does not go on.
    waiting: Option<String>,
    /// How often it was sent.
    sent: u32,
    /// Its agent, or the host's mount daemon, knows only the older words for it.
    plain: bool,
}

impl Jobs {
    /// Over the control state; [`Jobs::resume`] takes up what is in it.
    pub(crate) fn new(state: Arc<State>, connections: Arc<Connections>, news: Arc<NewsBoard>) -> Self {
        let (live, earlier, repositories) = (Mutex::default(), Mutex::default(), Arc::default());
        Self { state, connections, news, live, repositories, earlier, ordered: AtomicU32::new(0) }
    }

    /// Records a job and begins to see it through.
    ///
    /// # Errors
    /// The host is unknown, or the operation makes no sense.
    pub(crate) async fn add(
        self: &Arc<Self>,
        host: &HostName,
        product: &Product,
        operation: &Operation,
    ) -> Result<JobRecord, JobError> {
        let (host, product, operation) = (host.clone(), product.clone(), operation.clone());
        let mut records = self.add_all(vec![NewJob { host, product, operation, run: None }]).await?;
        Ok(records.pop().ok_or(ControlError::Closed)?)
    }

    /// Records jobs and begins to see them through.
    ///
    /// # Errors
    /// A host is unknown, or an operation makes no sense: none is recorded. The control state failed: some may be.
    pub(crate) async fn add_all(self: &Arc<Self>, jobs: Vec<NewJob>) -> Result<Vec<JobRecord>, JobError> {
        for job in &jobs {
            self.state.known_host(&job.host)?;
            check(&job.operation)?;
            if let Some(name) = door::name_of(&job.operation) {
                self.state.repository(&name).await?;
            }
        }
        let records = self.state.add_jobs(jobs, now()).await?;
        let mut many = false;
        for record in &records {
            let JobRecord { id, host, product, operation, run, .. } = record;
            let policy = run.as_ref().map(|run| run.policy.as_str());
            tracing::info!(job = %id, %host, %product, operation = operation.kind(), policy, "job ordered");
            lock(&self.earlier).note(host, *id, operation);
            let turn = self.repositories.enter(record, None);
            tokio::spawn(drive::drive(Arc::clone(self), record.clone(), turn));
            many |= self.ordered.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1;
        }
        if many && let Err(error) = self.forget().await {
            tracing::warn!(%error, "old jobs are not forgotten yet");
        }
        Ok(records)
    }

    /// Forgets old jobs, but none that a policy goes by.
    async fn forget(&self) -> Result<(), ControlError> {
        let now = now();
        self.state.forget_jobs(|all| AllRuns::of(all, now).needed(), now).await
    }

    /// Records a job on each host of a group and begins to see them through.
    ///
    /// # Errors
    /// There is no such group, nobody in it may be ordered anything, or the operation makes no sense: none is recorded.
    pub(crate) async fn add_to_group(
        self: &Arc<Self>,
        group: &GroupName,
        product: &Product,
        operation: &Operation,
    ) -> Result<Vec<JobRecord>, JobError> {
        let all = self.state.hosts_of(&Target::Group(group.clone()))?;
        let known = all.into_iter().filter(|host| self.state.known_host(host).is_ok());
        let new = |host| NewJob { host, product: product.clone(), operation: operation.clone(), run: None };
        let jobs: Vec<NewJob> = known.map(new).collect();
        if jobs.is_empty() {
            return Err(JobError::NoHosts(group.clone()));
        }
        self.add_all(jobs).await
    }

    /// Whether an operation makes sense, whatever it is ordered of.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn must_make_sense(operation: &Operation) -> Result<(), JobError> {
        Ok(check(operation)?)
    }

    /// A job as it is this moment.
    ///
    /// # Errors
    /// There is no such job.
    pub(crate) async fn job(&self, id: JobId) -> Result<JobRecord, JobError> {
        Ok(self.as_it_is(self.state.job(id).await?))
    }

    /// The newest jobs that are meant, as they are this moment, oldest of them first.
    ///
    /// # Errors
    /// The control state failed, or there is no such group.
    pub(crate) async fn listed(&self, filter: &JobFilter) -> Result<JobPage, JobError> {
        let hosts = filter.host.as_ref().map(|of| self.state.hosts_of(of)).transpose()?;
        let all = self.state.jobs(usize::MAX).await?.into_iter().map(|record| self.as_it_is(record));
        Ok(page(all, filter, hosts.as_ref()))
    }

    /// Asks for a job to be stopped; it ends at the agent's next unit boundary, at once if it was never sent.
    ///
    /// # Errors
    /// There is no such job, or it is over.
    pub(crate) async fn cancel(&self, id: JobId) -> Result<JobRecord, JobError> {
        let record = self.state.cancel_job(id).await?;
        tracing::info!(job = %id, "cancellation asked for");
        self.news.tell(&record.host, News::Job(id));
        self.job(id).await
    }

    /// After a restart: takes up every job that is not over. Those that agents may be working on get their
    /// repositories first.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), ControlError> {
        {
            let all = self.state.jobs(usize::MAX).await?;
            let mut earlier = lock(&self.earlier);
            all.iter().for_each(|record| earlier.note(&record.host, record.id, &record.operation));
        }
        let mut open = self.state.open_jobs().await?;
        open.sort_by_key(|record| (record.sent == 0, record.id));
        let mut known: HashMap<JobId, KeptTurn> =
            self.state.turns().await?.into_iter().map(|turn| (turn.job, turn)).collect();
        // All of them are there before the first looks who is.
        let mut entered = Vec::with_capacity(open.len());
        for record in open {
            let known = known.remove(&record.id).and_then(|turn| {
                // No longer than a lease, whatever the clock was when it was given.
                let left = Duration::from_millis(turn.until.saturating_sub(now())).min(turn::LEASE);
                Some((RepositoryId::parse(&turn.repository)?, left))
            });
            entered.push((self.repositories.enter(&record, known), record));
        }
        for (turn, record) in entered {
            tracing::info!(job = %record.id, host = %record.host, "job taken up again");
            tokio::spawn(drive::drive(Arc::clone(self), record, turn));
        }
        // Of jobs that are over, or forgotten.
        for turn in known.into_values() {
            self.state.end_turn(&turn.repository, turn.job).await?;
        }
        Ok(())
    }

    /// Progress that a host reports of a job whose `Run` was cut off. That of another's job, or of one that is over, is
    /// dropped.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn progress_of(&self, host: &HostName, id: JobId, progress: Progress) -> Result<(), JobError> {
        match self.state.job(id).await {
            Ok(record) if record.host == *host && !record.state.is_final() => {
                self.progressed(host, id, progress).await;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => self.lost(host, id, error),
        }
    }

    /// The end of a job, by a report. One that comes after the manager has given the job up mends its record.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn ended(&self, host: &HostName, id: JobId, outcome: &Outcome) -> Result<(), JobError> {
        match self.state.job(id).await {
            // A host can only speak of its own jobs.
            Ok(record) if record.host == *host => self.end(host, id, outcome, EndedBy::Agent).await,
            Ok(_) => self.lost(host, id, JobRecordError::Unknown(id)),
            Err(error) => self.lost(host, id, error),
        }
    }

    /// What a host says of a job that it does not have, or whose record cannot be read, must not be sent for ever; a
    /// control state that fails must not lose it.
    fn lost(&self, host: &HostName, id: JobId, error: JobRecordError) -> Result<(), JobError> {
        match error {
            JobRecordError::Unknown(_) | JobRecordError::Control(ControlError::Damaged { .. }) => {
                tracing::warn!(%host, job = %id, %error, "what this host says of a job is dropped");
                Ok(())
            }
            error => Err(error.into()),
        }
    }

    async fn end(&self, host: &HostName, id: JobId, outcome: &Outcome, by: EndedBy) -> Result<(), JobError> {
        self.save(host, id).await;
        if self.state.end_job(id, outcome, by, now()).await? {
            tracing::info!(job = %id, outcome = word(outcome), ?by, "job ended");
            door::served(self, id, outcome).await?;
        }
        self.live().remove(&id);
        self.news.tell(host, News::Job(id));
        Ok(())
    }

    /// Writes down the last progress, which the record of the end takes over. Nothing depends on it.
    async fn save(&self, host: &HostName, id: JobId) {
        let progress = self.live().get(&id).and_then(|live| live.progress.clone());
        let Some(progress) = progress else { return };
        let seen = Observation::Progress { job: id, progress, at: now() };
        if let Err(error) = self.state.observations().note(host, vec![seen]).await {
            tracing::warn!(job = %id, %error, "a job's progress is not written down");
        }
    }

    /// Notes progress; writes it down when it is the first, when a unit is done, or now and then.
    async fn progressed(&self, host: &HostName, id: JobId, progress: Progress) {
        let due = {
            let mut all = self.live();
            let live = all.entry(id).or_default();
            let due = live.saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY)
                || live
                    .progress
                    .as_ref()
                    .is_none_or(|last| last.units_done != progress.units_done || last.version != progress.version);
            if due {
                live.saved = Some(Instant::now());
            }
            live.progress = Some(progress);
            live.waiting = None;
            due
        };
        if due {
            self.save(host, id).await;
        }
        self.news.tell(host, News::Job(id));
    }

    /// Notes why a job does not go on.
    fn waits(&self, record: &JobRecord, reason: &str) {
        let news = {
            let mut all = self.live();
            let live = all.entry(record.id).or_default();
            live.waiting.replace(reason.to_owned()).as_deref() != Some(reason)
        };
        if news {
            tracing::info!(job = %record.id, reason, "job waits");
            self.news.tell(&record.host, News::Job(record.id));
        }
    }

    fn as_it_is(&self, mut record: JobRecord) -> JobRecord {
        if let Some(live) = self.live().get(&record.id).filter(|_| !record.state.is_final()) {
            if let Some(progress) = &live.progress {
                record.state = JobState::Running;
                record.started.get_or_insert_with(now);
                record.progress = Some(progress.clone());
            }
            record.waiting.clone_from(&live.waiting);
            record.sent = record.sent.max(live.sent);
        }
        record
    }

    fn live(&self) -> MutexGuard<'_, HashMap<JobId, Live>> {
        lock(&self.live)
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_)
        | Outcome::OwnDone(_)
        | Outcome::BackedUp { .. }
        | Outcome::BackedUpBy { .. }
        | Outcome::Found { .. } => "done",
        Outcome::Cancelled(_) => "cancelled",
        Outcome::Failed(_) => "failed",
    }
}

#[cfg(test)]
mod tests;
