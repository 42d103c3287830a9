//! Repositories that media agents serve, and the tokens for them.

use proto::RepositoryName;
use proto::door::Access;
use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::each;
use crate::manager::admin::{RepositoryTokenView, RepositoryView};

/// Every repository that is served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RepositoriesDocument {
    /// By name.
    pub(crate) repositories: Vec<RepositoryDocument>,
}

impl RepositoriesDocument {
    /// All that there are.
    pub(crate) fn of(views: &[RepositoryView]) -> Self {
        Self { repositories: each(views) }
    }
}

/// A repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RepositoryDocument {
    /// What it is called.
    repository: String,
    /// Whose media agent serves it.
    host: String,
    /// Which agent of that host.
    product: String,
    /// Its directory there.
    path: String,
    /// Where others reach it.
    address: String,
    /// When that was decided.
    created_unix_ms: Unix,
}

impl From<&RepositoryView> for RepositoryDocument {
    fn from(view: &RepositoryView) -> Self {
        Self {
            repository: view.name.to_string(),
            host: view.host.to_string(),
            product: view.product.to_string(),
            path: view.path.clone(),
            address: view.address.clone(),
            created_unix_ms: view.created,
        }
    }
}

/// The tokens of a repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RepositoryTokensDocument {
    /// Of which.
    repository: String,
    /// The oldest first.
    tokens: Vec<RepositoryTokenDocument>,
}

/// A token for a person's program.
#[derive(Debug, Serialize, JsonSchema)]
struct RepositoryTokenDocument {
    /// By which it can be taken back.
    id: String,
    /// read or append.
    access: String,
    /// When it was given.
    created_unix_ms: Unix,
    /// When it ends by itself.
    until_unix_ms: Unix,
    /// When it was taken back.
    revoked_unix_ms: Option<Unix>,
}

impl RepositoryTokensDocument {
    /// These, of this one.
    pub(crate) fn of(name: &RepositoryName, tokens: &[RepositoryTokenView]) -> Self {
        let of = |token: &RepositoryTokenView| RepositoryTokenDocument {
            id: token.id.clone(),
            access: access_word(token.access).to_owned(),
            created_unix_ms: token.created,
            until_unix_ms: token.until,
            revoked_unix_ms: token.revoked,
        };
        Self { repository: name.to_string(), tokens: tokens.iter().map(of).collect() }
    }
}

fn access_word(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Add => "append",
    }
}
