//! `job`: operations of agents.

mod backup;
mod list;
mod look;
mod restore;
mod scope;
mod show;

use clap::{Args, Subcommand};
use proto::agent::{JobId, Operation, Progress, Repository};
use proto::look::Query;
use proto::name::{NameError, Target};
use proto::own::Arguments;
use proto::{ArgumentName, OperationKind, Product};
use serde_json::json;

use super::client::{ask, ask_once, unexpected};
use super::out::{self, note, say};
use super::progress::{ProgressLine, Rate};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminEvent, AdminReply, Long, Quick};
use crate::manager::control::jobs::{JobRecord, JobState};
use crate::manager::policy::definition::{SAMPLE_FILES, SAMPLE_MIB};
use backup::How;
use list::WhichJobs;
use look::{Filter, Rules};
use scope::Scope;
use show::{job_json, print, show};

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Back up directories of a host, each as one snapshot
    Backup {
        #[command(flatten)]
        common: DataAgent,
        #[command(flatten)]
        how: How,
        /// Absolute paths on the host
        #[arg(required_unless_present = "stdin_from_command", value_name = "SOURCE")]
        sources: Vec<String>,
    },
    /// Restore a snapshot into a directory
    Restore {
        #[command(flatten)]
        common: DataAgent,
        #[command(flatten)]
        what: restore::What,
    },
    /// Restore a sample of snapshots into a place of the agent's own, compare it, and remove it
    RestoreTest {
        #[command(flatten)]
        common: DataAgent,
        /// Snapshot id, the start of one, or latest (of each source)
        #[arg(long, default_value = "latest")]
        snapshot: String,
        #[command(flatten)]
        scope: Scope,
        /// How many files of each snapshot at most
        #[arg(long, value_name = "N", default_value_t = SAMPLE_FILES, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        files: u32,
        /// How many MiB of each snapshot at most
        #[arg(long, value_name = "MIB", default_value_t = SAMPLE_MIB, value_parser = clap::value_parser!(u32).range(1..))]
        mib: u32,
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
    /// Forget snapshots by the rules of a calendar
    Forget {
        #[command(flatten)]
        common: MediaAgent,
        #[command(flatten)]
        rules: Rules,
    },
    /// List the snapshots of a repository
    Snapshots {
        #[command(flatten)]
        common: DataAgent,
        #[command(flatten)]
        filter: Filter,
    },
    /// List what is in a snapshot
    Ls {
        #[command(flatten)]
        common: DataAgent,
        /// Snapshot id, the start of one, or latest (latest~1 is the one before)
        #[arg(long, default_value = "latest")]
        snapshot: String,
        #[command(flatten)]
        scope: Scope,
        /// Also what is in the directories
        #[arg(short, long)]
        recursive: bool,
        /// Only what lies at this absolute path
        #[arg(value_name = "PATH")]
        path: Option<String>,
    },
    /// Find files in snapshots by their names
    Find {
        #[command(flatten)]
        common: DataAgent,
        #[command(flatten)]
        filter: Filter,
        /// Only what was modified at this time or later (UTC: 2026-01-31, 2026-01-31T08:15:00)
        #[arg(short = 'O', long, value_name = "TIME", value_parser = look::moment_of)]
        oldest: Option<i64>,
        /// Only what was modified at this time or earlier
        #[arg(short = 'N', long, value_name = "TIME", value_parser = look::moment_of)]
        newest: Option<i64>,
        /// As in a .gitignore
        #[arg(required_unless_present_any = ["oldest", "newest"], value_name = "PATTERN")]
        patterns: Vec<String>,
    },
    /// Show how two snapshots differ
    Diff {
        #[command(flatten)]
        common: DataAgent,
        #[command(flatten)]
        scope: Scope,
        /// The snapshot before
        #[arg(value_name = "OLD")]
        old: String,
        /// The snapshot after
        #[arg(value_name = "NEW", default_value = "latest")]
        new: String,
    },
    /// Print a file of a snapshot, of 512 KiB at most
    Dump {
        #[command(flatten)]
        common: DataAgent,
        /// Snapshot id, the start of one, or latest (latest~1 is the one before)
        #[arg(long, default_value = "latest")]
        snapshot: String,
        #[command(flatten)]
        scope: Scope,
        /// The file's absolute path
        #[arg(value_name = "PATH")]
        path: String,
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
        #[command(flatten)]
        which: WhichJobs,
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
    /// On which host, or on each host of which group
    #[arg(long, value_name = "HOST|@GROUP")]
    host: Target,
    /// The repository's directory on the host, or the name of one that is served
    #[arg(long, value_name = "DIR|NAME")]
    repository: String,
    /// File on the host with the repository's password; by default one in the host's state directory
    #[arg(long, value_name = "FILE")]
    password_file: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Args)]
pub(super) struct Own {
    /// On which host, or on each host of which group
    #[arg(long, value_name = "HOST|@GROUP")]
    host: Target,
    /// An argument of the operation; may be given several times
    #[arg(long = "arg", value_name = "NAME=VALUE", value_parser = argument)]
    arguments: Vec<(ArgumentName, String)>,
    #[command(flatten)]
    watch: Watch,
}

