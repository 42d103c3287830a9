//! All policies, at work: what operators ask of them, and what their machine orders.
//!
//! What the machine says is done in this order, so that a manager that dies anywhere goes on: the jobs are recorded, as many
//! in one commit as fit, each with the slot that it is for; then they are seen through like any other job.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proto::message::Unix;
use proto::name::Target;
use proto::{GroupName, HostName, PolicyName};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, Notify, broadcast};
use tokio::task::JoinHandle;

use super::board::{Board, Fleet};
use super::definition::{Policy, difference};
use super::form::{NotAPolicy, PolicyForm};
use super::machine::AHEAD_MS;
use super::machine::vocabulary::Task;
use super::protection::{ProtectionView, protection};
use super::view::{PolicyView, Seen, view};
use crate::clock::Clock;
use crate::manager::connections::Connections;
use crate::manager::control::hosts::HostError;
use crate::manager::control::jobs::JobRecord;
use crate::manager::control::policies::PolicyRecord;
use crate::manager::control::{ControlError, State};
use crate::manager::jobs::{JobError, Jobs};
use crate::manager::news::{News, NewsBoard};

/// How often it is looked who is in the groups, and what the clock on the wall says.
const LOOK: Duration = Duration::from_secs(5);
/// Pause after the control state failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// News that are taken together.
const NEWS_AT_ONCE: usize = 2000;
/// Policies that a manager has.
const POLICIES_MAX: usize = 1000;

/// What an operator asks of policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyAsk {
    /// Take a policy, or what it is from now on.
    Apply {
        /// What was typed.
        order: Typed,
        /// There must be none of its name.
        new: bool,
        /// Only say what would change.
        dry_run: bool,
    },
    /// Every policy.
    All,
    /// One, and how it stands on its hosts, or on one of them.
    One(PolicyName, Option<HostName>),
    /// Forget one. Its snapshots and jobs stay.
    Remove(PolicyName),
    /// Order nothing more for now (`true`), or go on.
    Pause(PolicyName, bool),
    /// How every source of every host stands.
    Protection,
    /// Begin a task now, whatever its schedule and window say.
    Run {
        /// Of which policy.
        policy: PolicyName,
        /// Which.
        task: Task,
        /// Where; none: on all of its hosts.
        host: Option<Target>,
    },
}

/// A policy as it was typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Typed {
    /// As a file.
    Text(String),
    /// As flags.
    Form(Box<PolicyForm>),
}

/// The answer to a [`PolicyAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyAnswer {
    /// To `Apply`: what changes, line by line; none: it is so already.
    Changed(Vec<String>, Box<PolicyView>),
    /// To `All`: by name, without their hosts.
    All(Vec<PolicyView>),
    /// To `One`, `Remove` and `Pause`.
    One(Box<PolicyView>),
    /// To `Protection`.
    Protection(ProtectionView),
    /// To `Run`: the jobs that were ordered, and hosts on which none was, and why.
    Ran(Vec<JobRecord>, Vec<(HostName, String)>),
}

/// Why a policy was not taken, or does not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// What was typed is none.
    #[error(transparent)]
    Form(#[from] NotAPolicy),
    /// It is meant for a group that there is not.
    #[error("the policy cannot be used: {0}")]
    Target(HostError),
    /// There is none of this name.
    #[error("there is no policy '{0}'; `manager-fs policy list` lists those that there are")]
    Unknown(PolicyName),
    /// There is one of this name.
    #[error("there is a policy '{0}' already; `manager-fs policy apply FILE` changes it")]
    Known(PolicyName),
    /// There are too many.
    #[error("there are {POLICIES_MAX} policies, and no more can be kept: remove one (`manager-fs policy remove`)")]
    TooMany,
    /// The policy has no such task.
    #[error("policy '{policy}' has no {task}: say when it is due (`{task}`)")]
    NoTask {
        /// Which policy.
        policy: PolicyName,
        /// What it does not do.
        task: Task,
    },
    /// Jobs were not ordered.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The manager's parts that policies need.
pub(crate) struct Here {
    pub(crate) state: Arc<State>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) news: Arc<NewsBoard>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) clock: Clock,
}

