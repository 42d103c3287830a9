//! Very many hosts in one process, as their manager sees them: identities, TLS, greetings, lists of what is exported, orders
//! whose records are verified, and reports in as many requests as a mount daemon sends.
//!
//! What a host does by itself is left out: nothing is fetched, staged or executed, and the steps of a change-over follow one
//! another at once. So all that is measured here is the manager's.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use manager_fs::host::enroll::{self, Identity};
use manager_fs::manager::admin::{AdminReply, AdminRequest, Quick};
use manager_fs::net::{self, Answer, BoxFuture, ClientConfig, Handler, Link, LinkLimits, RefuseAll};
use manager_fs::version;
use proto::agent::{AgentState, AgentStatus, Step, StepEvent};
use proto::limits::MESSAGE_BYTES_MAX;
use proto::local_greeting::Greeting;
use proto::message::{
    ChangeOver, Fault, HostReply, HostReport, HostRequest, Instance, ManagerReply, ManagerRequest, PROTOCOL, Role,
};
use proto::token::Token;
use proto::{GenerationRecord, PublisherKey, SignedRecord, codec, width};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// One host may wait this long while all others are served.
const DEADLINE: Duration = Duration::from_secs(300);
/// Hosts that enrol at the same time.
const ENROL_AT_ONCE: usize = 64;
/// Hosts that dial at the same time: all of them come from one address, of which a manager takes 1,024 strangers.
const DIAL_AT_ONCE: usize = 256;

/// The steps of a change-over, in the requests in which they reach a manager: while the running version serves, when the new
/// one has begun, and when it has proved itself.
const STEPS: [&[Step]; 3] = [
    &[Step::MetadataSaved, Step::Staged, Step::Warmed],
    &[Step::Drained, Step::Journaled, Step::Swapped, Step::Started],
    &[Step::Confirmed],
];

/// Enrolled hosts, and what all of them believe.
pub struct Fleet {
    hosts: Vec<Arc<LightHost>>,
    links: Vec<Link>,
    counts: Arc<Counts>,
}

/// What happened on all hosts together.
#[derive(Debug, Default)]
pub struct Counts {
    /// Change-overs that were ordered.
    pub ordered: AtomicUsize,
    /// Change-overs whose last report the manager has taken.
    pub confirmed: AtomicUsize,
    /// Requests that the manager refused or did not answer, and connections that it ended.
    pub refused: AtomicUsize,
}

/// One host.
struct LightHost {
    config: Arc<ClientConfig>,
    publishers: Vec<PublisherKey>,
    instance: Instance,
    /// What runs here: nothing before the host has heard what is exported to it.
    agent: Mutex<Option<AgentStatus>>,
    counts: Arc<Counts>,
}

impl Fleet {
    /// Enrols hosts of these names at the manager with this store and address.
    ///
    /// # Errors
    /// The manager refuses one.
    pub async fn enroll(store: &Path, address: &str, names: &[String]) -> Result<Self> {
        let admin = admin(store).await?;
        // Identities are written with all care; in memory, as nobody measures that.
        let shared = Path::new("/dev/shm");
        let scratch = if shared.is_dir() { tempfile::tempdir_in(shared)? } else { tempfile::tempdir()? };
        let (counts, turns) = (Arc::new(Counts::default()), Arc::new(Semaphore::new(ENROL_AT_ONCE)));
        let mut tasks = JoinSet::new();
        for (at, name) in names.iter().enumerate() {
            let (admin, address, state) = (admin.clone(), address.to_owned(), scratch.path().join(name));
            let (host, turns) =
                (name.parse().with_context(|| format!("'{name}' is no host's name"))?, Arc::clone(&turns));
            tasks.spawn(async move {
                let _turn = turns.acquire().await?;
                let request = AdminRequest::from(Quick::Token { host, ttl_ms: 3_600_000 });
                let token = match admin.request(&request, |_| {}, DEADLINE).await? {
                    AdminReply::Token(token) => token,
                    other => bail!("the manager answered the wish for a token with {other:?}"),
                };
                let token: Token = token.parse().context("the manager's token")?;
                let identity = enroll::enroll(&state, &address, &token, false).await?;
                std::fs::remove_dir_all(&state)?;
                anyhow::Ok((at, identity))
            });
        }
        let mut hosts = Vec::with_capacity(names.len());
        while let Some(enrolled) = tasks.join_next().await {
            let (at, identity) = enrolled??;
            hosts.push(Arc::new(LightHost::new(at, &identity, &counts)?));
        }
        Ok(Self { hosts, links: Vec::new(), counts })
    }

