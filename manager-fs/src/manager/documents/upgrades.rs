//! Change-overs that were ordered, as they go on and as they end.

use proto::agent::ChangeId;
use schemars::JsonSchema;
use serde::Serialize;

use super::{StepDocument, each};
use crate::manager::upgrade::{HostEnd, UpgradeEvent, UpgradeReport};
use crate::metrics::word;

/// Something that happened on the way.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum UpgradeEventDocument {
    /// The host has accepted the order.
    Accepted {
        /// Which host.
        host: String,
        /// The number of its change-over.
        #[schemars(with = "u64")]
        change: ChangeId,
    },
    /// A step has ended.
    Step {
        /// Which host.
        host: String,
        /// The number of its change-over.
        #[schemars(with = "u64")]
        change: ChangeId,
        #[serde(flatten)]
        step: StepDocument,
    },
    /// A host is through.
    Ended(EndDocument),
}

/// How it ended on one host.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EndDocument {
    /// Which host.
    host: String,
    /// The number of its change-over, if there was one.
    #[schemars(with = "Option<u64>")]
    change: Option<ChangeId>,
    /// confirmed, already, ordered, failed, refused, unfinished or away.
    verdict: String,
    /// Why, for people.
    reason: String,
    /// The steps that its host reported.
    steps: Vec<StepDocument>,
}

/// How it ended everywhere.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UpgradedDocument {
    /// Always `report`.
    event: &'static str,
    /// Whose agents changed over.
    product: String,
    /// To which version.
    version: String,
    /// The tree that was ordered.
    tree_id: String,
    /// Whether it is as ordered everywhere.
    confirmed: bool,
    /// Each host.
    hosts: Vec<EndDocument>,
}

impl From<&UpgradeEvent> for UpgradeEventDocument {
    fn from(event: &UpgradeEvent) -> Self {
        match event {
            UpgradeEvent::Accepted { host, change } => Self::Accepted { host: host.to_string(), change: *change },
            UpgradeEvent::Step { host, event } => {
                Self::Step { host: host.to_string(), change: event.change, step: StepDocument::from(event) }
            }
            UpgradeEvent::Ended(end) => Self::Ended(EndDocument::from(end)),
        }
    }
}

impl From<&HostEnd> for EndDocument {
    fn from(end: &HostEnd) -> Self {
        Self {
            host: end.host.to_string(),
            change: end.change,
            verdict: word(&end.verdict),
            reason: end.reason.clone(),
            steps: each(&end.steps),
        }
    }
}

impl From<&UpgradeReport> for UpgradedDocument {
    fn from(report: &UpgradeReport) -> Self {
        Self {
            event: "report",
            product: report.product.to_string(),
            version: report.version.to_string(),
            tree_id: report.tree.to_string(),
            confirmed: report.hosts.iter().all(|end| end.verdict.is_good()),
            hosts: each(&report.hosts),
        }
    }
}
