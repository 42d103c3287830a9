//! What became of the runs of each policy: the last of each task on each host, and the last that was good.

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::agent::{JobId, Outcome};
use proto::message::Unix;
use proto::{HostName, PolicyName};
use serde::{Deserialize, Serialize};

use super::machine::AHEAD_MS;
use super::machine::vocabulary::{Past, Task};
use crate::manager::control::jobs::{JobRecord, JobState};

/// Bytes of an error that is kept in memory; the job's record has all of it.
const ERROR_BYTES: usize = 200;

/// Which task of which policy on which host.
pub(super) type LaneKey = (PolicyName, HostName, Task);

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFact {
    /// Its job.
    pub job: JobId,
    /// The slot that it was for.
    pub due: Unix,
    /// When it was ordered.
    pub ordered: Unix,
    /// When it ended.
    pub ended: Option<Unix>,
    /// How far it is.
    pub state: JobState,
    /// Its problems.
    pub problems: u32,
    /// Why it failed.
    pub error: Option<String>,
    /// The snapshots that it made or read.
    pub snapshots: Vec<String>,
}

impl RunFact {
    /// Of a job's record; none of one that no policy ordered.
    fn of(record: &JobRecord) -> Option<(LaneKey, Self)> {
        let run = record.run.as_ref()?;
        let error = match &record.outcome {
            Some(Outcome::Failed(error)) => Some(proto::text::line(error, ERROR_BYTES)),
            _ => None,
        };
        let outcome = record.outcome.as_ref();
        let fact = Self {
            job: record.id,
            due: run.due,
            ordered: record.created,
            ended: record.ended,
            state: record.state,
            problems: outcome.map_or(0, |outcome| proto::width::count(outcome.problems().len())),
            error,
            snapshots: outcome.and_then(Outcome::summary).map(|of| of.snapshots.clone()).unwrap_or_default(),
        };
        Some(((run.policy.clone(), record.host.clone(), run.task), fact))
    }

    /// Whether what was wanted is there. A backup with problems has a snapshot; what else has problems proves nothing.
    fn is_good(&self, task: Task) -> bool {
        let clean = matches!(task, Task::Backup | Task::Prune) || self.problems == 0;
        self.state == JobState::Done && clean
    }
}

/// The runs of one lane.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    pub(super) last: Option<RunFact>,
    pub(super) good: Option<RunFact>,
}

impl Runs {
    pub(super) fn past(&self) -> Past {
        Past {
            last: self.last.as_ref().map(|run| run.due),
            open: self.last.as_ref().is_some_and(|run| !run.state.is_final()),
            good: self.good.is_some(),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct AllRuns {
    lanes: BTreeMap<LaneKey, Runs>,
    /// Jobs that are not over.
    open: HashMap<JobId, LaneKey>,
}

impl AllRuns {
    /// What the records of all jobs say, whatever their order. What was ordered for a time far ahead was ordered by a
    /// clock that was wrong.
    pub(crate) fn of(records: &[JobRecord], now: Unix) -> Self {
        let mut all = Self::default();
        let ahead = now.saturating_add(AHEAD_MS);
        let counts =
            |record: &&JobRecord| !record.state.is_final() || record.run.as_ref().is_some_and(|run| run.due <= ahead);
        records.iter().filter(counts).for_each(|record| drop(all.learn(record)));
        all
    }

    /// A run was ordered, or is as it is now. Returns its lane, and whether it was good, if it ended just now.
    pub(super) fn learn(&mut self, record: &JobRecord) -> Option<(LaneKey, bool)> {
        let (key, fact) = RunFact::of(record)?;
        let ended = fact.state.is_final();
        let known = if ended {
            self.open.remove(&fact.job).is_some()
        } else {
            self.open.insert(fact.job, key.clone());
            false
        };
        let good = fact.is_good(key.2);
        let runs = self.lanes.entry(key.clone()).or_default();
        let newer = |than: &Option<RunFact>| than.as_ref().is_none_or(|of| (of.due, of.job) <= (fact.due, fact.job));
        // One that is under way is the last, whatever its slot.
        let open = |of: &Option<RunFact>| of.as_ref().is_some_and(|of| !of.state.is_final() && of.job != fact.job);
        let is_good = good && newer(&runs.good);
        let is_last = !ended || (newer(&runs.last) && !open(&runs.last));
        if is_good {
            runs.good = Some(fact.clone());
        }
        if is_last {
            runs.last = Some(fact);
        }
        known.then_some((key, good))
    }

    pub(super) fn is_open(&self, job: JobId) -> bool {
        self.open.contains_key(&job)
    }

    /// Jobs whose records say what was done last, and what was good last: without them a slot would be run again, and
    /// nobody would know of a backup that is there.
    pub(crate) fn needed(&self) -> HashSet<JobId> {
        let of_lane = |runs: &Runs| [runs.last.as_ref().map(|run| run.job), runs.good.as_ref().map(|run| run.job)];
        self.lanes.values().flat_map(of_lane).flatten().collect()
    }

    pub(super) fn lane(&self, key: &LaneKey) -> Runs {
        self.lanes.get(key).cloned().unwrap_or_default()
    }
}
