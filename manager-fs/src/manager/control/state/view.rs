//! The decisions as they are in memory: read from the control store once, then kept up by a watch.
//!
//! A lock is held over a look or a change of some maps, never over a wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use proto::agent::{ChangeId, JobId};
use proto::name::Target;
use proto::number::RolloutId;
use proto::{GroupName, HostName, Product, Version};
use tokio::sync::watch;

use super::super::contract::{ControlError, ControlStore, Entry, Events, Revision, list_all};
use super::super::ids::Last;
use super::api_tokens::ApiTokenRecord;
use super::changes::{ChangeRecord, StoredChange};
use super::exports::Export;
use super::generations::{Generation, GenerationHead};
use super::hosts::HostRecord;
use super::jobs::StoredJob;
use super::policies::PolicyRecord;
use super::repositories::{GrantRecord, RepositoryRecord};
use super::rollouts::StoredRollout;
use super::targets::{StoredTarget, Wanted};

use super::tokens::TokenRecord;
use super::turns::StoredTurn;
use super::{Key, decode};
use crate::manager::labels::{Labels, Selector, all_match};
use crate::sync::{read, write};

/// How long a change that was committed may take to be seen here.
const REACH_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before the store is asked again after it failed.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Default)]
pub(super) struct View {
    tables: RwLock<Tables>,
    reached: watch::Sender<Revision>,
}

/// What is known, by what it is asked for.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) generations: BTreeMap<(Product, Version), Arc<Generation>>,
    /// Of versions that are published for several architectures all but the first, by architecture.
    also: BTreeMap<(Product, Version), BTreeMap<String, Arc<Generation>>>,
    pub(super) exports: BTreeMap<Target, BTreeMap<(Product, Version), Export>>,
    pub(super) hosts: BTreeMap<HostName, Arc<HostRecord>>,
    pub(super) groups: BTreeSet<GroupName>,
    members: BTreeMap<GroupName, BTreeSet<HostName>>,
    groups_of: HashMap<HostName, BTreeSet<GroupName>>,
    /// Which hosts are in a group by their labels, beside those that were added to it.
    pub(super) rules: BTreeMap<GroupName, Vec<Selector>>,
    pub(super) labels: BTreeMap<HostName, Labels>,
    pub(super) targets: BTreeMap<Product, BTreeMap<Target, Wanted>>,
    /// The last change-over that was ordered of each product on each host.
    pub(super) last_changes: HashMap<HostName, BTreeMap<Product, ChangeRecord>>,
    /// The one before it, should that be dropped.
    earlier_changes: HashMap<(HostName, Product), ChangeRecord>,
    /// Of which host and product a last change-over is.
    last_ids: HashMap<ChangeId, (HostName, Product)>,
    /// Key to what is wrong with its record.
    pub(super) damaged: BTreeMap<String, String>,
}

/// A record as the view needs it.
enum Seen {
    Generation(Box<Generation>),
    Export(Export),
    Host(HostRecord),
    Group,
    Member,
    Labels(Labels),
    Rule(Vec<Selector>),
    Target(Wanted),
    Change(Box<ChangeRecord>),
    /// It can be read; nobody asks the view for it.
    Other,
}

