//! Change-overs, the manager's side: tell running agents of a new generation, and follow what they do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::agent::{AgentState, AgentStatus, ChangeId, StepEvent};
use proto::message::{ChangeOver, Fault, HostReply, ManagerRequest, Unix};
use proto::name::Target;
use proto::{GenerationRef, HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use super::control::changes::{ChangeEnd, ChangeRecord};
use super::control::generations::{Export, Generation};
use super::now;
use super::server::{Manager, News};
use crate::net::{Link, NetError};

/// How long a host may take to accept a change-over (not to carry it out).
const ACCEPT_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether a host is back.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a host whose answer was lost may take to report a first step.
const BEGIN_DEADLINE: Duration = Duration::from_secs(30);
/// News says when to look again; this only covers news that was lost.
const NEWS_DEADLINE: Duration = Duration::from_secs(10);

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeOrder {
    /// Which agent.
    pub product: Product,
    /// To which generation.
    pub generation: GenerationRef,
    /// Where.
    pub targets: Vec<Target>,
    /// Change over before every object is local.
    pub lazy: bool,
    /// How long operations may take to finish, milliseconds; `None`: what the generation says.
    pub drain_deadline_ms: Option<u64>,
    /// Try a generation that a host remembers as bad.
    pub retry_bad: bool,
    /// Export the generation to the targets first.
    pub export: bool,
    /// Wait for the end.
    pub wait: bool,
    /// Wait at most this long, milliseconds.
    pub timeout_ms: Option<u64>,
}

/// Something that happened on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpgradeEvent {
    /// The host has accepted the change-over.
    Accepted {
        /// Which host.
        host: HostName,
        /// The manager's number of its change-over.
        change: ChangeId,
    },
    /// A step.
    Step {
        /// Which host.
        host: HostName,
        /// What happened.
        event: StepEvent,
    },
    /// This host is through.
    Ended(HostEnd),
}

/// How it ended on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    /// Which host.
    pub host: HostName,
    /// The change-over, if there was one.
    pub change: Option<ChangeId>,
    /// How.
    pub verdict: Verdict,
    /// Why, for people.
    pub reason: String,
    /// What happened.
    pub steps: Vec<StepEvent>,
}

/// How a change-over of one host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The new version runs and has proved itself.
    Confirmed,
    /// The version was running already.
    Already,
    /// The host was told; nobody waited for the end.
    Ordered,
    /// The previous version runs on, or again.
    Failed,
    /// It was not tried.
    Refused,
    /// It was not over when the wait ended; it goes on.
    Unfinished,
}

impl Verdict {
    /// Whether the operator has what they wanted.
    pub fn is_good(self) -> bool {
        match self {
            Verdict::Confirmed | Verdict::Already | Verdict::Ordered => true,
            Verdict::Failed | Verdict::Refused | Verdict::Unfinished => false,
        }
    }
}

/// How it ended everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// Which agent.
    pub product: Product,
    /// To which version.
    pub version: Version,
    /// To which tree.
    pub tree: TreeId,
    /// Each host, in order.
    pub hosts: Vec<HostEnd>,
}

/// An agent as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// Where.
    pub host: HostName,
    /// Whether the host is connected now.
    pub connected: bool,
    /// When the host was last heard of.
    pub last_seen: Unix,
    /// What the host said of it.
    pub status: AgentStatus,
    /// The steps of its last change-over or start.
    pub last_change: Vec<StepEvent>,
}

