//! `verify`: every byte of the manager's store, or with `--host` of this host's cache.

use std::path::PathBuf;

use serde_json::json;

use super::client::{ask, unexpected};
use super::out::{self, note, say};
use super::progress::{Progress, ProgressLine};
use super::units::{bytes, count};
use super::{Done, Here, Json, daemon};
use crate::manager::admin::{AdminReply, Long, ProblemView, PublishOrder, RepairOrder};

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Put back what is damaged or gone, out of other packs and from hosts that have it
    #[arg(long)]
    repair: bool,
    /// Take it out of these files, too: a directory or archive that was published once
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    from: Option<PathBuf>,
    /// Check this host's cache instead of the manager's store; what is wrong is removed, with --repair fetched again
    #[arg(long, conflicts_with = "from")]
    host: bool,
    #[command(flatten)]
    output: Json,
}

pub(super) fn verify(args: &VerifyArgs, here: &Here) -> anyhow::Result<Done> {
    if args.host {
        return of_host(args.repair, args.output, here);
    }
    let source =
        args.from.as_deref().map(|path| std::path::absolute(path).map(|path| PublishOrder::source_bytes(&path)));
    let repair = args.repair.then_some(RepairOrder { source: source.transpose()? });
    let mut line = ProgressLine::new();
    let interrupted = if args.repair { "what was put back by then stays" } else { "nothing was changed" };
    let reply = ask(here, &Long::Verify { repair }, interrupted, |event| line.show(&event));
    line.clear();
    let AdminReply::Verified(view) = reply? else { return unexpected() };
    let repaired = view.problems.iter().filter(|problem| problem.repaired.is_some()).count();
    if args.output.json {
        out::json(&json!({
            "packs": view.packs, "bytes": view.bytes, "chunks": view.chunks, "manifests": view.manifests,
            "objects": view.objects, "records": view.records, "problems": view.problems,
            "repaired": repaired, "lost_chunks": view.lost_chunks,
        }));
    } else {
        for ProblemView { what, fault, generations, repaired } in &view.problems {
            let of = if generations.is_empty() { String::new() } else { format!(" (in {})", generations.join(", ")) };
            let became = repaired.as_ref().map_or_else(String::new, |from| format!("; repaired: {from}"));
            say!("{what}: {fault}{of}{became}");
        }
        let problems = count(view.problems.len() as u64, "problem");
        say!(
            "{}, {}, {}, {}, {}, {} read: {}",
            count(view.packs, "pack"),
            count(view.chunks, "chunk"),
            count(view.objects, "object"),
            count(view.manifests, "manifest"),
            count(view.records, "record"),
            bytes(view.bytes),
            if args.repair { format!("{problems}, {repaired} repaired") } else { problems }
        );
    }
    if view.lost_chunks > 0 {
        note!(
            "{} found nowhere: publish the same files again, or name them with --from",
            count(view.lost_chunks, "chunk")
        );
    }
    Ok(if repaired == view.problems.len() { Done::Clean } else { Done::WithProblems })
}

/// `verify --host`: the cache of this host.
fn of_host(repair: bool, output: Json, here: &Here) -> anyhow::Result<Done> {
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
