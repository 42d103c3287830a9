//! Whether what policies promise is kept: of each source of each host the newest good backup and the newest verified one,
//! against what was promised. What is at risk comes first, with the reason.

use std::collections::{BTreeMap, BTreeSet};

use proto::message::Unix;
use proto::{HostName, PolicyName};
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::definition::Policy;
use super::machine::vocabulary::{Task, Waits};
use super::runs::{LaneKey, RunFact, Runs};
use super::view::Seen;
use crate::manager::control::jobs::JobState;
use crate::manager::control::policies::PolicyRecord;

/// Sources that one answer names.
const ROWS_MAX: usize = 10_000;

/// What is protected, and what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionView {
    /// What is at risk first, then by host, policy and source.
    pub rows: Vec<ProtectionRow>,
    /// Sources at risk, also those that are not shown.
    pub at_risk: u64,
    /// Sources of all hosts of all policies.
    pub sources: u64,
    /// Hosts that no policy backs up.
    pub without_policy: Vec<HostName>,
}

/// One source of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionRow {
    /// Which host.
    pub host: HostName,
    /// By which policy.
    pub policy: PolicyName,
    /// Which source.
    pub source: String,
    /// The newest good backup.
    pub backup: Option<RunFact>,
    /// The newest verification without problems.
    pub verified: Option<RunFact>,
    /// The newest restore test without problems.
    pub tested: Option<RunFact>,
    /// How old the newest good backup may be, milliseconds.
    pub rpo_ms: u64,
    /// What is not as promised.
    pub risks: Vec<Risk>,
}

/// Something that is not as promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Risk {
    /// There is no good run of this task.
    Never {
        /// Which.
        task: Task,
        /// Why, as far as it is known.
        why: Why,
    },
    /// The newest good run of this task is older than was promised.
    Old {
        /// Which.
        task: Task,
        /// How old it is, milliseconds.
        age_ms: u64,
        /// How old it may be.
        promised_ms: u64,
        /// Why, as far as it is known.
        why: Why,
    },
    /// A run found problems.
    Found {
        /// Of which task.
        task: Task,
        /// On which host, where it is another.
        on: Option<HostName>,
        /// How many.
        problems: u32,
        /// The first of them.
        first: Option<String>,
        /// Its job.
        job: proto::agent::JobId,
    },
    /// A proof could not be had: the last run failed.
    Unproved {
        /// Of which task.
        task: Task,
        /// Why.
        why: String,
        /// Its job.
        job: proto::agent::JobId,
    },
}

/// Why there is no newer run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It is not known.
    Unknown,
    /// The last run failed.
    Failed(String),
    /// The last run was cancelled.
    Cancelled,
    /// It waits for this, the host having been there last then.
    Waits(Waits, Option<Unix>),
}

/// How all sources stand. `enrolled` are the hosts that should be somebody's.
pub(super) fn protection(board: &Board, seen: &Seen, enrolled: BTreeSet<HostName>, now: Unix) -> ProtectionView {
    let mut view = ProtectionView::default();
    let mut covered: BTreeSet<HostName> = BTreeSet::new();
    for record in board.records.values() {
        let lanes = board.lanes_of(&record.policy.name);
        let of_repository: Vec<Risk> = lanes.iter().filter_map(|(key, _)| damage(board, key)).collect();
        for (key, lane) in lanes.iter().filter(|((_, _, task), _)| *task == Task::Backup) {
            covered.insert(key.1.clone());
            let waits = board.machine.waits(*lane);
            let mut risks = risks(board, record, &key.1, (waits, seen.get(&key.1).copied()), now);
            risks.extend(of_repository.iter().cloned());
            let good = |task| board.runs.lane(&(key.0.clone(), key.1.clone(), task)).good;
            view.rows.extend(record.policy.sources.iter().map(|source| ProtectionRow {
                host: key.1.clone(),
                policy: key.0.clone(),
                source: source.clone(),
                backup: good(Task::Backup),
                verified: good(Task::Verify),
                tested: good(Task::RestoreTest),
                rpo_ms: record.policy.promised_ms(Task::Backup).unwrap_or(0),
                risks: risks.clone(),
            }));
        }
    }
    let place =
        |row: &ProtectionRow| (row.risks.is_empty(), row.host.clone(), row.policy.clone(), row.source.clone());
    view.rows.sort_by_cached_key(place);
    view.at_risk = view.rows.iter().filter(|row| !row.risks.is_empty()).count() as u64;
    view.sources = view.rows.len() as u64;
    view.rows.truncate(ROWS_MAX);
    view.without_policy = enrolled.into_iter().filter(|host| !covered.contains(host)).collect();
    view
}

