//! Jobs: each is a durable record and, until it is over, one task that sees it through draining agents, lost
//! connections and restarts of the manager.
//!
//! ```text
//! queued ──repository free, host there──> sent ──progress──> running ──outcome──> done | failed | cancelled
//!    ^                                      │
//!    └── draining, connection lost <────────┘   (sent again; the agent joins a job that it knows)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use proto::agent::{JobId, Operation, Outcome, Progress, Summary};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostReply, ManagerRequest};
use proto::{HostName, Product};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, broadcast};

use super::control::jobs::{JobRecord, JobState};
use super::now;
use super::server::{Manager, News, blocking};
use crate::net::{Incoming, Link, NetError};

/// News says when to try again; this only covers news that was lost.
const NEWS_DEADLINE: Duration = Duration::from_secs(10);
/// How often a running job's progress is written down.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// How long a host may take to answer a `Cancel`.
const CANCEL_DEADLINE: Duration = Duration::from_secs(10);

/// What is known of jobs beside their records.
#[derive(Default)]
pub struct Jobs {
    live: Mutex<HashMap<JobId, Live>>,
    repositories: Mutex<HashMap<RepositoryKey, Arc<RwLock<()>>>>,
}

struct Live {
    progress: Progress,
    saved: Instant,
}

/// A host and the path of a repository there.
type RepositoryKey = (HostName, String);

/// A job's turn at its repository.
enum Turn {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
}

/// Why an agent has not finished a job.
enum Interruption {
    /// It must be sent again when something has changed.
    Wait(String),
    /// The connection broke: it may be sent again at once.
    Lost(String),
}

impl Manager {
    /// Records a job and begins to see it through.
    ///
    /// # Errors
    /// The host is unknown, or the operation makes no sense.
    pub fn add_job(
        self: &Arc<Self>,
        host: &HostName,
        product: &Product,
        operation: &Operation,
    ) -> anyhow::Result<JobRecord> {
        self.state.known_host(host)?;
        check(operation)?;
        let record = self.state.add_job(host, product, operation, now())?;
        tracing::info!(job = record.id.0, %host, %product, operation = operation.kind(), "job ordered");
        tokio::spawn(drive(Arc::clone(self), record.id, None));
        Ok(record)
    }

    /// A job as it is this moment.
    ///
    /// # Errors
    /// There is no such job.
    pub fn job(&self, id: JobId) -> anyhow::Result<JobRecord> {
        let mut record = self.state.job(id)?;
        if let Some(live) = self.jobs.live().get(&id).filter(|_| !record.state.is_final()) {
            record.progress = Some(live.progress.clone());
        }
        Ok(record)
    }

    /// Asks for a job to be stopped; it ends at the agent's next unit boundary, at once if it was never sent.
    ///
    /// # Errors
    /// There is no such job, or it is over.
    pub fn cancel_job(&self, id: JobId) -> anyhow::Result<JobRecord> {
        let record = self.state.job(id)?;
        if record.state.is_final() {
            bail!(Fault::BadRequest(format!("job {} is over already: {:?}", id.0, record.state)));
        }
        let record = self.state.alter_job(id, |record| record.cancel = true)?;
        tracing::info!(job = id.0, "cancellation asked for");
        self.tell(News::Job(id));
        Ok(record)
    }

    /// After a restart: takes up every job that is not over. Those that agents may be working on get their
    /// repositories first.
    pub(crate) fn resume_jobs(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut open = self.state.jobs()?;
        open.retain(|record| !record.state.is_final());
        open.sort_by_key(|record| (record.sent == 0, record.id));
        for record in open {
            let turn = if record.sent > 0 { self.jobs.try_turn(&record) } else { None };
            tracing::info!(job = record.id.0, host = %record.host, "job taken up again");
            tokio::spawn(drive(Arc::clone(self), record.id, turn));
        }
        Ok(())
    }

