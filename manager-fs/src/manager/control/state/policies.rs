//! Policies: what each promises, since when, and whether it is paused. What was ordered because of it, and for which slot,
//! are records of jobs.

use proto::PolicyName;
use proto::message::Unix;
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
use super::{Key, State, encode};
use crate::manager::policy::definition::Policy;
use crate::manager::policy::machine::vocabulary::Task;

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// What it promises.
    pub policy: Policy,
    /// When it was created.
    pub created: Unix,
    /// Since when it orders nothing.
    pub paused: Option<Unix>,
    /// Since when each of its tasks is due as it is now: slots until then do not count.
    pub since: Vec<(Task, Unix)>,
}

impl State {
    /// Records a policy, or what it is from now on.
    ///
    /// # Errors
    /// [`ControlError::TooLong`]: it names more than a record holds. The control state failed.
    pub async fn save_policy(&self, record: &PolicyRecord) -> Result<(), ControlError> {
        let key = Key::Policy(record.policy.name.clone()).to_string();
        self.commit(vec![Change::put(&key, Expect::Any, encode(&key, record)?)]).await.map(drop)
    }

    /// Forgets a policy. Records of its jobs stay.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn remove_policy(&self, name: &PolicyName) -> Result<(), ControlError> {
        self.delete_all(vec![Key::Policy(name.clone()).to_string()]).await
    }

    /// Every policy that can be read, by name.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn policies(&self) -> Result<Vec<PolicyRecord>, ControlError> {
        let found = self.read_all::<PolicyRecord>("policy/").await?;
        Ok(found.into_iter().map(|(_, record)| record).collect())
    }
}
