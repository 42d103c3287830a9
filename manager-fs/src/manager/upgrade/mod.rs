//! Change-overs, the manager's side: tell running agents of a new generation, and follow what they do.

mod ask;
mod order;
mod tell;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proto::agent::{AgentState, AgentStatus, Step, StepEvent};
use proto::message::Fault;
use proto::name::Target;
use proto::{GenerationRecord, HostName, Product};
use tokio::sync::{Semaphore, mpsc};

use super::company::{Company, CompanyError};
use super::connections::Connections;
use super::control::changes::{ChangeEnd, ChangeOrder, ChangeRecord, EndedBy};
use super::control::generations::{Generation, GenerationError};
use super::control::hosts::HostError;
use super::control::targets::Wanted;
use super::control::{ControlError, State};
use super::exports::{ExportError, Exports};
use super::news::{Listener, News, NewsBoard};
use super::now;
use crate::net::{Link, NetError};

pub(crate) use tell::{Manner, Telling, Told};

pub use order::{HostEnd, UpgradeEvent, UpgradeOrder, UpgradeReport, Verdict};

/// How long a host whose answer was lost may take to report a first step.
const BEGIN_DEADLINE: Duration = Duration::from_secs(30);
/// Hosts that are asked and told at once, of all commands; others wait. Those that are only followed do not count.
pub(crate) const AT_ONCE_MAX: usize = 128;
/// News says when to look again; this only covers news that was lost.
const NEWS_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether old change-overs can be forgotten: once in this many that are ordered.
const FORGET_EVERY: u32 = 500;

/// Why agents were not told to change over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// There is no program to change over to.
    #[error("{0} has no entry point: publish it with --entrypoint PATH")]
    NoEntryPoint(String),
    /// There is nobody to tell.
    #[error("the group has no hosts")]
    NoHosts,
    /// The host did not say what runs there.
    #[error("the host did not say what runs there")]
    NoAgents,
    /// The host refused.
    #[error(transparent)]
    Host(Fault),
    /// The host did not answer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A target is no host or group.
    #[error(transparent)]
    Target(#[from] HostError),
    /// No one generation is meant.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// It cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// It would not understand other agents.
    #[error("nothing is ordered: {0}")]
    Company(#[from] CompanyError),
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Tells agents to change over.
pub(crate) struct Upgrades {
    pub(crate) state: Arc<State>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) news: Arc<NewsBoard>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) company: Arc<Company>,
    pub(crate) ordered: AtomicU32,
    pub(crate) at_once: Semaphore,
    pub(crate) telling: Arc<Telling>,
}

/// What an order means.
struct Planned {
    order: UpgradeOrder,
    generation: Arc<Generation>,
    /// Hosts that get it when they come, should they be away.
    remembered: BTreeSet<HostName>,
}

/// A change-over that a host has accepted.
struct Accepted {
    change: ChangeRecord,
    /// From before it was ordered.
    news: Listener,
}

type Events = mpsc::UnboundedSender<UpgradeEvent>;

impl Upgrades {
    /// Over the control state and the hosts' connections.
    pub(crate) fn new(
        state: &Arc<State>,
        connections: &Arc<Connections>,
        news: &Arc<NewsBoard>,
        exports: &Arc<Exports>,
        company: Company,
    ) -> Self {
        Self {
            state: Arc::clone(state),
            connections: Arc::clone(connections),
            news: Arc::clone(news),
            exports: Arc::clone(exports),
            company: Arc::new(company),
            ordered: AtomicU32::new(0),
            at_once: Semaphore::new(AT_ONCE_MAX),
            telling: Arc::default(),
        }
    }