/// What the last check of the repository found.
fn damage(board: &Board, key: &LaneKey) -> Option<Risk> {
    let last = board.runs.lane(key).last.filter(|_| key.2 == Task::Check)?;
    let found = last.state == JobState::Done && last.problems > 0;
    found.then(|| found_by(Task::Check, Some(key.1.clone()), &last))
}

fn risks(
    board: &Board,
    record: &PolicyRecord,
    host: &HostName,
    (waits, seen): (Waits, Option<Unix>),
    now: Unix,
) -> Vec<Risk> {
    let policy: &Policy = &record.policy;
    let since: BTreeMap<Task, Unix> = record.since.iter().copied().collect();
    let mut risks = Vec::new();
    for task in Task::ALL.into_iter().filter(|task| !task.is_of_media()) {
        let Some(promised_ms) = policy.promised_ms(task) else { continue };
        let runs = board.runs.lane(&(policy.name.clone(), host.clone(), task));
        let why = why(&runs, (waits, seen));
        let asked = since.get(&task).copied().unwrap_or(record.created);
        let age_ms = now.saturating_sub(runs.good.as_ref().map_or(asked, |good| good.ordered));
        match &runs.good {
            // A backup is missed from the first moment on; proof of it may take its time.
            None if task == Task::Backup || age_ms > promised_ms => risks.push(Risk::Never { task, why }),
            Some(_) if age_ms > promised_ms => risks.push(Risk::Old { task, age_ms, promised_ms, why }),
            _ => {}
        }
        let newer = |run: &&RunFact| runs.good.as_ref().is_none_or(|good| good.job != run.job);
        match runs.last.as_ref().filter(newer).filter(|_| task.is_proof()) {
            Some(last) if last.state == JobState::Done && last.problems > 0 => {
                risks.push(found_by(task, None, last));
            }
            // One of the last good ones is still promised; that there is none now is told at once.
            Some(RunFact { state: JobState::Failed, error: Some(why), job, .. })
                if !risks.iter().any(|risk| risk.is_of(task)) =>
            {
                risks.push(Risk::Unproved { task, why: why.clone(), job: *job });
            }
            _ => {}
        }
    }
    risks
}

impl Risk {
    fn is_of(&self, of: Task) -> bool {
        match self {
            Risk::Never { task, .. }
            | Risk::Old { task, .. }
            | Risk::Found { task, .. }
            | Risk::Unproved { task, .. } => *task == of,
        }
    }
}

fn found_by(task: Task, on: Option<HostName>, run: &RunFact) -> Risk {
    Risk::Found { task, on, problems: run.problems, first: run.first_problem.clone(), job: run.job }
}

fn why(runs: &Runs, (waits, seen): (Waits, Option<Unix>)) -> Why {
    match &runs.last {
        Some(RunFact { state: JobState::Failed, error: Some(error), .. }) => Why::Failed(error.clone()),
        Some(RunFact { state: JobState::Cancelled, .. }) => Why::Cancelled,
        _ => match waits {
            Waits::Running | Waits::Until(_) => Why::Unknown,
            waits => Why::Waits(waits, if waits == Waits::Away { seen } else { None }),
        },
    }
}

#[cfg(test)]
#[path = "protection_tests.rs"]
mod tests;
