//! One rollout with its hosts: the machine, made out of what is durable, and the names that it does not know.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use proto::agent::{AgentStatus, JobId, Step};
use proto::message::Unix;
use proto::number::RolloutId;
use proto::{HostName, TreeId, Version};

use super::machine::Machine;
use super::machine::vocabulary::{End, HostNo, HostState, Jobs};
use super::view::{ProblemGroup, RingView, RolloutView, WindowView};
use crate::manager::company::Company;
use crate::manager::connections::Connections;
use crate::manager::control::changes::{ChangeRecord, EndedBy};
use crate::manager::control::jobs::JobState;
use crate::manager::control::rollouts::RolloutRecord;
use crate::manager::control::{ControlError, HostStatus, State};
use crate::manager::exports::Exports;
use crate::manager::hours::Hours;
use crate::manager::news::NewsBoard;
use crate::manager::now;
use crate::manager::targets::Targets;
use crate::manager::upgrade::Upgrades;

/// Hosts that are named of one reason.
const NAMED_MAX: usize = 5;
/// Reasons that are shown.
const PROBLEMS_MAX: usize = 50;
/// How long before a rollout storage operations count for comparison.
const BASELINE_MS: u64 = 7 * 24 * 3600 * 1000;

/// The manager's parts that rollouts need.
pub(crate) struct Here {
    pub(crate) state: Arc<State>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) news: Arc<NewsBoard>,
    pub(crate) exports: Arc<Exports>,
    pub(crate) upgrades: Arc<Upgrades>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) company: Arc<Company>,
}

/// One rollout.
pub(super) struct Run {
    pub(super) id: RolloutId,
    pub(super) record: RolloutRecord,
    pub(super) machine: Machine,
    /// The new version's trees: one for each architecture.
    trees: BTreeSet<TreeId>,
    names: Vec<(HostName, u16)>,
    numbers: HashMap<HostName, HostNo>,
    /// Why hosts are not as ordered.
    pub(super) why: HashMap<HostNo, String>,
    /// Operations that were counted.
    counted: HashSet<JobId>,
}

impl Run {
    /// A rollout as it is, out of its record, the change-overs and what hosts said last.
    ///
    /// # Errors
    /// The control state failed.
    pub(super) async fn assemble(here: &Here, id: RolloutId, record: RolloutRecord) -> Result<Self, ControlError> {
        let machine = Machine::new(Arc::new(record.plan.clone()), record.progress.clone(), now());
        let (names, numbers, why, counted) = (Vec::new(), HashMap::new(), HashMap::new(), HashSet::new());
        let trees = BTreeSet::from([record.tree]);
        let mut run = Self { id, record, machine, trees, names, numbers, why, counted };
        run.members(here).await?;
        if run.record.plan.gates.jobs.is_some() {
            for job in here.state.jobs(usize::MAX).await? {
                if let Some((no, done)) = run.judged(&job)
                    && matches!(run.machine.host(no), Some(HostState::Good | HostState::Already))
                {
                    run.machine.count(done);
                }
            }
        }
        Ok(run)
    }

    /// Lets hosts join that are in a ring by now; returns those that are in none any more.
    ///
    /// # Errors
    /// The control state failed.
    pub(super) async fn members(&mut self, here: &Here) -> Result<Vec<HostNo>, ControlError> {
        self.look_at_trees(here);
        let now = self.meant(here);
        let mut statuses = None;
        for (host, ring) in &now {
            if self.numbers.contains_key(host) {
                continue;
            }
            let statuses = match &mut statuses {
                Some(known) => known,
                None => statuses.insert(here.state.observations().statuses().await?),
            };
            let (state, why) = self.known(here, host, statuses.get(host).map(Arc::as_ref)).await?;
            let connected = here.connections.control_link(host).is_some();
            let no = self.machine.join(*ring, rank(self.id, host), connected, state);
            self.names.push((host.clone(), *ring));
            self.numbers.insert(host.clone(), no);
            self.why.extend(why.map(|why| (no, why)));
        }
        let gone = self.numbers.iter().filter(|(host, _)| !now.contains_key(*host)).map(|(_, no)| *no);
        Ok(gone.filter(|no| self.machine.host(*no) != Some(HostState::Gone)).collect())
    }

