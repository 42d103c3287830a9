//! `gc`: what nothing needs is removed from the store.

use serde_json::json;

use super::client::{ask, unexpected};
use super::out::{self, say};
use super::progress::ProgressLine;
use super::units::{bytes, count};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Long};

#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Json,
}

pub(super) fn gc(args: &GcArgs, here: &Here) -> anyhow::Result<Done> {
    let mut line = ProgressLine::new();
    let interrupted = "what was freed by then stays freed; `manager-fs gc` does the rest";
    let reply = ask(here, &Long::Gc { dry_run: args.dry_run }, interrupted, |event| line.show(&event));
    line.clear();
    let AdminReply::Collected(view) = reply? else { return unexpected() };
    if args.output.json {
        let mut document = serde_json::to_value(&view)?;
        document["dry_run"] = json!(args.dry_run);
        out::json(&document);
    } else {
        say!(
            "{}{}, {}, {} and {} removed, {} rewritten, {} freed; {} stay",
            if args.dry_run { "dry run: " } else { "" },
            count(view.manifests_removed, "manifest"),
            count(view.packs_removed, "pack"),
            count(view.deltas_removed, "delta"),
            count(view.bundles_removed, "bundle"),
            count(view.packs_rewritten, "pack"),
            bytes(view.bytes_freed),
            bytes(view.bytes_kept)
        );
    }
    Ok(Done::Clean)
}
