//! `job`: operations of agents.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use proto::agent::{HostScope, JobId, Operation, Outcome, Progress, Repository, SnapshotRef};
use proto::name::NameError;
use proto::own::Arguments;
use proto::{ArgumentName, HostName, OperationKind, Product};
use serde_json::{Map, Value, json};

use super::client::{ask, ask_once, unexpected};
use super::out::{self, note, say};
use super::progress::{self, ProgressLine};
use super::units::{bytes, bytes_of, count, moment};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminEvent, AdminReply, Long, Quick};
use crate::manager::control::jobs::{JobRecord, JobState};

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Back up directories of a host, each as one snapshot
    Backup {
        #[command(flatten)]
        common: DataAgent,
        /// Absolute paths on the host
        #[arg(required = true, value_name = "SOURCE")]
        sources: Vec<String>,
    },
    /// Restore a snapshot into a directory
    Restore {
        #[command(flatten)]
        common: DataAgent,
        /// Snapshot id, the start of one, or latest (latest~1 is the one before)
        #[arg(long)]
        snapshot: String,
        #[command(flatten)]
        scope: Scope,
        /// Absolute path on the host; it is made if need be
        #[arg(long, value_name = "DIR")]
        target: String,
    },
    /// Compare a snapshot with the directory that it was made of
    Verify {
        #[command(flatten)]
        common: DataAgent,
        /// Snapshot id, the start of one, or latest (of each source)
        #[arg(long, default_value = "latest")]
        snapshot: String,
        #[command(flatten)]
        scope: Scope,
    },
    /// Check a repository's structure
    Check {
        #[command(flatten)]
        common: MediaAgent,
        /// Also read every byte
        #[arg(long)]
        read_data: bool,
    },
    /// Forget old snapshots and free their space
    Prune {
        #[command(flatten)]
        common: MediaAgent,
        /// How many of the newest snapshots of each source stay
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep_last: u32,
    },
    /// Run an operation of an agent's own kind
    Run {
        /// Which agent does it
        product: Product,
        /// What its program calls the operation
        kind: OperationKind,
        #[command(flatten)]
        own: Own,
    },
    /// List the newest jobs
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 200)]
        limit: u32,
        #[command(flatten)]
        output: Json,
    },
    /// Show one job
    Show(OneJob),
    /// Wait for a job's end
    Wait(OneJob),
    /// Stop a job at its next unit boundary
    Cancel(OneJob),
}

#[derive(Debug, Args)]
pub(super) struct DataAgent {
    /// Which agent does it
    #[arg(long, default_value = "data-agent")]
    product: Product,
    #[command(flatten)]
    order: Order,
}

#[derive(Debug, Args)]
pub(super) struct MediaAgent {
    /// Which agent does it
    #[arg(long, default_value = "media-agent")]
    product: Product,
    #[command(flatten)]
    order: Order,
}

#[derive(Debug, Args)]
struct Order {
    /// On which host
    #[arg(long)]
    host: HostName,
    /// The repository's directory on the host
    #[arg(long, value_name = "DIR")]
    repository: String,
    /// File on the host with the repository's password; by default one in the host's state directory
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Own {
    /// On which host
    #[arg(long)]
    host: HostName,
    /// An argument of the operation; may be given several times
    #[arg(long = "arg", value_name = "NAME=VALUE", value_parser = argument)]
    arguments: Vec<(ArgumentName, String)>,
    #[command(flatten)]
    watch: Watch,
}

/// How the job is followed.
#[derive(Debug, Args)]
struct Watch {
    /// Print the job's number and do not wait
    #[arg(long)]
    detach: bool,
    /// Print one JSON line for each progress, and the job as the last line
    #[arg(long)]
    json: bool,
}

/// `NAME=VALUE`; the value may hold further `=`.
fn argument(text: &str) -> Result<(ArgumentName, String), String> {
    let (name, value) = text.split_once('=').ok_or("want NAME=VALUE")?;
    Ok((name.parse().map_err(|fault: NameError| fault.to_string())?, value.to_owned()))
}

/// Whose snapshots are meant; by default those of the host itself.
#[derive(Debug, Args)]
pub(super) struct Scope {
    /// Only snapshots of this source
    #[arg(long, value_name = "DIR")]
    source: Option<String>,
    /// Snapshots of another host
    #[arg(long, value_name = "HOST", conflicts_with = "any_host")]
    of_host: Option<HostName>,
    /// Snapshots of any host
    #[arg(long)]
    any_host: bool,
}

impl Scope {
    fn reference(&self, snapshot: &str) -> SnapshotRef {
        let of = match (&self.of_host, self.any_host) {
            (Some(host), _) => HostScope::Host(host.clone()),
            (None, true) => HostScope::Any,
            (None, false) => HostScope::Own,
        };
        SnapshotRef { snapshot: snapshot.to_owned(), of, source: self.source.clone() }
    }
}

#[derive(Debug, Args)]
pub(super) struct OneJob {
    /// The job's number
    job: JobId,
    #[command(flatten)]
    output: Json,
}

pub(super) fn run(command: &JobCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        JobCommand::Backup { common, sources } => {
            let (repository, sources) = (common.order.repository(), sources.clone());
            order(&common.product, &common.order, Operation::Backup { repository, sources }, here)
        }
        JobCommand::Restore { common, snapshot, scope, target } => {
            let (repository, snapshot, target) =
                (common.order.repository(), scope.reference(snapshot), target.clone());
            order(&common.product, &common.order, Operation::Restore { repository, snapshot, target }, here)
        }
        JobCommand::Verify { common, snapshot, scope } => {
            let (repository, snapshot) = (common.order.repository(), scope.reference(snapshot));
            order(&common.product, &common.order, Operation::Verify { repository, snapshot }, here)
        }
        JobCommand::Check { common, read_data } => {
            let operation = Operation::Check { repository: common.order.repository(), read_data: *read_data };
            order(&common.product, &common.order, operation, here)
        }
        JobCommand::Prune { common, keep_last } => {
            let operation = Operation::Prune { repository: common.order.repository(), keep_last: *keep_last };
            order(&common.product, &common.order, operation, here)
        }
        JobCommand::Run { product, kind, own } => {
            let mut arguments = Arguments::default();
            own.arguments.iter().try_for_each(|(name, value)| arguments.add(name.clone(), value))?;
            follow(product, &own.host, &own.watch, Operation::Own { kind: kind.clone(), arguments }, here)
        }
        JobCommand::List { limit, output } => list(*limit, output.json, here),
        JobCommand::Show(one) => {
            let record = job(ask_once(here, &Quick::Job(one.job))?)?;
            print(&record, one.output.json);
            Ok(Done::Clean)
        }
        JobCommand::Wait(one) => wait(one.job, one.output.json, here),
        JobCommand::Cancel(one) => {
            let record = job(ask_once(here, &Quick::JobCancel(one.job))?)?;
            print(&record, one.output.json);
            Ok(Done::Clean)
        }
    }
}

