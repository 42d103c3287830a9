//! Policies: what each promises, since when, and whether it is paused. What was ordered because of it, and for which slot,
//! are records of jobs.

use proto::backup::BackupOptions;
use proto::look::Keep;
use proto::means::Commands;
use proto::message::Unix;
use proto::name::Target;
use proto::{GroupName, PolicyName, Product};
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
use super::jobs::Later;
use super::{Key, State, encode};
use crate::manager::policy::definition::{Place, Policy};
use crate::manager::policy::machine::vocabulary::{Limits, Task};
use crate::manager::policy::schedule::{Schedule, Window};

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
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

/// What stands under the key of a policy: what came later stands behind what earlier versions wrote.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    policy: StoredPolicy,
    created: Unix,
    paused: Option<Unix>,
    since: Vec<(Task, Unix)>,
    restore_test: Later<Schedule>,
    commands: Later<Commands>,
}

/// A policy as the first version of policies wrote it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredPolicy {
    name: PolicyName,
    hosts: Vec<Target>,
    sources: Vec<String>,
    options: BackupOptions,
    place: Place,
    product: Product,
    schedule: Schedule,
    jitter_ms: u64,
    window: Option<Window>,
    rpo_ms: Option<u64>,
    verify: Option<Schedule>,
    media: Vec<Target>,
    media_product: Product,
    keep: Keep,
    check: Option<Schedule>,
    prune: Option<Schedule>,
    limits: Limits,
    sites: Vec<GroupName>,
}

impl From<Stored> for PolicyRecord {
    fn from(of: Stored) -> Self {
        let Stored { policy: of, created, paused, since, restore_test, commands } = of;
        let policy = Policy {
            name: of.name,
            hosts: of.hosts,
            sources: of.sources,
            options: of.options,
            commands: commands.0.unwrap_or_default(),
            place: of.place,
            product: of.product,
            schedule: of.schedule,
            jitter_ms: of.jitter_ms,
            window: of.window,
            rpo_ms: of.rpo_ms,
            verify: of.verify,
            restore_test: restore_test.0,
            media: of.media,
            media_product: of.media_product,
            keep: of.keep,
            check: of.check,
            prune: of.prune,
            limits: of.limits,
            sites: of.sites,
        };
        Self { policy, created, paused, since }
    }
}

impl From<PolicyRecord> for Stored {
    fn from(of: PolicyRecord) -> Self {
        let PolicyRecord { policy: of, created, paused, since } = of;
        let restore_test = Later(of.restore_test);
        let commands = Later((!of.commands.are_none()).then_some(of.commands));
        let policy = StoredPolicy {
            name: of.name,
            hosts: of.hosts,
            sources: of.sources,
            options: of.options,
            place: of.place,
            product: of.product,
            schedule: of.schedule,
            jitter_ms: of.jitter_ms,
            window: of.window,
            rpo_ms: of.rpo_ms,
            verify: of.verify,
            media: of.media,
            media_product: of.media_product,
            keep: of.keep,
            check: of.check,
            prune: of.prune,
            limits: of.limits,
            sites: of.sites,
        };
        Self { policy, created, paused, since, restore_test, commands }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_of_an_earlier_version_is_read_and_has_no_restore_test_and_no_commands() {
        let text = "name = \"n\"\nhosts = [\"@a\"]\nsources = [\"/s\"]\nrepository = \"/r\"\nschedule = \"hourly\"\n";
        let plain = Policy::parse(text).unwrap();
        let tested = Policy::parse(&format!("{text}restore-test = \"monthly\"\n")).unwrap();
        let record = |policy: &Policy| PolicyRecord {
            policy: policy.clone(),
            created: 1,
            paused: Some(2),
            since: vec![(Task::Verify, 3)],
        };
        let of = |record: &PolicyRecord| proto::codec::encode(record).unwrap();
        let read = |bytes: &[u8]| proto::codec::decode::<PolicyRecord, 65_536>(bytes);
        let whole = of(&record(&plain));
        assert_eq!(read(&whole).unwrap(), record(&plain));
        // One byte is what says that there is none of either: those versions did not write it.
        for missing in [1, 2] {
            assert_eq!(read(&whole[..whole.len() - missing]).unwrap(), record(&plain));
        }
        let later = of(&record(&tested));
        assert_eq!(read(&later).unwrap(), record(&tested));
        assert_eq!(read(&later[..later.len() - 1]).unwrap(), record(&tested));
        let commands = Policy::parse(&format!("{text}backup.after = \"thaw\"\n")).unwrap();
        assert_eq!(read(&of(&record(&commands))).unwrap(), record(&commands));
    }
}
