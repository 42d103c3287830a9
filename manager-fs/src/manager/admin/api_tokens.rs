//! Who may use the HTTP interface, and for what.

use std::fmt;
use std::str::FromStr;

use proto::message::Unix;
use proto::name::ApiTokenName;
use serde::{Deserialize, Serialize};

use crate::manager::control::api_tokens::{ApiTokenRecord, Credential, Role};
use crate::manager::error::ManagerError;
use crate::manager::now;
use crate::manager::whole::Manager;
use crate::net::tls;

/// What an operator asks of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiTokenAsk {
    /// Give one.
    Add {
        /// What it is called.
        name: ApiTokenName,
        /// What whoever has it may do.
        role: Role,
        /// For how long, milliseconds; `None`: until it is taken back.
        ttl_ms: Option<u64>,
        /// BLAKE3 of a certificate's DER that counts as one, in the place of a secret.
        certificate: Option<[u8; 32]>,
    },
    /// Every one.
    List,
    /// Take one back.
    Revoke(ApiTokenName),
}

/// The answer to an [`ApiTokenAsk`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiTokenAnswer {
    /// To `Add`: its text, which cannot be shown again; none of a certificate.
    Added(Option<String>),
    /// To `List`: by name.
    All(Vec<ApiTokenView>),
    /// To `Revoke`.
    Revoked,
}

/// A token as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokenView {
    /// What it is called.
    pub name: ApiTokenName,
    /// What whoever has it may do.
    pub role: Role,
    /// It is a certificate.
    pub certificate: bool,
    /// When it was given.
    pub created: Unix,
    /// When it ends by itself.
    pub until: Option<Unix>,
}

/// A token as it is shown once: `mfs_NAME.SECRET`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiToken {
    /// What it is called.
    pub(crate) name: ApiTokenName,
    secret: [u8; 32],
}

/// A text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a token as `manager-fs api-token add` prints it")]
pub(crate) struct NotAToken;

impl ApiToken {
    /// What is kept of its secret.
    pub(crate) fn hash(&self) -> blake3::Hash {
        blake3::Hasher::new_derive_key("manager-fs 2026 API token").update(&self.secret).finalize()
    }
}

impl fmt::Display for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mfs_{}.{}", self.name, blake3::Hash::from_bytes(self.secret).to_hex())
    }
}

impl FromStr for ApiToken {
    type Err = NotAToken;
    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (name, secret) =
            text.trim().strip_prefix("mfs_").and_then(|rest| rest.split_once('.')).ok_or(NotAToken)?;
        let secret = blake3::Hash::from_hex(secret).map_err(|_| NotAToken)?;
        Ok(Self { name: name.parse().map_err(|_| NotAToken)?, secret: *secret.as_bytes() })
    }
}

/// Does what is asked of tokens.
pub(super) async fn answer(manager: &Manager, ask: ApiTokenAsk) -> Result<ApiTokenAnswer, ManagerError> {
    match ask {
        ApiTokenAsk::Add { name, role, ttl_ms, certificate } => {
            let created = now();
            let token = ApiToken { name, secret: tls::random()? };
            let credential =
                certificate.map_or_else(|| Credential::Secret(*token.hash().as_bytes()), Credential::Certificate);
            let until = ttl_ms.map(|ttl| created.saturating_add(ttl));
            let record = ApiTokenRecord { role, credential, created, until };
            manager.state.add_api_token(&token.name, &record, created).await?;
            tracing::info!(name = token.name.as_str(), %role, "a token of the HTTP interface was given");
            Ok(ApiTokenAnswer::Added(certificate.is_none().then(|| token.to_string())))
        }
        ApiTokenAsk::List => {
            let all = manager.state.api_tokens().await?.into_iter();
            let view = |(name, record): (_, ApiTokenRecord)| ApiTokenView {
                name,
                role: record.role,
                certificate: matches!(record.credential, Credential::Certificate(_)),
                created: record.created,
                until: record.until,
            };
            Ok(ApiTokenAnswer::All(all.map(view).collect()))
        }
        ApiTokenAsk::Revoke(name) => {
            manager.state.revoke_api_token(&name).await?;
            tracing::warn!(name = name.as_str(), "a token of the HTTP interface was taken back");
            Ok(ApiTokenAnswer::Revoked)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_nothing_else_is_one() {
        let token = ApiToken { name: "on-call".parse().unwrap(), secret: [0xab; 32] };
        let text = token.to_string();
        assert_eq!(text, format!("mfs_on-call.{}", "ab".repeat(32)));
        assert!(format!(" {text}\n").parse::<ApiToken>() == Ok(token));
        for bad in
            ["", "mfs_", "mfs_a", "mfs_a.", "mfs_.00", &text[1..], &text[..text.len() - 1], &format!("{text}0")]
        {
            assert!(bad.parse::<ApiToken>().is_err(), "{bad}");
        }
    }
}