impl Order {
    fn repository(&self) -> Repository {
        Repository { path: self.repository.clone(), password_file: self.password_file.clone() }
    }
}

fn order(product: &Product, order: &Order, operation: Operation, here: &Here) -> anyhow::Result<Done> {
    follow(product, &order.host, &order.watch, operation, here)
}

fn follow(
    product: &Product,
    host: &HostName,
    watch: &Watch,
    operation: Operation,
    here: &Here,
) -> anyhow::Result<Done> {
    let request = Quick::JobRun { host: host.clone(), product: product.clone(), operation };
    let record = job(ask_once(here, &request)?)?;
    if !watch.detach {
        note!("job {}", record.id);
        return wait(record.id, watch.json, here);
    }
    if watch.json {
        out::json_line(&job_json(&record));
    } else {
        say!("{}", record.id);
    }
    Ok(Done::Clean)
}

/// Follows a job to its end. Interrupted, the job goes on.
fn wait(id: JobId, json: bool, here: &Here) -> anyhow::Result<Done> {
    let mut line = ProgressLine::new();
    let mut last: Option<(Option<Progress>, Option<String>)> = None;
    let number = id;
    let goes_on = format!(
        "job {number} goes on: `manager-fs job wait {number}` follows it, `manager-fs job cancel {number}` stops it"
    );
    let reply = ask(here, &Long::JobWait(id), &goes_on, |event| {
        let AdminEvent::Job(record) = event else { return };
        let now = (record.progress.clone(), record.waiting.clone());
        if last.as_ref() == Some(&now) {
            return;
        }
        if json {
            out::json_line(&json!({ "job": record.id, "progress": record.progress, "waiting": record.waiting }));
        } else if let Some(waiting) = &record.waiting {
            // At once: it may be up to the operator that the job can go on.
            if last.as_ref().is_none_or(|(_, before)| before.as_ref() != Some(waiting)) {
                line.note(&format!("job {number} waits: {waiting}"));
            }
        } else if let Some(progress) = &record.progress {
            show(&mut line, progress);
        }
        last = Some(now);
    });
    line.clear();
    let record = job(reply?)?;
    if json {
        out::json_line(&job_json(&record));
    } else {
        print(&record, false);
    }
    let problems = record.outcome.as_ref().is_some_and(|outcome| !outcome.problems().is_empty());
    Ok(match record.state {
        JobState::Done if !problems => Done::Clean,
        JobState::Done => Done::WithProblems,
        _ => Done::Code(1),
    })
}

fn show(line: &mut ProgressLine, progress: &Progress) {
    let task = format!("{}: {}", unit(progress), progress.activity);
    line.update(progress::Progress { task: &task, done: progress.bytes_done, total: progress.bytes, bytes: true });
}

/// `unit 2 of 4`
fn unit(progress: &Progress) -> String {
    // A host may say any numbers.
    format!("unit {} of {}", progress.units_done.saturating_add(1).min(progress.units), progress.units)
}