    /// What happened on all hosts together.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// All hosts dial, greet, ask what is exported to them and report what runs on them.
    ///
    /// # Errors
    /// One of them is not welcome.
    pub async fn connect(&mut self, address: &str) -> Result<()> {
        let turns = Arc::new(Semaphore::new(DIAL_AT_ONCE));
        let mut tasks = JoinSet::new();
        for host in &self.hosts {
            let (host, address, turns) = (Arc::clone(host), address.to_owned(), Arc::clone(&turns));
            tasks.spawn(async move {
                let _turn = turns.acquire().await?;
                host.connect(&address).await
            });
        }
        self.links.reserve(self.hosts.len());
        while let Some(connected) = tasks.join_next().await {
            self.links.push(connected??);
        }
        Ok(())
    }

    /// How many hosts are still connected.
    pub fn connected(&self) -> usize {
        self.links.iter().filter(|link| link.closed_reason().is_none()).count()
    }

    /// Versions that run, as the hosts themselves know it: how many run this one.
    pub fn running(&self, version: &str) -> usize {
        self.hosts
            .iter()
            .filter(|host| host.agent().is_some_and(|agent| agent.version.to_string() == version))
            .count()
    }
}

/// The manager's local socket, greeted.
async fn admin(store: &Path) -> Result<Link> {
    let stream = net::connect_unix(&store.join("manager.sock")).await.context("the manager's socket")?;
    let link = net::start(stream, Arc::new(RefuseAll));
    let theirs: Greeting = link.request(&version::greeting(), |_| {}, DEADLINE).await?;
    ensure!(theirs.messages == version::greeting().messages, "the manager is of another build: build both anew");
    Ok(link)
}

