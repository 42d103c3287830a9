//! Policies, and how they stand on their hosts.

use proto::HostName;
use proto::agent::JobId;
use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::each;
use crate::manager::control::jobs::JobRecord;
use crate::manager::policy::{LaneView, PolicyView, RunFact, TaskView};
use crate::metrics::word;
use crate::units::moment;

/// Every policy.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PoliciesDocument {
    /// By name, without their hosts.
    pub(crate) policies: Vec<PolicyDocument>,
}

impl PoliciesDocument {
    /// All that were asked for.
    pub(crate) fn of(views: &[PolicyView]) -> Self {
        Self { policies: each(views) }
    }
}

/// A policy, and how it stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PolicyDocument {
    /// Its name.
    pub(crate) policy: String,
    /// What it promises, TOML.
    pub(crate) text: String,
    /// When it was created.
    pub(crate) created_unix_ms: Unix,
    /// Since when it orders nothing.
    pub(crate) paused_unix_ms: Option<Unix>,
    /// Its tasks.
    pub(crate) tasks: Vec<TaskDocument>,
    /// Its hosts, those that need somebody first.
    pub(crate) hosts: Vec<LaneDocument>,
    /// So many more are not listed.
    pub(crate) left_out: u64,
    /// What an order changes, line by line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) changes: Option<Vec<String>>,
    /// Whether it was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) applied: Option<bool>,
}

/// A task of a policy.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TaskDocument {
    /// backup, verify, check, prune or restore-test.
    task: String,
    /// When it is due.
    schedule: String,
    /// The next slot.
    next_unix_ms: Option<Unix>,
    /// Hosts that it is done on.
    hosts: u32,
    /// Those on which it is under way.
    running: u32,
    /// Those on which it is late.
    late: u32,
    /// Those on which the last run failed.
    failed: u32,
}

/// A task on a host.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LaneDocument {
    /// Which host.
    host: String,
    /// Which task.
    task: String,
    /// failed, late, running or waiting.
    standing: String,
    /// When something will be begun, as far as it is known.
    next_unix_ms: Option<Unix>,
    /// Why nothing is under way, for people.
    reason: String,
    /// The last run.
    last: Option<RunDocument>,
    /// The last good one.
    good: Option<RunDocument>,
}

/// A run of a task.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunDocument {
    /// Its job.
    #[schemars(with = "u64")]
    job: JobId,
    /// The slot that it was for.
    due_unix_ms: Unix,
    /// When it was ordered.
    ordered_unix_ms: Unix,
    /// When it ended.
    ended_unix_ms: Option<Unix>,
    /// queued, running, done, failed or cancelled.
    state: String,
    /// Its problems.
    problems: u32,
    /// The first of them.
    first_problem: Option<String>,
    /// Why it failed.
    error: Option<String>,
    /// The snapshots that it made or read.
    snapshots: Vec<String>,
}

/// What was begun now.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PolicyRanDocument {
    /// What was ordered.
    jobs: Vec<OrderedDocument>,
    /// Where nothing was, and why.
    not_ordered: Vec<NotOrderedDocument>,
}

/// A job that was ordered.
#[derive(Debug, Serialize, JsonSchema)]
struct OrderedDocument {
    /// Its number.
    #[schemars(with = "u64")]
    job: JobId,
    /// Where.
    host: String,
}

/// A host on which nothing was ordered.
#[derive(Debug, Serialize, JsonSchema)]
struct NotOrderedDocument {
    /// Which.
    host: String,
    /// Why, for people.
    reason: String,
}

impl PolicyRanDocument {
    /// These jobs, and these hosts without.
    pub(crate) fn of(jobs: &[JobRecord], not: &[(HostName, String)]) -> Self {
        let ordered = |job: &JobRecord| OrderedDocument { job: job.id, host: job.host.to_string() };
        let without = |(host, reason): &(HostName, String)| NotOrderedDocument {
            host: host.to_string(),
            reason: reason.clone(),
        };
        Self { jobs: jobs.iter().map(ordered).collect(), not_ordered: not.iter().map(without).collect() }
    }
}

impl From<&PolicyView> for PolicyDocument {
    fn from(view: &PolicyView) -> Self {
        Self {
            policy: view.policy.name.to_string(),
            text: view.policy.text(),
            created_unix_ms: view.created,
            paused_unix_ms: view.paused,
            tasks: each(&view.tasks),
            hosts: each(&view.lanes),
            left_out: view.left_out,
            changes: None,
            applied: None,
        }
    }
}

impl From<&TaskView> for TaskDocument {
    fn from(task: &TaskView) -> Self {
        Self {
            task: word(&task.task),
            schedule: task.schedule.clone(),
            next_unix_ms: task.next,
            hosts: task.hosts,
            running: task.running,
            late: task.late,
            failed: task.failed,
        }
    }
}

impl From<&LaneView> for LaneDocument {
    fn from(lane: &LaneView) -> Self {
        Self {
            host: lane.host.to_string(),
            task: word(&lane.task),
            standing: word(&lane.standing),
            next_unix_ms: lane.next,
            reason: lane.reason(moment),
            last: lane.last.as_ref().map(RunDocument::from),
            good: lane.good.as_ref().map(RunDocument::from),
        }
    }
}

impl From<&RunFact> for RunDocument {
    fn from(run: &RunFact) -> Self {
        Self {
            job: run.job,
            due_unix_ms: run.due,
            ordered_unix_ms: run.ordered,
            ended_unix_ms: run.ended,
            state: word(&run.state),
            problems: run.problems,
            first_problem: run.first_problem.clone(),
            error: run.error.clone(),
            snapshots: run.snapshots.clone(),
        }
    }
}
