//! Control on its way through the host: the manager's requests to the agents, the agents' news to the manager.
//!
//! ```text
//! manager ──ChangeOver──> A SaveMetadata, B Attach, C Finish ──> RUN/agents/<product>.sock
//!                                          while no agent runs ─> RUN/agents/<product>/stub.sock
//! manager ──Run, Cancel──> (followed, see jobs.rs) ──────────> RUN/agents/<product>.sock
//! manager <──Report── spool <──Report, Changed── RUN/mount.sock <── agent, stub
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_core::internal::journal::{self, Journal};
use proto::agent::{AgentReply, AgentRequest, AgentState, AgentStatus, StepEvent};
use proto::message::{ChangeOver, Fault, HostReply, HostReport, HostRequest};
use proto::{Product, TreeId};
use tokio::sync::{Notify, watch};

use super::agent::{self, Patience, stopped};
use super::jobs::Jobs;
use super::orders::Orders;
use super::spool::Spool;
use crate::clock::Clock;
use crate::host::blocking;
use crate::host::data::link::ManagerLink;
use crate::host::generations::records::Records;
use crate::metrics::{Durations, durations, steps, word};
use crate::moments::{self, Moment};

/// Saving a record is one fsync; an agent that needs longer for an answer is stuck. One that ends meanwhile is noticed at the
/// next look.
const PATIENCE: Patience = Patience {
    look_every: Duration::from_millis(500),
    silent_max: Duration::from_secs(10),
    answer_max: AGENT_DEADLINE,
};
const AGENT_DEADLINE: Duration = Duration::from_secs(30);
/// An agent between two versions does not answer; then its last status stands.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// Agents are looked at this often even when nobody says that they changed: one may have been killed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const REPORT_DEADLINE: Duration = Duration::from_secs(30);
/// A job that the manager does not follow by itself is reported on this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Where a host's agents are.
#[derive(Debug, Clone)]
pub(crate) struct AgentDirs {
    /// Their journals are below it.
    pub(crate) state_dir: PathBuf,
    /// Their sockets are in it.
    pub(crate) agents_dir: PathBuf,
}

/// The relay of one host.
pub(crate) struct Relay {
    clock: Clock,
    state_dir: PathBuf,
    agents_dir: PathBuf,
    records: Arc<Records>,
    spool: Arc<Spool>,
    /// Storage operations under way.
    pub(crate) jobs: Arc<Jobs>,
    orders: Orders,
    agents: watch::Sender<Vec<AgentStatus>>,
    attached: watch::Sender<Vec<TreeId>>,
    step_seconds: Durations<1>,
    look: Notify,
}

impl Relay {
    /// A relay for the agents of these directories; nothing runs yet.
    pub(crate) fn new(dirs: AgentDirs, clock: Clock, records: Arc<Records>, spool: Arc<Spool>) -> Arc<Self> {
        let AgentDirs { state_dir, agents_dir } = dirs;
        Arc::new(Self {
            jobs: Jobs::new(agents_dir.clone(), clock.clone(), Arc::clone(&spool)),
            clock,
            state_dir,
            agents_dir,
            records,
            spool,
            orders: Orders::default(),
            agents: watch::Sender::new(Vec::new()),
            attached: watch::Sender::new(Vec::new()),
            step_seconds: durations("step", steps()),
            look: Notify::new(),
        })
    }

    /// What runs here, as last seen.
    pub(crate) fn agents(&self) -> Vec<AgentStatus> {
        self.agents.borrow().clone()
    }

    /// Something happened to an agent.
    pub(crate) fn look_again(&self) {
        self.look.notify_one();
    }

    /// A step of a change-over, from an agent or the stub. It is on disk when this returns.
    pub(crate) fn report(&self, event: StepEvent) {
        let took = Duration::from_micros(event.duration_us).as_secs_f64();
        self.step_seconds.get_or_create(&[("step", word(&event.step))]).observe(took);
        self.orders.reported(&event);
        self.spool.push(&HostReport::Step(event));
        self.look_again();
    }

    /// The trees attached on this host, all of them.
    pub(crate) fn set_attached(&self, trees: BTreeSet<TreeId>) {
        let trees: Vec<_> = trees.into_iter().collect();
        self.attached.send_if_modified(|now| {
            let changed = *now != trees;
            *now = trees;
            changed
        });
    }

    /// How long the steps took that were reported here, seconds by step.
    pub(crate) fn step_seconds(&self) -> &Durations<1> {
        &self.step_seconds
    }

    /// How many reports the manager has not taken yet.
    pub(crate) fn waiting_reports(&self) -> usize {
        self.spool.len()
    }

    /// Messages A, B and C to the running agent.
    pub(crate) async fn change_over(&self, order: ChangeOver) -> HostReply {
        match self.three_messages(order).await {
            Ok(()) => HostReply::Done,
            Err(fault) => HostReply::Fault(fault),
        }
    }