fn list(limit: u32, json: bool, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Jobs(jobs) = ask_once(here, &Quick::Jobs { limit })? else { return unexpected() };
    if json {
        out::json(&json!({ "jobs": jobs.iter().map(job_json).collect::<Vec<_>>() }));
        return Ok(Done::Clean);
    }
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|record| {
            vec![
                record.id.to_string(),
                record.host.to_string(),
                record.operation.kind().to_owned(),
                state_name(record.state),
                moment(record.created),
                doing(record),
            ]
        })
        .collect();
    out::table(&["JOB", "HOST", "OPERATION", "STATE", "ORDERED", ""], &rows);
    Ok(Done::Clean)
}

fn job(reply: AdminReply) -> anyhow::Result<JobRecord> {
    match reply {
        AdminReply::Job(record) => Ok(record),
        _ => unexpected(),
    }
}

fn job_json(record: &JobRecord) -> Value {
    let (summary, error, results) = match &record.outcome {
        Some(Outcome::Done(summary) | Outcome::Cancelled(summary)) => (Some(summary), None, &[][..]),
        Some(Outcome::OwnDone(own)) => (None, None, &own.results[..]),
        Some(Outcome::Failed(error)) => (None, Some(error), &[][..]),
        None => (None, None, &[][..]),
    };
    let arguments: BTreeMap<_, _> = match &record.operation {
        Operation::Own { arguments, .. } => arguments.iter().collect(),
        _ => BTreeMap::new(),
    };
    let results: Map<String, Value> =
        results.iter().map(|finding| (finding.name.to_string(), finding.text.clone().into())).collect();
    json!({
        "job": record.id,
        "host": record.host,
        "product": record.product,
        "operation": record.operation.kind(),
        "repository": record.operation.repository().map(|repository| &repository.path),
        "arguments": arguments,
        "state": record.state,
        "created_unix_ms": record.created,
        "started_unix_ms": record.started,
        "ended_unix_ms": record.ended,
        "progress": record.progress,
        "waiting": record.waiting,
        "cancel_asked": record.cancel,
        "error": error,
        "snapshots": summary.map_or(&[][..], |summary| &summary.snapshots),
        "files": summary.map(|summary| summary.files),
        "bytes": summary.map(|summary| summary.bytes),
        "repository_bytes": summary.map(|summary| summary.repository_bytes),
        "results": results,
        "problems": record.outcome.as_ref().map_or(&[][..], Outcome::problems),
        "versions": record.outcome.as_ref().map_or(&[][..], Outcome::versions),
    })
}

fn print(record: &JobRecord, json: bool) {
    if json {
        return out::json(&job_json(record));
    }
    let what = format!("job {}: {} on {}", record.id, record.operation.kind(), record.host);
    say!(
        "{what}: {}{}",
        state_name(record.state),
        Some(doing(record)).filter(|text| !text.is_empty()).map_or_else(String::new, |text| format!(", {text}"))
    );
    match &record.outcome {
        Some(Outcome::Done(summary) | Outcome::Cancelled(summary)) => {
            summary.snapshots.iter().for_each(|snapshot| say!("snapshot {snapshot}"));
        }
        Some(Outcome::OwnDone(own)) => {
            own.results.iter().for_each(|finding| say!("{}: {}", finding.name, finding.text));
        }
        Some(Outcome::Failed(_)) | None => {}
    }
    for problem in record.outcome.as_ref().map_or(&[][..], Outcome::problems) {
        say!("problem: {problem}");
    }
}

/// What a job is doing or why not, in a few words.
fn doing(record: &JobRecord) -> String {
    match (&record.outcome, &record.waiting, &record.progress) {
        (Some(Outcome::Failed(error)), _, _) => error.clone(),
        (Some(Outcome::Done(summary) | Outcome::Cancelled(summary)), _, _) => {
            let versions = summary.versions.join(", ");
            match record.operation.repository() {
                Some(_) => {
                    format!("{}, {}, by version {versions}", count(summary.files, "file"), bytes(summary.bytes))
                }
                None => format!("by version {versions}"),
            }
        }
        (Some(Outcome::OwnDone(own)), _, _) => format!("by version {}", own.versions.join(", ")),
        (None, Some(waiting), _) => format!("waits: {waiting}"),
        (None, None, Some(progress)) => {
            let amount = match (progress.bytes, record.operation.repository()) {
                // A program that counts no bytes says nothing of them.
                (0, None) => String::new(),
                (0, Some(_)) => format!("{}, ", bytes(progress.bytes_done)),
                (all, _) => format!("{}, ", bytes_of(progress.bytes_done, all)),
            };
            format!("{}, {amount}{}", unit(progress), progress.activity)
        }
        (None, None, None) => String::new(),
    }
}

fn state_name(state: JobState) -> String {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_shown_as_they_are() {
        let absurd = Progress {
            units_done: u32::MAX,
            units: u32::MAX,
            bytes_done: u64::MAX,
            bytes: 1,
            activity: String::new(),
            version: String::new(),
        };
        assert_eq!(unit(&absurd), "unit 4294967295 of 4294967295");
        assert_eq!(unit(&Progress { units: 3, ..absurd }), "unit 3 of 3");
    }
}
