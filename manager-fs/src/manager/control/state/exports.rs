//! To whom generations are exported: what hosts may see and fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::message::Unix;
use proto::name::Target;
use proto::{HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::generations::Generation;
use super::{Key, State, encode};

/// That a host or group may see and fetch a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The product of the generation.
    pub product: Product,
    /// Its version's name.
    pub version: Version,
    /// The host, or the group with whoever is in it.
    pub target: Target,
    /// When it was exported first.
    pub since: Unix,
}

/// Numbers of lists that one run of the manager may give: more than it lives to give.
const NUMBERS: u64 = 1 << 32;

impl State {
    /// The number from which this run of the manager numbers the lists of exports: no run before it has given one that is
    /// as large, however its clock stood. Hosts do not go behind a number that they have had.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn begin_lists(&self, now: Unix) -> Result<u64, ControlError> {
        // The first run that counts follows one that took the time of day.
        let next = |known: Option<u64>| {
            let first = known.unwrap_or_default().max(now);
            (Some(first.saturating_add(NUMBERS)), first)
        };
        match self.update::<u64, _, ControlError>(&Key::Lists, |known| Ok(next(known))).await {
            // What it said is not known: far beyond all that it can have been.
            Err(ControlError::Damaged { key, .. }) => {
                let first = after_loss(now);
                let value = encode(&key, &first.saturating_add(NUMBERS))?;
                self.commit(vec![Change::put(key, Expect::Any, value)]).await?;
                Ok(first)
            }
            first => first,
        }
    }

    /// Every export, of every generation.
    pub fn exports(&self) -> Vec<Export> {
        self.view.read().exports.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Exports a generation to targets; returns those to which it was not exported before.
    ///
    /// # Errors
    /// [`ControlError::Conflict`]: the generation was taken back meanwhile. The control state failed.
    pub async fn add_exports(
        &self,
        generation: &Generation,
        targets: &[Target],
        now: Unix,
    ) -> Result<Vec<Target>, ControlError> {
        let (product, version) = (&generation.record.product, &generation.record.version);
        let of = Key::Generation(product.clone(), version.clone()).to_string();
        let mut new = Vec::new();
        // One of each commit is the condition that the generation is still there.
        for targets in targets.chunks(CHANGES_MAX - 1) {
            let mut left: BTreeMap<String, &Target> = BTreeMap::new();
            left.extend(targets.iter().map(|target| (export_key(product, version, target), target)));
            while !left.is_empty() {
                let mut changes = vec![Change::check(&of, Expect::At(generation.changed))];
                for (key, target) in &left {
                    let (product, version) = (product.clone(), version.clone());
                    let export = Export { product, version, target: (*target).clone(), since: now };
                    changes.push(Change::put(key, Expect::Absent, encode(key, &export)?));
                }
                match self.commit(changes).await {
                    Ok(_) => {
                        new.extend(left.into_values().cloned());
                        break;
                    }
                    Err(ControlError::Conflict { key }) if key == of => return Err(ControlError::Conflict { key }),
                    // It is exported so already.
                    Err(ControlError::Conflict { key }) => drop(left.remove(&key)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(new)
    }

    /// Takes exports of a generation back; returns the targets to which it was exported.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn remove_exports(
        &self,
        product: &Product,
        version: &Version,
        targets: &[Target],
    ) -> Result<Vec<Target>, ControlError> {
        let name = (product.clone(), version.clone());
        let exported = |target: &&Target| {
            self.view.read().exports.get(*target).is_some_and(|exports| exports.contains_key(&name))
        };
        // One that is named twice is taken back once.
        let named: BTreeSet<&Target> = targets.iter().collect();
        let there: Vec<Target> = named.into_iter().filter(exported).cloned().collect();
        self.delete_all(there.iter().map(|target| export_key(product, version, target)).collect()).await?;
        Ok(there)
    }

    /// What is exported to a host, by itself or by its groups; by product, then by the order of publication.
    pub fn exported_to(&self, host: &HostName) -> Vec<Arc<Generation>> {
        let tables = self.view.read();
        let mut found = BTreeMap::new();
        tables.for_each_exported(host, |generation| {
            let record = &generation.record;
            let place = (record.product.clone(), record.sequence, record.version.clone());
            found.insert(place, Arc::clone(generation));
        });
        found.into_values().collect()
    }

    /// Whether a tree is exported to a host. Asked with every chunk.
    pub fn permits(&self, host: &HostName, tree: &TreeId) -> bool {
        let mut permitted = false;
        self.view.read().for_each_exported(host, |generation| permitted |= generation.record.tree == *tree);
        permitted
    }
}

/// A number of a list that none can have reached when it is not known which were given: a run takes [`NUMBERS`] at least
/// and lasts some seconds, and this grows by as many in four.
pub(in crate::manager::control) fn after_loss(now: Unix) -> u64 {
    now.saturating_mul(1 << 20)
}

fn export_key(product: &Product, version: &Version, target: &Target) -> String {
    Key::Export(product.clone(), version.clone(), target.clone()).to_string()
}