    /// Tells agents to change over, and follows them until the end if asked to.
    ///
    /// # Errors
    /// There is no such generation, host or group, the generation has no entry point, or other agents would not
    /// understand it.
    pub(crate) async fn upgrade(
        self: &Arc<Self>,
        order: UpgradeOrder,
        events: Events,
    ) -> Result<UpgradeReport, UpgradeError> {
        let generation = self.state.resolve_of(&order.product, &order.generation)?;
        let record = &generation.record;
        if record.metadata.entry_point.is_none() {
            return Err(UpgradeError::NoEntryPoint(record.name()));
        }
        let hosts = self.hosts_of(&order.targets)?;
        self.company.check(record, &hosts).await?;
        if order.export {
            self.exports.export(&generation, &order.targets).await?;
        }
        // Before it is a target: nobody else tells them meanwhile.
        let mut turns: Vec<_> = hosts.iter().map(|host| self.telling.begin(host, &order.product)).collect();
        let remembered = self.remember(&order, &generation).await?;
        let planned = Arc::new(Planned { order, generation: Arc::clone(&generation), remembered });
        let followed = hosts.into_iter().zip(turns.drain(..)).map(|(host, telling)| {
            let (upgrades, planned, events) = (Arc::clone(self), Arc::clone(&planned), events.clone());
            let task = tokio::spawn({
                let host = host.clone();
                async move {
                    let end = upgrades.upgrade_host(&host, &planned, telling, &events).await;
                    let _ = events.send(UpgradeEvent::Ended(end.clone()));
                    end
                }
            });
            (host, task)
        });
        let mut hosts = Vec::new();
        for (host, task) in followed.collect::<Vec<_>>() {
            let broken_off = |_| HostEnd::refused(&host, "the manager broke it off (its log says why)");
            hosts.push(task.await.unwrap_or_else(broken_off));
        }
        Ok(UpgradeReport {
            product: record.product.clone(),
            version: record.version.clone(),
            tree: record.tree,
            hosts,
        })
    }

    /// From now on this is what the groups run: also hosts that are away, and those that come to a group later. Hosts
    /// that were named themselves are told now or not at all.
    async fn remember(
        &self,
        order: &UpgradeOrder,
        generation: &Generation,
    ) -> Result<BTreeSet<HostName>, UpgradeError> {
        let groups: Vec<Target> =
            order.targets.iter().filter(|target| matches!(target, Target::Group(_))).cloned().collect();
        let mut hosts = BTreeSet::new();
        for group in &groups {
            hosts.extend(self.state.hosts_of(group)?);
        }
        let (version, tree) = (generation.record.version.clone(), generation.record.tree);
        let (lazy, drain_deadline_ms) = (order.lazy, order.drain_deadline_ms);
        let set = self.state.ordered_after_all(now());
        let wanted = Wanted { version, tree, set, lazy, drain_deadline_ms, hours: None };
        self.state.set_targets(&generation.record.product, &groups, &wanted).await?;
        Ok(hosts)
    }

