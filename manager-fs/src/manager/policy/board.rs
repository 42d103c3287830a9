//! All policies as they are: the machine, made out of what is durable, and the names that it does not know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proto::agent::JobId;
use proto::message::Unix;
use proto::{GroupName, HostName, PolicyName};

use super::definition::{Place, Policy, PolicyRun};
use super::machine::Machine;
use super::machine::vocabulary::{HostNo, LaneNo, Order, PolicyNo, Rule, Rules, Task};
use super::runs::{AllRuns, LaneKey};
use crate::manager::control::jobs::{JobRecord, NewJob};
use crate::manager::control::policies::PolicyRecord;

/// Numbers for names.
#[derive(Debug)]
struct Numbers<T>(HashMap<T, u32>);

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Clone + Eq + std::hash::Hash> Numbers<T> {
    fn of(&mut self, name: &T) -> u32 {
        let next = proto::width::count(self.0.len());
        *self.0.entry(name.clone()).or_insert(next)
    }
}

/// Who is where, as far as policies ask.
pub(super) trait Fleet {
    /// The hosts of a policy that may be ordered something now: of its sources, and of its repository.
    fn hosts(&self, policy: &Policy) -> (BTreeSet<HostName>, BTreeSet<HostName>);
    /// Whether a host is in a group.
    fn is_in(&self, host: &HostName, group: &GroupName) -> bool;
    /// Whether a host's connection is there.
    fn is_there(&self, host: &HostName) -> bool;
}

/// See the module.
#[derive(Default)]
pub(super) struct Board {
    pub(super) machine: Machine,
    pub(super) records: BTreeMap<PolicyName, PolicyRecord>,
    pub(super) runs: AllRuns,
    lanes: BTreeMap<LaneKey, LaneNo>,
    of_lane: HashMap<LaneNo, LaneKey>,
    policies: Numbers<PolicyName>,
    hosts: Numbers<HostName>,
    places: Numbers<Place>,
    sites: Numbers<GroupName>,
}

impl Board {
    /// Out of what is durable.
    pub(super) fn assemble(records: Vec<PolicyRecord>, jobs: &[JobRecord], fleet: &dyn Fleet, now: Unix) -> Self {
        let mut board = Self { runs: AllRuns::of(jobs, now), ..Self::default() };
        records.into_iter().for_each(|record| board.set(record));
        board.look(fleet);
        board
    }

    /// A policy is there, or is otherwise than it was.
    pub(super) fn set(&mut self, record: PolicyRecord) {
        let policy = &record.policy;
        let since =
            |task: Task| record.since.iter().find(|(of, _)| *of == task).map_or(record.created, |(_, since)| *since);
        let rule = |task: Task| {
            let schedule = Arc::new(policy.schedule_of(task)?.clone());
            Some(Rule { task, schedule, since: since(task) })
        };
        let rules = Rules {
            rules: Task::ALL.into_iter().filter_map(rule).collect(),
            jitter_ms: policy.jitter_ms,
            window: policy.window,
            paused: record.paused.is_some(),
            repository: self.places.of(&policy.place),
            limits: policy.limits,
        };
        let no = PolicyNo(self.policies.of(&policy.name));
        self.machine.set(no, rules);
        self.records.insert(policy.name.clone(), record);
    }

    /// A policy is no longer there.
    pub(super) fn remove(&mut self, name: &PolicyName) {
        let no = PolicyNo(self.policies.of(name));
        self.machine.remove(no);
        self.records.remove(name);
        self.lanes.retain(|(of, _, _), _| of != name);
        self.of_lane.retain(|_, (of, _, _)| of != name);
    }

