//! One job, from its order to its end.
//!
//! Every attempt waits for a reason to make another, and for a pause that grows: whatever a host does, it costs the manager
//! a handful of commits a minute.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::HostName;
use proto::agent::{JobOrigin, Operation, Outcome, Progress, Summary};
use proto::codec;
use proto::door::Door;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostReply, ManagerRequest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::door::opened;
use super::identify::{identify, keep_turn};
use super::turn::{LEASE, Turn};
use super::{JobError, Jobs};
use crate::manager::control::changes::EndedBy;
use crate::manager::control::jobs::JobRecord;
use crate::manager::news::{Listener, News};
use crate::manager::now;
use crate::moments::{self, Moment};
use crate::net::{Incoming, Link, NetError};
use crate::sync::lock;

/// News says when to try again; this only covers news that was lost.
const NEWS_DEADLINE: Duration = Duration::from_secs(10);
/// How long a host may take to answer a `Cancel`.
const CANCEL_DEADLINE: Duration = Duration::from_secs(10);
/// From the beginning of the first attempt to the second, and of a cancellation that was not taken to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a job that goes on says so to its repository's other jobs.
const RENEW_EVERY: Duration = Duration::from_secs(LEASE.as_secs() / 6);
/// An agent says which repository it is at in about a second; a longer wait has a reason that is told.
const ASKED_SOON: Duration = Duration::from_secs(3);
/// The longest pause between two attempts. One that took longer was worth it: pauses begin anew.
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Why an agent has not finished a job.
enum Interruption {
    /// It must be sent again when something has changed.
    Wait(String),
    /// The connection broke: it may be sent again at once.
    Lost(String),
}

/// Pauses between attempts at the same thing, each twice as long as the one before.
struct Pauses {
    next: Duration,
    attempt: Instant,
}

impl Pauses {
    fn new() -> Self {
        Self { next: FIRST_PAUSE, attempt: Instant::now() }
    }

    /// An attempt begins.
    fn attempt(&mut self) {
        self.attempt = Instant::now();
    }

    /// Waits until the next attempt may begin.
    async fn wait(&mut self) {
        self.next = if self.attempt.elapsed() > LAST_PAUSE { FIRST_PAUSE } else { self.next };
        tokio::time::sleep_until(self.attempt + self.next).await;
        self.next = (self.next * 2).min(LAST_PAUSE);
    }
}

/// Sees one job through to its end. A control state that fails for a while does not end it: the agent goes on
/// meanwhile, and knows the outcome when it is asked again.
pub(super) async fn drive(jobs: Arc<Jobs>, record: JobRecord, turn: Turn) {
    see_through(&jobs, &record, &turn).await;
    if let Some(repository) = turn.repository()
        && let Err(error) = jobs.state.end_turn(repository.as_str(), record.id).await
    {
        // The next start finds that it is of a job that is over.
        tracing::warn!(job = %record.id, %error, "that the job is no longer at its repository is not written down");
    }
}

async fn see_through(jobs: &Arc<Jobs>, record: &JobRecord, turn: &Turn) {
    let mut pauses = Pauses::new();
    loop {
        pauses.attempt();
        match try_drive(jobs, record, turn).await {
            Ok(()) => return,
            Err(error) if error.is_passing() => {
                tracing::error!(job = %record.id, %error, "the job's record cannot be used now; it is tried again");
                pauses.wait().await;
            }
            Err(error) => {
                tracing::error!(job = %record.id, %error, "job abandoned");
                let failed = Outcome::Failed(format!("the manager gave up: {error}"));
                if let Err(error) = jobs.end(&record.host, record.id, &failed, EndedBy::Manager).await {
                    tracing::error!(job = %record.id, %error, "its end could not be recorded");
                }
                return;
            }
        }
    }
}