    /// Progress that a host reports of a job whose `Run` was cut off.
    pub(crate) fn job_progress(
        self: &Arc<Self>,
        host: &HostName,
        id: JobId,
        progress: Progress,
    ) -> anyhow::Result<()> {
        if self.state.job(id).is_ok_and(|record| record.host == *host && !record.state.is_final()) {
            self.progressed(id, progress)?;
        }
        Ok(())
    }

    /// The end of a job, by the answer to `Run` or by a report; whichever comes second changes nothing.
    pub(crate) fn job_ended(&self, host: &HostName, id: JobId, outcome: &Outcome) -> anyhow::Result<()> {
        match self.state.job(id) {
            Ok(record) if record.host == *host => {}
            // A host can only speak of its own jobs; a report of an unknown one must not be sent for ever.
            _ => {
                tracing::warn!(%host, job = id.0, "outcome of a job that this host does not have");
                return Ok(());
            }
        }
        self.end_job(id, outcome)
    }

    fn end_job(&self, id: JobId, outcome: &Outcome) -> anyhow::Result<()> {
        let progress = self.jobs.live().get(&id).map(|live| live.progress.clone());
        let record = self.state.alter_job(id, |record| {
            if !record.state.is_final() {
                record.progress = progress.clone().or(record.progress.take());
                record.end(outcome, now());
            }
        })?;
        self.jobs.live().remove(&id);
        tracing::info!(job = id.0, state = ?record.state, "job ended");
        self.tell(News::Job(id));
        Ok(())
    }

    /// Notes progress; writes it down when it is the first, when a unit is done, or now and then.
    fn progressed(&self, id: JobId, progress: Progress) -> anyhow::Result<()> {
        let save = {
            let mut live = self.jobs.live();
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
        self.tell(News::Job(id));
        Ok(())
    }

    fn job_waits(&self, id: JobId, reason: &str) -> anyhow::Result<()> {
        let before = self.state.job(id)?;
        if before.waiting.as_deref() != Some(reason) && !before.state.is_final() {
            self.state.alter_job(id, |record| record.waiting = Some(reason.to_owned()))?;
            tracing::info!(job = id.0, reason, "job waits");
            self.tell(News::Job(id));
        }
        Ok(())
    }
}

impl Jobs {
    fn live(&self) -> MutexGuard<'_, HashMap<JobId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_of(&self, record: &JobRecord) -> Arc<RwLock<()>> {
        let path = record.operation.repository().path.trim_end_matches('/').to_owned();
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        // Forget those that no job holds or waits for.
        repositories.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(repositories.entry((record.host.clone(), path)).or_default())
    }

    fn try_turn(&self, record: &JobRecord) -> Option<Turn> {
        let lock = self.lock_of(record);
        if is_exclusive(&record.operation) {
            lock.try_write_owned().ok().map(|guard| Turn::Exclusive { _guard: guard })
        } else {
            lock.try_read_owned().ok().map(|guard| Turn::Shared { _guard: guard })
        }
    }

    async fn turn(&self, record: &JobRecord) -> Turn {
        let lock = self.lock_of(record);
        if is_exclusive(&record.operation) {
            Turn::Exclusive { _guard: lock.write_owned().await }
        } else {
            Turn::Shared { _guard: lock.read_owned().await }
        }
    }
}

/// Prune deletes packs that nothing refers to *yet*: it must be alone. Everything else adds or reads.
fn is_exclusive(operation: &Operation) -> bool {
    match operation {
        Operation::Prune { .. } => true,
        Operation::Backup { .. } | Operation::Restore { .. } | Operation::Verify { .. } | Operation::Check { .. } => {
            false
        }
    }
}

