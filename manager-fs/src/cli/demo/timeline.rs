//! What the demo did, step by step: printed as it happens, or gathered into one JSON document.

use std::time::Instant;

use proto::width;
use serde_json::{Value, json};

use crate::cli::out::say;

/// One finished step.
struct Entry {
    at_ms: u64,
    duration_ms: u64,
    title: &'static str,
    detail: String,
    fetched_bytes: Option<u64>,
}

/// The steps so far.
pub(super) struct Timeline {
    began: Instant,
    entries: Vec<Entry>,
    json: bool,
}

impl Timeline {
    /// With `json`, nothing is printed before [`Timeline::document`].
    pub(super) fn new(json: bool) -> Self {
        if !json {
            say!("{:>8}  {:>8}  {:>9}  step", "at", "took", "fetched");
        }
        Self { began: Instant::now(), entries: Vec::new(), json }
    }

    /// Notes a step that began at `since` and has been checked. `fetched_bytes` is what came over the network for it.
    pub(super) fn done(&mut self, since: Instant, title: &'static str, detail: String, fetched_bytes: Option<u64>) {
        let entry = Entry {
            at_ms: width::millis(since - self.began),
            duration_ms: width::millis(since.elapsed()),
            title,
            detail,
            fetched_bytes,
        };
        if !self.json {
            let fetched = entry.fetched_bytes.map_or_else(|| "-".to_owned(), megabytes);
            say!("{:>6.1} s  {:>8}  {fetched:>9}  {title}", entry.at_ms as f64 / 1e3, took(entry.duration_ms));
            for line in entry.detail.lines() {
                say!("{:>33}{line}", "");
            }
        }
        self.entries.push(entry);
    }

    /// The whole run as one document.
    pub(super) fn document(&self, failure: Option<&str>) -> Value {
        let steps: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "step": entry.title,
                    "at_ms": entry.at_ms,
                    "duration_ms": entry.duration_ms,
                    "fetched_bytes": entry.fetched_bytes,
                    "detail": entry.detail,
                })
            })
            .collect();
        json!({
            "ok": failure.is_none(),
            "failure": failure,
            "duration_ms": width::millis(self.began.elapsed()),
            "steps": steps,
        })
    }
}

/// Bytes for people: `12.3 MB`.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn took(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{:.1} s", ms as f64 / 1e3) }
}