impl LightHost {
    fn new(at: usize, identity: &Identity, counts: &Arc<Counts>) -> Result<Self> {
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&u64::try_from(at)?.to_le_bytes());
        Ok(Self {
            config: net::client_config(&identity.tls)?,
            publishers: identity.publishers.clone()?,
            instance: Instance(instance),
            agent: Mutex::default(),
            counts: Arc::clone(counts),
        })
    }

    fn agent(&self) -> Option<AgentStatus> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what runs here; returns all of it, as it is reported.
    fn runs(&self, change: impl FnOnce(&mut Option<AgentStatus>)) -> HostReport {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut agent);
        HostReport::Agents(agent.iter().cloned().collect())
    }

    async fn connect(self: &Arc<Self>, address: &str) -> Result<Link> {
        let stream = net::connect(address, Arc::clone(&self.config)).await?;
        let link = net::start_with(stream, LinkLimits::default(), |link| {
            Arc::new(Orders { host: Arc::clone(self), link: link.clone() })
        });
        let hello = HostRequest::HelloFrom {
            protocol: PROTOCOL,
            software: version::VERSION.to_owned(),
            role: Role::Control,
            instance: self.instance,
            machine: std::env::consts::ARCH.to_owned(),
        };
        match link.request(&hello, |_| {}, DEADLINE).await? {
            ManagerReply::Welcome { .. } => {}
            other => bail!("the manager answered a greeting with {other:?}"),
        }
        let exported = self.list(&link).await?;
        let newest = exported.into_iter().max_by_key(|record| record.sequence);
        let now = self.runs(|agent| {
            if let (None, Some(newest)) = (&agent, newest) {
                *agent = Some(begun(&newest, "launched", AgentState::Serving));
            }
        });
        self.report(&link, vec![now]).await?;
        Ok(link)
    }

    /// What is exported here; each record of it is verified.
    async fn list(&self, link: &Link) -> Result<Vec<GenerationRecord>> {
        match link.request(&HostRequest::ExportList { have: Vec::new() }, |_| {}, DEADLINE).await? {
            ManagerReply::ExportList { records, .. } => records.iter().map(|record| self.verified(record)).collect(),
            other => bail!("the manager answered what is exported with {other:?}"),
        }
    }

    fn verified(&self, record: &[u8]) -> Result<GenerationRecord> {
        Ok(SignedRecord::from_bytes(record)?.verify(&self.publishers)?)
    }

    async fn report(&self, link: &Link, reports: Vec<HostReport>) -> Result<()> {
        match link.request(&HostRequest::Report { reports }, |_| {}, DEADLINE).await? {
            ManagerReply::Done => Ok(()),
            other => bail!("the manager answered reports with {other:?}"),
        }
    }

    /// An order that was accepted, to its end.
    async fn change_over(&self, link: &Link, order: &ChangeOver, to: GenerationRecord) -> Result<()> {
        let from = self.agent().map(|agent| agent.tree);
        for steps in STEPS {
            let step = |step: &Step| {
                HostReport::Step(StepEvent {
                    change: order.change,
                    product: order.product.clone(),
                    from,
                    to: to.tree,
                    step: *step,
                    at_unix_ms: now_ms(),
                    duration_us: 1_000,
                    detail: String::new(),
                })
            };
            let now = self.runs(|agent| match (steps.last(), agent) {
                (Some(Step::Started), agent) => *agent = Some(begun(&to, "changed over", AgentState::Probation)),
                (Some(Step::Confirmed), Some(agent)) => agent.state = AgentState::Serving,
                (_, Some(agent)) => agent.state = AgentState::Staging,
                (_, None) => {}
            });
            self.report(link, steps.iter().map(step).chain([now]).collect()).await?;
        }
        self.counts.confirmed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// An agent of this version that has just begun.
fn begun(version: &GenerationRecord, reason: &str, state: AgentState) -> AgentStatus {
    AgentStatus {
        product: version.product.clone(),
        version: version.version.clone(),
        tree: version.tree,
        pid: std::process::id(),
        started_unix_ms: now_ms(),
        state,
        jobs: Vec::new(),
        reason: reason.to_owned(),
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, width::millis)
}

/// Answers the manager.
struct Orders {
    host: Arc<LightHost>,
    link: Link,
}

impl Handler for Orders {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let (host, link) = (Arc::clone(&self.host), self.link.clone());
        Box::pin(async move {
            let failed = |fault: Fault| (HostReply::Fault(fault), None);
            let bad = |why: &str| failed(Fault::BadRequest(why.to_owned()));
            let (reply, then) = match codec::decode::<ManagerRequest, MESSAGE_BYTES_MAX>(&body) {
                Ok(ManagerRequest::ChangeOver(order)) => match host.verified(&order.record) {
                    Ok(to) if to.tree == order.attach => (HostReply::Done, Some((order, to))),
                    Ok(_) => bad("the record is of another tree"),
                    Err(error) => failed(Fault::Refused(error.to_string())),
                },
                Ok(ManagerRequest::Agents) => (HostReply::Agents(host.agent().into_iter().collect()), None),
                Ok(ManagerRequest::Alive) => (HostReply::Done, None),
                Ok(ManagerRequest::ExportsChanged) => match host.list(&link).await {
                    Ok(_) => (HostReply::Done, None),
                    Err(error) => failed(Fault::Failed(error.to_string())),
                },
                Ok(_) => bad("a light host does no such thing"),
                Err(error) => bad(&error.to_string()),
            };
            let refuses = matches!(reply, HostReply::Fault(_));
            let answered = answer.finish(&reply).await;
            let mut went_wrong = refuses || answered.is_err();
            if let Some((order, to)) = then {
                host.counts.ordered.fetch_add(1, Ordering::Relaxed);
                went_wrong |= host.change_over(&link, &order, to).await.is_err();
            }
            host.counts.refused.fetch_add(usize::from(went_wrong), Ordering::Relaxed);
        })
    }
}