    /// A step of a host has been noted: when it ends a change-over, that is recorded. A host can only end its own.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn stepped(&self, host: &HostName, event: &StepEvent) -> Result<(), ControlError> {
        let (Some(confirmed), true) = (event.step.ends(), event.change.0 != 0) else { return Ok(()) };
        let record = match self.state.change(event.change).await {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            // A host must not send its report for ever because of it.
            Err(error @ ControlError::Damaged { .. }) => {
                tracing::error!(%host, %error, "a change-over has ended, and its record cannot say so");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if record.order.host != *host || record.order.product != event.product {
            return Ok(());
        }
        let reason = reason_of(&self.state.steps_of(&record).await?, event);
        let end = ChangeEnd { confirmed, at: event.at_unix_ms, reason, by: EndedBy::Agent };
        self.state.end_change(record.id, end).await.map(drop)
    }

    /// The hosts that are meant. One that is named by itself must be enrolled: it was mistyped, most likely.
    fn hosts_of(&self, targets: &[Target]) -> Result<BTreeSet<HostName>, UpgradeError> {
        let mut hosts = BTreeSet::new();
        for target in targets {
            if let Target::Host(host) = target {
                self.state.known_host(host)?;
            }
            hosts.extend(self.state.hosts_of(target)?);
        }
        if hosts.is_empty() { Err(UpgradeError::NoHosts) } else { Ok(hosts) }
    }

    async fn upgrade_host(
        &self,
        host: &HostName,
        planned: &Planned,
        telling: Option<tell::Turn>,
        events: &Events,
    ) -> HostEnd {
        let told = async {
            let _telling = telling;
            // It is never closed.
            let _turn = self.at_once.acquire().await.ok();
            let record = &planned.generation.record;
            let own = self.exports.generation_for(host, &record.product, &record.version);
            let generation = own.unwrap_or_else(|| Arc::clone(&planned.generation));
            let link = self.may_be_ordered(host, &generation).await?;
            self.ordered(host, planned, &generation, link).await
        };
        match told.await {
            Ok(accepted) => {
                let _ = events.send(UpgradeEvent::Accepted { host: host.clone(), change: accepted.change.id });
                self.followed(host, planned, accepted, events).await
            }
            Err(end) if end.verdict == Verdict::Away && planned.remembered.contains(host) => {
                let name = planned.generation.record.name();
                HostEnd { reason: format!("{}; it gets {name} when it comes", end.reason), ..end }
            }
            Err(end) if end.verdict == Verdict::Away => HostEnd { verdict: Verdict::Refused, ..end },
            Err(end) => end,
        }
    }

    /// Whether a host can be told at all, and by which connection; else how it ends there.
    async fn may_be_ordered(&self, host: &HostName, generation: &Generation) -> Result<Link, HostEnd> {
        let record = &generation.record;
        let refused = |reason: String| HostEnd::refused(host, reason);
        let known = self.state.known_host(host).map_err(|error| refused(error.to_string()))?;
        if known.revoked.is_some() {
            return Err(refused(format!("host {host} was revoked")));
        }
        if !self.exports.is_exported(host, record) {
            let name = record.name();
            return Err(refused(format!("{name} is not exported to {host}: `manager-fs export {name} --to {host}`")));
        }
        if let Some(why) = self.exports.foreign(host, generation) {
            return Err(refused(why));
        }
        let not_connected = || HostEnd { verdict: Verdict::Away, ..refused(format!("host {host} is not connected")) };
        let link = self.connections.control_link(host).ok_or_else(not_connected)?;
        let running = self.running(host, &record.product, link.clone()).await;
        match running.map_err(|error| refused(error.to_string()))? {
            None => Err(refused(never_ran(host, &record.product))),
            Some(status) if !status.takes_orders() => Err(refused(nobody_there(host, &status))),
            Some(status) if status.state == AgentState::Stopped && is_of(&status, record) => {
                let name = record.name();
                Err(refused(format!("{name} is what {host} starts, and it does not come up: {}", status.reason)))
            }
            Some(status) if is_of(&status, record) => {
                Err(HostEnd { verdict: Verdict::Already, ..refused(format!("{} runs there already", record.name())) })
            }
            Some(_) => Ok(link),
        }
    }

    /// Records the change-over and tells the host; else how it ends there.
    async fn ordered(
        &self,
        host: &HostName,
        planned: &Planned,
        generation: &Generation,
        link: Link,
    ) -> Result<Accepted, HostEnd> {
        // From before it was ordered.
        let news = self.news.of(host);
        let added = self.add_change(host, &generation.record).await;
        let change = added.map_err(|error| HostEnd::refused(host, error))?;
        let order = &planned.order;
        let (lazy, drain_deadline_ms, retry_bad) = (order.lazy, order.drain_deadline_ms, order.retry_bad);
        let manner = Manner { lazy, drain_deadline_ms, retry_bad };
        self.tell(change, generation, &manner, link, news).await
    }

    /// Follows a change-over for as long as the operator wants to wait.
    async fn followed(&self, host: &HostName, planned: &Planned, accepted: Accepted, events: &Events) -> HostEnd {
        let Accepted { change, mut news } = accepted;
        let waits = planned.order.wait;
        let patience = planned.order.timeout_ms.map_or(Duration::MAX, Duration::from_millis);
        let wait = if waits { patience } else { Duration::ZERO };
        let followed = tokio::select! {
            followed = tokio::time::timeout(wait, self.follow(&change, &mut news, events)) => followed.ok(),
            () = events.closed() => None,
        };
        let unfinished = |steps| {
            let (verdict, reason) = if waits {
                (Verdict::Unfinished, "it was not over in time; it goes on, and `manager-fs agents` shows it")
            } else {
                (Verdict::Ordered, "accepted; `manager-fs agents` shows how it goes on")
            };
            HostEnd { change: Some(change.id), verdict, steps, ..HostEnd::refused(host, reason) }
        };
        match followed {
            Some(Ok(end)) => end,
            Some(Err(error)) => HostEnd { change: Some(change.id), ..HostEnd::refused(host, error) },
            None => unfinished(self.state.steps_of(&change).await.unwrap_or_default()),
        }
    }

    async fn add_change(&self, host: &HostName, record: &GenerationRecord) -> Result<ChangeRecord, ControlError> {
        let (product, version) = (record.product.clone(), record.version.clone());
        let order = ChangeOrder { host: host.clone(), product, version, to: record.tree };
        // Hosts that are ordered at the same time share the sync.
        let change = self.state.add_change(order, now()).await?;
        if self.ordered.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.state.forget_changes().await?;
        }
        Ok(change)
    }

