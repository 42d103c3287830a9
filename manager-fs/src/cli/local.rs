//! Commands that ask this host's mount daemon: `attach`, `release`, `unmount`, `status`.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use proto::GenerationRef;
use proto::daemon::DaemonRequest;
use serde_json::{Value, json};

use super::out::{self, note, say};
use super::progress::{Progress, ProgressLine};
use super::units::{bytes, count};
use super::{Done, Here, Json, daemon};

/// `status` ends within this time, whatever the daemon is doing; within a second if it is stopped.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// `attach GENERATION`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
    #[command(flatten)]
    output: Json,
}

/// `release GENERATION`.
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
    #[command(flatten)]
    output: Json,
}

/// `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: Json,
}

/// `unmount`.
#[derive(Debug, Args)]
pub(super) struct UnmountArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn attach(args: &AttachArgs, here: &Here) -> Result<Done> {
    let request = DaemonRequest::Attach { generation: args.generation.clone() };
    let attached = daemon::attached(daemon::request(here, &request)?)?;
    if args.output.json {
        out::json(&json!({
            "generation": args.generation.to_string(),
            "tree_id": attached.tree,
            "path": attached.path,
            "namespace_pid": attached.namespace_pid,
        }));
        return Ok(Done::Clean);
    }
    if let Some(pid) = attached.namespace_pid {
        note!(
            "this path is valid inside the mount daemon's namespace, where `manager-fs exec` and `manager-fs launch` \
             run programs; a shell there: nsenter --preserve-credentials -U -m -t {pid}"
        );
    }
    say!("{}", attached.path);
    Ok(Done::Clean)
}

pub(super) fn release(args: &ReleaseArgs, here: &Here) -> Result<Done> {
    let request = DaemonRequest::Release { generation: args.generation.clone() };
    daemon::done(daemon::request(here, &request)?)?;
    if args.output.json {
        out::json(&json!({ "generation": args.generation.to_string(), "released": true }));
    }
    Ok(Done::Clean)
}

/// `verify --host`.
pub(super) fn verify(repair: bool, output: Json, here: &Here) -> Result<Done> {
    let mut line = ProgressLine::new();
    let report = daemon::check(here, repair, |now| {
        line.update(Progress { task: "checking", done: now.local_bytes, total: now.object_bytes, bytes: true });
    });
    line.clear();
    let report = report?;
    if output.json {
        out::json(&json!({
            "objects": report.objects,
            "bytes": report.bytes,
            "wrong": report.wrong,
            "fetched": report.fetched,
            "missing": report.missing,
        }));
    } else {
        report.missing.iter().for_each(|object| say!("object {object} was wrong and is removed"));
        let wrong = if report.wrong == 0 { String::from("all are right") } else { format!("{} wrong", report.wrong) };
        let fetched =
            if repair && report.wrong > 0 { format!(", {} fetched again", report.fetched) } else { String::new() };
        say!("{}, {} read: {wrong}{fetched}", count(report.objects, "object"), bytes(report.bytes));
    }
    if !repair && report.wrong > 0 {
        note!("what is attached is fetched again in the background, the rest when it is read; --repair does it now");
    }
    Ok(if report.wrong == report.fetched { Done::Clean } else { Done::WithProblems })
}

pub(super) fn unmount(args: &UnmountArgs, here: &Here) -> Result<Done> {
    let ran = daemon::runs(here);
    match daemon::request(here, &DaemonRequest::Unmount) {
        // The daemon may be gone before its answer is on the way: then it has done what was asked.
        Err(_) if ran && !daemon::runs(here) => {}
        answer => daemon::done(answer?)?,
    }
    if args.output.json {
        out::json(&json!({ "unmounted": true }));
    }
    Ok(Done::Clean)
}

pub(super) fn status(args: &StatusArgs, here: &Here) -> Result<Done> {
    let (document, running) = match daemon::status(here, STATUS_WITHIN) {
        Ok(document) => (document, true),
        Err(error) => {
            let reason = format!("{error:#}");
            note!("{reason}");
            (without_daemon(here, &reason), false)
        }
    };
    if args.output.json {
        out::json(&document);
    } else {
        super::status_text::lines(&document).iter().for_each(|line| say!("{line}"));
    }
    Ok(if running { Done::Clean } else { Done::WithProblems })
}

/// What can be said of a host whose mount daemon does not answer.
fn without_daemon(here: &Here, reason: &str) -> Value {
    let state = &here.dirs.state;
    let identity = crate::host::enroll::Identity::load(state);
    let attached = std::fs::read_to_string(state.join("attached")).unwrap_or_default();
    let attachments = attached.lines().filter_map(|line| line.split_once(' '));
    let attachments: Vec<_> = attachments.map(|(tree, name)| json!({ "tree_id": tree, "name": name })).collect();
    json!({
        "daemon": { "running": false, "reason": reason },
        "host": identity.as_ref().ok().map(|identity| &identity.host),
        "manager": { "address": identity.as_ref().ok().map(|identity| &identity.manager), "connected": false },
        "fuse": { "requests": {} },
        "fetched_bytes": 0,
        "generations": [],
        "attachments": attachments,
        "agents": [],
    })
}
