//! Targets: what a host, or every host of a group, should run of a product. The last order counts: of the targets that
//! mean a host the one that was set last, and that only until the host was ordered something else.

use proto::message::Unix;
use proto::name::Target;
use proto::{HostName, Product, TreeId, Version};
use serde::{Deserialize, Serialize};

use super::super::contract::{CHANGES_MAX, Change, ControlError, Expect};
use super::jobs::Later;
use super::{Key, State, encode};
use crate::manager::hours::Hours;

/// What should run, since when, and how a host comes there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The version's name, for people.
    pub version: Version,
    /// The tree that should run: what counts, whatever the name leads to by then.
    pub tree: TreeId,
    /// When it was ordered; hosts that were ordered something at this time or later are not meant.
    pub set: Unix,
    /// Change over before every object is local.
    pub lazy: bool,
    /// How long operations may take to finish, milliseconds; `None`: what the generation says.
    pub drain_deadline_ms: Option<u64>,
    /// When hosts are told; `None`: as soon as they are there. Stands behind the rest in the record (`StoredTarget`).
    #[serde(skip)]
    pub hours: Option<Hours>,
}

/// What stands under the key of a target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::manager::control) struct StoredTarget {
    wanted: Wanted,
    hours: Later<Hours>,
}

impl StoredTarget {
    fn of(wanted: &Wanted) -> Self {
        Self { wanted: wanted.clone(), hours: Later(wanted.hours.clone()) }
    }

    /// What is wanted, with its hours.
    pub(super) fn wanted(self) -> Wanted {
        Wanted { hours: self.hours.0, ..self.wanted }
    }
}

impl State {
    /// Sets what these should run.
    ///
    /// # Errors
    /// The control state failed; some may be set then.
    pub async fn set_targets(&self, product: &Product, to: &[Target], wanted: &Wanted) -> Result<(), ControlError> {
        let mut keys: Vec<String> = to.iter().map(|target| target_key(product, target)).collect();
        keys.sort();
        keys.dedup();
        for keys in keys.chunks(CHANGES_MAX) {
            let stored = StoredTarget::of(wanted);
            let put = |key: &String| Ok(Change::put(key, Expect::Any, encode(key, &stored)?));
            self.commit(keys.iter().map(put).collect::<Result<_, ControlError>>()?).await?;
        }
        Ok(())
    }

    /// Forgets what these should run.
    ///
    /// # Errors
    /// The control state failed.
    pub async fn clear_targets(&self, product: &Product, of: &[Target]) -> Result<(), ControlError> {
        let there = of.iter().filter(|target| self.target(product, target).is_some());
        self.delete_all(there.map(|target| target_key(product, target)).collect()).await
    }

    /// What was set of exactly this host or group.
    pub fn target(&self, product: &Product, of: &Target) -> Option<Wanted> {
        self.view.read().targets.get(product)?.get(of).cloned()
    }

    /// What a host should run of each product, by itself or by its groups: of several the one that was set last.
    pub fn wanted_of(&self, host: &HostName) -> Vec<(Product, Wanted)> {
        let tables = self.view.read();
        let groups = tables.groups_of(host).into_iter().map(Target::Group);
        let meant: Vec<Target> = groups.chain([Target::Host(host.clone())]).collect();
        let newest = tables.targets.iter().filter_map(|(product, targets)| {
            let newest = meant.iter().filter_map(|target| targets.get(target)).max_by_key(|wanted| wanted.set)?;
            Some((product.clone(), newest.clone()))
        });
        newest.collect()
    }

    /// Whether any target is told at certain hours only.
    pub fn has_target_with_hours(&self) -> bool {
        self.view.read().targets.values().flat_map(|targets| targets.values()).any(|wanted| wanted.hours.is_some())
    }

    /// Everything that was set of a host or group.
    pub(super) fn keys_of_target(&self, of: &Target) -> Vec<String> {
        let tables = self.view.read();
        let set = tables.targets.iter().filter(|(_, targets)| targets.contains_key(of));
        set.map(|(product, _)| target_key(product, of)).collect()
    }

    /// The products of which something was set for exactly this host or group.
    pub fn targets_of(&self, of: &Target) -> Vec<(Product, Wanted)> {
        let tables = self.view.read();
        let set = tables.targets.iter().filter_map(|(product, targets)| Some((product, targets.get(of)?)));
        set.map(|(product, wanted)| (product.clone(), wanted.clone())).collect()
    }
}

fn target_key(product: &Product, target: &Target) -> String {
    Key::Target(product.clone(), target.clone()).to_string()
}
