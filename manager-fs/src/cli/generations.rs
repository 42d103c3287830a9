//! `generations`, `show`, `diff`, `verify`, `gc`.

use proto::record::Metadata;
use proto::{GenerationRecord, GenerationRef, Product};
use serde_json::{Value, json};

use super::Done;
use super::client::{ProgressLine, ask, ask_once, megabytes, moment, print_json, print_table, unexpected};
use super::out::say;
use crate::config::Dirs;
use crate::manager::admin::{AdminReply, Difference, GenerationView, Long, Quick};

#[derive(Debug, clap::Args)]
pub(super) struct GenerationsArgs {
    /// Only of this product
    product: Option<Product>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// product@version, or a tree id or its start
    old: GenerationRef,
    /// product@version, or a tree id or its start
    new: GenerationRef,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) fn generations(args: &GenerationsArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let reply = ask_once(dirs, &Quick::Generations(args.product.clone()))?;
    let AdminReply::Generations(found) = reply else { return unexpected() };
    if args.json {
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
        print_json(&json!({ "generations": list }));
        return Ok(Done::Clean);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|view| {
            vec![
                view.record.name(),
                view.record.tree.to_hex()[..16].to_owned(),
                megabytes(view.record.metadata.content_bytes),
                moment(view.record.published_unix_ms),
                targets(view).join(" "),
            ]
        })
        .collect();
    print_table(&["GENERATION", "TREE", "CONTENT", "PUBLISHED", "EXPORTED TO"], &rows);
    Ok(Done::Clean)
}

pub(super) fn show(args: &ShowArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let AdminReply::Generation(view) = ask_once(dirs, &Quick::Show(args.generation.clone()))? else {
        return unexpected();
    };
    if args.json {
        let mut document = record_json(&view.record);
        document["publisher"] = json!(view.publisher);
        document["exported_to"] = json!(targets(&view));
        document["attached_on"] = json!(view.attached);
        print_json(&document);
    } else {
        print_people(&view);
    }
    Ok(Done::Clean)
}

pub(super) fn diff(args: &DiffArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let AdminReply::Diff(report) = ask_once(dirs, &Quick::Diff(args.old.clone(), args.new.clone()))? else {
        return unexpected();
    };
    if args.json {
        print_json(&serde_json::to_value(&report)?);
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
        eprintln!("manager-fs: {} more differences are not listed", all - listed);
    }
    say!(
        "{} added, {} removed, {} changed, {} equal; new content {}, of it {} in chunks that the first does not have",
        report.added,
        report.removed,
        report.changed,
        report.equal,
        megabytes(report.new_object_bytes),
        megabytes(report.new_chunk_bytes)
    );
    Ok(Done::Clean)
}

pub(super) fn verify(args: &VerifyArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let mut line = ProgressLine::new();
    let reply = ask(dirs, &Long::Verify, |event| line.show(&event));
    line.clear();
    let AdminReply::Verified(view) = reply? else { return unexpected() };
    if args.json {
        let problems: Vec<Value> = view
            .problems
            .iter()
            .map(|(what, fault, touched)| json!({ "what": what, "fault": fault, "generations": touched }))
            .collect();
        print_json(&json!({
            "packs": view.packs, "bytes": view.bytes, "chunks": view.chunks, "manifests": view.manifests,
            "objects": view.objects, "records": view.records, "problems": problems,
        }));
    } else {
        for (what, fault, touched) in &view.problems {
            let touched = if touched.is_empty() { String::new() } else { format!(" (in {})", touched.join(", ")) };
            say!("{what}: {fault}{touched}");
        }
        say!(
            "{} packs, {} chunks, {} objects, {} manifests, {} records, {} read: {} problems",
            view.packs,
            view.chunks,
            view.objects,
            view.manifests,
            view.records,
            megabytes(view.bytes),
            view.problems.len()
        );
    }
    Ok(if view.problems.is_empty() { Done::Clean } else { Done::WithProblems })
}

pub(super) fn gc(args: &GcArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let mut line = ProgressLine::new();
    let reply = ask(dirs, &Long::Gc { dry_run: args.dry_run }, |event| line.show(&event));
    line.clear();
    let AdminReply::Collected(view) = reply? else { return unexpected() };
    if args.json {
        print_json(&serde_json::to_value(&view)?);
    } else {
        say!(
            "{}{} manifests, {} packs, {} deltas and {} bundles removed, {} packs rewritten, {} freed; {} stay",
            if view.dry_run { "dry run: " } else { "" },
            view.manifests_removed,
            view.packs_removed,
            view.deltas_removed,
            view.bundles_removed,
            view.packs_rewritten,
            megabytes(view.bytes_freed),
            megabytes(view.bytes_kept)
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
    let (content, distinct) = (megabytes(metadata.content_bytes), megabytes(metadata.object_bytes));
    line("content", format!("{content}, distinct {distinct}, manifest {}", megabytes(record.manifest_bytes)));
    line("state schemas", format!("{} to {}", metadata.state_schemas.min, metadata.state_schemas.max));
    line("drain deadline", format!("{} s", metadata.drain_deadline_ms as f64 / 1e3));
    line("probation", format!("{} s", metadata.health.probation_ms as f64 / 1e3));
    line("exported to", or_none(targets(view).join(" ")));
    line("attached on", or_none(view.attached.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")));
    print_executables(metadata);
}

fn print_executables(metadata: &Metadata) {
    for file in &metadata.elf_files {
        say!("\n{}  {} {}, {}", file.path, file.architecture, file.kind, megabytes(file.bytes));
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
        say!("\n{}  #!{}", script.path, script.interpreter);
    }
}