    /// Whether the host reports a step of a change-over within the time that it has to accept one.
    async fn begins(&self, change: &ChangeRecord, news: &mut Listener) -> Result<bool, ControlError> {
        let begun = || async { Ok::<_, ControlError>(!self.state.steps_of(change).await?.is_empty()) };
        let waiting = async {
            while !begun().await? {
                news.until(|news| news == News::Step(change.id)).await;
            }
            Ok(true)
        };
        match tokio::time::timeout(BEGIN_DEADLINE, waiting).await {
            Ok(waited) => waited,
            Err(_) => begun().await,
        }
    }

    /// Passes on each step of a change-over until it is over.
    async fn follow(
        &self,
        change: &ChangeRecord,
        news: &mut Listener,
        events: &Events,
    ) -> Result<HostEnd, ControlError> {
        let mut told = 0;
        loop {
            // The end before the steps: the last of them is there when the end is.
            let ended = self.state.change(change.id).await?.and_then(|record| record.ended);
            let steps = self.state.steps_of(change).await?;
            for event in &steps[told.min(steps.len())..] {
                let _ = events.send(UpgradeEvent::Step { host: change.order.host.clone(), event: event.clone() });
            }
            told = steps.len();
            if let Some(end) = ended {
                let verdict = if end.confirmed { Verdict::Confirmed } else { Verdict::Failed };
                let refused = HostEnd::refused(&change.order.host, end.reason);
                return Ok(HostEnd { change: Some(change.id), verdict, steps, ..refused });
            }
            let step = news.until(|news| news == News::Step(change.id));
            let _ = tokio::time::timeout(NEWS_DEADLINE, step).await;
        }
    }
}

fn is_of(status: &AgentStatus, record: &GenerationRecord) -> bool {
    status.tree == record.tree && status.version == record.version
}

fn never_ran(host: &HostName, product: &Product) -> String {
    format!(
        "no agent of {product} runs on {host}, where it has never run: start it with `manager-fs launch {product}`"
    )
}

fn nobody_there(host: &HostName, status: &AgentStatus) -> String {
    let (product, version) = (&status.product, &status.version);
    format!(
        "no agent of {product} runs on {host}, and no `launch {product}` is there to take the order: start it there with \
         `manager-fs launch {product}` (it begins with {version}), or first choose another version there with `manager-fs \
         rescue {product} --to GENERATION`"
    )
}

fn reason_of(steps: &[StepEvent], last: &StepEvent) -> String {
    // A return is the consequence; what failed is the reason.
    let failed = steps.iter().rev().find(|event| event.step == Step::ProbationFailed);
    let cause = failed.filter(|_| last.step == Step::Returned).unwrap_or(last);
    cause.detail.clone()
}

#[cfg(test)]
mod tests;
