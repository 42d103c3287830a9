//! Agents, and the steps by which they came to what they run.

use proto::agent::{JobId, StepEvent};
use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::each;
use crate::manager::admin::AgentView;
use crate::metrics::word;

/// Agents.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AgentsDocument {
    /// By host and product.
    pub(crate) agents: Vec<AgentDocument>,
    /// There may be more: ask for those of hosts `after` this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

impl AgentsDocument {
    /// All that were asked for.
    pub(crate) fn of(views: &[AgentView]) -> Self {
        Self { agents: each(views), next: None }
    }
}

/// An agent, as its host last said.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AgentDocument {
    /// Where it runs.
    pub(crate) host: String,
    /// Whether the host is connected now.
    pub(crate) connected: bool,
    /// When the host was last heard of.
    pub(crate) last_seen_unix_ms: Unix,
    /// Which agent.
    pub(crate) product: String,
    /// What it runs.
    pub(crate) version: String,
    /// The tree that it runs from.
    pub(crate) tree_id: String,
    /// Its process; 0: none.
    pub(crate) pid: u32,
    /// What it does: probation, serving, staging, draining, or why it does not run.
    pub(crate) state: String,
    /// When this version began.
    pub(crate) started_unix_ms: Unix,
    /// Why this version runs, for people.
    pub(crate) reason: String,
    /// Numbers of jobs under way.
    #[schemars(with = "Vec<u64>")]
    pub(crate) jobs: Vec<JobId>,
    /// Its last change-over or start.
    pub(crate) last_change: Option<ChangeDocument>,
}

/// A change-over or start.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChangeDocument {
    /// Its number; 0: nobody ordered it.
    pub(crate) change: u64,
    /// The tree that was left.
    pub(crate) from: Option<String>,
    /// The tree that it goes to.
    pub(crate) to: String,
    /// Whether it is over.
    pub(crate) ended: bool,
    /// Whether the new version has proved itself; null while it is not over.
    pub(crate) confirmed: Option<bool>,
    /// What happened, in order.
    pub(crate) steps: Vec<StepDocument>,
}

/// One step of a change-over or start.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct StepDocument {
    /// Which.
    pub(crate) step: String,
    /// When it ended.
    pub(crate) at_unix_ms: Unix,
    /// How long it took.
    pub(crate) duration_us: u64,
    /// Reason or detail, for people.
    pub(crate) detail: String,
    /// The tree that is left.
    pub(crate) from: Option<String>,
    /// The tree that it goes to.
    pub(crate) to: String,
}

impl From<&AgentView> for AgentDocument {
    fn from(view: &AgentView) -> Self {
        let status = &view.status;
        Self {
            host: view.host.to_string(),
            connected: view.connected,
            last_seen_unix_ms: view.last_seen,
            product: status.product.to_string(),
            version: status.version.to_string(),
            tree_id: status.tree.to_string(),
            pid: status.pid,
            state: word(&status.state),
            started_unix_ms: status.started_unix_ms,
            reason: status.reason.clone(),
            jobs: status.jobs.clone(),
            last_change: view.last_change.last().map(|last| ChangeDocument {
                change: last.change.0,
                from: last.from.map(|tree| tree.to_string()),
                to: last.to.to_string(),
                ended: last.step.ends().is_some(),
                confirmed: last.step.ends(),
                steps: each(&view.last_change),
            }),
        }
    }
}

impl From<&StepEvent> for StepDocument {
    fn from(event: &StepEvent) -> Self {
        Self {
            step: word(&event.step),
            at_unix_ms: event.at_unix_ms,
            duration_us: event.duration_us,
            detail: event.detail.clone(),
            from: event.from.map(|tree| tree.to_string()),
            to: event.to.to_string(),
        }
    }
}
