//! Which repository a job is at: its agent is asked where it may be the one that somebody must be alone at.

use std::sync::Arc;
use std::time::Duration;

use proto::agent::{JobId, JobOrigin, Operation, Outcome};
use proto::message::{HostReply, ManagerRequest};
use proto::width;
use tokio::task::JoinSet;

use super::door::opened;
use super::turn::{LEASE, RepositoryId, Turn};
use super::{JobError, Jobs};
use crate::manager::control::ControlError;
use crate::manager::control::jobs::JobRecord;
use crate::manager::now;
use crate::net::{Link, NetError};

/// How long an agent may take to open a repository. Whoever does not say it in time is taken at its path's word: the
/// locks in the repository itself protect it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Asks for the id of every repository that is in doubt for this job, all at once.
pub(super) async fn identify(jobs: &Arc<Jobs>, for_job: JobId) {
    let mut asked = JoinSet::new();
    for (job, host) in jobs.repositories.doubtful(for_job) {
        // Whoever is away is asked when it is back; it can begin nothing meanwhile.
        let Some(link) = jobs.connections.control_link(&host) else { continue };
        let asking = jobs.repositories.asks(job);
        let jobs = Arc::clone(jobs);
        asked.spawn(async move {
            let _until_it_is_known = asking;
            if let Some(id) = ask(&jobs, &link, job).await {
                tracing::debug!(%job, repository = id.as_str(), "the job's repository is known");
                if jobs.repositories.identified(job, &id)
                    && let Err(error) = keep(&jobs, &id, job).await
                {
                    tracing::warn!(%job, %error, "which repository the job is at is not written down");
                }
            }
        });
    }
    while asked.join_next().await.is_some() {}
    // What another job has asked, this one must know as well: without it the two would not see each other.
    jobs.repositories.answered(for_job).await;
}

async fn ask(jobs: &Jobs, link: &Link, job: JobId) -> Option<RepositoryId> {
    let record = jobs.state.job(job).await.ok()?;
    match ask_agent(jobs, link, &record).await {
        Ok(HostReply::Outcome(Outcome::Done(summary))) => RepositoryId::parse(summary.snapshots.first()?),
        // A repository that is not there yet, an agent of an earlier version, one that changes over.
        other => {
            tracing::debug!(%job, ?other, "the job's repository is not known");
            None
        }
    }
}

/// Why an agent has not said which repository a job is at.
#[derive(Debug, thiserror::Error)]
enum NotSaid {
    #[error("the job is at no repository")]
    NoRepository,
    #[error(transparent)]
    Job(#[from] JobError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Net(#[from] NetError),
}

async fn ask_agent(jobs: &Jobs, link: &Link, record: &JobRecord) -> Result<HostReply, NotSaid> {
    let repository = record.operation.repository().ok_or(NotSaid::NoRepository)?.clone();
    let operation = opened(jobs, record, Operation::Identify { repository }).await?;
    let request = ManagerRequest::Run {
        origin: JobOrigin::new(record.host.clone(), record.product.clone()),
        product: record.product.clone(),
        // No job of anybody's: the agent wants a number.
        job: jobs.state.draw_job(now())?,
        operation,
    };
    Ok(link.request::<_, HostReply>(&request, |_| {}, DEADLINE).await?)
}

/// Writes down that a job is at its repository, as far as that is known by its id.
pub(super) async fn keep_turn(jobs: &Jobs, record: &JobRecord, turn: &Turn) {
    let Some(id) = turn.repository() else { return };
    if let Err(error) = keep(jobs, &id, record.id).await {
        tracing::warn!(job = %record.id, %error, "which repository the job is at is not written down");
    }
}

async fn keep(jobs: &Jobs, id: &RepositoryId, job: JobId) -> Result<(), ControlError> {
    let Ok(record) = jobs.state.job(job).await else { return Ok(()) };
    if record.state.is_final() {
        return Ok(());
    }
    jobs.state.keep_turn(id.as_str(), job, &record.host, now() + width::millis(LEASE)).await
}
