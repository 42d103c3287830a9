//! What was decided: typed records over a [`ControlStore`], and a picture of them in memory.
//!
//! ```text
//! order ──> State::add_export … ──commit──> ControlStore ──watch──> View ──> exported_to, admit, permits …
//! ```
//! Who may see what is asked with every chunk, so it is answered from memory ([`view`]), which follows the store. Whoever
//! changes something through `State` sees it in the view when the change is answered. Jobs and change-overs are read
//! from the store, one at a time. Keys and values: `docs/control-state.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::message::Unix;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::contract::{Change, ControlError, ControlStore, Entry, Expect, Revision};
use super::ids::Ids;
use super::observations::Observations;

pub mod api_tokens;
pub mod changes;
pub mod exports;
pub mod generations;
pub mod groups;
pub mod hosts;
pub mod jobs;
mod keys;
pub mod policies;
mod records;
mod refusal;
pub mod repositories;
pub mod rollouts;
pub mod targets;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod turns;
mod view;

pub(super) use generations::GenerationHead;
pub use keys::Key;
pub(super) use records::{check, decode as decode_value, encode, is_whole};
use view::View;

/// The records of everything that was decided, and what was observed.
pub struct State {
    store: Arc<dyn ControlStore>,
    observations: Arc<dyn Observations>,
    view: Arc<View>,
    follower: tokio::task::JoinHandle<()>,
    ids: Ids,
}

impl State {
    /// Reads everything once, and follows the store from then on. Records that cannot be read are passed over; see
    /// [`State::damaged`].
    ///
    /// # Errors
    /// The control store failed.
    pub async fn open(
        store: Arc<dyn ControlStore>,
        observations: Arc<dyn Observations>,
    ) -> Result<Self, ControlError> {
        let view = Arc::new(View::default());
        let last = view.load(store.as_ref()).await?;
        let follower = tokio::spawn(view::follow(Arc::clone(&view), Arc::clone(&store)));
        Ok(Self { store, observations, view, follower, ids: Ids::after(last) })
    }

    /// What hosts report: status, steps, progress and evidence, bounded by host.
    pub fn observations(&self) -> &Arc<dyn Observations> {
        &self.observations
    }

    /// The records that cannot be read, by key, and why not.
    pub fn damaged(&self) -> BTreeMap<String, String> {
        self.view.read().damaged.clone()
    }

    fn is_damaged(&self, key: &Key) -> bool {
        self.view.read().damaged.contains_key(&key.to_string())
    }

    /// Removes a record that cannot be read.
    ///
    /// # Errors
    /// The control state failed. `false`: there is no such damaged record; one that can be read is never removed so.
    pub async fn remove_damaged(&self, key: &str) -> Result<bool, ControlError> {
        let found = self.store.get(key).await?;
        let Some(found) = found.filter(|_| self.view.read().damaged.contains_key(key)) else { return Ok(false) };
        // It may have been written anew, and well, a moment ago.
        let revision = self.store.commit(vec![Change::delete(key, Expect::At(found.changed))]).await?;
        self.view.reached(revision).await?;
        Ok(true)
    }

    /// The time of an order that takes the place of all that were given: later than they, also where the clock was set
    /// back since.
    pub(crate) fn ordered_after_all(&self, now: Unix) -> Unix {
        self.ids.ordered_after_all(now)
    }

    fn draw(&self, now: Unix) -> Result<u64, ControlError> {
        self.ids.draw(now).map_err(|error| ControlError::Random(error.to_string()))
    }

    /// Commits, and waits until the view shows it, if that shows such records.
    async fn commit(&self, changes: Vec<Change>) -> Result<Revision, ControlError> {
        let shown = changes.iter().any(|change| view::shows(&change.key));
        let revision = self.store.commit(changes).await?;
        if shown {
            self.view.reached(revision).await?;
        }
        Ok(revision)
    }

    /// Deletes keys, in as many commits as that takes.
    async fn delete_all(&self, keys: Vec<String>) -> Result<(), ControlError> {
        for keys in keys.chunks(super::contract::CHANGES_MAX) {
            self.commit(keys.iter().map(|key| Change::delete(key, Expect::Any)).collect()).await?;
        }
        Ok(())
    }

    async fn read<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<(T, Revision)>, ControlError> {
        let Some(found) = self.store.get(&key.to_string()).await? else { return Ok(None) };
        Ok(Some((decode(&found)?, found.changed)))
    }

    /// Every record with a prefix that can be read.
    async fn read_all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(Key, T)>, ControlError> {
        let (entries, _) = super::contract::list_all(self.store.as_ref(), prefix).await?;
        let readable = entries.iter().filter_map(|entry| Some((Key::parse(&entry.key)?, decode(entry).ok()?)));
        Ok(readable.collect())
    }

    /// Changes one record, starting over when someone else changed it meanwhile. `change` gets `None` when there is
    /// none yet; returning `None` leaves everything as it is.
    async fn update<T, R, E>(
        &self,
        key: &Key,
        mut change: impl FnMut(Option<T>) -> Result<(Option<T>, R), E> + Send,
    ) -> Result<R, E>
    where
        T: Serialize + DeserializeOwned + Send,
        R: Send,
        E: From<ControlError>,
    {
        let name = key.to_string();
        loop {
            let found = self.read::<T>(key).await?;
            let expect = found.as_ref().map_or(Expect::Absent, |(_, changed)| Expect::At(*changed));
            let (value, result) = change(found.map(|(value, _)| value))?;
            let Some(value) = value else { return Ok(result) };
            match self.commit(vec![Change::put(name.clone(), expect, encode(&name, &value)?)]).await {
                Ok(_) => return Ok(result),
                Err(ControlError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, ControlError> {
    let damaged =
        |fault: records::ValueFault| ControlError::Damaged { key: entry.key.clone(), reason: fault.to_string() };
    records::decode(&entry.key, &entry.value).map_err(damaged)
}
