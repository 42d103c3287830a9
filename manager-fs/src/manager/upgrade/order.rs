//! What an operator orders when agents are to change over, and what becomes of it.

use proto::agent::{ChangeId, StepEvent};
use proto::name::Target;
use proto::{GenerationRef, HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeOrder {
    /// The product whose agents change over.
    pub product: Product,
    /// What they change over to, by name or by the start of its tree's id.
    pub generation: GenerationRef,
    /// The hosts and groups whose agents change over.
    pub targets: Vec<Target>,
    /// Change over before every object is local.
    pub lazy: bool,
    /// How long operations may take to finish, milliseconds; `None`: what the generation says.
    pub drain_deadline_ms: Option<u64>,
    /// Try a generation that a host remembers as bad.
    pub retry_bad: bool,
    /// Export the generation to the targets first.
    pub export: bool,
    /// Wait for the end.
    pub wait: bool,
    /// Wait at most this long, milliseconds.
    pub timeout_ms: Option<u64>,
}

/// Something that happened on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpgradeEvent {
    /// The host has accepted the change-over.
    Accepted {
        /// The host that it happened on.
        host: HostName,
        /// The manager's number of its change-over.
        change: ChangeId,
    },
    /// A host has reported a step of its agent.
    Step {
        /// The host that it happened on.
        host: HostName,
        /// The step as the host reported it.
        event: StepEvent,
    },
    /// This host is through.
    Ended(HostEnd),
}

/// How it ended on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEnd {
    /// The host that was ordered to change over.
    pub host: HostName,
    /// The change-over, if there was one.
    pub change: Option<ChangeId>,
    /// How it ended there.
    pub verdict: Verdict,
    /// Why it ended so, one line for people; empty where it was confirmed.
    pub reason: String,
    /// The steps that its host reported, in order.
    pub steps: Vec<StepEvent>,
}

/// How a change-over of one host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The new version runs and has proved itself.
    Confirmed,
    /// The version was running already.
    Already,
    /// The host was told; nobody waited for the end.
    Ordered,
    /// The previous version runs on, or again.
    Failed,
    /// It was not tried.
    Refused,
    /// It was not over when the wait ended; it goes on.
    Unfinished,
    /// The host is away, and is told when it comes.
    Away,
}

impl Verdict {
    /// Whether the operator has what they wanted.
    pub fn is_good(self) -> bool {
        match self {
            Verdict::Confirmed | Verdict::Already | Verdict::Ordered => true,
            Verdict::Failed | Verdict::Refused | Verdict::Unfinished | Verdict::Away => false,
        }
    }
}

/// How it ended everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// The product whose agents change over.
    pub product: Product,
    /// The version's name, as its record has it.
    pub version: Version,
    /// The tree that was ordered.
    pub tree: TreeId,
    /// Each host, in order.
    pub hosts: Vec<HostEnd>,
}

impl HostEnd {
    /// It was not tried.
    pub(super) fn refused(host: &HostName, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Self { host: host.clone(), change: None, verdict: Verdict::Refused, reason, steps: Vec::new() }
    }
}
