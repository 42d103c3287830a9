//! Storage operations under way on this host's agents, each as one continuous job, whatever happens to the agent's
//! process or to the link to the manager in between.
//!
//! The agent's connection breaks when it executes its next version; the job is then joined again by its number. The
//! manager's request breaks when the link does; the job is then followed to its end all the same, and its outcome goes
//! to the spool.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::Product;
use proto::agent::{AgentReply, AgentRequest, JobId, JobOrigin, Operation, Progress};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{Fault, HostReply, HostReport};
use tokio::sync::watch;

use super::agent::{connect, gone};
use super::spool::Spool;
use crate::clock::Clock;
use crate::host::blocking;
use crate::moments::{self, Moment};
use crate::net::{Answer, Incoming};
use crate::sync::lock;

/// An agent that does not come back for this long is not changing over: the stub has given up on it.
const REJOIN_MAX: Duration = Duration::from_secs(10 * 60);
const REJOIN_PAUSE_MIN: Duration = Duration::from_millis(20);
const REJOIN_PAUSE_MAX: Duration = Duration::from_secs(1);
/// No operation takes longer; a bound, so that nothing waits for ever.
const OPERATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// The jobs under way.
pub(crate) struct Jobs {
    agents_dir: PathBuf,
    clock: Clock,
    spool: Arc<Spool>,
    following: Mutex<HashMap<JobId, Arc<Following>>>,
}

struct Following {
    progress: watch::Sender<Option<Progress>>,
    end: watch::Sender<Option<HostReply>>,
}

impl Jobs {
    /// None yet. `agents_dir` holds the agents' sockets.
    pub(crate) fn new(agents_dir: PathBuf, clock: Clock, spool: Arc<Spool>) -> Arc<Self> {
        Arc::new(Self { agents_dir, clock, spool, following: Mutex::default() })
    }

    /// Answers the manager's `Run`: with progress as it comes, then the outcome. A job that is already followed is joined.
    pub(crate) async fn run(
        self: &Arc<Self>,
        product: Product,
        job: JobId,
        origin: JobOrigin,
        operation: Operation,
        answer: Answer,
    ) {
        let (mut progress, mut end) = {
            let mut following = self.lock();
            let entry = following.entry(job).or_insert_with(|| {
                let entry = Arc::new(Following { progress: watch::Sender::new(None), end: watch::Sender::new(None) });
                let request = AgentRequest::Run { job, origin, operation };
                tokio::spawn(Arc::clone(self).follow(product, job, request, Arc::clone(&entry)));
                entry
            });
            (entry.progress.subscribe(), entry.end.subscribe())
        };
        progress.mark_changed();
        loop {
            let reply = tokio::select! {
                biased;
                Ok(()) = progress.changed() => None,
                reply = ended(&mut end) => Some(reply),
                () = answer.cancelled() => return,
            };
            if let Some(reply) = reply {
                // When the link is gone the manager asks again, and the agent still knows the outcome.
                let _ = answer.finish(&reply).await;
                return;
            }
            let news = progress.borrow_and_update().clone();
            if let Some(news) = news
                && answer.event(&news).await.is_err()
            {
                return;
            }
        }
    }

    /// The latest progress of each job that the manager does not hear of through a request of its own.
    pub(crate) fn unheard(&self) -> Vec<(JobId, Progress)> {
        let following = self.lock();
        let unheard = following.iter().filter(|(_, entry)| entry.end.receiver_count() == 0);
        unheard.filter_map(|(job, entry)| Some((*job, entry.progress.borrow().clone()?))).collect()
    }

    async fn follow(self: Arc<Self>, product: Product, job: JobId, request: AgentRequest, entry: Arc<Following>) {
        let reply = self.follow_to_end(&product, &request, &entry).await;
        // Whoever asks from now on begins anew, and the agent still knows the outcome.
        self.lock().remove(&job);
        if entry.end.receiver_count() == 0 {
            match &reply {
                HostReply::Outcome(outcome) => {
                    let report = HostReport::JobOutcome { job, outcome: outcome.clone() };
                    let spool = Arc::clone(&self.spool);
                    // It fails only if saving it panicked, which has been said.
                    let _ = blocking(move || {
                        spool.push(&report);
                        Ok(())
                    })
                    .await;
                }
                // Draining, gone: not an end of the job. The manager asks again when it is back.
                other => {
                    tracing::info!(?job, reply = ?other, "a job ended without an outcome while the manager was away")
                }
            }
        }
        entry.end.send_replace(Some(reply));
    }

    async fn follow_to_end(&self, product: &Product, request: &AgentRequest, entry: &Following) -> HostReply {
        let (mut joined, mut pause, mut gone_since) = (false, REJOIN_PAUSE_MIN, self.clock.now());
        loop {
            let attempt = self.attempt(product, request, entry, &mut joined, &mut gone_since).await;
            match attempt {
                Ok(AgentReply::Outcome(outcome)) => return HostReply::Outcome(outcome),
                Ok(AgentReply::Fault(Fault::Draining)) if joined && self.clock.now() - gone_since < REJOIN_MAX => {}
                Ok(AgentReply::Fault(fault)) => return HostReply::Fault(fault),
                Ok(AgentReply::Done | AgentReply::Status(_)) => {
                    return HostReply::Fault(Fault::Failed(format!("{product} answered a job with something else")));
                }
                Err(_) if joined && self.clock.now() - gone_since < REJOIN_MAX => {}
                Err(fault) => return HostReply::Fault(fault),
            }
            self.clock.sleep(pause).await;
            pause = (pause * 2).min(REJOIN_PAUSE_MAX);
        }
    }

    /// One connection to the agent. `joined` becomes true when the agent has heard of the job: from then on it may have
    /// it in its journal, and only its answer ends the job.
    async fn attempt(
        &self,
        product: &Product,
        request: &AgentRequest,
        entry: &Following,
        joined: &mut bool,
        gone_since: &mut Instant,
    ) -> Result<AgentReply, Fault> {
        let link = connect(&self.agents_dir, product).await?;
        moments::reach(Moment::JobRelay, &self.agents_dir).map_err(|error| Fault::Unavailable(error.to_string()))?;
        let heard = |incoming| {
            let Incoming::Event(body) = incoming else { return };
            *joined = true;
            match codec::decode::<Progress, MESSAGE_BYTES_MAX>(&body) {
                Ok(progress) => drop(entry.progress.send_replace(Some(progress))),
                Err(error) => tracing::warn!(%error, %product, "an agent's progress cannot be read"),
            }
        };
        let connected = self.clock.now();
        let reply = link.request(request, heard, OPERATION_MAX).await;
        link.close("done");
        if reply.is_err() {
            // It took the connection and then ended: it may have taken the job as well.
            *joined = true;
            let now = self.clock.now();
            if now - connected > REJOIN_PAUSE_MAX {
                *gone_since = now;
            }
        }
        reply.map_err(|error| gone(product, &error))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Following>>> {
        lock(&self.following)
    }
}

async fn ended(end: &mut watch::Receiver<Option<HostReply>>) -> HostReply {
    let reply = end.wait_for(Option::is_some).await.ok().and_then(|reply| reply.clone());
    reply.unwrap_or_else(|| HostReply::Fault(Fault::Failed("the job was lost".to_owned())))
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