/// All of them.
pub(crate) struct Policies {
    here: Here,
    /// None: it is to be made anew, out of what is durable.
    board: Mutex<Option<Board>>,
    /// Something was changed by an operator.
    changed: Notify,
    /// Its work, once it has begun.
    working: OnceLock<JoinHandle<()>>,
}

impl Policies {
    pub(crate) fn new(here: Here) -> Self {
        Self { here, board: Mutex::default(), changed: Notify::new(), working: OnceLock::new() }
    }

    /// Begins to order what is due.
    pub(crate) fn begin(self: &Arc<Self>) {
        self.working.get_or_init(|| tokio::spawn(Arc::clone(self).work()));
    }

    /// Orders nothing more.
    pub(crate) fn end(&self) {
        if let Some(working) = self.working.get() {
            working.abort();
        }
    }

    /// Orders what is due, as long as the manager runs.
    async fn work(self: Arc<Self>) {
        let mut news = self.here.news.of_all();
        let mut before = 0;
        loop {
            let now = self.here.clock.unix_ms();
            if now.saturating_add(AHEAD_MS) < before {
                tracing::warn!("the clock was put back by more than a day: what it said before does not count");
                *self.board.lock().await = None;
            }
            before = now;
            let wait = match self.turn(now).await {
                Ok(wake) => wake.map_or(LOOK, |wake| Duration::from_millis(wake.saturating_sub(now)).min(LOOK)),
                Err(error) => {
                    tracing::error!(%error, "policies wait for the control state");
                    // What was lost on the way is found again in the records.
                    *self.board.lock().await = None;
                    AFTER_FAILURE
                }
            };
            let sleep = self.here.clock.sleep(wait);
            tokio::select! {
                first = news.recv() => match first {
                    Ok(first) => self.hear(first, &mut news).await,
                    Err(RecvError::Lagged(_)) => *self.board.lock().await = None,
                    Err(RecvError::Closed) => return,
                },
                () = sleep => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Orders what is due at a time; returns when something is next.
    async fn turn(&self, now: Unix) -> Result<Option<Unix>, PolicyError> {
        let mut guard = self.board.lock().await;
        let fleet = self.fleet();
        let board = self.assembled(&mut guard, now).await?;
        board.look(&fleet);
        let orders = board.machine.tick(now);
        let jobs: Vec<_> = orders.iter().filter_map(|order| board.job(order)).collect();
        if !jobs.is_empty() {
            for record in self.here.jobs.add_all(jobs).await? {
                board.runs.learn(&record);
            }
        }
        Ok(board.machine.wake())
    }

    /// What is so, made anew if need be.
    async fn assembled<'a>(&self, guard: &'a mut Option<Board>, now: Unix) -> Result<&'a mut Board, PolicyError> {
        if guard.is_none() {
            let records = self.here.state.policies().await?;
            let jobs = self.here.state.jobs(usize::MAX).await?;
            *guard = Some(Board::assemble(records, &jobs, &self.fleet(), now));
        }
        guard.as_mut().ok_or(PolicyError::Control(ControlError::Closed))
    }

    async fn hear(&self, first: (HostName, News), news: &mut broadcast::Receiver<(HostName, News)>) {
        let mut guard = self.board.lock().await;
        let Some(board) = guard.as_mut() else { return };
        let more = std::iter::from_fn(|| news.try_recv().ok()).take(NEWS_AT_ONCE);
        let mut jobs = BTreeSet::new();
        for (host, news) in std::iter::once(first).chain(more) {
            match news {
                News::Connected | News::Disconnected => {
                    board.connect(&host, self.here.connections.control_link(&host).is_some());
                }
                News::Job(id) if board.runs.is_open(id) => drop(jobs.insert(id)),
                News::Job(_) | News::Step(_) | News::Ordered | News::Agents => {}
            }
        }
        for id in jobs {
            match self.here.jobs.job(id).await {
                Ok(record) => board.learn(&record),
                Err(error) => tracing::warn!(job = %id, %error, "what became of a policy's job is not known yet"),
            }
        }
    }

    fn fleet(&self) -> Now<'_> {
        Now(&self.here)
    }