fn check(operation: &Operation) -> Result<(), Fault> {
    let absolute = |what: &str, path: &str| {
        let fault = || Fault::BadRequest(format!("{what} '{path}' is not an absolute path on the host"));
        path.starts_with('/').then_some(()).ok_or_else(fault)
    };
    let repository = operation.repository();
    absolute("repository", &repository.path)?;
    repository.password_file.iter().try_for_each(|path| absolute("password file", path))?;
    match operation {
        Operation::Backup { sources, .. } if sources.is_empty() => {
            Err(Fault::BadRequest(String::from("nothing to back up: name at least one source")))
        }
        Operation::Backup { sources, .. } => sources.iter().try_for_each(|path| absolute("source", path)),
        Operation::Restore { target, .. } => absolute("target", target),
        Operation::Prune { keep_last: 0, .. } => {
            Err(Fault::BadRequest(String::from("prune keeps at least one snapshot of each source")))
        }
        Operation::Verify { .. } | Operation::Check { .. } | Operation::Prune { .. } => Ok(()),
    }
}

/// Sees one job through to its end.
async fn drive(manager: Arc<Manager>, id: JobId, turn: Option<Turn>) {
    if let Err(error) = try_drive(&manager, id, turn).await {
        tracing::error!(job = id.0, error = format!("{error:#}"), "job abandoned");
        let failed = manager.end_job(id, &Outcome::Failed(format!("the manager gave up: {error:#}")));
        if let Err(error) = failed {
            tracing::error!(job = id.0, %error, "its end could not be recorded");
        }
    }
}

async fn try_drive(manager: &Arc<Manager>, id: JobId, turn: Option<Turn>) -> anyhow::Result<()> {
    let record = manager.state.job(id)?;
    let _turn = match turn.or_else(|| manager.jobs.try_turn(&record)) {
        Some(turn) => turn,
        None => {
            let path = &record.operation.repository().path;
            manager.job_waits(id, &format!("another job uses repository {path} on {}", record.host))?;
            tokio::select! {
                turn = manager.jobs.turn(&record) => turn,
                ended = unsent_cancelled(manager, id) => return ended,
            }
        }
    };
    loop {
        let record = manager.state.job(id)?;
        if record.state.is_final() || cancel_unsent(manager, &record)? {
            return Ok(());
        }
        // What happened before this attempt is no reason for another.
        let mut news = manager.news();
        let interruption = match manager.control_link(&record.host) {
            None if manager.state.host(&record.host)?.is_none_or(|host| host.revoked.is_some()) => {
                let reason = format!("host {} was revoked; what its agent did of it is not known", record.host);
                return manager.end_job(id, &Outcome::Failed(reason));
            }
            None => Interruption::Wait(format!("host {} is not connected", record.host)),
            Some(link) => match send(manager, &link, &record).await? {
                None => return Ok(()),
                Some(interruption) => interruption,
            },
        };
        match interruption {
            Interruption::Wait(reason) => {
                manager.job_waits(id, &reason)?;
                wait_for_news(manager, &mut news, &record).await?;
            }
            Interruption::Lost(reason) => manager.job_waits(id, &reason)?,
        }
    }
}

/// Ends a job that was cancelled before any agent heard of it.
fn cancel_unsent(manager: &Manager, record: &JobRecord) -> anyhow::Result<bool> {
    let unsent = record.cancel && record.sent == 0;
    if unsent {
        manager.end_job(record.id, &Outcome::Cancelled(Summary::default()))?;
    }
    Ok(unsent)
}

async fn unsent_cancelled(manager: &Arc<Manager>, id: JobId) -> anyhow::Result<()> {
    let mut news = manager.news();
    loop {
        let record = manager.state.job(id)?;
        if record.state.is_final() || cancel_unsent(manager, &record)? {
            return Ok(());
        }
        wait_for_news(manager, &mut news, &record).await?;
    }
}