async fn try_drive(jobs: &Arc<Jobs>, ordered: &JobRecord, turn: &Turn) -> Result<(), JobError> {
    if !turn.is_held() {
        tokio::select! {
            () = hold(jobs, ordered, turn) => {}
            ended = unsent_cancelled(jobs, ordered) => return ended,
        }
    }
    let mut pauses = Pauses::new();
    loop {
        let record = jobs.state.job(ordered.id).await?;
        if record.state.is_final() || cancel_unsent(jobs, &record).await? {
            return Ok(());
        }
        // What happened before this attempt is no reason for another.
        let mut news = jobs.news.of(&record.host);
        pauses.attempt();
        let interruption = match jobs.connections.control_link(&record.host) {
            None if jobs.state.host(&record.host).is_none_or(|host| host.revoked.is_some()) => {
                let reason = format!("host {} was revoked; what its agent did of it is not known", record.host);
                return jobs.end(&record.host, record.id, &Outcome::Failed(reason), EndedBy::Manager).await;
            }
            None => Interruption::Wait(format!("host {} is not connected", record.host)),
            Some(link) => match send(jobs, &link, &record, turn).await? {
                None => return Ok(()),
                Some(interruption) => interruption,
            },
        };
        match interruption {
            Interruption::Wait(reason) => {
                jobs.waits(&record, &reason);
                wait_for_news(jobs, &mut news, &record).await?;
            }
            Interruption::Lost(reason) => jobs.waits(&record, &reason),
        }
        tokio::select! {
            () = pauses.wait() => {}
            // An order to stop it is carried out at once where no agent has heard of it.
            ended = unsent_cancelled(jobs, &record), if record.sent == 0 => return ended,
        }
    }
}

/// Waits until agents have said which repositories they are at, where that matters; says so if it takes long.
async fn identified(jobs: &Arc<Jobs>, ordered: &JobRecord) {
    let mut asked = std::pin::pin!(identify(jobs, ordered.id));
    if tokio::time::timeout(ASKED_SOON, &mut asked).await.is_err() {
        let path = ordered.operation.repository().map_or("", |repository| &repository.path);
        jobs.waits(ordered, &format!("agents are asked whether their repositories are the same one as {path}"));
        asked.await;
    }
}

/// Whether a host that may come back has no connection.
fn is_away(jobs: &Jobs, host: &HostName) -> bool {
    let may_come = jobs.state.host(host).is_some_and(|host| host.revoked.is_none());
    may_come && jobs.connections.control_link(host).is_none()
}

/// Waits for the job's turn at its repository.
async fn hold(jobs: &Arc<Jobs>, ordered: &JobRecord, turn: &Turn) {
    loop {
        let (mut news, changed) = (jobs.news.of(&ordered.host), jobs.repositories.changed());
        if is_away(jobs, &ordered.host) {
            // Which repository it is at is not known without its host, and nothing can begin there.
            turn.stand_back();
            jobs.waits(ordered, &format!("host {} is not connected", ordered.host));
        } else if let Some(holder) = turn.in_the_way() {
            jobs.waits(ordered, &holder.to_string());
        } else {
            identified(jobs, ordered).await;
            match turn.take() {
                Ok(()) => return keep_turn(jobs, ordered, turn).await,
                Err(holder) => jobs.waits(ordered, &holder.to_string()),
            }
        }
        tokio::select! {
            () = changed => {}
            () = news.until(|news| news == News::Connected) => {}
            // A lease that ends is no change that anybody tells.
            () = tokio::time::sleep(NEWS_DEADLINE) => {}
        }
    }
}

/// Ends a job that was cancelled before any agent heard of it.
async fn cancel_unsent(jobs: &Jobs, record: &JobRecord) -> Result<bool, JobError> {
    let unsent = record.cancel && record.sent == 0;
    if unsent {
        let cancelled = Outcome::Cancelled(Summary::default());
        jobs.end(&record.host, record.id, &cancelled, EndedBy::Manager).await?;
    }
    Ok(unsent)
}

async fn unsent_cancelled(jobs: &Jobs, ordered: &JobRecord) -> Result<(), JobError> {
    loop {
        let mut news = jobs.news.of(&ordered.host);
        let record = jobs.state.job(ordered.id).await?;
        if record.state.is_final() || cancel_unsent(jobs, &record).await? {
            return Ok(());
        }
        wait_for_news(jobs, &mut news, &record).await?;
    }
}

