//! Which jobs are at which repository, by the repository's own id: what a manager that starts must know before it lets
//! anybody be alone there.

use proto::HostName;
use proto::agent::JobId;
use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
use super::{Key, State, encode};

/// A job at a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTurn {
    /// The repository's own id, 64 hex digits.
    pub repository: String,
    /// The job whose turn it is.
    pub job: JobId,
    /// When it lets go, if nothing is heard of it.
    pub until: Unix,
}

/// What stands under the key of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredTurn {
    host: HostName,
    until: Unix,
}

impl State {
    /// Writes down that a job is at a repository, or that it still is.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn keep_turn(
        &self,
        repository: &str,
        job: JobId,
        host: &HostName,
        until: Unix,
    ) -> Result<(), ControlError> {
        let key = Key::Turn(repository.to_owned(), job).to_string();
        let stored = encode(&key, &StoredTurn { host: host.clone(), until })?;
        self.commit(vec![Change::put(key, Expect::Any, stored)]).await.map(drop)
    }

    /// Forgets that a job is at a repository.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn end_turn(&self, repository: &str, job: JobId) -> Result<(), ControlError> {
        self.delete_all(vec![Key::Turn(repository.to_owned(), job).to_string()]).await
    }

    /// Every turn that is written down and can be read.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn turns(&self) -> Result<Vec<KeptTurn>, ControlError> {
        let found = self.read_all::<StoredTurn>("turn/").await?;
        let turns = found.into_iter().filter_map(|(key, stored)| match key {
            Key::Turn(repository, job) => Some(KeptTurn { repository, job, until: stored.until }),
            _ => None,
        });
        Ok(turns.collect())
    }
}