/// Waits for anything that could let the job go on.
async fn wait_for_news(
    manager: &Manager,
    news: &mut broadcast::Receiver<News>,
    record: &JobRecord,
) -> anyhow::Result<()> {
    let wanted = async {
        loop {
            match news.recv().await {
                Ok(News::Connected(host) | News::Disconnected(host) | News::Agents(host) | News::Step(host, _))
                    if host == record.host =>
                {
                    return Ok(());
                }
                // Its own waiting is news too, but no reason to try again.
                Ok(News::Job(id)) if id == record.id => {
                    let now = manager.state.job(id)?;
                    if now.state.is_final() || now.cancel != record.cancel {
                        return Ok(());
                    }
                }
                Ok(_) => {}
                // Something was missed: look at the state.
                Err(_) => return Ok(()),
            }
        }
    };
    tokio::time::timeout(NEWS_DEADLINE, wanted).await.unwrap_or(Ok(()))
}

/// Sends the job to its agent and waits for its end; `None`: it ended.
async fn send(manager: &Arc<Manager>, link: &Link, record: &JobRecord) -> anyhow::Result<Option<Interruption>> {
    let id = record.id;
    manager.state.alter_job(id, |record| record.sent += 1)?;
    let (progress, mut progressed) = tokio::sync::mpsc::unbounded_channel();
    let request =
        ManagerRequest::Run { product: record.product.clone(), job: id, operation: record.operation.clone() };
    let on = move |incoming| {
        if let Incoming::Event(body) = incoming
            && let Ok(event) = codec::decode::<Progress, MESSAGE_BYTES_MAX>(&body)
        {
            let _ = progress.send(event);
        }
    };
    let run = link.request::<_, HostReply>(&request, on, Duration::MAX);
    let mut run = std::pin::pin!(run);
    let mut news = manager.news();
    let mut cancelling = false;
    loop {
        if !cancelling && manager.state.job(id)?.cancel {
            cancelling = true;
            tokio::spawn(cancel(link.clone(), record.product.clone(), id));
        }
        tokio::select! {
            biased;
            Some(progress) = progressed.recv() => {
                let manager = Arc::clone(manager);
                blocking(move || manager.progressed(id, progress)).await?;
            }
            reply = &mut run => return answered(manager, id, reply),
            // Another way to its end, or a wish to cancel.
            _ = job_news(&mut news, id) => {
                if manager.state.job(id)?.state.is_final() {
                    return Ok(None);
                }
            }
        }
    }
}

async fn job_news(news: &mut broadcast::Receiver<News>, id: JobId) {
    loop {
        match news.recv().await {
            Ok(News::Job(of)) if of == id => return,
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn answered(
    manager: &Manager,
    id: JobId,
    reply: Result<HostReply, NetError>,
) -> anyhow::Result<Option<Interruption>> {
    let outcome = match reply {
        Ok(HostReply::Outcome(outcome)) => outcome,
        Ok(HostReply::Fault(fault)) => match fault {
            Fault::Draining | Fault::Unavailable(_) => return Ok(Some(Interruption::Wait(fault.to_string()))),
            Fault::NotExported(_)
            | Fault::Refused(_)
            | Fault::NotFound(_)
            | Fault::BadRequest(_)
            | Fault::Failed(_) => Outcome::Failed(fault.to_string()),
        },
        Ok(HostReply::Done | HostReply::Agents(_)) => {
            Outcome::Failed(String::from("the host answered with something else than an outcome"))
        }
        Err(NetError::Closed(reason)) => {
            return Ok(Some(Interruption::Lost(format!("the connection to the host ended: {reason}"))));
        }
        Err(error) => return Ok(Some(Interruption::Wait(error.to_string()))),
    };
    manager.end_job(id, &outcome)?;
    Ok(None)
}

/// Tells the agent to stop a job. It may not have taken it yet: then it is told again.
async fn cancel(link: Link, product: Product, job: JobId) {
    for _ in 0..20 {
        let request = ManagerRequest::Cancel { product: product.clone(), job };
        match link.request::<_, HostReply>(&request, |_| {}, CANCEL_DEADLINE).await {
            Ok(HostReply::Fault(fault)) => tracing::debug!(job = job.0, %fault, "cancellation not taken yet"),
            Ok(_) | Err(NetError::Closed(_)) => return,
            Err(error) => tracing::debug!(job = job.0, %error, "cancellation not taken yet"),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
