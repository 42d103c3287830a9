//! Hosts.

use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::{each, texts};
use crate::manager::admin::HostView;

/// Some hosts.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HostsDocument {
    /// By name.
    pub(crate) hosts: Vec<HostDocument>,
    /// There may be more: ask for those `after` this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

impl HostsDocument {
    /// All that were asked for.
    pub(crate) fn of(views: &[HostView]) -> Self {
        Self { hosts: each(views), next: None }
    }
}

/// A host.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct HostDocument {
    /// The name in its certificate.
    pub(crate) name: String,
    /// Whether it is connected now.
    pub(crate) connected: bool,
    /// Since when.
    pub(crate) connected_since_unix_ms: Option<Unix>,
    /// When it was last heard of, 0 if never.
    pub(crate) last_seen_unix_ms: Unix,
    /// When it enrolled last.
    pub(crate) enrolled_unix_ms: Unix,
    /// When its newest certificate ends.
    pub(crate) certificate_expires_unix_ms: Option<Unix>,
    /// When it was revoked.
    pub(crate) revoked_unix_ms: Option<Unix>,
    /// The groups that it is in.
    pub(crate) groups: Vec<String>,
    /// What an operator says of it, `KEY=VALUE`.
    pub(crate) labels: Vec<String>,
    /// The version of its manager-fs.
    pub(crate) software: String,
    /// What its machine calls itself.
    pub(crate) machine: Option<String>,
    /// Ids of the trees that are attached there.
    pub(crate) attached: Vec<String>,
    /// The last wrong hashes that it found.
    pub(crate) wrong_hashes: Vec<WrongHashDocument>,
}

/// Bytes that did not have the hash that they should have.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct WrongHashDocument {
    /// When.
    at_unix_ms: Unix,
    /// Of what, for people.
    what: String,
}

impl From<&HostView> for HostDocument {
    fn from(view: &HostView) -> Self {
        let wrong = view.wrong_hashes.iter();
        Self {
            name: view.name.to_string(),
            connected: view.connected_since.is_some(),
            connected_since_unix_ms: view.connected_since,
            last_seen_unix_ms: view.last_seen,
            enrolled_unix_ms: view.enrolled,
            certificate_expires_unix_ms: view.certificate_expires,
            revoked_unix_ms: view.revoked,
            groups: texts(&view.groups),
            labels: view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            software: view.software.clone(),
            machine: view.machine.clone(),
            attached: texts(&view.attached),
            wrong_hashes: wrong.map(|(at, what)| WrongHashDocument { at_unix_ms: *at, what: what.clone() }).collect(),
        }
    }
}
