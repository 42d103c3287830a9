//! What is told while long work goes on.

use schemars::JsonSchema;
use serde::Serialize;

use super::{JobDocument, RolloutDocument, UpgradeEventDocument};
use crate::manager::admin::AdminEvent;

/// Something that happened meanwhile.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum EventDocument {
    /// How far the work is.
    Progress(ProgressDocument),
    /// Something is wrong that does not end the work.
    Problem {
        /// What, for people.
        problem: String,
    },
    /// A change-over goes on.
    Upgrade(UpgradeEventDocument),
    /// A job goes on.
    Job(Box<JobDocument>),
    /// A rollout goes on.
    Rollout(Box<RolloutDocument>),
}

/// How far long work is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProgressDocument {
    /// What is being done.
    task: String,
    /// Units done.
    done: u64,
    /// Units in all, 0 while unknown.
    total: u64,
    /// Whether the units are bytes.
    bytes: bool,
}

impl EventDocument {
    /// The name of the event (`event:` of an event stream).
    pub(crate) fn name(&self) -> &'static str {
        match self {
            EventDocument::Progress(_) => "progress",
            EventDocument::Problem { .. } => "problem",
            EventDocument::Upgrade(_) => "upgrade",
            EventDocument::Job(_) => "job",
            EventDocument::Rollout(_) => "rollout",
        }
    }
}

impl From<&AdminEvent> for EventDocument {
    fn from(event: &AdminEvent) -> Self {
        match event {
            AdminEvent::Progress { task, done, total, bytes } => {
                Self::Progress(ProgressDocument { task: task.clone(), done: *done, total: *total, bytes: *bytes })
            }
            AdminEvent::Problem(problem) => Self::Problem { problem: problem.clone() },
            AdminEvent::Upgrade(event) => Self::Upgrade(UpgradeEventDocument::from(event)),
            AdminEvent::Job(record) => Self::Job(Box::new(JobDocument::from(record.as_ref()))),
            AdminEvent::Rollout(view) => Self::Rollout(Box::new(RolloutDocument::from(view.as_ref()))),
        }
    }
}
