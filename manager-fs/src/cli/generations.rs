//! `generations`, `show`, `diff`, `verify`, `gc`.

use std::path::PathBuf;

use proto::record::Metadata;
use proto::{GenerationRecord, GenerationRef, Product};
use serde_json::{Value, json};

use super::client::{ask, ask_once, unexpected};
use super::out::{self, note, say};
use super::progress::ProgressLine;
use super::units::{bytes, count, moment, ms};
use super::{Done, Here, Json, near};
use crate::manager::admin::{
    AdminReply, Difference, GenerationView, Long, ProblemView, PublishOrder, Quick, RepairOrder,
};

#[derive(Debug, clap::Args)]
pub(super) struct GenerationsArgs {
    /// Only of this product
    product: Option<Product>,
    #[command(flatten)]
    output: Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
    #[command(flatten)]
    output: Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// product@version, or a tree id or its start
    old: GenerationRef,
    /// product@version, or a tree id or its start
    new: GenerationRef,
    #[command(flatten)]
    output: Json,
}

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

#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Json,
}

pub(super) fn generations(args: &GenerationsArgs, here: &Here) -> anyhow::Result<Done> {
    let reply = ask_once(here, &Quick::Generations(args.product.clone()))?;
    let AdminReply::Generations(found) = reply else { return unexpected() };
    if let (Some(product), true) = (&args.product, found.is_empty()) {
        note!("there is no generation of {product}{}", products_near(product, here)?);
    }
    if args.output.json {
        let list: Vec<Value> = found
            .iter()
            .map(|view| {
                let record = &view.record;
                json!({
                    "product": record.product,
                    "version": record.version,
                    "sequence": record.sequence,
                    "tree_id": record.tree,
                    "published_unix_ms": record.published_unix_ms,
                    "entry_count": record.metadata.entry_count,
                    "content_bytes": record.metadata.content_bytes,
                    "exported_to": targets(view),
                    "attached_on": view.attached,
                })
            })
            .collect();
        out::json(&json!({ "generations": list }));
        return Ok(Done::Clean);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|view| {
            vec![
                view.record.name(),
                view.record.tree.to_hex()[..16].to_owned(),
                bytes(view.record.metadata.content_bytes),
                moment(view.record.published_unix_ms),
                targets(view).join(" "),
            ]
        })
        .collect();
    out::table(&["GENERATION", "TREE", "CONTENT", "PUBLISHED", "EXPORTED TO"], &rows);
    Ok(Done::Clean)
}

/// A question for an operator who has mistyped a product.
fn products_near(product: &Product, here: &Here) -> anyhow::Result<String> {
    let AdminReply::Generations(all) = ask_once(here, &Quick::Generations(None))? else { return unexpected() };
    let products: Vec<String> = all.iter().map(|view| view.record.product.to_string()).collect();
    Ok(near::question(&near::nearest(product.as_str(), &products).into_iter().collect::<Vec<_>>()))
}

pub(super) fn show(args: &ShowArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Generation(view) = ask_once(here, &Quick::Show(args.generation.clone()))? else {
        return unexpected();
    };
    if args.output.json {
        let mut document = record_json(&view.record);
        document["publisher"] = json!(view.publisher);
        document["exported_to"] = json!(targets(&view));
        document["attached_on"] = json!(view.attached);
        out::json(&document);
    } else {
        print_people(&view);
    }
    Ok(Done::Clean)
}

pub(super) fn diff(args: &DiffArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Diff(report) = ask_once(here, &Quick::Diff(args.old.clone(), args.new.clone()))? else {
        return unexpected();
    };
    if args.output.json {
        out::json(&serde_json::to_value(&report)?);
        return Ok(Done::Clean);
    }
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
    Ok(Done::Clean)
}

pub(super) fn verify(args: &VerifyArgs, here: &Here) -> anyhow::Result<Done> {
    if args.host {
        return super::local::verify(args.repair, args.output, here);
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

/// A record as every command prints it: flat, with `tree_id`.
pub(super) fn record_json(record: &GenerationRecord) -> Value {
    let metadata = &record.metadata;
    json!({
        "product": record.product,
        "version": record.version,
        "sequence": record.sequence,
        "tree_id": record.tree,
        "manifest_bytes": record.manifest_bytes,
        "published_unix_ms": record.published_unix_ms,
        "architecture": metadata.architecture,
        "entry_point": metadata.entry_point,
        "arguments": metadata.arguments,
        "entry_count": metadata.entry_count,
        "file_count": metadata.file_count,
        "content_bytes": metadata.content_bytes,
        "object_bytes": metadata.object_bytes,
        "state_schemas": metadata.state_schemas,
        "drain_deadline_ms": metadata.drain_deadline_ms,
        "health": metadata.health,
        "elf_files": metadata.elf_files,
        "scripts": metadata.scripts,
    })
}

fn targets(view: &GenerationView) -> Vec<String> {
    view.exports.iter().map(|export| export.target.to_string()).collect()
}

fn print_people(view: &GenerationView) {
    let (record, metadata) = (&view.record, &view.record.metadata);
    let line = |name: &str, value: String| say!("{name:<16}{value}");
    let or_none = |text: String| if text.is_empty() { String::from("-") } else { text };
    line("generation", record.name());
    line("tree", record.tree.to_hex());
    line("published", format!("{} (number {})", moment(record.published_unix_ms), record.sequence));
    line("publisher", view.publisher.clone());
    line("architecture", metadata.architecture.clone().unwrap_or_else(|| String::from("any")));
    line("entry point", metadata.entry_point.as_ref().map_or_else(|| String::from("-"), ToString::to_string));
    line("arguments", or_none(metadata.arguments.join(" ")));
    line("entries", format!("{}, of them {} files", metadata.entry_count, metadata.file_count));
    let (content, distinct) = (bytes(metadata.content_bytes), bytes(metadata.object_bytes));
    line("content", format!("{content}, distinct {distinct}, manifest {}", bytes(record.manifest_bytes)));
    line("state schemas", format!("{} to {}", metadata.state_schemas.min, metadata.state_schemas.max));
    line("drain deadline", ms(metadata.drain_deadline_ms));
    line("probation", ms(metadata.health.probation_ms));
    line("exported to", or_none(targets(view).join(" ")));
    line("attached on", or_none(view.attached.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")));
    print_executables(metadata);
}

fn print_executables(metadata: &Metadata) {
    for file in &metadata.elf_files {
        say!("");
        say!("{}  {} {}, {}", file.path, file.architecture, file.kind, bytes(file.bytes));
        let detail = |name: &str, value: Option<String>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                say!("  {name:<14}{value}");
            }
        };
        detail("interpreter", file.interpreter.clone());
        detail("needs", Some(file.needed.join(" ")));
        detail("soname", file.soname.clone());
        detail("runpath", file.runpath.clone());
        detail("build id", file.build_id.clone());
    }
    for script in &metadata.scripts {
        say!("");
        say!("{}  #!{}", script.path, script.interpreter);
    }
}
