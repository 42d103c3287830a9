//! What hosts should run, until they do: whoever comes back, or comes to a group, is told what was ordered meanwhile.
//!
//! A target is an order, not a state that is enforced: it is given once, when the host is there and has not been ordered
//! anything since, and after that the host's own ways (a return, a rescue) stand.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::message::Unix;
use proto::name::Target;
use proto::{GroupName, HostName, Product, TreeId};
use tokio::sync::broadcast::error::RecvError;

use super::connections::Connections;
use super::control::changes::{ChangeOrder, ChangeRecord};
use super::control::targets::Wanted;
use super::control::{ControlError, State};
use super::hours::Hours;
use super::news::{News, NewsBoard};
use super::now;
use super::upgrade::{Manner, Told, Upgrades};
use crate::sync::lock;

/// How long a host that has just come may take to report what it has done while it was away.
const REPORTS_COME: Duration = Duration::from_secs(2);

/// How often it is looked whether the hours of a target have begun.
const LOOK_FOR_HOURS: Duration = Duration::from_secs(10);

/// Over how long hosts that waited for the same hours are told, milliseconds.
const SPREAD_MS: u64 = 600_000;

/// Delivers what was ordered while a host was away.
pub(crate) struct Targets {
    state: Arc<State>,
    connections: Arc<Connections>,
    news: Arc<NewsBoard>,
    upgrades: Arc<Upgrades>,
    /// Hosts whose turn somebody else decides: rollouts.
    claimed: Mutex<HashMap<Product, HashSet<HostName>>>,
}

impl Targets {
    pub(crate) fn new(
        state: Arc<State>,
        connections: Arc<Connections>,
        news: Arc<NewsBoard>,
        upgrades: Arc<Upgrades>,
    ) -> Self {
        Self { state, connections, news, upgrades, claimed: Mutex::default() }
    }

    /// Tells hosts as they come, until it is aborted.
    pub(crate) async fn deliver(self: Arc<Self>) {
        let mut news = self.news.of_all();
        let mut look = tokio::time::interval(LOOK_FOR_HOURS);
        loop {
            tokio::select! {
                news = news.recv() => match news {
                    Ok((host, News::Connected)) => self.came(&host),
                    Ok((host, News::Agents)) => self.consider(&host),
                    Ok(_) => {}
                    // Nobody knows who was missed.
                    Err(RecvError::Lagged(_)) => self.state.hosts().iter().for_each(|(host, _)| self.came(host)),
                    Err(RecvError::Closed) => return,
                },
                _ = look.tick() => self.hours_begin(),
            }
        }
    }

    /// Hosts whose targets have hours may be told by now.
    fn hours_begin(self: &Arc<Self>) {
        if self.state.has_target_with_hours() {
            self.state.hosts().iter().for_each(|(host, _)| self.consider(host));
        }
    }

    /// Hosts have come to a group: what it runs is what they should run from now on.
    ///
    /// # Errors
    /// The control state failed.
    pub(crate) async fn joined(self: &Arc<Self>, group: &GroupName, hosts: &[HostName]) -> Result<(), ControlError> {
        let to: Vec<Target> = hosts.iter().cloned().map(Target::Host).collect();
        for (product, wanted) in self.state.targets_of(&Target::Group(group.clone())) {
            let set = self.state.ordered_after_all(now());
            self.state.set_targets(&product, &to, &Wanted { set, ..wanted }).await?;
        }
        hosts.iter().for_each(|host| self.consider(host));
        Ok(())
    }

    /// From now on these hosts are told of this product by somebody else; an empty set gives them back.
    pub(crate) fn claim(self: &Arc<Self>, product: &Product, hosts: HashSet<HostName>) {
        let before = lock(&self.claimed).insert(product.clone(), hosts).unwrap_or_default();
        before.iter().for_each(|host| self.consider(host));
    }

    /// A host has come: what it may not have heard is said again.
    fn came(self: &Arc<Self>, host: &HostName) {
        self.consider(host);
        let open = |wanted: &(Product, Wanted)| self.open_change(host, &wanted.0, &wanted.1).is_some();
        if !self.state.wanted_of(host).iter().any(open) {
            return;
        }
        let (targets, host) = (Arc::clone(self), host.clone());
        tokio::spawn(async move {
            // It reports first what it has done meanwhile.
            tokio::time::sleep(REPORTS_COME).await;
            targets.say_again(&host).await;
        });
    }