impl View {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        read(&self.tables)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        write(&self.tables)
    }

    /// Reads everything anew; what new numbers and orders come after.
    pub(super) async fn load(&self, store: &dyn ControlStore) -> Result<Last, ControlError> {
        let (entries, revision) = list_all(store, "").await?;
        let (mut tables, mut last) = (Tables::default(), Last::default());
        for entry in &entries {
            let seen = see(store, entry).await?;
            let ordered = match &seen {
                Ok(Seen::Change(record)) => record.ordered,
                Ok(Seen::Target(wanted)) => wanted.set,
                _ => 0,
            };
            last.ordered = last.ordered.max(ordered);
            if let Some(Key::Job(JobId(number)) | Key::Change(ChangeId(number)) | Key::Rollout(RolloutId(number))) =
                Key::parse(&entry.key)
            {
                last.number = last.number.max(number);
            }
            tables.put(&entry.key, seen);
        }
        for (key, reason) in &tables.damaged {
            tracing::error!(key, reason, "a record of the control state cannot be read and is passed over");
        }
        *self.write() = tables;
        self.reached.send_replace(revision);
        Ok(last)
    }

    async fn apply(&self, store: &dyn ControlStore, events: Events) -> Result<(), ControlError> {
        for event in events.events {
            let seen = match event.value {
                Some(value) => {
                    let entry = Entry { key: event.key.clone(), value, changed: event.revision };
                    Some(see(store, &entry).await?)
                }
                None => None,
            };
            let mut tables = self.write();
            tables.remove(&event.key);
            if let (None, Some(Key::Change(id))) = (&seen, Key::parse(&event.key)) {
                tables.remove_change(id);
            }
            if let Some(seen) = seen {
                if let Err(reason) = &seen {
                    tracing::error!(key = event.key, %reason, "a record that was just written cannot be read");
                }
                tables.put(&event.key, seen);
            }
        }
        self.reached.send_replace(events.through);
        Ok(())
    }

    /// Waits until everything up to a revision is seen here.
    pub(super) async fn reached(&self, revision: Revision) -> Result<(), ControlError> {
        let mut reached = self.reached.subscribe();
        let waited = tokio::time::timeout(REACH_DEADLINE, reached.wait_for(|at| *at >= revision)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            // The sender is in `self`, so only the deadline ends the wait.
            Ok(Err(_)) | Err(_) => Err(ControlError::Storage(String::from(
                "what was committed is not seen yet; it may be in force all the same",
            ))),
        }
    }
}

/// Whether the view is asked for records of this key; others are read from the store.
pub(super) fn shows(key: &str) -> bool {
    match Key::parse(key) {
        Some(
            Key::Generation(..)
            | Key::Also(..)
            | Key::Export(..)
            | Key::Host(_)
            | Key::Group(_)
            | Key::Member(..)
            | Key::Labels(_)
            | Key::Rule(_)
            | Key::Target(..)
            | Key::Change(_),
        ) => true,
        Some(
            Key::Part(..)
            | Key::Sequence
            | Key::Lists
            | Key::Token(_)
            | Key::Job(_)
            | Key::Turn(..)
            | Key::Rollout(_)
            | Key::Policy(_)
            | Key::Repository(_)
            | Key::Grant(..)
            | Key::ApiToken(_)
            | Key::SetAside(_),
        )
        | None => false,
    }
}