    /// Does what an operator asks.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn answer(&self, ask: PolicyAsk) -> Result<PolicyAnswer, PolicyError> {
        let now = self.here.clock.unix_ms();
        let mut guard = self.board.lock().await;
        let board = self.assembled(&mut guard, now).await?;
        board.look(&self.fleet());
        let seen = self.seen().await?;
        let answer = match ask {
            PolicyAsk::Apply { order, new, dry_run } => self.apply(board, order, (new, dry_run), now, &seen).await?,
            PolicyAsk::All => {
                let records: Vec<_> = board.records.values().cloned().collect();
                let of = |record: &PolicyRecord| view(board, record, None, &seen, now);
                let all = records.iter().map(|record| PolicyView { lanes: vec![], left_out: 0, ..of(record) });
                PolicyAnswer::All(all.collect())
            }
            PolicyAsk::One(name, host) => {
                let record = known(board, &name)?;
                PolicyAnswer::One(Box::new(view(board, &record, host.as_ref(), &seen, now)))
            }
            PolicyAsk::Remove(name) => {
                let record = known(board, &name)?;
                let view = view(board, &record, None, &seen, now);
                self.here.state.remove_policy(&name).await?;
                board.remove(&name);
                PolicyAnswer::One(Box::new(view))
            }
            PolicyAsk::Pause(name, pause) => {
                let mut record = known(board, &name)?;
                record.paused = pause.then(|| record.paused.unwrap_or(now));
                self.here.state.save_policy(&record).await?;
                board.set(record.clone());
                PolicyAnswer::One(Box::new(view(board, &record, None, &seen, now)))
            }
            PolicyAsk::Protection => {
                let hosts = self.here.state.hosts().into_iter().filter(|(_, host)| host.revoked.is_none());
                let hosts = hosts.map(|(name, _)| name).collect();
                PolicyAnswer::Protection(protection(board, &seen, hosts, now))
            }
            PolicyAsk::Run { policy, task, host } => self.run(board, &policy, task, host, now).await?,
        };
        self.changed.notify_one();
        Ok(answer)
    }

    /// When hosts were last there.
    async fn seen(&self) -> Result<Seen, ControlError> {
        let statuses = self.here.state.observations().statuses().await?;
        Ok(statuses.into_iter().map(|(host, status)| (host, status.last_seen)).collect())
    }

    async fn apply(
        &self,
        board: &mut Board,
        order: Typed,
        (new, dry_run): (bool, bool),
        now: Unix,
        seen: &Seen,
    ) -> Result<PolicyAnswer, PolicyError> {
        let policy = match order {
            Typed::Text(text) => Policy::parse(&text)?,
            Typed::Form(form) => form.policy()?,
        };
        let sites = policy.sites.iter().cloned().map(Target::Group);
        for target in policy.hosts.iter().chain(&policy.media).cloned().chain(sites) {
            self.here.state.hosts_of(&target).map_err(PolicyError::Target)?;
        }
        let before = board.records.get(&policy.name).cloned();
        match &before {
            Some(_) if new => return Err(PolicyError::Known(policy.name)),
            None if board.records.len() >= POLICIES_MAX => return Err(PolicyError::TooMany),
            _ => {}
        }
        let changes = difference(before.as_ref().map(|record| &record.policy), &policy);
        let record = changed(before, policy, now);
        if dry_run || changes.is_empty() {
            // What it would mean is worked out beside what is.
            let mut other = Board::assemble(vec![record.clone()], &[], &self.fleet(), now);
            other.machine.tick(now);
            let shown = if dry_run { &other } else { &*board };
            return Ok(PolicyAnswer::Changed(changes, Box::new(view(shown, &record, None, seen, now))));
        }
        self.here.state.save_policy(&record).await?;
        tracing::info!(policy = %record.policy.name, "policy applied");
        // With its lanes, since who is meant and which sites they are at may be others.
        board.remove(&record.policy.name);
        board.set(record.clone());
        board.look(&self.fleet());
        Ok(PolicyAnswer::Changed(changes, Box::new(view(board, &record, None, seen, now))))
    }

    async fn run(
        &self,
        board: &mut Board,
        name: &PolicyName,
        task: Task,
        to: Option<Target>,
        now: Unix,
    ) -> Result<PolicyAnswer, PolicyError> {
        let record = known(board, name)?;
        if record.policy.schedule_of(task).is_none() {
            return Err(PolicyError::NoTask { policy: name.clone(), task });
        }
        let only = to.as_ref().map(|to| self.here.state.hosts_of(to)).transpose().map_err(PolicyError::Target)?;
        let lanes = board.lanes_of(name).into_iter().filter(|((_, _, of), _)| *of == task);
        let meant: Vec<_> = lanes.map(|(key, _)| key.clone()).collect();
        let mut not: Vec<(HostName, String)> = Vec::new();
        for host in only.iter().flatten().filter(|host| !meant.iter().any(|(_, of, _)| of == *host)) {
            not.push((host.clone(), format!("the {task} of policy '{name}' is not for it")));
        }
        let mut jobs = Vec::new();
        for key in meant.iter().filter(|(_, host, _)| only.as_ref().is_none_or(|only| only.contains(host))) {
            match board.under_way(key) {
                Some(job) => not.push((key.1.clone(), format!("job {job} is under way"))),
                None => jobs.extend(board.job_of(name, &key.1, task, now)),
            }
        }
        let ordered = if jobs.is_empty() { Vec::new() } else { self.here.jobs.add_all(jobs).await? };
        ordered.iter().for_each(|record| board.began(record));
        Ok(PolicyAnswer::Ran(ordered, not))
    }
}

