//! What monitoring is told of a host. Like `status`: counters and short locks, nothing that waits.

use std::sync::Arc;

use serde_json::Value;

use super::daemon::Daemon;
use crate::metrics::http::Monitored;
use crate::metrics::{Page, word};
use crate::net::BoxFuture;

impl Monitored for Daemon {
    fn page(self: Arc<Self>) -> BoxFuture<String> {
        Box::pin(async move {
            let mut page = Page::new("host");
            control(&self, &mut page);
            data(&self, &mut page);
            generations(&self, &mut page);
            page.text()
        })
    }

    /// A host without its manager still starts and runs what it has: it is ready as soon as it answers.
    fn not_ready(&self) -> Option<String> {
        None
    }
}

fn control(daemon: &Daemon, page: &mut Page) {
    let facts = daemon.manager.facts();
    let connected = u64::from(facts.connected_since.is_some());
    page.gauge("manager_connected", "Whether this host is connected to its manager", [([], connected)]);
    let waiting = daemon.relay.waiting_reports() as u64;
    page.gauge("reports_waiting", "Reports that the manager has not taken yet", [([], waiting)]);
    page.gauge(
        "agents",
        "Agents of this host, by what they run and do",
        daemon.relay.agents().into_iter().map(|agent| {
            let labels = [
                ("product", agent.product.to_string()),
                ("version", agent.version.to_string()),
                ("state", word(&agent.state)),
            ];
            (labels, 1)
        }),
    );
    let steps = daemon.relay.step_seconds();
    page.durations("change_over_step_seconds", "How long a step of a change-over took", steps);
}

fn data(daemon: &Daemon, page: &mut Page) {
    let facts = daemon.data.facts();
    let requests = facts.fuse_requests.into_iter();
    page.counter(
        "fuse_requests",
        "Requests of the kernel, by opcode",
        requests.map(|(opcode, count)| ([("opcode", opcode)], count)),
    );
    page.durations(
        "fetch_wait_seconds",
        "How long reads of what was not here waited for the network, by how they ended",
        daemon.data.objects().fetcher().waits(),
    );
    // One list in the fetcher is `status`, these counters and their documentation.
    page.counter(
        "fetch",
        "What was fetched, by what is counted: see `fetch` of `status --json`",
        numbers(&facts.fetch).map(|(what, count)| ([("what", what.clone())], count)),
    );
    page.gauge(
        "cache_bytes",
        "Bytes in the cache: whole objects, parts of objects, and the quota (absent without one)",
        [("local_bytes", "whole"), ("partial_bytes", "partial"), ("quota_bytes", "quota")]
            .into_iter()
            .filter_map(|(key, kind)| Some(([("kind", kind.to_owned())], facts.cache[key].as_u64()?))),
    );
    let number = |key: &str| facts.cache[key].as_u64().unwrap_or(0);
    page.gauge("cache_objects", "Whole objects in the cache", [([], number("objects"))]);
    page.counter("cache_evicted_objects", "Objects that made room for others", [([], number("evicted_objects"))]);
    let streaming = u64::from(facts.cache["streaming"].as_bool().unwrap_or(false));
    page.gauge("cache_streaming", "1 while the disk takes nothing and reads go past the cache", [([], streaming)]);
}

fn numbers(counts: &Value) -> impl Iterator<Item = (&String, u64)> {
    counts.as_object().into_iter().flatten().filter_map(|(name, count)| Some((name, count.as_u64()?)))
}

fn generations(daemon: &Daemon, page: &mut Page) {
    let exported = daemon.records.all().len() as u64;
    let (mounted, attached) = (daemon.generations.live().len(), daemon.generations.leases.attached().len());
    let state = |state: &str| [("state", state.to_owned())];
    page.gauge(
        "generations",
        "Generations that are exported to this host, mounted on it, attached by a command",
        [(state("exported"), exported), (state("mounted"), mounted as u64), (state("attached"), attached as u64)],
    );
}