impl Manager {
    /// Tells agents to change over, and follows them until the end if asked to.
    ///
    /// # Errors
    /// There is no such generation, host or group, or the generation has no entry point.
    pub async fn upgrade(
        self: &Arc<Self>,
        order: &UpgradeOrder,
        events: mpsc::UnboundedSender<UpgradeEvent>,
    ) -> anyhow::Result<UpgradeReport> {
        let generation = self.state.resolve_of(&order.product, &order.generation)?;
        let record = &generation.record;
        if record.metadata.entry_point.is_none() {
            let text = format!("{} has no entry point: publish it with --entrypoint PATH", record.name());
            return Err(Fault::BadRequest(text).into());
        }
        let mut hosts = BTreeSet::new();
        for target in &order.targets {
            hosts.extend(self.state.hosts_of(target)?);
        }
        if hosts.is_empty() {
            return Err(Fault::BadRequest(String::from("the group has no hosts")).into());
        }
        if order.export {
            self.export(&generation, &order.targets)?;
        }
        let tasks: Vec<_> = hosts
            .into_iter()
            .map(|host| {
                let (manager, generation) = (Arc::clone(self), Arc::clone(&generation));
                let (order, events) = (order.clone(), events.clone());
                tokio::spawn(async move {
                    let end = manager.upgrade_host(&host, &generation, &order, &events).await;
                    let end = end.unwrap_or_else(|error| refused(&host, format!("{error:#}")));
                    let _ = events.send(UpgradeEvent::Ended(end.clone()));
                    end
                })
            })
            .collect();
        let mut hosts = Vec::with_capacity(tasks.len());
        for task in tasks {
            hosts.push(task.await?);
        }
        Ok(UpgradeReport {
            product: record.product.clone(),
            version: record.version.clone(),
            tree: record.tree,
            hosts,
        })
    }

    /// Exports a generation and tells the hosts; returns the targets to which it was not exported before.
    ///
    /// # Errors
    /// There is no such host or group.
    pub fn export(&self, generation: &Generation, targets: &[Target]) -> anyhow::Result<Vec<Target>> {
        let hosts: anyhow::Result<Vec<_>> = targets.iter().map(|target| self.state.hosts_of(target)).collect();
        let hosts = hosts?;
        let mut new = Vec::new();
        for target in targets {
            let export = Export {
                product: generation.record.product.clone(),
                version: generation.record.version.clone(),
                target: target.clone(),
                since: now(),
            };
            if self.state.add_export(&export)? {
                tracing::info!(generation = generation.record.name(), %target, "exported");
                new.push(target.clone());
            }
        }
        self.exports_changed(hosts.into_iter().flatten());
        Ok(new)
    }

    /// Every agent that hosts have reported.
    ///
    /// # Errors
    /// The control state failed.
    pub fn agents(&self) -> anyhow::Result<Vec<AgentView>> {
        let mut agents = Vec::new();
        for (host, _) in self.state.hosts()? {
            let status = self.state.status(&host)?;
            let connected = self.control_link(&host).is_some();
            for agent in status.agents {
                let steps = self.state.steps(&host, &agent.product)?;
                agents.push(AgentView {
                    host: host.clone(),
                    connected,
                    last_seen: if connected { now() } else { status.last_seen },
                    last_change: last_change(steps),
                    status: agent,
                });
            }
        }
        Ok(agents)
    }

    /// Writes a step into the record of its change-over. A step that is there already changes nothing.
    pub(crate) fn record_step(&self, host: &HostName, event: &StepEvent) -> anyhow::Result<()> {
        if event.change.0 == 0 {
            return Ok(());
        }
        self.state.alter_change(event.change, |record| {
            if record.host != *host || record.product != event.product || record.steps.contains(event) {
                return;
            }
            record.steps.push(event.clone());
            if let (Some(confirmed), None) = (event.step.ends(), &record.ended) {
                record.ended = Some(ChangeEnd { confirmed, at: event.at_unix_ms, reason: reason_of(record, event) });
            }
        })
    }

