//! Change-overs: one record for each agent that an `upgrade` tells to change.

use proto::agent::{ChangeId, StepEvent};
use proto::message::Unix;
use proto::{HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};

use super::{Change, ControlError, Expect, State};

/// Change-overs remembered. Older ones that are over are forgotten, so that the state does not grow for ever.
const CHANGES_KEPT: usize = 10_000;
/// How often it is looked whether some can be forgotten.
const FORGET_EVERY: u64 = 500;

/// One change-over of one agent on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// Its number.
    pub id: ChangeId,
    /// Where.
    pub host: HostName,
    /// Which agent.
    pub product: Product,
    /// To which version.
    pub version: Version,
    /// To which tree.
    pub to: TreeId,
    /// When it was ordered.
    pub ordered: Unix,
    /// What happened, in the order of arrival.
    pub steps: Vec<StepEvent>,
    /// How it ended.
    pub ended: Option<ChangeEnd>,
}

/// How a change-over ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeEnd {
    /// Whether the new version is confirmed.
    pub confirmed: bool,
    /// When.
    pub at: Unix,
    /// Why, when it is not.
    pub reason: String,
}

impl State {
    /// Records the order for a change-over.
    ///
    /// # Errors
    /// The control state failed.
    pub fn add_change(
        &self,
        host: &HostName,
        product: &Product,
        version: &Version,
        to: TreeId,
        now: Unix,
    ) -> Result<ChangeRecord, ControlError> {
        let record = ChangeRecord {
            id: ChangeId(self.next_number("change")?),
            host: host.clone(),
            product: product.clone(),
            version: version.clone(),
            to,
            ordered: now,
            steps: Vec::new(),
            ended: None,
        };
        self.update(&key(record.id), |_: Option<ChangeRecord>| Ok::<_, ControlError>((Some(record.clone()), ())))?;
        if record.id.0.is_multiple_of(FORGET_EVERY) {
            self.forget_changes()?;
        }
        Ok(record)
    }

    /// One change-over.
    ///
    /// # Errors
    /// The control state failed.
    pub fn change(&self, id: ChangeId) -> Result<Option<ChangeRecord>, ControlError> {
        Ok(self.read(&key(id))?.map(|(record, _)| record))
    }

    /// Every change-over, oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub fn changes(&self) -> Result<Vec<ChangeRecord>, ControlError> {
        Ok(self.read_all("change/")?.into_iter().map(|(_, record)| record).collect())
    }

    fn forget_changes(&self) -> Result<(), ControlError> {
        let all = self.changes()?;
        let surplus = all.len().saturating_sub(CHANGES_KEPT);
        let over = all.iter().take(surplus).filter(|record| record.ended.is_some());
        let forgotten: Vec<Change> = over.map(|record| Change::delete(key(record.id), Expect::Any)).collect();
        if !forgotten.is_empty() {
            self.store().commit(&forgotten)?;
        }
        Ok(())
    }

    /// Alters one change-over, if there is one.
    ///
    /// # Errors
    /// The control state failed.
    pub fn alter_change(&self, id: ChangeId, alter: impl Fn(&mut ChangeRecord)) -> Result<(), ControlError> {
        self.update(&key(id), |record: Option<ChangeRecord>| {
            Ok(match record {
                Some(mut record) => {
                    alter(&mut record);
                    (Some(record), ())
                }
                None => (None, ()),
            })
        })
    }
}

/// Hex of fixed width, so that keys are in the order of numbers.
fn key(id: ChangeId) -> String {
    format!("change/{:016x}", id.0)
}