    /// Its version may be published for one more architecture at any time.
    pub(super) fn look_at_trees(&mut self, here: &Here) {
        let of_version = here.state.generations_of(&self.record.plan.product, &self.record.version);
        self.trees.extend(of_version.iter().map(|generation| generation.record.tree));
    }

    /// Every enrolled host of a ring; of several rings it is in the first.
    fn meant(&self, here: &Here) -> BTreeMap<HostName, u16> {
        let mut meant = BTreeMap::new();
        for (ring, planned) in (0..).zip(&self.record.plan.rings) {
            // A group that was deleted has no hosts.
            let hosts = planned.to.iter().flat_map(|target| here.state.hosts_of(target).unwrap_or_default());
            for host in hosts {
                if here.state.host(&host).is_some_and(|known| known.revoked.is_none()) {
                    meant.entry(host).or_insert(ring);
                }
            }
        }
        meant
    }

    /// What became of a host, and why.
    async fn known(
        &self,
        here: &Here,
        host: &HostName,
        status: Option<&HostStatus>,
    ) -> Result<(HostState, Option<String>), ControlError> {
        let progress = &self.record.progress;
        let Some(started) = progress.started else { return Ok((HostState::Pending, None)) };
        let agent = status.and_then(|status| self.agent(status));
        let runs = agent.is_some_and(|agent| self.is_new(agent.tree, &agent.version));
        let last = here.state.last_change(host, &self.record.plan.product);
        let last = last.filter(|last| self.is_since(last, started));
        let Some(last) = last else {
            return Ok((if runs { HostState::Already } else { HostState::Pending }, None));
        };
        let why = last.ended.as_ref().map(|end| end.reason.clone());
        if !self.is_new(last.order.to, &last.order.version) {
            let back = progress.returning.is_some_and(|since| last.ordered >= since);
            let state = match last.ended {
                _ if !back => HostState::Gone,
                None => HostState::Returning(last.ordered),
                Some(end) if end.confirmed => HostState::Returned,
                Some(_) => HostState::Stuck,
            };
            return Ok((state, why));
        }
        let Some(end) = end_of(here, &last).await? else { return Ok((HostState::InFlight(last.ordered), None)) };
        Ok(match end {
            // It proved itself, and is gone again.
            End::Good if agent.is_some_and(|agent| self.has_departed(agent, &last)) => {
                (HostState::Failed, agent.map(|agent| agent.reason.clone()))
            }
            End::Good => (HostState::Good, None),
            End::Already => (HostState::Already, None),
            End::Failed => (HostState::Failed, why),
            End::Refused => (HostState::Refused, why),
        })
    }

