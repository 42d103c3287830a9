//! One-time enrolment tokens, by their hashes.

use proto::HostName;
use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect, Revision};
use super::refusal::{HostError, TokenFault};
use super::{Key, State, encode};

/// How long a token is remembered after its end, so that people are told why it is refused.
const REMEMBERED_MS: u64 = 7 * 24 * 3600 * 1000;

/// How many characters of a hash (hexadecimal digits) its neighbours share with it.
const NEAR: usize = 2;

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
    /// Remembers a token's hash. Of the tokens whose hashes begin as its own, one in 256 of all, those that ended long ago
    /// are forgotten on the way: a look at all of them, for each host of a fleet that is being enrolled, would take longer
    /// than the state stands still.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn add_token(&self, hash: &str, token: &TokenRecord, now: Unix) -> Result<(), ControlError> {
        let near = hash.get(..NEAR).unwrap_or(hash);
        let tokens: Vec<(Key, TokenRecord)> = self.read_all(&format!("token/{near}")).await?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::database::LocalStore;
    use super::super::super::observations::LocalObservations;
    use super::*;

    async fn open() -> (tempfile::TempDir, State) {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(&directory.path().join("control.redb")).unwrap());
        let opened = LocalObservations::open(&directory.path().join("observations.redb")).unwrap();
        let state = State::open(store, Arc::new(opened.observations)).await.unwrap();
        (directory, state)
    }

    fn hash(number: usize) -> String {
        format!("{number:064x}")
    }

    fn token(expires: Unix, used: Option<Unix>) -> TokenRecord {
        TokenRecord { host: "web-1".parse().unwrap(), expires, used }
    }

    async fn fault(state: &State, number: usize, now: Unix) -> Option<TokenFault> {
        match state.token(&hash(number), now).await {
            Ok(_) => None,
            Err(HostError::Token(fault)) => Some(fault),
            Err(error) => panic!("{error}"),
        }
    }

    /// Days of 86,400,000 ms.
    const DAY: Unix = 86_400_000;

    #[tokio::test]
    async fn a_token_is_good_until_it_ends_or_is_used_and_never_for_more_than_a_year() {
        let (_directory, state) = open().await;
        let now = 1_000 * DAY;
        for (number, token) in
            [token(now + 1, None), token(now + 366 * DAY, None), token(now + 1, Some(7))].into_iter().enumerate()
        {
            state.add_token(&hash(number), &token, now).await.unwrap();
        }
        assert_eq!((fault(&state, 0, now).await, fault(&state, 0, now + 1).await), (None, Some(TokenFault::Expired)));
        assert_eq!((fault(&state, 1, now).await, fault(&state, 1, now - 1).await), (None, Some(TokenFault::Ahead)));
        assert_eq!(fault(&state, 2, now).await, Some(TokenFault::Used));
        assert_eq!(fault(&state, 3, now).await, Some(TokenFault::Unknown));
    }

    #[tokio::test]
    async fn a_token_is_remembered_for_a_week_after_its_end_and_is_used_once() {
        let (_directory, state) = open().await;
        let end = 1_000 * DAY;
        state.add_token(&hash(0), &token(end, None), end - 1).await.unwrap();
        let found = state.token(&hash(0), end - 1).await.unwrap();
        assert_eq!(found.record, token(end, None));
        state.commit(vec![found.used(end - 1).unwrap()]).await.unwrap();
        assert!(matches!(state.commit(vec![found.used(end - 1).unwrap()]).await, Err(ControlError::Conflict { .. })));
        let again = state.add_token(&hash(0), &token(end, None), end - 1).await;
        assert!(matches!(again, Err(ControlError::Conflict { .. })), "{again:?}");
        for (number, now, remembered) in [(1, end + 7 * DAY, true), (2, end + 7 * DAY + 1, false)] {
            state.add_token(&hash(number), &token(now + 1, None), now).await.unwrap();
            let expected = if remembered { TokenFault::Used } else { TokenFault::Unknown };
            assert_eq!(fault(&state, 0, now).await, Some(expected));
        }
    }

    #[tokio::test]
    async fn a_token_costs_its_neighbours_alone() {
        let (_directory, state) = open().await;
        let elsewhere = "f".repeat(64);
        state.add_token(&elsewhere, &token(1, None), 1).await.unwrap();
        state.add_token(&hash(1), &token(1, None), 1).await.unwrap();
        state.add_token(&hash(2), &token(9 * DAY, None), 8 * DAY).await.unwrap();
        let left: Vec<Key> =
            state.read_all::<TokenRecord>("token/").await.unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(left, [Key::Token(hash(2)), Key::Token(elsewhere)]);
    }

    /// What is forgotten goes with the commit of a new one, which has its bound.
    #[tokio::test]
    async fn more_old_tokens_than_one_commit_has_changes_are_forgotten_one_commit_after_the_other() {
        let (_directory, state) = open().await;
        for number in 0..CHANGES_MAX + 5 {
            state.add_token(&hash(number), &token(1, None), 1).await.unwrap();
        }
        let count = || async { state.read_all::<TokenRecord>("token/").await.unwrap().len() };
        let now = 8 * DAY;
        state.add_token(&hash(1_000), &token(now + 1, None), now).await.unwrap();
        assert_eq!(count().await, 6 + 1);
        state.add_token(&hash(1_001), &token(now + 1, None), now).await.unwrap();
        assert_eq!(count().await, 2);
    }
}