    /// Asks the host, again if the connection breaks before the answer: its worker may have been replaced. An order may
    /// have broken off between two of its three messages then; the agent answers those that it has had, and follows
    /// them once.
    async fn ask_host(
        &self,
        host: &HostName,
        mut link: Link,
        request: &ManagerRequest,
    ) -> Result<HostReply, NetError> {
        let begun = tokio::time::Instant::now();
        loop {
            let error = match link.request::<_, HostReply>(request, |_| {}, ACCEPT_DEADLINE).await {
                Err(error @ NetError::Closed(_)) => error,
                answered => return answered,
            };
            tracing::info!(%host, %error, "the host is asked again when it is back");
            link = loop {
                if begun.elapsed() > ACCEPT_DEADLINE {
                    return Err(error);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                if let Some(link) = self.control_link(host) {
                    break link;
                }
            };
        }
    }

    /// Gives the order, again while the version that runs has not proved itself: one that was started a moment ago takes
    /// orders as soon as it has.
    async fn order_host(
        &self,
        host: &HostName,
        product: &Product,
        link: Link,
        request: &ManagerRequest,
    ) -> Result<HostReply, NetError> {
        let begun = tokio::time::Instant::now();
        loop {
            let reply = self.ask_host(host, link.clone(), request).await?;
            let busy = matches!(reply, HostReply::Fault(Fault::Unavailable(_)));
            if !busy || begun.elapsed() > ACCEPT_DEADLINE {
                return Ok(reply);
            }
            let status = self.running(host, product, link.clone()).await;
            if !status.is_ok_and(|status| status.is_some_and(|status| status.state == AgentState::Probation)) {
                // It may have proved itself between the two questions, or refuses for another reason: one last time.
                return self.ask_host(host, link, request).await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn upgrade_host(
        self: &Arc<Self>,
        host: &HostName,
        generation: &Generation,
        order: &UpgradeOrder,
        events: &mpsc::UnboundedSender<UpgradeEvent>,
    ) -> anyhow::Result<HostEnd> {
        let record = &generation.record;
        let exported = self.state.exported_to(host)?;
        if !exported.iter().any(|exported| exported.record.name() == record.name()) {
            let reason = format!("{0} is not exported to {host}: `manager-fs export {0} --to {host}`", record.name());
            return Ok(refused(host, reason));
        }
        if self.state.known_host(host)?.revoked.is_some() {
            return Ok(refused(host, format!("host {host} was revoked")));
        }
        let Some(link) = self.control_link(host) else {
            return Ok(refused(host, format!("host {host} is not connected")));
        };
        match self.running(host, &record.product, link.clone()).await? {
            None => return Ok(refused(host, format!("no agent of {} runs on {host}", record.product))),
            Some(status) if status.tree == record.tree && status.version == record.version => {
                let already = HostEnd {
                    host: host.clone(),
                    change: None,
                    verdict: Verdict::Already,
                    reason: format!("{} runs there already", record.name()),
                    steps: Vec::new(),
                };
                return Ok(already);
            }
            Some(_) => {}
        }
        let mut news = self.news();
        let change = self.state.add_change(host, &record.product, &record.version, record.tree, now())?;
        let request = ManagerRequest::ChangeOver(ChangeOver {
            change: change.id,
            product: record.product.clone(),
            record: generation.signed.clone(),
            attach: record.tree,
            lazy: order.lazy,
            drain_deadline_ms: order.drain_deadline_ms.unwrap_or(record.metadata.drain_deadline_ms),
            retry_bad: order.retry_bad,
        });
        let reply = self.order_host(host, &record.product, link, &request).await;
        let refusal = match reply {
            Ok(HostReply::Done) => None,
            // The verdict says already that it is refused.
            Ok(HostReply::Fault(Fault::Refused(reason))) => Some(reason),
            Ok(HostReply::Fault(fault)) => Some(fault.to_string()),
            Ok(_) => Some(String::from("the host gave an answer that makes no sense")),
            // It may have accepted all the same: its steps will tell.
            Err(error) if self.begins(&change, &mut news).await? => {
                tracing::warn!(%host, %error, "no answer to the change-over, but it has begun");
                None
            }
            Err(error) => Some(format!("{host} did not answer ({error}) and has not begun to change over")),
        };
        if let Some(reason) = refusal {
            self.state.alter_change(change.id, |record| {
                let end = ChangeEnd { confirmed: false, at: now(), reason: reason.clone() };
                record.ended.get_or_insert(end);
            })?;
            return Ok(HostEnd { change: Some(change.id), ..refused(host, reason) });
        }
        let _ = events.send(UpgradeEvent::Accepted { host: host.clone(), change: change.id });
        let wait =
            if order.wait { order.timeout_ms.map_or(Duration::MAX, Duration::from_millis) } else { Duration::ZERO };
        let followed = tokio::select! {
            followed = tokio::time::timeout(wait, self.follow(&change, &mut news, events)) => followed.ok(),
            () = events.closed() => None,
        };
        match followed {
            Some(end) => end,
            None => {
                let steps = self.state.change(change.id)?.map(|record| record.steps).unwrap_or_default();
                let (verdict, reason) = if order.wait {
                    (Verdict::Unfinished, "it was not over in time; it goes on, and `manager-fs agents` shows it")
                } else {
                    (Verdict::Ordered, "accepted; `manager-fs agents` shows how it goes on")
                };
                Ok(HostEnd { host: host.clone(), change: Some(change.id), verdict, reason: reason.to_owned(), steps })
            }
        }
    }

    /// Whether the host reports a step of a change-over within the time that it has to accept one.
    async fn begins(&self, change: &ChangeRecord, news: &mut broadcast::Receiver<News>) -> anyhow::Result<bool> {
        let begun = || Ok(self.state.change(change.id)?.is_some_and(|record| !record.steps.is_empty()));
        let waiting = async {
            while !begun()? {
                if let Ok(News::Step(host, event)) = news.recv().await
                    && (host, event.change) == (change.host.clone(), change.id)
                {
                    return anyhow::Ok(());
                }
            }
            Ok(())
        };
        match tokio::time::timeout(BEGIN_DEADLINE, waiting).await {
            Ok(waited) => waited.map(|()| true),
            Err(_) => begun(),
        }
    }

    /// Asks the host which agent of the product runs.
    async fn running(&self, host: &HostName, product: &Product, link: Link) -> anyhow::Result<Option<AgentStatus>> {
        let agents = match self.ask_host(host, link, &ManagerRequest::Agents).await? {
            HostReply::Agents(agents) => agents,
            HostReply::Fault(fault) => return Err(fault.into()),
            HostReply::Done | HostReply::Outcome(_) => {
                return Err(Fault::Failed(String::from("the host did not say what runs there")).into());
            }
        };
        self.state.change_status(host, |status| status.agents.clone_from(&agents))?;
        Ok(agents.into_iter().find(|agent| agent.product == *product && agent.state != AgentState::Stopped))
    }

    /// Passes on each step of a change-over until it is over.
    async fn follow(
        &self,
        change: &ChangeRecord,
        news: &mut broadcast::Receiver<News>,
        events: &mpsc::UnboundedSender<UpgradeEvent>,
    ) -> anyhow::Result<HostEnd> {
        let mut told = 0;
        loop {
            if let Some(record) = self.state.change(change.id)? {
                for event in &record.steps[told.min(record.steps.len())..] {
                    let _ = events.send(UpgradeEvent::Step { host: change.host.clone(), event: event.clone() });
                }
                told = record.steps.len();
                if let Some(end) = record.ended {
                    let verdict = if end.confirmed { Verdict::Confirmed } else { Verdict::Failed };
                    return Ok(HostEnd {
                        host: change.host.clone(),
                        change: Some(change.id),
                        verdict,
                        reason: end.reason,
                        steps: record.steps,
                    });
                }
            }
            let step = async {
                loop {
                    match news.recv().await {
                        Ok(News::Step(host, event)) if host == change.host && event.change == change.id => return,
                        Ok(_) => {}
                        Err(_) => return,
                    }
                }
            };
            let _ = tokio::time::timeout(NEWS_DEADLINE, step).await;
        }
    }
}

/// The steps of the last change-over or start: those since the last change of number.
pub(crate) fn last_change(mut steps: Vec<StepEvent>) -> Vec<StepEvent> {
    let Some(last) = steps.last().map(|event| event.change) else { return steps };
    let since = steps.iter().rposition(|event| event.change != last).map_or(0, |at| at + 1);
    steps.split_off(since)
}

fn reason_of(record: &ChangeRecord, last: &StepEvent) -> String {
    use proto::agent::Step;
    // A return is the consequence; what failed is the reason.
    let failed = record.steps.iter().rev().find(|event| event.step == Step::ProbationFailed);
    let cause = failed.filter(|_| last.step == Step::Returned).unwrap_or(last);
    cause.detail.clone()
}

fn refused(host: &HostName, reason: String) -> HostEnd {
    HostEnd { host: host.clone(), change: None, verdict: Verdict::Refused, reason, steps: Vec::new() }
}
