//! What became of the runs of each policy: the last of each task on each host, and the last that was good.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proto::agent::{JobId, Outcome};
use proto::message::Unix;
use proto::{HostName, PolicyName};
use serde::{Deserialize, Serialize};

use super::machine::AHEAD_MS;
use super::machine::vocabulary::{End, Past, Task};
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
    /// The first of them.
    pub first_problem: Option<String>,
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
            first_problem: outcome.and_then(|of| of.problems().first()).map(|of| proto::text::line(of, ERROR_BYTES)),
            error,
            snapshots: outcome.and_then(Outcome::summary).map(|of| of.snapshots.clone()).unwrap_or_default(),
        };
        Some(((run.policy.clone(), record.host.clone(), run.task), fact))
    }

    /// How it ended. A backup with problems has a snapshot; what else has problems proves nothing.
    fn end(&self, task: Task) -> End {
        let clean = matches!(task, Task::Backup | Task::Prune) || self.problems == 0;
        match self.state {
            JobState::Done if clean => End::Good,
            JobState::Failed => End::Failed,
            _ => End::Poor,
        }
    }
}

/// The runs of one lane.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    pub(super) last: Option<RunFact>,
    pub(super) good: Option<RunFact>,
    /// The slot of the last one that failed, and all that failed for it.
    failed: (Unix, BTreeSet<JobId>),
}

impl Runs {
    pub(super) fn past(&self) -> Past {
        let (last, good) = (self.last.as_ref(), self.good.is_some());
        let (due, open) = (last.map(|run| run.due), last.is_some_and(|run| !run.state.is_final()));
        let failed = if due == Some(self.failed.0) { proto::width::count(self.failed.1.len()) } else { 0 };
        let failed_at = last.filter(|run| run.state == JobState::Failed).and_then(|run| run.ended);
        // Nothing is tried again after what did not fail.
        let failed = if open || failed_at.is_some() { failed } else { 0 };
        Past { last: due, open, good, failed, failed_at: failed_at.unwrap_or(0) }
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

    /// A run was ordered, or is as it is now. Returns its lane, how it ended, and when, if it ended just now.
    pub(super) fn learn(&mut self, record: &JobRecord) -> Option<(LaneKey, End, Unix)> {
        let (key, fact) = RunFact::of(record)?;
        let ended = fact.state.is_final();
        let known = if ended {
            self.open.remove(&fact.job).is_some()
        } else {
            self.open.insert(fact.job, key.clone());
            false
        };
        let (end, at) = (fact.end(key.2), fact.ended.unwrap_or(fact.ordered));
        let runs = self.lanes.entry(key.clone()).or_default();
        let newer = |than: &Option<RunFact>| than.as_ref().is_none_or(|of| (of.due, of.job) <= (fact.due, fact.job));
        // One that is under way is the last, whatever its slot.
        let open = |of: &Option<RunFact>| of.as_ref().is_some_and(|of| !of.state.is_final() && of.job != fact.job);
        let is_good = end == End::Good && newer(&runs.good);
        if end == End::Failed && fact.due >= runs.failed.0 {
            if fact.due > runs.failed.0 {
                runs.failed = (fact.due, BTreeSet::new());
            }
            runs.failed.1.insert(fact.job);
        }
        let is_last = !ended || (newer(&runs.last) && !open(&runs.last));
        if is_good {
            runs.good = Some(fact.clone());
        }
        if is_last {
            runs.last = Some(fact);
        }
        known.then_some((key, end, at))
    }

    pub(super) fn is_open(&self, job: JobId) -> bool {
        self.open.contains_key(&job)
    }

    /// Jobs whose records say what was done last, how often that was tried, and what was good last: without them a slot would be run again, and
    /// nobody would know of a backup that is there.
    pub(crate) fn needed(&self) -> HashSet<JobId> {
        let of_lane = |runs: &Runs| {
            let known = [&runs.last, &runs.good].into_iter().flatten().map(|run| run.job);
            let due = runs.last.as_ref().map(|run| run.due);
            let failed = runs.failed.1.iter().copied().filter(|_| due == Some(runs.failed.0));
            known.chain(failed).collect::<Vec<_>>()
        };
        self.lanes.values().flat_map(of_lane).collect()
    }

    pub(super) fn lane(&self, key: &LaneKey) -> Runs {
        self.lanes.get(key).cloned().unwrap_or_default()
    }
}
