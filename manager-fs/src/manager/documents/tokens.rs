//! What lets hosts in, and people.

use proto::HostName;
use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::each;
use crate::manager::admin::ApiTokenView;

/// A token that enrols a host.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EnrolmentDocument {
    /// For which host.
    host: String,
    /// The token; it is shown once.
    token: String,
    /// How long it may be used.
    ttl_ms: u64,
}

impl EnrolmentDocument {
    /// This token, for this host.
    pub(crate) fn of(host: &HostName, token: String, ttl_ms: u64) -> Self {
        Self { host: host.to_string(), token, ttl_ms }
    }
}

/// The tokens of the HTTP interface.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ApiTokensDocument {
    /// By name.
    tokens: Vec<ApiTokenDocument>,
}

impl ApiTokensDocument {
    /// All that there are.
    pub(crate) fn of(views: &[ApiTokenView]) -> Self {
        Self { tokens: each(views) }
    }
}

/// A token of the HTTP interface; its secret is nowhere.
#[derive(Debug, Serialize, JsonSchema)]
struct ApiTokenDocument {
    /// What it is called.
    name: String,
    /// viewer, operator, publisher or admin.
    role: String,
    /// Whether it is a certificate.
    certificate: bool,
    /// When it was given.
    created_unix_ms: Unix,
    /// When it ends; null: when it is taken back.
    until_unix_ms: Option<Unix>,
}

impl From<&ApiTokenView> for ApiTokenDocument {
    fn from(view: &ApiTokenView) -> Self {
        Self {
            name: view.name.to_string(),
            role: view.role.to_string(),
            certificate: view.certificate,
            created_unix_ms: view.created,
            until_unix_ms: view.until,
        }
    }
}
