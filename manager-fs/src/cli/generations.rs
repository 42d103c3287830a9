//! `generations` and `show`.

use proto::record::Metadata;
use proto::{GenerationRecord, GenerationRef, Product, TreeId};
use serde_json::Value;

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::units::{bytes, moment, ms};
use super::{Done, Here, Json, near};
use crate::manager::admin::{AdminReply, GenerationView, Quick};
use crate::manager::documents::{self, GenerationsDocument, RecordDocument, ShownDocument};

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

pub(super) fn generations(args: &GenerationsArgs, here: &Here) -> anyhow::Result<Done> {
    let reply = ask_once(here, &Quick::Generations(args.product.clone()))?;
    let AdminReply::Generations(found) = reply else { return unexpected() };
    if let (Some(product), true) = (&args.product, found.is_empty()) {
        note!("there is no generation of {product}{}", products_near(product, here)?);
    }
    if args.output.json {
        out::json(&documents::json(&GenerationsDocument::of(&found)));
        return Ok(Done::Clean);
    }
    let row = |name: String, tree: &TreeId, content: u64, published: u64, exported: String| {
        vec![name, tree.to_hex()[..16].to_owned(), bytes(content), moment(published), exported]
    };
    let mut rows = Vec::new();
    for view in &found {
        let record = &view.record;
        let (content, published) = (record.metadata.content_bytes, record.published_unix_ms);
        rows.push(row(record.name(), &record.tree, content, published, targets(view).join(" ")));
        for other in &view.others {
            let name = format!("{} for {}", record.name(), other.architecture);
            rows.push(row(name, &other.tree, other.content_bytes, other.published_unix_ms, String::new()));
        }
    }
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
        out::json(&documents::json(&ShownDocument::from(&view)));
    } else {
        print_people(&view);
    }
    Ok(Done::Clean)
}

/// A record as every command prints it: flat, with `tree_id`.
pub(super) fn record_json(record: &GenerationRecord) -> Value {
    documents::json(&RecordDocument::from(record))
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
    for other in &view.others {
        line("also for", format!("{}, tree {}", other.architecture, other.tree));
    }
    line("entry point", metadata.entry_point.as_ref().map_or_else(|| String::from("-"), ToString::to_string));
    line("arguments", or_none(metadata.arguments.join(" ")));
    line("entries", format!("{}, of them {} files", metadata.entry_count, metadata.file_count));
    let (content, distinct) = (bytes(metadata.content_bytes), bytes(metadata.object_bytes));
    line("content", format!("{content}, distinct {distinct}, manifest {}", bytes(record.manifest_bytes)));
    line("state schemas", format!("{} to {}", metadata.state_schemas.min, metadata.state_schemas.max));
    line("drain deadline", ms(metadata.drain_deadline_ms));
    line("probation", ms(metadata.health.probation_ms));
    if let Some(check) = &view.health_check {
        line("health check", format!("{}, every {}", check.probe, ms(check.interval_ms)));
    }
    if let Some(adapter) = &view.adapter {
        let listen = adapter.listen.iter().map(|listen| format!(", {} at {}", listen.name, listen.at));
        let drain = format!("; {}, then {}", adapter.drain.signal, ms(adapter.drain.deadline_ms));
        line("adapter", format!("{}{}{drain}", adapter.handover, listen.collect::<String>()));
    }
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
