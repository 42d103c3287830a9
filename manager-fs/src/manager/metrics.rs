//! What monitoring is told of the manager.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::ManagerError;
use super::now;
use super::rollout::machine::vocabulary::State;
use super::whole::Manager;
use super::worker::command;
use crate::metrics::http::Monitored;
use crate::metrics::{Page, word};
use crate::net::BoxFuture;

impl Monitored for Manager {
    fn page(self: Arc<Self>) -> BoxFuture<String> {
        Box::pin(async move {
            let mut page = Page::new("manager");
            happened(&self, &mut page);
            // A part that cannot be read now is missing from the page, and the rest is there.
            for fault in [hosts(&self, &mut page).await, work(&self, &mut page).await, store(&self, &mut page).await]
            {
                if let Err(error) = fault {
                    tracing::warn!(%error, "a part of the metrics is missing");
                }
            }
            page.text()
        })
    }

    fn not_ready(&self) -> Option<String> {
        match self.address() {
            Some(_) => None,
            None => Some("it does not listen for hosts yet".to_owned()),
        }
    }
}

/// What was counted where it happened.
fn happened(manager: &Manager, page: &mut Page) {
    let tally = &manager.tally;
    page.counters("requests", "Requests of hosts that were answered or refused", &tally.requests);
    page.durations(
        "request_seconds",
        "From a request to the end of its answer, sending included",
        &tally.request_seconds,
    );
    page.durations(
        "change_over_step_seconds",
        "How long a step of a change-over took on its host",
        &tally.step_seconds,
    );
    page.counters("change_overs", "Change-overs that are over, by how", &tally.change_overs);
    page.counters("jobs_ended", "Storage operations that are over, by how", &tally.jobs_ended);
    page.counter("wrong_hashes", "Reports of hosts that bytes had a wrong hash", [([], tally.wrong_hashes.get())]);
    let (decisions, observations) = manager.synced();
    page.counter(
        "commits",
        "Commits that were synced to the disk",
        [([("store", "decisions".to_owned())], decisions), ([("store", "observations".to_owned())], observations)],
    );
    page.gauge(
        "damaged_records",
        "Records that cannot be read and are set aside",
        [([], manager.state.damaged().len() as u64)],
    );
}

async fn hosts(manager: &Manager, page: &mut Page) -> Result<(), ManagerError> {
    let mut by_state = BTreeMap::from([("connected", 0), ("away", 0), ("revoked", 0)]);
    let mut expired = 0;
    for (host, record) in manager.state.hosts() {
        let state = match (record.revoked, manager.connections.connected_since(&host)) {
            (Some(_), _) => "revoked",
            (None, Some(_)) => "connected",
            (None, None) => "away",
        };
        *by_state.entry(state).or_insert(0) += 1;
        if record.revoked.is_none() && record.newest_certificate_ends().is_some_and(|ends| ends < now()) {
            expired += 1;
        }
    }
    page.gauge("hosts", "Hosts by state", by_state.into_iter().map(|(state, n)| ([("state", state.to_owned())], n)));
    page.gauge(
        "hosts_certificate_expired",
        "Hosts that are not revoked and whose certificate is over",
        [([], expired)],
    );
    let mut agents: BTreeMap<(String, String), u64> = BTreeMap::new();
    for status in manager.state.observations().statuses().await?.values() {
        for agent in &status.agents {
            // What hosts invent is no label: only what was published here has a name of its own.
            let known = manager.state.generation(&agent.product, &agent.version).is_some();
            let (product, version) = (agent.product.to_string(), agent.version.to_string());
            let of = if known { (product, version) } else { ("other".to_owned(), "other".to_owned()) };
            *agents.entry(of).or_default() += 1;
        }
    }
    page.gauge(
        "agents",
        "Agents by what they run, as their hosts last said",
        agents.into_iter().map(|((product, version), n)| ([("product", product), ("version", version)], n)),
    );
    Ok(())
}

async fn work(manager: &Manager, page: &mut Page) -> Result<(), ManagerError> {
    let mut jobs = BTreeMap::from([("queued".to_owned(), 0), ("running".to_owned(), 0)]);
    for job in manager.state.open_jobs().await? {
        *jobs.entry(word(&job.state)).or_insert(0) += 1;
    }
    page.gauge(
        "jobs",
        "Storage operations that are not over",
        jobs.into_iter().map(|(state, n)| ([("state", state)], n)),
    );
    let mut states: BTreeMap<String, u64> = State::ALL.iter().map(|state| (word(state), 0)).collect();
    let mut failed = BTreeMap::<(String, String), u64>::new();
    for rollout in manager.rollouts.all().await.map_err(ManagerError::from)? {
        *states.entry(word(&rollout.state)).or_default() += 1;
        if rollout.state.is_live() || rollout.state == State::Halted {
            let of = (rollout.product.to_string(), rollout.version.to_string());
            *failed.entry(of).or_default() +=
                rollout.problems.iter().map(|group| u64::from(group.count)).sum::<u64>();
        }
    }
    page.gauge("rollouts", "Rollouts by state", states.into_iter().map(|(state, n)| ([("state", state)], n)));
    page.gauge(
        "rollout_hosts_failed",
        "Hosts of a rollout that is under way that are not as ordered, the budget's other side",
        failed.into_iter().map(|((product, version), n)| ([("product", product), ("version", version)], n)),
    );
    Ok(())
}

async fn store(manager: &Manager, page: &mut Page) -> Result<(), ManagerError> {
    page.gauge("generations", "Generations that are published", [([], manager.state.generations().len() as u64)]);
    let store = Arc::clone(&manager.store);
    let usage = command(move || store.usage().map_err(ManagerError::from)).await?;
    let kind = |kind: &str| [("kind", kind.to_owned())];
    page.gauge(
        "store_blobs",
        "Files of the store by kind",
        [
            (kind("pack"), usage.packs),
            (kind("manifest"), usage.manifests),
            (kind("delta"), usage.deltas),
            (kind("bundle"), usage.bundles),
        ],
    );
    page.gauge(
        "store_bytes",
        "Bytes of the store by kind",
        [
            (kind("pack"), usage.pack_bytes),
            (kind("manifest"), usage.manifest_bytes),
            (kind("delta"), usage.delta_bytes),
            (kind("bundle"), usage.bundle_bytes),
        ],
    );
    Ok(())
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