    async fn three_messages(&self, order: ChangeOver) -> Result<(), Fault> {
        let known = self.records.believe(order.record.clone());
        let known = known.map_err(|fault| Fault::Refused(fault.to_string()))?;
        if known.record.product != order.product || known.record.tree != order.attach {
            let text = format!("the record is of {}, tree {}", known.record.name(), known.record.tree);
            return Err(Fault::BadRequest(format!("message A and B of this change-over do not fit: {text}")));
        }
        let product = &order.product;
        // An order names its generation, in either direction.
        let (records, record) = (Arc::clone(&self.records), known.record);
        blocking(move || {
            records.chosen(&record);
            Ok(())
        })
        .await?;
        // What the manager believes is what it was told last.
        let release = self.agents.borrow().iter().find(|agent| agent.product == *product).map(|agent| agent.tree);
        let change = order.change;
        let attach = AgentRequest::Attach {
            change,
            release,
            attach: order.attach,
            lazy: order.lazy,
            retry_bad: order.retry_bad,
        };
        let messages = [
            AgentRequest::SaveMetadata { change, record: order.record },
            attach,
            AgentRequest::Finish { change, drain_deadline_ms: order.drain_deadline_ms },
        ];
        // Before the first of them: the end of a quick refusal may come before the last answer.
        self.orders.taken(product, change, order.attach);
        let told = self.tell(product, &messages).await;
        if told.is_err() {
            self.orders.refused(change);
        }
        self.look_again();
        told
    }

    /// To the agent or, while there is none that could take an order, to its stub. Which of the two it is may change in
    /// between; both answer messages that they have had, and follow them once.
    async fn tell(&self, product: &Product, messages: &[AgentRequest]) -> Result<(), Fault> {
        for to_agent in [false, true, false] {
            if !to_agent && stopped(&self.agents_dir, product).await.is_none() {
                continue;
            }
            match self.tell_one(product, messages, to_agent).await {
                // It has gone meanwhile, or sends us to the other one.
                Err(fault @ Fault::Unavailable(_)) => tracing::info!(%product, %fault, "an order is not taken"),
                told => return told,
            }
        }
        // The words of whoever should have taken it.
        self.tell_one(product, messages, true).await
    }

    async fn tell_one(&self, product: &Product, messages: &[AgentRequest], to_agent: bool) -> Result<(), Fault> {
        for message in messages {
            moments::reach(Moment::ChangeRelay, &self.agents_dir)
                .map_err(|error| Fault::Failed(error.to_string()))?;
            let asked = if to_agent {
                agent::ask_living(&self.agents_dir, product, message, &PATIENCE).await
            } else {
                agent::ask_stub(&self.agents_dir, product, message, AGENT_DEADLINE).await
            };
            match asked? {
                AgentReply::Done => {}
                other => return Err(Fault::Failed(format!("{product} answered a change-over with {other:?}"))),
            }
        }
        Ok(())
    }

    /// Stops a job at its next unit boundary.
    pub(crate) async fn cancel(&self, product: &Product, job: proto::agent::JobId) -> HostReply {
        match agent::ask_living(&self.agents_dir, product, &AgentRequest::Cancel { job }, &PATIENCE).await {
            Ok(_) => HostReply::Done,
            Err(fault) => HostReply::Fault(fault),
        }
    }

    /// Asks every agent of this host what it is doing. One that does not answer is shown as its journal has it.
    pub(crate) async fn look(&self) -> Vec<AgentStatus> {
        let (state_dir, agents_dir) = (self.state_dir.clone(), self.agents_dir.clone());
        let products = match blocking(move || Ok(products(&state_dir, &agents_dir))).await {
            Ok(products) => products,
            Err(fault) => {
                tracing::warn!(%fault, "the agents' journals cannot be listed");
                return self.agents();
            }
        };
        let mut asked = tokio::task::JoinSet::new();
        for (product, journal) in products {
            let (agents_dir, last) = (self.agents_dir.clone(), self.last(&product));
            asked.spawn(async move { status(&agents_dir, &product, journal, last).await });
        }
        let mut agents: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
        agents.sort_by(|a, b| a.product.cmp(&b.product));
        self.end_orders(&agents).await;
        self.agents.send_if_modified(|now| {
            let changed = *now != agents;
            now.clone_from(&agents);
            changed
        });
        agents
    }

    /// Reports the end of orders whose agents do not come back.
    async fn end_orders(&self, agents: &[AgentStatus]) {
        let ends = self.orders.seen(agents, &self.clock);
        if ends.is_empty() {
            return;
        }
        let spool = Arc::clone(&self.spool);
        let pushed = blocking(move || {
            ends.into_iter().for_each(|end| spool.push(&HostReport::Step(end)));
            Ok(())
        });
        if let Err(fault) = pushed.await {
            tracing::warn!(%fault, "the end of an order cannot be kept");
        }
    }

    fn last(&self, product: &Product) -> Option<AgentStatus> {
        self.agents.borrow().iter().find(|agent| agent.product == *product).cloned()
    }

