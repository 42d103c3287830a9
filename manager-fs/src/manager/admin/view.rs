//! Hosts, agents and repositories as an operator sees them.

use proto::agent::{AgentStatus, StepEvent};
use proto::door::Access;
use proto::message::Unix;
use proto::{GroupName, HostName, Product, RepositoryName, TreeId};
use serde::{Deserialize, Serialize};

use crate::manager::labels::Labels;

/// A host as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// The name that its certificate bears.
    pub name: HostName,
    /// Since when it is connected; `None`: it is not.
    pub connected_since: Option<Unix>,
    /// When it was last heard of, 0 if never.
    pub last_seen: Unix,
    /// When it enrolled last, milliseconds since 1970.
    pub enrolled: Unix,
    /// When its newest certificate ends.
    pub certificate_expires: Option<Unix>,
    /// When it was revoked.
    pub revoked: Option<Unix>,
    /// The groups that it is in, by name.
    pub groups: Vec<GroupName>,
    /// What an operator says of it.
    pub labels: Labels,
    /// Version of its `manager-fs`.
    pub software: String,
    /// What its machine calls itself, if it has said so since the manager started.
    pub machine: Option<String>,
    /// The trees attached there.
    pub attached: Vec<TreeId>,
    /// The last wrong hashes that it found.
    pub wrong_hashes: Vec<(Unix, String)>,
}

/// An agent as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// The host that it runs on.
    pub host: HostName,
    /// Whether the host is connected now.
    pub connected: bool,
    /// When the host was last heard of.
    pub last_seen: Unix,
    /// What the host said of it.
    pub status: AgentStatus,
    /// The steps of its last change-over or start.
    pub last_change: Vec<StepEvent>,
}

/// A repository that is served, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryView {
    /// What it is called.
    pub name: RepositoryName,
    /// Whose media agent serves it.
    pub host: HostName,
    /// Which agent of that host.
    pub product: Product,
    /// Its directory there.
    pub path: String,
    /// Where others reach it.
    pub address: String,
    /// When that was decided.
    pub created: Unix,
    /// What its agent shows to programs that are no agents: the base64 of a certificate's DER.
    pub certificate: Option<String>,
}

/// A token of a repository, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryTokenView {
    /// By which it can be taken back.
    pub id: String,
    /// What it lets do.
    pub access: Access,
    /// When it was given.
    pub created: Unix,
    /// When it ends by itself.
    pub until: Unix,
    /// When it was taken back.
    pub revoked: Option<Unix>,
}
