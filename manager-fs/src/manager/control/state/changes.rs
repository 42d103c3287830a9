//! Change-overs: that each was ordered, and how it ended. Its steps are observations.

use std::collections::BTreeMap;

use proto::agent::{ChangeId, StepEvent};
use proto::message::Unix;
use proto::{HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::super::observations::cut;
use super::{Key, State, encode};

/// Change-overs remembered. Older ones that are over are forgotten, so that the state does not grow for ever.
const CHANGES_KEPT: usize = 10_000;
/// Bytes of the reason for an end; the evidence of a failed version is up to 16 KiB.
const REASON_BYTES: usize = 20 << 10;
/// Bytes of it that are kept in memory.
const SHORT_REASON_BYTES: usize = 1 << 10;

/// An order for a change-over of one agent on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeOrder {
    /// The host whose agent changes over.
    pub host: HostName,
    /// The product whose agent changes over.
    pub product: Product,
    /// The version's name, for people.
    pub version: Version,
    /// The tree that it shall run.
    pub to: TreeId,
}

/// One change-over of one agent on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    /// The number that all reports on it bear.
    pub id: ChangeId,
    /// Who shall run what.
    pub order: ChangeOrder,
    /// When it was ordered.
    pub ordered: Unix,
    /// How it ended; `None` while nobody has said so.
    pub ended: Option<ChangeEnd>,
}

/// How a change-over ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeEnd {
    /// Whether the new version is confirmed.
    pub confirmed: bool,
    /// When it was said, by the manager's clock.
    pub at: Unix,
    /// Why, when it is not.
    pub reason: String,
    /// Who says so: an agent's word replaces the manager's.
    pub by: EndedBy,
}

/// Who says how something ended. What an agent says replaces what the manager thought, never the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndedBy {
    /// The manager, which had no answer.
    Manager,
    /// The agent itself, by its report.
    Agent,
}

/// What stands under the key of a change-over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::manager::control) struct StoredChange {
    pub(in crate::manager::control) host: HostName,
    pub(in crate::manager::control) product: Product,
    pub(in crate::manager::control) version: Version,
    pub(in crate::manager::control) to: TreeId,
    pub(in crate::manager::control) ordered: Unix,
    pub(in crate::manager::control) ended: Option<ChangeEnd>,
}

impl StoredChange {
    /// As it is kept in memory: of the reason for an end only its beginning.
    pub(super) fn in_short(mut self, id: ChangeId) -> ChangeRecord {
        if let Some(end) = &mut self.ended {
            cut(&mut end.reason, SHORT_REASON_BYTES);
        }
        self.record(id)
    }

    fn record(self, id: ChangeId) -> ChangeRecord {
        let order = ChangeOrder { host: self.host, product: self.product, version: self.version, to: self.to };
        ChangeRecord { id, order, ordered: self.ordered, ended: self.ended }
    }
}

