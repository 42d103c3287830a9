//! Rollouts: the plan, how far it is, and what was so before. Who was ordered, and how it ended there, are records of
//! change-overs.

use proto::message::Unix;
use proto::name::Target;
use proto::number::RolloutId;
use proto::{TreeId, Version};
use serde::{Deserialize, Serialize};

use super::super::contract::{Change, ControlError, Expect};
use super::jobs::Later;
use super::targets::Wanted;
use super::{Key, State, encode};
use crate::manager::hours::Hours;
use crate::manager::rollout::machine::vocabulary::Progress;
use crate::manager::rollout::plan::Plan;

/// Rollouts remembered. The oldest that are over are forgotten.
const ROLLOUTS_KEPT: usize = 500;
/// Lines of the history of one.
const LINES_KEPT: usize = 200;

/// What is durable of a rollout: its plan, how far it is, and what it replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// What shall happen, as it was planned; it is not changed afterwards.
    pub plan: Plan,
    /// The version that the plan means.
    pub version: Version,
    /// The tree of that version at the time of planning.
    pub tree: TreeId,
    /// When it was planned.
    pub planned: Unix,
    /// How far it is.
    pub progress: Progress,
    /// What most hosts of each ring ran when it was started; nothing, where nothing was known.
    pub before: Vec<Option<(Version, TreeId)>>,
    /// The targets that rings replaced when they were done: ring, of whom, and what it was.
    pub replaced: Vec<(u16, Target, Option<Wanted>)>,
    /// What happened, oldest first.
    pub lines: Vec<(Unix, String)>,
}

/// What stands under the key of a rollout: what came later stands behind what earlier versions wrote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::manager::control) struct StoredRollout {
    record: RolloutRecord,
    /// The hours of each ring; absent where no ring has any.
    hours: Later<Vec<Option<Hours>>>,
}

impl StoredRollout {
    fn of(record: &RolloutRecord) -> Self {
        let rings = &record.plan.rings;
        let any = rings.iter().any(|ring| ring.hours.is_some());
        let hours = any.then(|| rings.iter().map(|ring| ring.hours.clone()).collect());
        Self { record: record.clone(), hours: Later(hours) }
    }

    pub(super) fn record(mut self) -> RolloutRecord {
        let hours = self.hours.0.unwrap_or_default();
        self.record.plan.rings.iter_mut().zip(hours).for_each(|(ring, hours)| ring.hours = hours);
        self.record
    }
}

impl RolloutRecord {
    /// Adds a line to the history; the oldest go.
    pub fn line(&mut self, at: Unix, text: String) {
        self.lines.push((at, text));
        let surplus = self.lines.len().saturating_sub(LINES_KEPT);
        self.lines.drain(..surplus);
    }
}

impl State {
    /// Records a new rollout. Of many the oldest that are over are forgotten.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn add_rollout(&self, record: &RolloutRecord, now: Unix) -> Result<RolloutId, ControlError> {
        let all = self.rollouts().await?;
        let surplus = all.len().saturating_sub(ROLLOUTS_KEPT - 1);
        let over = all.iter().filter(|(_, record)| record.progress.is_over());
        self.delete_all(over.take(surplus).map(|(id, _)| Key::Rollout(*id).to_string()).collect()).await?;
        loop {
            let id = RolloutId(self.draw(now)?);
            let key = Key::Rollout(id).to_string();
            match self
                .commit(vec![Change::put(&key, Expect::Absent, encode(&key, &StoredRollout::of(record))?)])
                .await
            {
                Ok(_) => return Ok(id),
                // Another manager drew the same number in the same second.
                Err(ControlError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes down how far a rollout is.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn save_rollout(&self, id: RolloutId, record: &RolloutRecord) -> Result<(), ControlError> {
        let key = Key::Rollout(id).to_string();
        self.commit(vec![Change::put(&key, Expect::Any, encode(&key, &StoredRollout::of(record))?)]).await.map(drop)
    }

    /// One rollout.
    ///
    /// # Errors
    /// The control state failed, or the record is damaged.
    pub async fn rollout(&self, id: RolloutId) -> Result<Option<RolloutRecord>, ControlError> {
        Ok(self.read::<StoredRollout>(&Key::Rollout(id)).await?.map(|(stored, _)| stored.record()))
    }

    /// Every rollout that can be read, oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn rollouts(&self) -> Result<Vec<(RolloutId, RolloutRecord)>, ControlError> {
        let found = self.read_all::<StoredRollout>("rollout/").await?;
        let records = found.into_iter().filter_map(|(key, stored)| match key {
            Key::Rollout(id) => Some((id, stored.record())),
            _ => None,
        });
        Ok(records.collect())
    }
}
