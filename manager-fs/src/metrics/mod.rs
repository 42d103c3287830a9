//! What monitoring reads: numbers as the OpenMetrics text that Prometheus scrapes, and whether this process is up.
//!
//! A page is made when it is asked for, out of what the parts know anyway; only what happens (a step of a change-over, a
//! fetch that somebody waited for) is counted where it happens, in families that the part owns. Labels are few and
//! bounded by the code or by what an operator has published, never by hosts: a fleet's names belong in `hosts`.
//! Names and what they mean: `docs/metrics.md`, which a test compares with what is served.

pub(crate) mod http;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proto::agent::Step;

/// What every name begins with.
const PREFIX: &str = "manager_fs";

/// The labels of one sample: names and values.
pub(crate) type Labels<const N: usize> = [(&'static str, String); N];

/// Counters that are told apart by `N` labels.
pub(crate) type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// Durations in seconds, told apart by `N` labels.
pub(crate) type Durations<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Bounds of the buckets, seconds: a page fault on a fast network up to a read deadline.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Durations by the value of one label. Its values are there from the start: what appears only when it first happens
/// has no rate then, and an alert on it stays silent.
pub(crate) fn durations(label: &'static str, values: impl IntoIterator<Item = String>) -> Durations<1> {
    let family: Durations<1> = Family::new_with_constructor(|| Histogram::new(BOUNDS));
    for value in values {
        drop(family.get_or_create(&[(label, value)]));
    }
    family
}

/// Counters by the value of one label, all of them there from the start, as in [`durations`].
pub(crate) fn counters(label: &'static str, values: impl IntoIterator<Item = String>) -> Counters<1> {
    let family = Counters::<1>::default();
    for value in values {
        drop(family.get_or_create(&[(label, value)]));
    }
    family
}

/// The steps of a change-over, as values of a label.
pub(crate) fn steps() -> impl Iterator<Item = String> {
    Step::ALL.iter().map(word)
}

/// The word that JSON has for a variant, as the value of a label.
pub(crate) fn word(variant: &impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// One answer to a scrape, while it is made.
pub(crate) struct Page(Registry);

impl Page {
    /// A page with nothing but which program this is, and as what it runs.
    pub(crate) fn new(role: &'static str) -> Self {
        let mut page = Self(Registry::with_prefix(PREFIX));
        page.gauge(
            "build_info",
            "Always 1; the labels say which program runs, and as what",
            [([("version", env!("CARGO_PKG_VERSION").to_owned()), ("role", role.to_owned())], 1)],
        );
        page
    }

    /// Adds a gauge: what is so now.
    pub(crate) fn gauge<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, u64)>,
    ) {
        let family = Family::<Labels<N>, Gauge>::default();
        for (labels, value) in samples {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.0.register(name, help, family);
    }

    /// Adds a counter that somebody else keeps: what happened since this process began.
    pub(crate) fn counter<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, u64)>,
    ) {
        let family = Counters::<N>::default();
        for (labels, value) in samples {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    /// Adds counters that are kept as such.
    pub(crate) fn counters<const N: usize>(&mut self, name: &str, help: &str, family: &Counters<N>) {
        self.0.register(name, help, family.clone());
    }

    /// Adds durations; the name ends in `_seconds`.
    pub(crate) fn durations<const N: usize>(&mut self, name: &str, help: &str, family: &Durations<N>) {
        self.0.register(name, help, family.clone());
    }

    /// The text, as OpenMetrics 1.0 has it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // A `String` takes everything.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_it_was_given_as_open_metrics() {
        let mut page = Page::new("host");
        page.gauge("cache_bytes", "Bytes in the cache", [([], 7)]);
        page.counter(
            "fuse_requests",
            "Requests of the kernel",
            [([("opcode", "read".to_owned())], 3), ([("opcode", "open\"\n\\".to_owned())], u64::MAX)],
        );
        let waited = durations("result", ["arrived", "failed"].map(str::to_owned));
        waited.get_or_create(&[("result", "arrived".to_owned())]).observe(0.003);
        page.durations("fetch_seconds", "How long reads waited", &waited);
        let text = page.text();
        for line in [
            "# TYPE manager_fs_cache_bytes gauge",
            "manager_fs_cache_bytes 7",
            "# HELP manager_fs_fuse_requests Requests of the kernel.",
            "manager_fs_fuse_requests_total{opcode=\"read\"} 3",
            "manager_fs_fuse_requests_total{opcode=\"open\\\"\\n\\\\\"} 18446744073709551615",
            "manager_fs_fetch_seconds_bucket{le=\"0.0025\",result=\"arrived\"} 0",
            "manager_fs_fetch_seconds_bucket{le=\"0.005\",result=\"arrived\"} 1",
            "manager_fs_fetch_seconds_count{result=\"arrived\"} 1",
            "manager_fs_fetch_seconds_count{result=\"failed\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\nis not in\n{text}");
        }
    }
}