impl State {
    /// Records an order for a change-over.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn add_change(&self, order: ChangeOrder, now: Unix) -> Result<ChangeRecord, ControlError> {
        let now = self.ids.ordered(now);
        loop {
            let id = ChangeId(self.draw(now)?);
            let (key, stored) = (Key::Change(id).to_string(), stored(&order, now));
            match self.commit(vec![Change::put(&key, Expect::Absent, encode(&key, &stored)?)]).await {
                Ok(_) => return Ok(stored.record(id)),
                // Another manager drew the same number in the same second.
                Err(ControlError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Records orders for change-overs, many in one commit. Answers in the same order.
    ///
    /// # Errors
    /// The control state failed. Some of a long list may be recorded then; nobody was told of them.
    pub async fn add_changes(&self, orders: Vec<ChangeOrder>, now: Unix) -> Result<Vec<ChangeRecord>, ControlError> {
        let now = self.ids.ordered(now);
        let mut records = Vec::with_capacity(orders.len());
        for orders in orders.chunks(CHANGES_MAX) {
            records.append(&mut self.add_some_changes(orders, now).await?);
        }
        Ok(records)
    }

    async fn add_some_changes(&self, orders: &[ChangeOrder], now: Unix) -> Result<Vec<ChangeRecord>, ControlError> {
        let mut drawn = Vec::with_capacity(orders.len());
        for _ in orders {
            drawn.push(ChangeId(self.draw(now)?));
        }
        loop {
            let mut changes = Vec::with_capacity(orders.len());
            for (order, id) in orders.iter().zip(&drawn) {
                let key = Key::Change(*id).to_string();
                changes.push(Change::put(&key, Expect::Absent, encode(&key, &stored(order, now))?));
            }
            match self.commit(changes).await {
                Ok(_) => break,
                // Another manager drew the same number in the same second.
                Err(ControlError::Conflict { key }) => {
                    let met = drawn.iter_mut().filter(|id| Key::Change(**id).to_string() == key);
                    for id in met {
                        *id = ChangeId(self.draw(now)?);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let records = orders.iter().zip(drawn).map(|(order, id)| stored(order, now).record(id));
        Ok(records.collect())
    }

    /// One change-over.
    ///
    /// # Errors
    /// The control state failed, or the record is damaged.
    pub async fn change(&self, id: ChangeId) -> Result<Option<ChangeRecord>, ControlError> {
        let found = self.read::<StoredChange>(&Key::Change(id)).await?;
        Ok(found.map(|(stored, _)| stored.record(id)))
    }

    /// Every change-over that can be read, oldest first.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn changes(&self) -> Result<Vec<ChangeRecord>, ControlError> {
        let found = self.read_all::<StoredChange>("change/").await?;
        let records = found.into_iter().filter_map(|(key, stored)| match key {
            Key::Change(id) => Some(stored.record(id)),
            _ => None,
        });
        Ok(records.collect())
    }

    /// Records how a change-over ended; `false` when that is known already, or there is none of this number.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn end_change(&self, id: ChangeId, mut end: ChangeEnd) -> Result<bool, ControlError> {
        cut(&mut end.reason, REASON_BYTES);
        self.update(&Key::Change(id), |stored: Option<StoredChange>| {
            let Some(mut stored) = stored else { return Ok::<_, ControlError>((None, false)) };
            if stored.ended.as_ref().is_some_and(|known| known.by >= end.by) {
                return Ok((None, false));
            }
            stored.ended = Some(end.clone());
            Ok((Some(stored), true))
        })
        .await
    }

    /// The steps of a change-over that are still remembered, in the order of their arrival.
    ///
    /// # Errors
    /// The observations cannot be read.
    pub async fn steps_of(&self, record: &ChangeRecord) -> Result<Vec<StepEvent>, ControlError> {
        let mut steps = self.observations().steps(&record.order.host, &record.order.product).await?;
        steps.retain(|step| step.change == record.id);
        Ok(steps)
    }

    /// The last change-over that was ordered of a product on a host, with the beginning of the reason for its end.
    pub fn last_change(&self, host: &HostName, product: &Product) -> Option<ChangeRecord> {
        self.view.read().last_changes.get(host)?.get(product).cloned()
    }

    /// Forgets that a change-over was ordered of which nobody was told.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn drop_change(&self, id: ChangeId) -> Result<(), ControlError> {
        self.delete_all(vec![Key::Change(id).to_string()]).await
    }

    /// Forgets the oldest change-overs that are over, when there are many. The last of each product on each host stays:
    /// what was ordered there is known for as long as the host is.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn forget_changes(&self) -> Result<(), ControlError> {
        let all: BTreeMap<ChangeId, ChangeRecord> =
            self.changes().await?.into_iter().map(|record| (record.id, record)).collect();
        let surplus = all.len().saturating_sub(CHANGES_KEPT);
        let is_last = |record: &ChangeRecord| {
            let last = self.last_change(&record.order.host, &record.order.product);
            last.is_none_or(|last| last.id == record.id) && self.host(&record.order.host).is_some()
        };
        let over = all.values().take(surplus).filter(|record| record.ended.is_some() && !is_last(record));
        self.delete_all(over.map(|record| Key::Change(record.id).to_string()).collect()).await
    }
}

fn stored(order: &ChangeOrder, now: Unix) -> StoredChange {
    StoredChange {
        host: order.host.clone(),
        product: order.product.clone(),
        version: order.version.clone(),
        to: order.to,
        ordered: now,
        ended: None,
    }
}
