//! `diff`: what differs between two generations.

use proto::GenerationRef;

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::units::bytes;
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, DiffReport, Difference, Quick};
use crate::manager::documents::{self, DiffDocument};

#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// product@version, or a tree id or its start
    old: GenerationRef,
    /// product@version, or a tree id or its start
    new: GenerationRef,
    #[command(flatten)]
    output: Json,
}

pub(super) fn diff(args: &DiffArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Diff(found) = ask_once(here, &Quick::Diff(args.old.clone(), args.new.clone()))? else {
        return unexpected();
    };
    if args.output.json {
        out::json(&documents::json(&DiffDocument::from(found)));
        return Ok(Done::Clean);
    }
    for of in &found {
        if found.len() > 1 {
            say!("for {}", of.architecture.as_deref().unwrap_or("any machine"));
        }
        people(&of.report);
    }
    Ok(Done::Clean)
}

fn people(report: &DiffReport) {
    for entry in &report.entries {
        let sign = match entry.difference {
            Difference::Added => '+',
            Difference::Removed => '-',
            Difference::Changed => '~',
        };
        let what = if entry.what.is_empty() { String::new() } else { format!("  ({})", entry.what) };
        say!("{sign} {}{what}", entry.path);
    }
    let listed = report.entries.len() as u64;
    let all = report.added + report.removed + report.changed;
    if listed < all {
        note!("{} more differences are not listed", all - listed);
    }
    say!(
        "{} added, {} removed, {} changed, {} equal; new content {}, of it {} in chunks that the first does not have",
        report.added,
        report.removed,
        report.changed,
        report.equal,
        bytes(report.new_object_bytes),
        bytes(report.new_chunk_bytes)
    );
}