fn known(board: &Board, name: &PolicyName) -> Result<PolicyRecord, PolicyError> {
    board.records.get(name).cloned().ok_or_else(|| PolicyError::Unknown(name.clone()))
}

/// The record of a policy that takes another's place. What is due as it was before is due since then.
fn changed(before: Option<PolicyRecord>, policy: Policy, now: Unix) -> PolicyRecord {
    let since = |task: Task| {
        let same = before.as_ref().filter(|before| before.policy.schedule_of(task) == policy.schedule_of(task));
        let since = same.and_then(|before| before.since.iter().find(|(of, _)| *of == task));
        (task, since.map_or(now, |(_, since)| *since))
    };
    let since = Task::ALL.into_iter().map(since).collect();
    let (created, paused) = before.as_ref().map_or((now, None), |before| (before.created, before.paused));
    PolicyRecord { policy, created, paused, since }
}

/// The fleet as it is now.
struct Now<'a>(&'a Here);

impl Now<'_> {
    fn meant(&self, targets: &[Target]) -> BTreeSet<HostName> {
        let state = &self.0.state;
        let all = targets.iter().filter_map(|target| state.hosts_of(target).ok()).flatten();
        all.filter(|host| state.host(host).is_some_and(|host| host.revoked.is_none())).collect()
    }
}

impl Fleet for Now<'_> {
    fn hosts(&self, policy: &Policy) -> (BTreeSet<HostName>, BTreeSet<HostName>) {
        (self.meant(&policy.hosts), self.meant(&policy.media))
    }

    fn is_in(&self, host: &HostName, group: &GroupName) -> bool {
        self.0.state.groups_of(host).contains(group)
    }

    fn is_there(&self, host: &HostName) -> bool {
        self.0.connections.control_link(host).is_some()
    }
}