/// Waits for anything that could let the job go on.
async fn wait_for_news(jobs: &Jobs, news: &mut Listener, record: &JobRecord) -> Result<(), JobError> {
    let wanted = async {
        loop {
            match news.next().await {
                // Its own waiting is news too, but no reason to try again.
                Some(News::Job(id)) if id == record.id => {
                    let now = jobs.state.job(id).await?;
                    if now.state.is_final() || now.cancel != record.cancel {
                        return Ok(());
                    }
                }
                Some(News::Job(_) | News::Ordered) => {}
                // Something was missed: look at the state.
                Some(News::Connected | News::Disconnected | News::Agents | News::Step(_)) | None => return Ok(()),
            }
        }
    };
    tokio::time::timeout(NEWS_DEADLINE, wanted).await.unwrap_or(Ok(()))
}

/// Sends the job to its agent and waits for its end; `None`: it ended.
async fn send(
    jobs: &Arc<Jobs>,
    link: &Link,
    record: &JobRecord,
    turn: &Turn,
) -> Result<Option<Interruption>, JobError> {
    let id = record.id;
    // Before the record says that it was sent: whoever cancels it then finds us listening.
    let mut news = jobs.news.of(&record.host);
    if record.sent == 0 {
        jobs.state.job_sent(id, now()).await?;
    }
    if let Err(error) = moments::reach(Moment::JobSend, Path::new(record.host.as_str())) {
        return Ok(Some(Interruption::Wait(error.to_string())));
    }
    jobs.live().entry(id).or_default().sent += 1;
    // Only the last counts, and a host that sends them faster than they are written down fills no memory.
    let (progress, mut progressed) = watch::channel(None::<Progress>);
    let request = run(jobs, record).await?;
    let on = move |incoming| {
        if let Incoming::Event(body) = incoming
            && let Ok(event) = codec::decode::<Progress, MESSAGE_BYTES_MAX>(&body)
        {
            progress.send_replace(Some(event));
        }
    };
    let run = link.request::<_, HostReply>(&request, on, Duration::MAX);
    let mut run = std::pin::pin!(run);
    // Ends with this attempt: the next one cancels anew.
    let mut cancelling = JoinSet::new();
    let mut renewals = tokio::time::interval(RENEW_EVERY);
    loop {
        if cancelling.is_empty() && jobs.state.job(id).await?.cancel {
            cancelling.spawn(cancel(Arc::clone(jobs), link.clone(), record.clone()));
        }
        tokio::select! {
            biased;
            Ok(()) = progressed.changed() => {
                let latest = progressed.borrow_and_update().clone();
                if let Some(latest) = latest {
                    turn.renew();
                    jobs.progressed(&record.host, id, latest).await;
                }
            }
            // The host is there, and knows of the job.
            _ = renewals.tick() => {
                turn.renew();
                keep_turn(jobs, record, turn).await;
            }
            reply = &mut run => return answered(jobs, record, reply).await,
            // Another way to its end, or a wish to cancel.
            () = news.until(|news| news == News::Job(id)) => {
                if jobs.state.job(id).await?.state.is_final() {
                    return Ok(None);
                }
            }
        }
    }
}

async fn run(jobs: &Jobs, record: &JobRecord) -> Result<ManagerRequest, JobError> {
    let earlier = lock(&jobs.earlier).of(&record.host, &record.operation);
    let policy = record.run.as_ref().map(|run| run.policy.to_string());
    let operation = in_their_words(jobs, record).unwrap_or_else(|| record.operation.clone());
    Ok(ManagerRequest::Run {
        product: record.product.clone(),
        job: record.id,
        origin: JobOrigin { earlier, policy, ..JobOrigin::new(record.host.clone(), record.product.clone()) },
        operation: opened(jobs, record, operation).await?,
    })
}

fn is_at_served(record: &JobRecord) -> bool {
    super::door::name_of(&record.operation).is_some()
}

/// The order for an agent that did not understand it as it is; `None`: it may, or there are no other words.
fn in_their_words(jobs: &Jobs, record: &JobRecord) -> Option<Operation> {
    let only_plain = jobs.live().get(&record.id).is_some_and(|live| live.plain);
    record.operation.plain().filter(|_| only_plain)
}