    /// Looks at the agents for ever: when told, and every few seconds.
    pub(crate) async fn watch_agents(self: Arc<Self>) {
        loop {
            self.look().await;
            tokio::select! {
                () = self.look.notified() => {}
                () = self.clock.sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Tells the manager for ever: first what waits in the spool, in order, then what is true now.
    pub(crate) async fn report_for_ever(self: Arc<Self>, manager: Arc<ManagerLink>) {
        let mut connections = manager.connections();
        let (mut agents, mut attached) = (self.agents.subscribe(), self.attached.subscribe());
        loop {
            if connections.wait_for(Option::is_some).await.is_err() {
                return;
            }
            connections.borrow_and_update();
            agents.mark_changed();
            attached.mark_changed();
            while !matches!(connections.has_changed(), Ok(true) | Err(_)) {
                let told = self.tell_manager(&manager, &mut agents, &mut attached).await;
                if let Err(fault) = told {
                    tracing::warn!(%fault, "the manager did not take this host's reports; they wait");
                    self.clock.sleep(PROGRESS_EVERY).await;
                    agents.mark_changed();
                    attached.mark_changed();
                    continue;
                }
                tokio::select! {
                    () = self.spool.waiting() => {}
                    _ = agents.changed() => agents.mark_changed(),
                    _ = attached.changed() => attached.mark_changed(),
                    _ = connections.changed() => connections.mark_changed(),
                    () = self.clock.sleep(PROGRESS_EVERY) => {}
                }
            }
        }
    }

    async fn tell_manager(
        &self,
        manager: &ManagerLink,
        agents: &mut watch::Receiver<Vec<AgentStatus>>,
        attached: &mut watch::Receiver<Vec<TreeId>>,
    ) -> Result<(), Fault> {
        loop {
            let mut batch = self.spool.oldest(proto::limits::REPORTS_MAX - 1);
            let (first, count) = (batch.first, batch.reports.len());
            if count == 0 {
                break;
            }
            if batch.reports.iter().any(ends_a_change) {
                // Whoever hears how it ended asks next what runs, and is not told what ran before.
                self.look().await;
                batch.reports.push(HostReport::Agents(agents.borrow_and_update().clone()));
            }
            send(manager, batch.reports).await?;
            let spool = Arc::clone(&self.spool);
            blocking(move || {
                spool.delivered(first, count);
                Ok(())
            })
            .await?;
        }
        let mut news = Vec::new();
        if agents.has_changed().unwrap_or(false) {
            news.push(HostReport::Agents(agents.borrow_and_update().clone()));
        }
        if attached.has_changed().unwrap_or(false) {
            news.push(HostReport::Attached(attached.borrow_and_update().clone()));
        }
        let unheard = self.jobs.unheard().into_iter();
        news.extend(unheard.map(|(job, progress)| HostReport::JobProgress { job, progress }));
        if news.is_empty() { Ok(()) } else { send(manager, news).await }
    }
}

fn ends_a_change(report: &HostReport) -> bool {
    matches!(report, HostReport::Step(event) if event.step.ends().is_some())
}

/// The products of which anything is here: a journal, or a socket.
fn products(state_dir: &Path, agents_dir: &Path) -> BTreeMap<Product, Option<Journal>> {
    let mut products: BTreeMap<Product, Option<Journal>> = BTreeMap::new();
    match journal::list(state_dir) {
        Ok(list) => products.extend(list.into_iter().map(|(product, found)| (product, found.ok().flatten()))),
        Err(error) => tracing::warn!(%error, "the agents' journals cannot be listed"),
    }
    for entry in std::fs::read_dir(agents_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(product) = name.to_str().and_then(|name| name.strip_suffix(".sock")?.parse().ok()) {
            products.entry(product).or_default();
        }
    }
    products
}

async fn send(manager: &ManagerLink, reports: Vec<HostReport>) -> Result<(), Fault> {
    let deadline = manager.clock().now() + REPORT_DEADLINE;
    manager.ask(&HostRequest::Report { reports }, deadline).await.map(drop)
}

async fn status(
    agents_dir: &Path,
    product: &Product,
    journal: Option<Journal>,
    last: Option<AgentStatus>,
) -> Option<AgentStatus> {
    if let Some(stopped) = stopped(agents_dir, product).await {
        return Some(stopped);
    }
    match agent::ask(agents_dir, product, &AgentRequest::Status, STATUS_DEADLINE).await {
        Ok(AgentReply::Status(status)) if status.product == *product => return Some(status),
        Ok(other) => tracing::warn!(%product, ?other, "an agent answered Status with something else"),
        Err(fault) => tracing::debug!(%product, %fault, "an agent does not answer"),
    }
    let alive = last.as_ref().is_some_and(|last| last.pid != 0 && process_exists(last.pid));
    match (last, journal) {
        // Changing over, or busy: what it said last stands, as long as its process does.
        (Some(last), _) if alive => Some(last),
        (last, Some(journal)) => Some(AgentStatus {
            product: product.clone(),
            version: journal.current.version,
            tree: journal.current.tree,
            pid: 0,
            started_unix_ms: last.map_or(0, |last| last.started_unix_ms),
            state: AgentState::Stopped,
            jobs: Vec::new(),
            reason: journal.reason,
        }),
        (Some(last), None) => Some(AgentStatus { pid: 0, state: AgentState::Stopped, jobs: Vec::new(), ..last }),
        (None, None) => None,
    }
}

fn process_exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