    /// The host's agent of the product, if it serves.
    pub(super) fn agent<'a>(&self, status: &'a HostStatus) -> Option<&'a AgentStatus> {
        let serves = |agent: &&AgentStatus| {
            agent.product == self.record.plan.product && agent.state == proto::agent::AgentState::Serving
        };
        status.agents.iter().find(serves)
    }

    /// Whether an agent is of another version that began after the new one had proved itself: what a host said last may
    /// be older than that. Both times are the host's.
    pub(super) fn has_departed(&self, agent: &AgentStatus, change: &ChangeRecord) -> bool {
        let proved = change.ended.as_ref().is_some_and(|end| end.confirmed && agent.started_unix_ms >= end.at);
        proved && !self.is_new(agent.tree, &agent.version)
    }

    /// Whether a change-over was ordered since the rollout was started. One with an earlier number than the rollout was not,
    /// whatever the clock said then.
    pub(super) fn is_since(&self, change: &ChangeRecord, started: Unix) -> bool {
        change.ordered >= started && change.id.0 > self.id.0
    }

    /// Whether this is what the rollout brings.
    pub(super) fn is_new(&self, tree: TreeId, version: &Version) -> bool {
        self.is_of_it(tree) && *version == self.record.version
    }

    /// Whether a tree is one of what the rollout brings.
    pub(super) fn is_of_it(&self, tree: TreeId) -> bool {
        self.trees.contains(&tree)
    }

    /// A host's number.
    pub(super) fn number(&self, host: &HostName) -> Option<HostNo> {
        self.numbers.get(host).copied()
    }

    /// A host's name.
    pub(super) fn name(&self, no: HostNo) -> Option<&HostName> {
        self.names.get(proto::width::index(u64::from(no.0))).map(|(host, _)| host)
    }

    /// Every host that is or was in a ring.
    pub(super) fn all_hosts(&self) -> impl Iterator<Item = (HostNo, HostName)> {
        (0..).map(HostNo).zip(&self.names).map(|(no, (host, _))| (no, host.clone()))
    }

    /// The hosts of a ring.
    pub(super) fn hosts_of(&self, ring: u16) -> Vec<(HostNo, HostName)> {
        let numbered = (0..).map(HostNo).zip(&self.names);
        numbered.filter(|(_, (_, of))| *of == ring).map(|(no, (host, _))| (no, host.clone())).collect()
    }

    /// A storage operation that ended on a host of the rollout since it is judged; each is told once.
    pub(super) fn judged(&mut self, job: &crate::manager::control::jobs::JobRecord) -> Option<(HostNo, bool)> {
        let done = match job.state {
            JobState::Done => true,
            JobState::Failed => false,
            JobState::Queued | JobState::Running | JobState::Cancelled => return None,
        };
        let since = self.machine.progress().judged_from;
        let counts = job.product == self.record.plan.product && job.ended.is_some_and(|ended| ended >= since);
        let no = self.number(&job.host).filter(|_| counts)?;
        self.counted.insert(job.id).then_some((no, done))
    }

    /// As an operator sees it.
    pub(super) fn view(&self) -> RolloutView {
        let progress = self.machine.progress();
        let counts = self.machine.counts();
        let planned = self.record.plan.rings.iter().zip(&progress.rings);
        let rings = planned.zip(counts).enumerate().map(|(at, ((planned, known), hosts))| RingView {
            name: planned.name.clone(),
            phase: known.phase,
            since: known.since,
            canaries: planned.canaries.of(hosts.total()),
            in_flight: planned.in_flight.of(hosts.total()).max(1),
            before: self.record.before.get(at).cloned().flatten().map(|(version, _)| version),
            hosts,
            window: planned.hours.as_ref().map(|hours| window(hours, now())),
        });
        let halted = progress.halted.as_ref().map(|halt| {
            let of = halt.why.ring().and_then(|ring| self.record.plan.rings.get(usize::from(ring)));
            of.map(|ring| format!("ring {}: ", ring.name)).unwrap_or_default() + &halt.why.to_string()
        });
        RolloutView {
            id: self.id,
            product: self.record.plan.product.clone(),
            version: self.record.version.clone(),
            state: progress.state,
            since: progress.since,
            planned: self.record.planned,
            started: progress.started,
            halted,
            next: self.machine.wake(),
            rings: rings.collect(),
            jobs: self.machine.jobs(),
            baseline: progress.baseline,
            restarts: progress.restarts,
            problems: self.problems(),
            lines: self.record.lines.clone(),
        }
    }

    /// Hosts that are not as ordered, those with the most frequent reason first.
    fn problems(&self) -> Vec<ProblemGroup> {
        let mut groups: BTreeMap<(&str, &str), Vec<&HostName>> = BTreeMap::new();
        for (no, (host, _)) in (0..).map(HostNo).zip(&self.names) {
            let state = match self.machine.host(no) {
                Some(HostState::Failed) => "failed",
                Some(HostState::Refused) => "refused",
                Some(HostState::Silent) => "silent",
                Some(HostState::Stuck) => "stuck",
                _ => continue,
            };
            let why = self.why.get(&no).map_or("nothing was heard of it in time", String::as_str);
            groups.entry((state, why)).or_default().push(host);
        }
        let mut problems: Vec<ProblemGroup> = groups
            .into_iter()
            .map(|((state, reason), hosts)| ProblemGroup {
                state: state.to_owned(),
                reason: reason.to_owned(),
                count: proto::width::count(hosts.len()),
                hosts: hosts.into_iter().take(NAMED_MAX).cloned().collect(),
            })
            .collect();
        problems.sort_by_key(|group| std::cmp::Reverse(group.count));
        problems.truncate(PROBLEMS_MAX);
        problems
    }

    /// What most hosts of each ring run that is not the new version.
    ///
    /// # Errors
    /// The observations cannot be read.
    pub(super) async fn before(&self, here: &Here) -> Result<Vec<Option<(Version, TreeId)>>, ControlError> {
        let statuses = here.state.observations().statuses().await?;
        let mut counted: Vec<HashMap<(Version, TreeId), u32>> = vec![HashMap::new(); self.record.plan.rings.len()];
        for (host, ring) in &self.names {
            let agent = statuses.get(host).and_then(|status| self.agent(status));
            if let Some(agent) = agent.filter(|agent| !self.is_new(agent.tree, &agent.version)) {
                *counted[usize::from(*ring)].entry((agent.version.clone(), agent.tree)).or_default() += 1;
            }
        }
        let most = |of: HashMap<(Version, TreeId), u32>| of.into_iter().max_by_key(|(_, hosts)| *hosts);
        Ok(counted.into_iter().map(|of| most(of).map(|(generation, _)| generation)).collect())
    }

    /// Storage operations of the product that ended in the days before.
    ///
    /// # Errors
    /// The control state failed.
    pub(super) async fn baseline(&self, here: &Here, now: Unix) -> Result<Jobs, ControlError> {
        let mut baseline = Jobs::default();
        if self.record.plan.gates.jobs.is_some() {
            let recent = |ended: Option<Unix>| ended.is_some_and(|ended| ended.saturating_add(BASELINE_MS) >= now);
            let of = |job: &JobState| matches!(job, JobState::Done | JobState::Failed);
            for job in here.state.jobs(usize::MAX).await? {
                if job.product == self.record.plan.product && recent(job.ended) && of(&job.state) {
                    baseline.count(job.state == JobState::Done);
                }
            }
        }
        Ok(baseline)
    }
}

/// How a change-over ended; `None`: it has not.
///
/// # Errors
/// The observations cannot be read.
pub(super) async fn end_of(here: &Here, change: &ChangeRecord) -> Result<Option<End>, ControlError> {
    let Some(end) = &change.ended else { return Ok(None) };
    if end.confirmed {
        return Ok(Some(End::Good));
    }
    if end.by == EndedBy::Manager {
        return Ok(Some(End::Refused));
    }
    let steps = here.state.steps_of(change).await?;
    let refused = steps.iter().rev().find(|event| event.step.ends().is_some()).map(|event| event.step);
    Ok(Some(if refused == Some(Step::Refused) { End::Refused } else { End::Failed }))
}

fn window(hours: &Hours, at: Unix) -> WindowView {
    let opens = if hours.open_since(at).is_some() { None } else { hours.opens(at) };
    WindowView { hours: hours.to_string(), opens }
}

/// A host's place in the order of a rollout: the same for whoever computes it, another for each rollout.
fn rank(id: RolloutId, host: &HostName) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0.to_le_bytes()).update(host.as_str().as_bytes());
    let mut rank = [0; 8];
    hasher.finalize_xof().fill(&mut rank);
    u64::from_le_bytes(rank)
}
