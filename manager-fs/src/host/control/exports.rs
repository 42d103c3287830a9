//! What is exported to this host, as the manager says it: asked on each connection, when it changes, and when somebody
//! names something that is not known here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::limits::EXPORTS_MAX;
use proto::message::{Fault, HostRequest, ManagerReply};
use proto::{GenerationRef, SignedRecord};
use tokio::sync::MutexGuard;

use crate::clock::Clock;
use crate::host::blocking;
use crate::host::data::link::ManagerLink;
use crate::host::data::plane::DataPlane;
use crate::host::generations::Generations;
use crate::host::generations::records::{KnownRecord, RecordId, Records, Resolved};

/// How long a question to the manager that somebody waits for may take.
pub(super) const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// A command that only wants the newest state does not wait longer for it when the manager is away.
const FRESH_DEADLINE: Duration = Duration::from_secs(2);
const REFRESH_PAUSE: Duration = Duration::from_secs(5);

/// The manager's list of exports, and what follows from a change of it.
pub(crate) struct Exports {
    manager: Arc<ManagerLink>,
    records: Arc<Records>,
    data: Arc<DataPlane>,
    generations: Arc<Generations>,
    refreshing: tokio::sync::Mutex<()>,
    /// Of the newest list so far.
    number: AtomicU64,
}

impl Exports {
    /// Nothing is asked yet.
    pub(crate) fn new(
        manager: Arc<ManagerLink>,
        records: Arc<Records>,
        data: Arc<DataPlane>,
        generations: Arc<Generations>,
    ) -> Self {
        Self {
            manager,
            records,
            data,
            generations,
            refreshing: tokio::sync::Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// What a reference means; when it means nothing here, the manager is asked whether that has changed. It may have changed,
    /// and been heard of, while this waited for its turn or for the answer: so it is looked up again before and after asking.
    pub(crate) async fn resolve(&self, reference: &GenerationRef) -> Result<Resolved, Fault> {
        let find = || {
            let (generations, reference) = (Arc::clone(&self.generations), reference.clone());
            blocking(move || generations.resolve(&reference))
        };
        let is_missing = |found: &Result<Resolved, Fault>| matches!(found, Err(Fault::NotFound(_)));
        let found = find().await;
        if !is_missing(&found) {
            return found;
        }
        let asked = {
            let turn = self.refreshing.lock().await;
            let found = find().await;
            if !is_missing(&found) {
                return found;
            }
            // Whoever had the turn before may have used up any time that was given before it.
            self.refresh_in_turn(&turn, self.clock().now() + FRESH_DEADLINE).await
        };
        match (find().await, asked) {
            (Err(Fault::NotFound(_)), Err(fault)) => Err(Fault::NotFound(format!(
                "this host knows no generation {reference}, and the manager could not be asked: {}",
                fault.reason()
            ))),
            (found, _) => found,
        }
    }

    /// Asks the manager what is exported now, if that does not take long.
    pub(crate) async fn refresh_soon(&self) -> Result<(), Fault> {
        self.refresh(FRESH_DEADLINE).await
    }

    /// Asks the manager what is exported now.
    ///
    /// # Errors
    /// It does not say so in this time, counted from its turn; what was known stays.
    pub(crate) async fn refresh(&self, time: Duration) -> Result<(), Fault> {
        let turn = self.refreshing.lock().await;
        self.refresh_in_turn(&turn, self.clock().now() + time).await
    }

    async fn refresh_in_turn(&self, _turn: &MutexGuard<'_, ()>, deadline: Instant) -> Result<(), Fault> {
        let (ids, sent) = self.list(deadline).await?;
        let (records, data) = (Arc::clone(&self.records), Arc::clone(&self.data));
        let changed = blocking(move || {
            let changes = records.set_list(&ids, sent);
            let changed = !changes.added.is_empty() || !changes.removed.is_empty();
            if changed {
                data.set_view(&records.all());
            }
            for (what, records) in
                [("exported to this host", &changes.added), ("no longer exported", &changes.removed)]
            {
                for known in records {
                    tracing::info!(generation = known.record.name(), tree = %known.record.tree, what);
                }
            }
            Ok(changed)
        });
        if changed.await? {
            self.generations.changed();
        }
        Ok(())
    }

    fn clock(&self) -> &Clock {
        self.manager.clock()
    }

    /// The manager's list, and the records of it that are not here. Every answer is looked through before the next is asked
    /// for, so that no more is held than one of them and what publishers have signed.
    async fn list(&self, deadline: Instant) -> Result<(Vec<RecordId>, Vec<KnownRecord>), Fault> {
        let (mut have, mut all) = (self.records.have(), Vec::new());
        let mut here: BTreeSet<_> = have.iter().copied().collect();
        loop {
            let request = HostRequest::ExportList { have: have.clone() };
            let (number, ids, records) = match self.manager.ask(&request, deadline).await? {
                ManagerReply::ExportList { number, ids, records } => (number, ids, records),
                _ => return Err(Fault::Failed("the manager answered ExportList with something else".to_owned())),
            };
            let before = self.number.fetch_max(number, Ordering::AcqRel);
            if number < before {
                return Err(Fault::Failed(format!(
                    "the manager's list of exports has the number {number}, and this host has had {before}: an older list is \
                     not taken; if the manager's state is an old copy, start this mount daemon anew"
                )));
            }
            let listed: BTreeSet<_> = ids.iter().collect();
            let mut fresh = Vec::new();
            for record in records {
                let id = SignedRecord::id_of(&record);
                if listed.contains(&id) && here.insert(id) {
                    have.push(id);
                    fresh.push(record);
                }
            }
            let is_done = fresh.is_empty() || ids.iter().all(|id| here.contains(id));
            let records = Arc::clone(&self.records);
            all.extend(blocking(move || Ok(records.believe_all(fresh))).await?);
            if is_done {
                return Ok((ids, all));
            }
            if have.len() > 2 * EXPORTS_MAX {
                return Err(Fault::Failed("the manager's list of exports has no end".to_owned()));
            }
        }
    }

    /// For ever: when there is a connection, what is exported is asked, and background work goes on.
    pub(crate) async fn follow_connection(self: Arc<Self>) {
        let mut connections = self.manager.connections();
        loop {
            if connections.wait_for(Option::is_some).await.is_err() {
                return;
            }
            connections.borrow_and_update();
            self.generations.fetchable();
            while let Err(fault) = self.refresh(ASK_DEADLINE).await {
                tracing::warn!(%fault, "the manager does not say what is exported");
                if matches!(connections.has_changed(), Ok(true) | Err(_)) {
                    break;
                }
                self.clock().sleep(REFRESH_PAUSE).await;
            }
            if connections.changed().await.is_err() {
                return;
            }
        }
    }
}