/// Keeps a view up with its store, until it is aborted.
pub(super) async fn follow(view: Arc<View>, store: Arc<dyn ControlStore>) {
    let begun = || store.watch("", *view.reached.borrow());
    let mut watch = begun();
    loop {
        let applied = match watch.next().await {
            Ok(events) => view.apply(store.as_ref(), events).await,
            Err(ControlError::Compacted { .. }) => view.load(store.as_ref()).await.map(drop),
            Err(ControlError::Closed) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = applied {
            tracing::error!(%error, "the control state cannot be followed; it is tried again");
            tokio::time::sleep(AFTER_FAILURE).await;
            // What was not applied comes once more.
            watch = begun();
        }
    }
}

/// Why a record is not in the view.
#[derive(Debug, thiserror::Error)]
enum Unseen {
    #[error("it is of no kind that this program knows")]
    Kind,
    #[error("{0}")]
    Damaged(String),
    /// What was noted when it was set aside.
    #[error("{0}")]
    SetAside(String),
}

/// Reads a record; the outer error is the store's, the inner one what is wrong with the record.
async fn see(store: &dyn ControlStore, entry: &Entry) -> Result<Result<Seen, Unseen>, ControlError> {
    let Some(key) = Key::parse(&entry.key) else { return Ok(Err(Unseen::Kind)) };
    let seen = match key {
        Key::Generation(..) | Key::Also(..) => match decode::<GenerationHead>(entry) {
            Ok(head) => match Generation::read(store, &key, head, entry.changed).await {
                Ok(generation) => Ok(Seen::Generation(Box::new(generation))),
                Err(error @ ControlError::Damaged { .. }) => Err(error),
                Err(error) => return Err(error),
            },
            Err(error) => Err(error),
        },
        Key::Export(..) => decode(entry).map(Seen::Export),
        Key::Host(_) => decode(entry).map(Seen::Host),
        Key::Group(_) => decode::<()>(entry).map(|()| Seen::Group),
        Key::Member(..) => decode::<()>(entry).map(|()| Seen::Member),
        Key::Labels(_) => decode(entry).map(Seen::Labels),
        Key::Rule(_) => decode(entry).map(Seen::Rule),
        Key::Token(_) => decode::<TokenRecord>(entry).map(|_| Seen::Other),
        Key::Job(_) => decode::<StoredJob>(entry).map(|_| Seen::Other),
        Key::Turn(..) => decode::<StoredTurn>(entry).map(|_| Seen::Other),
        Key::Change(id) => decode::<StoredChange>(entry).map(|stored| Seen::Change(Box::new(stored.in_short(id)))),
        Key::Target(..) => decode::<StoredTarget>(entry).map(|stored| Seen::Target(stored.wanted())),
        Key::Rollout(_) => decode::<StoredRollout>(entry).map(|_| Seen::Other),
        Key::Policy(_) => decode::<PolicyRecord>(entry).map(|_| Seen::Other),
        Key::Repository(_) => decode::<RepositoryRecord>(entry).map(|_| Seen::Other),
        Key::Grant(..) => decode::<GrantRecord>(entry).map(|_| Seen::Other),
        Key::ApiToken(_) => decode::<ApiTokenRecord>(entry).map(|_| Seen::Other),
        Key::Sequence | Key::Lists => decode::<u64>(entry).map(|_| Seen::Other),
        Key::Part(..) => decode::<Vec<u8>>(entry).map(|_| Seen::Other),
        Key::SetAside(_) => {
            let noted = decode::<String>(entry).unwrap_or_else(|error| error.to_string());
            return Ok(Err(Unseen::SetAside(noted)));
        }
    };
    Ok(seen.map_err(|error| match error {
        ControlError::Damaged { reason, .. } => Unseen::Damaged(reason),
        other => Unseen::Damaged(other.to_string()),
    }))
}

impl Tables {
    /// What an operator says of a host.
    pub(super) fn labels_of(&self, host: &HostName) -> &Labels {
        static NONE: Labels = Labels::new();
        self.labels.get(host).unwrap_or(&NONE)
    }

    /// The groups that a host is in: to which it was added, and whose rule its labels meet.
    pub(super) fn groups_of(&self, host: &HostName) -> BTreeSet<GroupName> {
        let mut groups = self.groups_of.get(host).cloned().unwrap_or_default();
        // Whoever is in no group by a rule pays nothing for those that there are.
        if !self.rules.is_empty() {
            let labels = self.labels_of(host);
            let met = self.rules.iter().filter(|(_, rule)| all_match(rule, labels));
            groups.extend(met.map(|(group, _)| group.clone()));
        }
        groups
    }

    /// The hosts of a group: those that were added to it, enrolled or not, and the enrolled ones whose labels meet its rule.
    pub(super) fn members_of(&self, group: &GroupName) -> BTreeSet<HostName> {
        let mut hosts = self.members.get(group).cloned().unwrap_or_default();
        if let Some(rule) = self.rules.get(group) {
            let met = self.hosts.keys().filter(|host| all_match(rule, self.labels_of(host)));
            hosts.extend(met.cloned());
        }
        hosts
    }

    /// The hosts that were added to a group by name.
    pub(super) fn added_to(&self, group: &GroupName) -> BTreeSet<HostName> {
        self.members.get(group).cloned().unwrap_or_default()
    }

    /// Each generation that is exported to a host, by itself or by its groups, for whatever architecture; one may come more
    /// than once.
    pub(super) fn for_each_exported(&self, host: &HostName, mut each: impl FnMut(&Arc<Generation>)) {
        let groups = self.groups_of(host).into_iter().map(Target::Group);
        for target in groups.chain([Target::Host(host.clone())]) {
            let names = self.exports.get(&target).into_iter().flat_map(BTreeMap::keys);
            names.flat_map(|name| self.of_version(name)).for_each(&mut each);
        }
    }

    /// The generations of one version, the first in front.
    pub(super) fn of_version(&self, name: &(Product, Version)) -> impl Iterator<Item = &Arc<Generation>> {
        self.generations.get(name).into_iter().chain(self.also.get(name).into_iter().flat_map(BTreeMap::values))
    }

    pub(super) fn each_generation(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.generations.values().chain(self.also.values().flat_map(BTreeMap::values))
    }

    fn put(&mut self, text: &str, seen: Result<Seen, Unseen>) {
        let seen = match seen {
            Ok(seen) => seen,
            Err(reason) => {
                self.damaged.insert(text.to_owned(), reason.to_string());
                return;
            }
        };
        match (Key::parse(text), seen) {
            (Some(Key::Generation(product, version)), Seen::Generation(generation)) => {
                self.generations.insert((product, version), Arc::new(*generation));
            }
            (Some(Key::Also(product, version, architecture)), Seen::Generation(generation)) => {
                self.also.entry((product, version)).or_default().insert(architecture, Arc::new(*generation));
            }
            (Some(Key::Export(product, version, target)), Seen::Export(export)) => {
                self.exports.entry(target).or_default().insert((product, version), export);
            }
            (Some(Key::Host(host)), Seen::Host(record)) => {
                self.hosts.insert(host, Arc::new(record));
            }
            (Some(Key::Group(group)), Seen::Group) => {
                self.groups.insert(group);
            }
            (Some(Key::Member(group, host)), Seen::Member) => {
                self.groups_of.entry(host.clone()).or_default().insert(group.clone());
                self.members.entry(group).or_default().insert(host);
            }
            (Some(Key::Labels(host)), Seen::Labels(labels)) => {
                self.labels.insert(host, labels);
            }
            (Some(Key::Rule(group)), Seen::Rule(rule)) => {
                self.rules.insert(group, rule);
            }
            (Some(Key::Target(product, target)), Seen::Target(wanted)) => {
                self.targets.entry(product).or_default().insert(target, wanted);
            }
            (Some(Key::Change(_)), Seen::Change(record)) => self.put_change(*record),
            _ => {}
        }
    }

    /// The last order counts, in whatever order they are read.
    fn put_change(&mut self, record: ChangeRecord) {
        let (id, of) = (record.id, (record.order.host.clone(), record.order.product.clone()));
        let of_host = self.last_changes.entry(of.0.clone()).or_default();
        if of_host.get(&of.1).is_some_and(|last| last.id > id) {
            return;
        }
        if let Some(before) = of_host.insert(of.1.clone(), record).filter(|before| before.id != id) {
            self.last_ids.remove(&before.id);
            self.earlier_changes.insert(of.clone(), before);
        }
        self.last_ids.insert(id, of);
    }

    fn remove_change(&mut self, id: ChangeId) {
        let Some(of) = self.last_ids.remove(&id) else { return };
        if let Some(of_host) = self.last_changes.get_mut(&of.0) {
            of_host.remove(&of.1);
        }
        if let Some(before) = self.earlier_changes.remove(&of) {
            self.put_change(before);
        }
    }

    fn remove(&mut self, text: &str) {
        self.damaged.remove(text);
        match Key::parse(text) {
            Some(Key::Generation(product, version)) => {
                self.generations.remove(&(product, version));
            }
            Some(Key::Also(product, version, architecture)) => {
                let of = (product, version);
                if let Some(also) = self.also.get_mut(&of) {
                    also.remove(&architecture);
                    if also.is_empty() {
                        self.also.remove(&of);
                    }
                }
            }
            Some(Key::Export(product, version, target)) => {
                if let Some(exports) = self.exports.get_mut(&target) {
                    exports.remove(&(product, version));
                    if exports.is_empty() {
                        self.exports.remove(&target);
                    }
                }
            }
            Some(Key::Host(host)) => {
                self.hosts.remove(&host);
            }
            Some(Key::Group(group)) => {
                self.groups.remove(&group);
            }
            Some(Key::Member(group, host)) => {
                if let Some(members) = self.members.get_mut(&group) {
                    members.remove(&host);
                }
                if let Some(groups) = self.groups_of.get_mut(&host) {
                    groups.remove(&group);
                    if groups.is_empty() {
                        self.groups_of.remove(&host);
                    }
                }
            }
            Some(Key::Labels(host)) => {
                self.labels.remove(&host);
            }
            Some(Key::Rule(group)) => {
                self.rules.remove(&group);
            }
            Some(Key::Target(product, target)) => {
                if let Some(targets) = self.targets.get_mut(&product) {
                    targets.remove(&target);
                }
            }
            Some(
                Key::Token(_)
                | Key::Job(_)
                | Key::Turn(..)
                | Key::Change(_)
                | Key::Rollout(_)
                | Key::Policy(_)
                | Key::Repository(_)
                | Key::Grant(..)
                | Key::ApiToken(_)
                | Key::Sequence
                | Key::Lists
                | Key::Part(..)
                | Key::SetAside(_),
            )
            | None => {}
        }
    }
}
