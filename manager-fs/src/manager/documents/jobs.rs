//! Storage operations.

use std::collections::BTreeMap;

use proto::agent::{JobId, Operation, Outcome, Progress};
use proto::backup::BackupCounts;
use proto::look::{Found, FoundEntry, FoundSnapshot};
use proto::means::Ran;
use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::each;
use crate::manager::control::jobs::JobRecord;
use crate::metrics::word;

/// Some jobs.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct JobsDocument {
    /// The oldest of them first.
    pub(crate) jobs: Vec<JobDocument>,
    /// Whether there are older ones that are meant, too: ask for those `before` the first.
    pub(crate) more: bool,
}

impl JobsDocument {
    /// A page of them.
    pub(crate) fn of(records: &[JobRecord], more: bool) -> Self {
        Self { jobs: each(records), more }
    }
}

/// A job as it stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct JobDocument {
    /// Its number.
    #[schemars(with = "u64")]
    job: JobId,
    /// Where.
    host: String,
    /// By which agent.
    product: String,
    /// backup, restore, verify, check, prune, forget, snapshots, ls, find, diff or dump, or a program's own kind.
    operation: String,
    /// The policy that ordered it.
    policy: Option<String>,
    /// For which of its slots.
    due_unix_ms: Option<Unix>,
    /// The repository's directory on the host; null: an operation of a program's own.
    repository: Option<String>,
    /// What an operation of a program's own was given.
    arguments: BTreeMap<String, String>,
    /// queued, running, done, failed or cancelled.
    state: String,
    /// When it was ordered.
    created_unix_ms: Unix,
    /// When an agent began.
    started_unix_ms: Option<Unix>,
    /// When it was over.
    ended_unix_ms: Option<Unix>,
    /// How far it is: units and bytes, and what is being done.
    #[schemars(with = "Option<Map<String, Value>>")]
    progress: Option<Progress>,
    /// What it waits for, for people.
    waiting: Option<String>,
    /// Whether it was told to stop.
    cancel_asked: bool,
    /// Why it failed, for people.
    error: Option<String>,
    /// Ids of the snapshots that it made or read.
    snapshots: Vec<String>,
    /// Files read or written.
    files: Option<u64>,
    /// Their bytes.
    bytes: Option<u64>,
    /// Bytes that the repository grew by.
    repository_bytes: Option<u64>,
    /// Of a backup: what it found new, changed and unmodified.
    #[schemars(with = "Option<Map<String, Value>>")]
    counts: Option<BackupCounts>,
    /// The commands of the host that ran for it: command, moment, ended, output and duration_ms.
    #[schemars(with = "Vec<Map<String, Value>>")]
    ran: Vec<Ran>,
    /// What a look into a repository found.
    pub(crate) found: Vec<Value>,
    /// How much more there was.
    found_left_out: u64,
    /// Whether it was only to say what would be done.
    dry_run: bool,
    /// What an operation of a program's own has to say.
    results: BTreeMap<String, String>,
    /// What went wrong and did not end it.
    problems: Vec<String>,
    /// The versions that did it.
    versions: Vec<String>,
}

impl From<&JobRecord> for JobDocument {
    fn from(record: &JobRecord) -> Self {
        let (summary, error, results) = match &record.outcome {
            Some(
                Outcome::Done(summary)
                | Outcome::Cancelled(summary)
                | Outcome::BackedUp { summary, .. }
                | Outcome::BackedUpBy { summary, .. }
                | Outcome::Found { summary, .. },
            ) => (Some(summary), None, &[][..]),
            Some(Outcome::OwnDone(own)) => (None, None, &own.results[..]),
            Some(Outcome::Failed(error)) => (None, Some(error.clone()), &[][..]),
            None => (None, None, &[][..]),
        };
        let arguments = match &record.operation {
            Operation::Own { arguments, .. } => {
                arguments.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
            }
            _ => BTreeMap::new(),
        };
        let (found, found_left_out) = record.found();
        let outcome = record.outcome.as_ref();
        Self {
            job: record.id,
            host: record.host.to_string(),
            product: record.product.to_string(),
            operation: record.operation.kind().to_owned(),
            policy: record.run.as_ref().map(|run| run.policy.to_string()),
            due_unix_ms: record.run.as_ref().map(|run| run.due),
            repository: record.operation.repository().map(|repository| repository.path.clone()),
            arguments,
            state: word(&record.state),
            created_unix_ms: record.created,
            started_unix_ms: record.started,
            ended_unix_ms: record.ended,
            progress: record.progress.clone(),
            waiting: record.waiting.clone(),
            cancel_asked: record.cancel,
            error,
            snapshots: summary.map(|summary| summary.snapshots.clone()).unwrap_or_default(),
            files: summary.map(|summary| summary.files),
            bytes: summary.map(|summary| summary.bytes),
            repository_bytes: summary.map(|summary| summary.repository_bytes),
            counts: outcome.and_then(Outcome::counts).copied(),
            ran: outcome.map(|outcome| outcome.ran().to_vec()).unwrap_or_default(),
            found: found.iter().map(found_json).collect(),
            found_left_out,
            dry_run: record.is_dry_run(),
            results: results.iter().map(|finding| (finding.name.to_string(), finding.text.clone())).collect(),
            problems: outcome.map(|outcome| outcome.problems().to_vec()).unwrap_or_default(),
            versions: outcome.map(|outcome| outcome.versions().to_vec()).unwrap_or_default(),
        }
    }
}

/// One thing that a look found.
fn found_json(found: &Found) -> Value {
    match found {
        Found::Snapshot(FoundSnapshot { id, owner, at_unix_ms, sources, tags, files, bytes, forgotten, why }) => {
            json!({
                "snapshot": id,
                "owner": owner,
                "at_unix_ms": at_unix_ms,
                "sources": sources,
                "tags": tags,
                "files": files,
                "bytes": bytes,
                "forgotten": forgotten,
                "why": why,
            })
        }
        Found::Entry(FoundEntry { snapshot, path, kind, mode, user, group, size, mtime_unix_ms, change }) => json!({
            "snapshot": snapshot,
            "path": path,
            "kind": kind,
            "mode": mode.map(|mode| format!("{mode:04o}")),
            "user": user,
            "group": group,
            "bytes": size,
            "mtime_unix_ms": mtime_unix_ms,
            "change": change,
        }),
        Found::Content(content) => json!({ "content": String::from_utf8_lossy(content), "bytes": content.len() }),
    }
}
