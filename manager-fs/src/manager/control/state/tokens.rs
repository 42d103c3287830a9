//! One-time enrolment tokens, by their hashes.

use proto::HostName;
use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect, Revision};
use super::refusal::{HostError, TokenFault};
use super::{Key, State, encode};

/// How long a token is remembered after its end, so that people are told why it is refused.
const REMEMBERED_MS: u64 = 7 * 24 * 3600 * 1000;

/// How long a token may be good for, milliseconds: a year. One that seems to be good for longer was printed by a clock
/// that stood in the future.
pub const TOKEN_TTL_MS_MAX: u64 = 366 * 24 * 3600 * 1000;

/// A token that was printed and may still be used, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The one host that may enrol with it.
    pub host: HostName,
    /// When it ends, whether it was used or not.
    pub expires: Unix,
    /// When it was used.
    pub used: Option<Unix>,
}

/// A token that may be used now.
#[derive(Debug, Clone)]
pub struct Token {
    key: String,
    changed: Revision,
    /// What it is good for.
    pub record: TokenRecord,
}

impl Token {
    /// Marks it as used, if nobody else did. Of two at the same time one wins.
    pub(super) fn used(&self, now: Unix) -> Result<Change, ControlError> {
        let record = TokenRecord { used: Some(now), ..self.record.clone() };
        Ok(Change::put(&self.key, Expect::At(self.changed), encode(&self.key, &record)?))
    }
}

impl State {
    /// Remembers a token's hash. Tokens that ended long ago are forgotten on the way.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn add_token(&self, hash: &str, token: &TokenRecord, now: Unix) -> Result<(), ControlError> {
        let tokens: Vec<(Key, TokenRecord)> = self.read_all("token/").await?;
        let old = tokens.into_iter().filter(|(_, old)| old.expires.saturating_add(REMEMBERED_MS) < now);
        let mut changes: Vec<Change> =
            old.take(CHANGES_MAX - 1).map(|(key, _)| Change::delete(key.to_string(), Expect::Any)).collect();
        let key = Key::Token(hash.to_owned()).to_string();
        changes.push(Change::put(&key, Expect::Absent, encode(&key, token)?));
        self.commit(changes).await.map(drop)
    }

    /// A token that may be used, by its hash.
    ///
    /// # Errors
    /// [`HostError::Token`]: unknown, expired, or used before. The control state failed.
    pub async fn token(&self, hash: &str, now: Unix) -> Result<Token, HostError> {
        let key = Key::Token(hash.to_owned());
        match self.read::<TokenRecord>(&key).await? {
            None => Err(HostError::Token(TokenFault::Unknown)),
            Some((record, _)) if record.used.is_some() => Err(HostError::Token(TokenFault::Used)),
            Some((record, _)) if record.expires <= now => Err(HostError::Token(TokenFault::Expired)),
            Some((record, _)) if record.expires - now > TOKEN_TTL_MS_MAX => Err(HostError::Token(TokenFault::Ahead)),
            Some((record, changed)) => Ok(Token { key: key.to_string(), changed, record }),
        }
    }
}