/// How the job is followed.
#[derive(Debug, Args)]
pub(in crate::cli) struct Watch {
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

#[derive(Debug, Args)]
pub(super) struct OneJob {
    /// The job's number
    job: JobId,
    #[command(flatten)]
    output: Json,
}

pub(super) fn run(command: &JobCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        JobCommand::Backup { common, how, sources } => {
            let operation = how.operation(common.order.repository(), sources.clone());
            order(&common.product, &common.order, operation, here)
        }
        JobCommand::Restore { common, what } => {
            order(&common.product, &common.order, what.operation(common.order.repository()), here)
        }
        JobCommand::RestoreTest { common, snapshot, scope, files, mib } => {
            let (repository, snapshot) = (common.order.repository(), scope.reference(snapshot));
            let (files, bytes) = (*files, u64::from(*mib) << 20);
            let operation = Operation::RestoreTest { repository, snapshot, files, bytes };
            order(&common.product, &common.order, operation, here)
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
        JobCommand::Forget { common, rules } => {
            let operation = Operation::Forget { repository: common.order.repository(), order: rules.order() };
            order(&common.product, &common.order, operation, here)
        }
        JobCommand::Snapshots { common, filter } => ask_for(common, Query::Snapshots(filter.snapshots()), here),
        JobCommand::Ls { common, snapshot, scope, recursive, path } => {
            let (snapshot, path) = (scope.reference(snapshot), path.clone());
            ask_for(common, Query::List { snapshot, path, recursive: *recursive }, here)
        }
        JobCommand::Find { common, filter, oldest, newest, patterns } => {
            ask_for(common, look::find(filter.snapshots(), patterns, *oldest, *newest), here)
        }
        JobCommand::Diff { common, scope, old, new } => {
            ask_for(common, Query::Diff { old: scope.reference(old), new: scope.reference(new) }, here)
        }
        JobCommand::Dump { common, snapshot, scope, path } => {
            let (snapshot, path) = (scope.reference(snapshot), path.clone());
            ask_for(common, Query::Dump { snapshot, path }, here)
        }
        JobCommand::Run { product, kind, own } => {
            let mut arguments = Arguments::default();
            own.arguments.iter().try_for_each(|(name, value)| arguments.add(name.clone(), value))?;
            follow(product, &own.host, &own.watch, Operation::Own { kind: kind.clone(), arguments }, here)
        }
        JobCommand::List { which, output } => list::list(which, output.json, here),
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

fn ask_for(common: &DataAgent, query: Query, here: &Here) -> anyhow::Result<Done> {
    let operation = Operation::Look { repository: common.order.repository(), query };
    order(&common.product, &common.order, operation, here)
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
    host: &Target,
    watch: &Watch,
    operation: Operation,
    here: &Here,
) -> anyhow::Result<Done> {
    let host = match host {
        Target::Host(host) => host,
        Target::Group(group) => {
            let (group, product) = (group.clone(), product.clone());
            return follow_all(&Quick::JobRunOnGroup { group, product, operation }, watch, here);
        }
    };
    ordered(&Quick::JobRun { host: host.clone(), product: product.clone(), operation }, watch, here)
}

/// Asks what is answered by a job, and follows that.
pub(in crate::cli) fn ordered(request: &Quick, watch: &Watch, here: &Here) -> anyhow::Result<Done> {
    let record = job(ask_once(here, request)?)?;
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

/// A job that has come to a good end, of which nothing is shown; another one is, and there is none.
pub(in crate::cli) fn followed(id: JobId, here: &Here) -> anyhow::Result<Option<JobRecord>> {
    let goes_on = format!("job {id} goes on: `manager-fs job wait {id}` follows it");
    let mut said = None;
    let reply = ask(here, &Long::JobWait(id), &goes_on, |event| {
        let AdminEvent::Job(record) = event else { return };
        if let Some(waiting) = record.waiting.as_ref().filter(|waiting| said.as_ref() != Some(*waiting)) {
            note!("job {id} waits: {waiting}");
            said = Some(waiting.clone());
        }
    });
    let record = job(reply?)?;
    if record.state == JobState::Done {
        return Ok(Some(record));
    }
    print(&record, false);
    Ok(None)
}

/// Orders a job on each host of a group, and follows one after the other to its end.
fn follow_all(request: &Quick, watch: &Watch, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Ordered(jobs) = ask_once(here, request)? else { return unexpected() };
    if watch.detach {
        for record in &jobs {
            if watch.json {
                out::json_line(&job_json(record));
            } else {
                say!("{}", record.id);
            }
        }
        return Ok(Done::Clean);
    }
    jobs.iter().for_each(|record| note!("job {} on {}", record.id, record.host));
    let mut worst = Done::Clean;
    for record in &jobs {
        worst = match (worst, wait(record.id, watch.json, here)?) {
            (Done::Code(code), _) | (_, Done::Code(code)) => Done::Code(code),
            (Done::WithProblems, _) | (_, Done::WithProblems) => Done::WithProblems,
            (Done::Clean, Done::Clean) => Done::Clean,
        };
    }
    Ok(worst)
}

/// Follows a job to its end. Interrupted, the job goes on.
fn wait(id: JobId, json: bool, here: &Here) -> anyhow::Result<Done> {
    let (mut line, mut rate) = (ProgressLine::new(), Rate::default());
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
        let pace = record.progress.as_ref().map(|progress| rate.pace(progress)).unwrap_or_default();
        if json {
            out::json_line(&json!({
                "job": record.id,
                "progress": record.progress,
                "percent": pace.percent,
                "bytes_per_second": pace.bytes_per_second,
                "left_ms": pace.left_ms,
                "waiting": record.waiting,
            }));
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

fn job(reply: AdminReply) -> anyhow::Result<JobRecord> {
    match reply {
        AdminReply::Job(record) => Ok(record),
        _ => unexpected(),
    }
}
