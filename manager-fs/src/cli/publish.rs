//! `publish` and `unpublish`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use proto::name::Target;
use proto::{GenerationRecord, GenerationRef, HostName, Product, Version};
use serde_json::{Value, json};

use super::client::{ask, ask_once, unexpected};
use super::out::{self, note, say};
use super::profile::Recorded;
use super::progress::ProgressLine;
use super::units::{byte_count, bytes, count};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Long, PublishOrder, PublishReport, Quick};

/// As the default of `profile --for`.
const PROFILE_AT_MOST: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// The named component, such as data-agent
    product: Product,
    /// Its maker's version
    version: Version,
    /// Directory, tar (plain or compressed), .deb, .rpm, wheel, zip, or image (oci:DIR, docker-archive:FILE)
    source: PathBuf,
    /// SOURCE is a service pack: only the changed files, laid over this generation
    #[arg(long, value_name = "GENERATION")]
    onto: Option<GenerationRef>,
    /// The program to start, as a path in the tree
    #[arg(long, value_name = "PATH")]
    entrypoint: Option<String>,
    /// Size of the pieces that are stored and fetched, a power of two from 4KiB to 1MiB [default: 256KiB]
    #[arg(long, env = "MANAGER_FS_CHUNK_BYTES", value_name = "BYTES", value_parser = byte_count)]
    chunk_bytes: Option<u64>,
    /// Refuse a tar archive that has a path twice, instead of taking the later entry as tar does
    #[arg(long)]
    strict: bool,
    /// Where this machine is a host of the manager, too: export the generation to it, run its entry point once there, and
    /// make the start-up bundle of what it touches (see `profile`)
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    output: Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct UnpublishArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
    #[command(flatten)]
    output: Json,
}

pub(super) fn publish(args: &PublishArgs, here: &Here) -> anyhow::Result<Done> {
    // The manager has another working directory.
    let source = crate::manager::ingest::absolute(&args.source)?;
    let order = PublishOrder {
        product: args.product.clone(),
        version: args.version.clone(),
        source: PublishOrder::source_bytes(&source),
        onto: args.onto.clone(),
        entry_point: args.entrypoint.clone(),
        chunk_bytes: args.chunk_bytes.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
        strict: args.strict,
    };
    let mut line = ProgressLine::new();
    let reply = ask(
        here,
        &Long::Publish(order),
        "it was given up, unless it was just done: `manager-fs generations` says",
        |event| line.show(&event),
    );
    line.clear();
    let AdminReply::Published(report) = reply? else { return unexpected() };
    let Some(record) = report.records.first() else { return unexpected() };
    let profiled = if args.profile {
        Some(profile(GenerationRef::Named(record.product.clone(), record.version.clone()), here)?)
    } else {
        None
    };
    if args.output.json {
        let mut document = super::generations::record_json(record);
        if report.records.len() > 1 {
            document["architectures"] = report.records.iter().map(architecture_json).collect();
        }
        document["already_published"] = json!(report.already);
        document["read_bytes"] = json!(report.read_bytes);
        document["new_chunks"] = json!(report.new_chunks);
        document["stored_bytes"] = json!(report.stored_bytes);
        document["profile"] = json!(profiled.as_ref().map(Recorded::json));
        out::json(&document);
    } else {
        people(&report);
    }
    let done = profiled.as_ref().map_or(Done::Clean, Recorded::done);
    if let Some(profiled) = profiled.filter(|_| !args.output.json) {
        say!("{}", profiled.text());
    }
    Ok(done)
}

/// One of several, in short.
fn architecture_json(record: &GenerationRecord) -> Value {
    json!({
        "architecture": record.metadata.architecture,
        "tree_id": record.tree,
        "content_bytes": record.metadata.content_bytes,
        "published_unix_ms": record.published_unix_ms,
    })
}

fn people(report: &PublishReport) {
    let several = report.records.len() > 1;
    for record in &report.records {
        let architecture = record.metadata.architecture.as_deref().filter(|_| several);
        let of = architecture.map(|name| format!(" for {name}")).unwrap_or_default();
        if report.already {
            say!("{} is published already{of}, as tree {}", record.name(), record.tree);
        } else {
            say!("{}  {}{of}", record.name(), record.tree);
        }
    }
    if !report.already {
        let sum = |of: fn(&GenerationRecord) -> u64| report.records.iter().map(of).sum::<u64>();
        say!(
            "{}, {} of content; {}, {} stored",
            count(sum(|record| record.metadata.entry_count), "entry"),
            bytes(sum(|record| record.metadata.content_bytes)),
            count(report.new_chunks, "new chunk"),
            bytes(report.stored_bytes)
        );
    }
}

/// Exports the generation to the host on this machine and records its start there. What is published stays published if
/// that fails.
fn profile(generation: GenerationRef, here: &Here) -> anyhow::Result<Recorded> {
    let done = || {
        let host: HostName = super::daemon::host(here)?;
        ask_once(here, &Quick::Export(generation.clone(), vec![Target::Host(host)]))?;
        super::profile::record(&generation, &[], PROFILE_AT_MOST, here)
    };
    done().with_context(|| format!("{generation} is published, but its start could not be recorded"))
}

pub(super) fn unpublish(args: &UnpublishArgs, here: &Here) -> anyhow::Result<Done> {
    ask_once(here, &Quick::Unpublish(args.generation.clone()))?;
    if args.output.json {
        out::json(&json!({ "generation": args.generation.to_string(), "unpublished": true }));
    } else {
        note!("{} is no longer published; `manager-fs gc` frees its space", args.generation);
    }
    Ok(Done::Clean)
}