    /// Looks who is meant by each policy now, and who is there.
    pub(super) fn look(&mut self, fleet: &dyn Fleet) {
        let records: Vec<PolicyRecord> = self.records.values().cloned().collect();
        for record in records {
            let policy = &record.policy;
            let (data, media) = fleet.hosts(policy);
            let wanted = |task: Task| policy.schedule_of(task).is_some();
            let mut meant: BTreeSet<LaneKey> = BTreeSet::new();
            for task in Task::ALL.into_iter().filter(|task| wanted(*task)) {
                let hosts = if task.is_of_media() { &media } else { &data };
                meant.extend(hosts.iter().map(|host| (policy.name.clone(), host.clone(), task)));
            }
            let of_policy = self.lanes.keys().filter(|(name, _, _)| *name == policy.name);
            let gone: Vec<LaneKey> = of_policy.filter(|key| !meant.contains(*key)).cloned().collect();
            for key in gone {
                if let Some(lane) = self.lanes.remove(&key) {
                    self.machine.leave(lane);
                    self.of_lane.remove(&lane);
                }
            }
            for key in meant {
                if !self.lanes.contains_key(&key) {
                    self.join(key, policy, fleet);
                }
            }
        }
    }

    fn join(&mut self, key: LaneKey, policy: &Policy, fleet: &dyn Fleet) {
        let (name, host, task) = &key;
        let site = policy.sites.iter().find(|site| fleet.is_in(host, site));
        let site = site.map(|site| self.sites.of(site));
        let no = HostNo(self.hosts.of(host));
        self.machine.connect(no, fleet.is_there(host));
        let policy = PolicyNo(self.policies.of(name));
        let lane = self.machine.join(policy, no, *task, rank(name, host), site, self.runs.lane(&key).past());
        self.of_lane.insert(lane, key.clone());
        self.lanes.insert(key, lane);
    }

    /// A host's connection is there, or gone.
    pub(super) fn connect(&mut self, host: &HostName, connected: bool) {
        if let Some(no) = self.hosts.0.get(host) {
            self.machine.connect(HostNo(*no), connected);
        }
    }

    /// A job's record is as it is now.
    pub(super) fn learn(&mut self, record: &JobRecord) {
        if let Some((key, end, at)) = self.runs.learn(record)
            && let Some(lane) = self.lanes.get(&key)
        {
            self.machine.ended(*lane, end, at);
        }
    }

    /// A run was begun by hand.
    pub(super) fn began(&mut self, record: &JobRecord) {
        self.runs.learn(record);
        if let Some(run) = &record.run
            && let Some(lane) = self.lanes.get(&(run.policy.clone(), record.host.clone(), run.task))
        {
            self.machine.began(*lane, run.due);
        }
    }

    /// What is to be recorded of an order.
    pub(super) fn job(&self, order: &Order) -> Option<NewJob> {
        let (name, host, task) = self.of_lane.get(&order.lane)?;
        self.job_of(name, host, *task, order.due)
    }

    /// The job of a task, for a slot.
    pub(super) fn job_of(&self, name: &PolicyName, host: &HostName, task: Task, due: Unix) -> Option<NewJob> {
        let policy = &self.records.get(name)?.policy;
        let (product, operation) = policy.operation(task);
        let run = Some(PolicyRun { policy: name.clone(), task, due });
        Some(NewJob { host: host.clone(), product, operation, run })
    }

    /// The lanes of a policy, by host and task.
    pub(super) fn lanes_of(&self, name: &PolicyName) -> Vec<(&LaneKey, LaneNo)> {
        let of = self.lanes.iter().filter(|((of, _, _), _)| of == name);
        of.map(|(key, lane)| (key, *lane)).collect()
    }

    /// The job that is under way in a lane.
    pub(super) fn under_way(&self, key: &LaneKey) -> Option<JobId> {
        self.runs.lane(key).last.filter(|run| !run.state.is_final()).map(|run| run.job)
    }
}

/// A host's place in the jitter of a policy: the same for whoever computes it, so that nothing need be remembered.
fn rank(policy: &PolicyName, host: &HostName) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(policy.as_str().as_bytes()).update(&[0]).update(host.as_str().as_bytes());
    let mut rank = [0; 8];
    hasher.finalize_xof().fill(&mut rank);
    u64::from_le_bytes(rank)
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