async fn answered(
    jobs: &Jobs,
    record: &JobRecord,
    reply: Result<HostReply, NetError>,
) -> Result<Option<Interruption>, JobError> {
    // What a host says in an agent's place is a guess: the agent may say otherwise later.
    let (outcome, by) = match reply {
        // An agent of an earlier version takes the way for a path, which is not absolute, and says so before it does anything.
        // What lets somebody in must not stand in a record.
        Ok(HostReply::Outcome(Outcome::Failed(why))) if is_at_served(record) && Door::stands_in(&why) => {
            let text = format!(
                "the agent of {} on {} is of a version that knows no repositories of other hosts; upgrade it",
                record.product, record.host
            );
            (Outcome::Failed(text), EndedBy::Agent)
        }
        Ok(HostReply::Outcome(outcome)) => (outcome, EndedBy::Agent),
        Ok(HostReply::Fault(fault)) => match fault {
            Fault::Draining | Fault::Unavailable(_) => return Ok(Some(Interruption::Wait(fault.to_string()))),
            // What a host, or an agent, of an earlier version says to a request that it cannot read.
            Fault::BadRequest(_) if record.operation.plain().is_some() && in_their_words(jobs, record).is_none() => {
                jobs.live().entry(record.id).or_default().plain = true;
                return Ok(Some(Interruption::Lost("it is ordered in the words of earlier versions".to_owned())));
            }
            Fault::BadRequest(_) if record.operation.is_newer() => {
                let what = match record.operation {
                    Operation::Own { .. } => "operations of a program's own",
                    Operation::Serve { .. } | Operation::Unserve { .. } => "serving of repositories",
                    Operation::Keeping { .. } => "keys and grants of repositories",
                    _ => "operations with these options",
                };
                let text = format!(
                    "the agent of {}, or its host's mount daemon, is of a version that knows no {what} ({fault}); upgrade it",
                    record.product
                );
                (Outcome::Failed(text), EndedBy::Manager)
            }
            Fault::NotExported(_)
            | Fault::Refused(_)
            | Fault::NotFound(_)
            | Fault::BadRequest(_)
            | Fault::Failed(_) => (Outcome::Failed(fault.to_string()), EndedBy::Manager),
        },
        Ok(HostReply::Done | HostReply::Agents(_) | HostReply::Sent(_)) => {
            let text = String::from("the host answered with something else than an outcome");
            (Outcome::Failed(text), EndedBy::Manager)
        }
        Err(NetError::Closed(reason)) => {
            return Ok(Some(Interruption::Lost(format!("the connection to the host ended: {reason}"))));
        }
        Err(error) => return Ok(Some(Interruption::Wait(error.to_string()))),
    };
    jobs.end(&record.host, record.id, &outcome, by).await?;
    Ok(None)
}

/// Tells the agent to stop a job, for as long as the connection lives and the job is not over. An agent that is away, or
/// changing over, or has not taken the job yet, is told again; so is one that has taken the order whenever the host tells of
/// its agents, because a new process may have come in its place.
async fn cancel(jobs: Arc<Jobs>, link: Link, record: JobRecord) {
    let request = ManagerRequest::Cancel { product: record.product, job: record.id };
    let mut pauses = Pauses::new();
    loop {
        let mut news = jobs.news.of(&record.host);
        pauses.attempt();
        let taken = match link.request::<_, HostReply>(&request, |_| {}, CANCEL_DEADLINE).await {
            Ok(HostReply::Fault(fault)) => {
                tracing::debug!(job = %record.id, %fault, "cancellation not taken yet");
                false
            }
            Ok(HostReply::Done | HostReply::Agents(_) | HostReply::Outcome(_) | HostReply::Sent(_)) => true,
            Err(NetError::Closed(_)) => return,
            Err(error) => {
                tracing::debug!(job = %record.id, %error, "cancellation not taken yet");
                false
            }
        };
        let changed = news.until(|news| matches!(news, News::Connected | News::Agents | News::Step(_)));
        if taken {
            changed.await;
            pauses = Pauses::new();
            pauses.wait().await;
        } else {
            tokio::select! {
                () = changed => tokio::time::sleep(FIRST_PAUSE).await,
                () = pauses.wait() => {}
            }
        }
    }
}
