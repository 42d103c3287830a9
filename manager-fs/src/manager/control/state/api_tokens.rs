//! Who may use the HTTP interface, and for what: tokens by the hash of their secret, certificates by their fingerprint.

use std::fmt;
use std::str::FromStr;

use proto::message::Unix;
use proto::name::ApiTokenName;
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
use super::{Key, State, encode};

/// Tokens at once. Whoever comes with a certificate is looked for among all of them.
pub const API_TOKENS_MAX: usize = 1000;

/// What somebody may do by HTTP. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See everything but what is read out of backups.
    Viewer,
    /// Order change-overs, rollouts, jobs, policies, exports and groups.
    Operator,
    /// Publish generations, and take them back.
    Publisher,
    /// Let hosts and people in, and put them out.
    Admin,
}

/// A text names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no role: want viewer, operator, publisher or admin")]
pub struct NotARole(String);

impl Role {
    /// All of them, the least first.
    pub const ALL: [Role; 4] = [Role::Viewer, Role::Operator, Role::Publisher, Role::Admin];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Publisher => "publisher",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NotARole;
    fn from_str(text: &str) -> Result<Self, NotARole> {
        let named = Role::ALL.into_iter().find(|role| role.as_str() == text);
        named.ok_or_else(|| NotARole(proto::text::line(text, 40)))
    }
}

/// By what somebody is known. Neither lets anybody in who reads it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// The hash of a secret.
    Secret([u8; 32]),
    /// The BLAKE3 of a certificate's DER.
    Certificate([u8; 32]),
}

/// A token that was given, or a certificate that counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokenRecord {
    /// What whoever has it may do.
    pub role: Role,
    /// By what he is known.
    pub credential: Credential,
    /// When it was given.
    pub created: Unix,
    /// When it ends; `None`: when it is taken back.
    pub until: Option<Unix>,
}

impl ApiTokenRecord {
    /// Whether it still counts.
    pub fn is_good(&self, now: Unix) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Why a token was not given or taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiTokenError {
    /// There is none of this name.
    #[error("there is no token '{0}'; `manager-fs api-token list` lists them")]
    Unknown(ApiTokenName),
    /// There is one of this name.
    #[error("there is a token '{0}' already: take it back with `manager-fs api-token revoke {0}`, or choose a name")]
    Exists(ApiTokenName),
    /// There are as many as may be.
    #[error("there are {API_TOKENS_MAX} tokens: take back those that nobody uses (`manager-fs api-token list`)")]
    TooMany,
    /// The control state failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl State {
    /// Remembers a token. Those that have ended are forgotten on the way, which also frees their names.
    ///
    /// # Errors
    /// [`ApiTokenError::Exists`], [`ApiTokenError::TooMany`]; the control state failed.
    pub async fn add_api_token(
        &self,
        name: &ApiTokenName,
        record: &ApiTokenRecord,
        now: Unix,
    ) -> Result<(), ApiTokenError> {
        let key = |name: &ApiTokenName| Key::ApiToken(name.clone()).to_string();
        let (good, ended): (Vec<_>, Vec<_>) =
            self.api_tokens().await?.into_iter().partition(|(_, record)| record.is_good(now));
        self.delete_all(ended.iter().map(|(name, _)| key(name)).collect()).await?;
        if good.len() >= API_TOKENS_MAX {
            return Err(ApiTokenError::TooMany);
        }
        let put = Change::put(key(name), Expect::Absent, encode(&key(name), record)?);
        match self.commit(vec![put]).await {
            Err(ControlError::Conflict { .. }) => Err(ApiTokenError::Exists(name.clone())),
            committed => committed.map(drop).map_err(ApiTokenError::from),
        }
    }

    /// One token, also one that has ended.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn api_token(&self, name: &ApiTokenName) -> Result<Option<ApiTokenRecord>, ControlError> {
        Ok(self.read(&Key::ApiToken(name.clone())).await?.map(|(record, _)| record))
    }

    /// Every token that is remembered, by name.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn api_tokens(&self) -> Result<Vec<(ApiTokenName, ApiTokenRecord)>, ControlError> {
        let all = self.read_all("api-token/").await?.into_iter();
        Ok(all
            .filter_map(|(key, record)| if let Key::ApiToken(name) = key { Some((name, record)) } else { None })
            .collect())
    }

    /// Forgets a token: whoever has it is a stranger from the next request on.
    ///
    /// # Errors
    /// [`ApiTokenError::Unknown`]; the control state failed.
    pub async fn revoke_api_token(&self, name: &ApiTokenName) -> Result<(), ApiTokenError> {
        if self.api_token(name).await?.is_none() {
            return Err(ApiTokenError::Unknown(name.clone()));
        }
        let key = Key::ApiToken(name.clone()).to_string();
        self.commit(vec![Change::delete(key, Expect::Any)]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::database::LocalStore;
    use super::super::super::observations::LocalObservations;
    use super::*;

    fn record(until: Option<Unix>) -> ApiTokenRecord {
        ApiTokenRecord { role: Role::Viewer, credential: Credential::Secret([7; 32]), created: 1, until }
    }

    #[tokio::test]
    async fn a_name_is_given_once_until_it_is_taken_back_or_has_ended() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(&directory.path().join("control.redb")).unwrap();
        let observations = LocalObservations::open(&directory.path().join("observations.redb")).unwrap();
        let state = State::open(Arc::new(store), Arc::new(observations.observations)).await.unwrap();
        let name: ApiTokenName = "on-call".parse().unwrap();
        state.add_api_token(&name, &record(Some(10)), 1).await.unwrap();
        assert_eq!(state.add_api_token(&name, &record(None), 9).await, Err(ApiTokenError::Exists(name.clone())));
        state.add_api_token(&name, &record(None), 10).await.unwrap();
        assert!(state.api_token(&name).await.unwrap().unwrap().is_good(u64::MAX));
        assert_eq!(state.api_tokens().await.unwrap().len(), 1);
        state.revoke_api_token(&name).await.unwrap();
        assert_eq!(state.api_token(&name).await, Ok(None));
        assert_eq!(state.revoke_api_token(&name).await, Err(ApiTokenError::Unknown(name)));
    }

    #[test]
    fn each_role_may_what_the_ones_before_it_may() {
        assert!(Role::ALL.is_sorted());
        assert!(Role::ALL.iter().all(|role| role.as_str().parse() == Ok(*role)));
        assert!("root".parse::<Role>().is_err());
        assert_eq!(format!("{:>9}", Role::Viewer), "   viewer");
        assert!(!record(Some(5)).is_good(5), "at its end it is over");
    }
}