    async fn say_again(&self, host: &HostName) {
        for (product, wanted) in self.state.wanted_of(host) {
            let open = self.open_change(host, &product, &wanted).filter(|_| !self.is_claimed(host, &product));
            let (Some(change), Some(_turn)) = (open, self.upgrades.telling.begin(host, &product)) else { continue };
            let Some(generation) = self.state.generation_of(&product, &wanted.version, &change.order.to) else {
                continue;
            };
            let told = self.upgrades.tell_again(&change, &generation, &manner(&wanted)).await;
            tracing::info!(%host, generation = generation.record.name(), ?told, "an order once more");
        }
    }

    /// Looks whether there is something new to tell a host.
    pub(crate) fn consider(self: &Arc<Self>, host: &HostName) {
        for (product, wanted) in self.state.wanted_of(host) {
            // Something was ordered since: it was carried out, or refused, or goes on.
            let ordered = self.state.last_change(host, &product).is_some_and(|last| last.ordered >= wanted.set);
            if ordered || self.is_claimed(host, &product) || self.connections.control_link(host).is_none() {
                continue;
            }
            if wanted.hours.as_ref().is_some_and(|hours| !may_be_told(host, hours, now())) {
                continue;
            }
            let Some(turn) = self.upgrades.telling.begin(host, &product) else { continue };
            let (targets, host) = (Arc::clone(self), host.clone());
            tokio::spawn(async move {
                if let Err(error) = targets.order(&host, &product, &wanted).await {
                    tracing::error!(%host, %product, %error, "what was ordered is not told yet");
                }
                drop(turn);
            });
        }
    }

    fn is_claimed(&self, host: &HostName, product: &Product) -> bool {
        lock(&self.claimed).get(product).is_some_and(|hosts| hosts.contains(host))
    }

    /// The change-over to what is wanted that was ordered and is not over.
    fn open_change(&self, host: &HostName, product: &Product, wanted: &Wanted) -> Option<ChangeRecord> {
        let last = self.state.last_change(host, product)?;
        let own = last.order.version == wanted.version;
        (last.ordered >= wanted.set && last.ended.is_none() && own).then_some(last)
    }

    async fn order(&self, host: &HostName, product: &Product, wanted: &Wanted) -> Result<(), ControlError> {
        let own = self.upgrades.exports.generation_for(host, product, &wanted.version);
        let Some(generation) = own else { return Ok(()) };
        let tree = generation.record.tree;
        if !self.may_be_due(host, product, wanted, tree).await? {
            return Ok(());
        }
        let (product, version) = (product.clone(), wanted.version.clone());
        let order = ChangeOrder { host: host.clone(), product, version, to: tree };
        let Some(change) = self.state.add_changes(vec![order], now()).await?.pop() else { return Ok(()) };
        let told = self.upgrades.tell_first(&change, &generation, &manner(wanted)).await;
        tracing::info!(%host, generation = generation.record.name(), ?told, "what was ordered meanwhile");
        if matches!(told, Told::Accepted) {
            self.news.tell(host, News::Ordered);
        }
        Ok(())
    }

    /// Whether it has an agent of the product that runs something else, as far as it is known: one that was never
    /// launched is told when it is.
    async fn may_be_due(
        &self,
        host: &HostName,
        product: &Product,
        wanted: &Wanted,
        tree: TreeId,
    ) -> Result<bool, ControlError> {
        let status = self.state.observations().status(host).await?;
        let agent = status.agents.iter().find(|agent| agent.product == *product && agent.takes_orders());
        Ok(agent.is_some_and(|agent| agent.tree != tree || agent.version != wanted.version))
    }
}

/// Whether a target's hours have come for a host. Those that waited for the same hours are not told all at once: each has a
/// moment of its own in the beginning of them, the same on every day.
fn may_be_told(host: &HostName, hours: &Hours, at: Unix) -> bool {
    let Some(since) = hours.open_since(at) else { return false };
    let [a, b, c, d, ..] = *blake3::hash(host.as_str().as_bytes()).as_bytes();
    let own = u64::from(u32::from_le_bytes([a, b, c, d])) % SPREAD_MS;
    // Hours that are over by then have no moment of its own for it.
    at.saturating_sub(since) >= own || hours.open_since(since.saturating_add(own)) != Some(since)
}

fn manner(wanted: &Wanted) -> Manner {
    Manner { lazy: wanted.lazy, drain_deadline_ms: wanted.drain_deadline_ms, retry_bad: false }
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
