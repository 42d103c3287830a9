//! What the manager tells programs: the documents that the command line prints with `--json`, and the HTTP interface
//! answers. One type for each, so that both say the same, and the interface describes itself out of them.
//!
//! Times are milliseconds since 1970 (`_unix_ms`), durations milliseconds (`_ms`) or microseconds (`_us`), sizes bytes.
//! Later versions add fields and take none away.

mod agents;
mod exports;
mod generations;
mod groups;
mod hosts;
mod jobs;
mod policies;
mod progress;
mod protection;
mod published;
mod repositories;
mod rollouts;
mod tokens;
mod upgrades;

use serde::Serialize;
use serde_json::Value;

pub(crate) use agents::{AgentsDocument, StepDocument};
pub(crate) use exports::ChangedDocument;
pub(crate) use generations::{DiffDocument, GenerationsDocument, RecordDocument, ShownDocument};
pub(crate) use groups::{GroupChangedDocument, GroupsDocument};
pub(crate) use hosts::{HostDocument, HostsDocument};
pub(crate) use jobs::{JobDocument, JobsDocument};
pub(crate) use policies::{PoliciesDocument, PolicyDocument, PolicyRanDocument};
pub(crate) use progress::EventDocument;
pub(crate) use protection::{ProtectionDocument, risk_words};
pub(crate) use published::PublishedDocument;
pub(crate) use repositories::{RepositoriesDocument, RepositoryDocument, RepositoryTokensDocument};
pub(crate) use rollouts::{RolloutDocument, RolloutsDocument};
pub(crate) use tokens::{ApiTokensDocument, EnrolmentDocument};
pub(crate) use upgrades::{UpgradeEventDocument, UpgradedDocument};

/// A document as JSON.
pub(crate) fn json(document: &impl Serialize) -> Value {
    // Maps with keys that are no text, and failing encoders, are the only reasons; there are none.
    serde_json::to_value(document).unwrap_or_default()
}

/// Each of them as its document.
fn each<'a, V: 'a, D: From<&'a V>>(views: impl IntoIterator<Item = &'a V>) -> Vec<D> {
    views.into_iter().map(D::from).collect()
}

/// Each of them as text.
fn texts<T: ToString>(all: impl IntoIterator<Item = T>) -> Vec<String> {
    all.into_iter().map(|one| one.to_string()).collect()
}
