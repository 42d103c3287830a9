//! Who may see what, as it changes.

use proto::GenerationRef;
use proto::name::Target;
use schemars::JsonSchema;
use serde::Serialize;

use super::texts;
use crate::manager::admin::ChangedView;

/// What an export, or taking one back, has changed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChangedDocument {
    /// The generation as it was asked for.
    generation: String,
    /// Each host and group that was named.
    targets: Vec<TargetChangedDocument>,
    /// Hosts that are meant and not enrolled yet.
    not_enrolled: Vec<String>,
}

/// One host or group.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TargetChangedDocument {
    /// A host, or @ and a group.
    target: String,
    /// `false`: it was so before.
    changed: bool,
}

impl ChangedDocument {
    /// What became of each of `targets`.
    pub(crate) fn of(generation: &GenerationRef, targets: &[Target], changed: &ChangedView) -> Self {
        let of = |target: &Target| TargetChangedDocument {
            target: target.to_string(),
            changed: changed.targets.contains(target),
        };
        Self {
            generation: generation.to_string(),
            targets: targets.iter().map(of).collect(),
            not_enrolled: texts(&changed.not_enrolled),
        }
    }
}
