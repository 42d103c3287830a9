//! `publish` and `unpublish`.

use std::path::PathBuf;

use proto::{GenerationRef, Product, Version};
use serde_json::json;

use super::Done;
use super::client::{ProgressLine, ask, ask_once, megabytes, print_json, unexpected};
use super::out::say;
use crate::config::Dirs;
use crate::manager::admin::{AdminReply, AdminRequest, PublishOrder};

#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// The named component, such as data-agent
    product: Product,
    /// Its maker's version
    version: Version,
    /// Directory, tar (plain, gzip, xz, zstd), .deb, wheel or zip
    source: PathBuf,
    /// SOURCE is a service pack: only the changed files, laid over this generation
    #[arg(long, value_name = "GENERATION")]
    onto: Option<GenerationRef>,
    /// The program to start, as a path in the tree
    #[arg(long, value_name = "PATH")]
    entrypoint: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct UnpublishArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
}

pub(super) fn publish(args: &PublishArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    // The manager has another working directory.
    let source = std::path::absolute(&args.source)?;
    let order = PublishOrder {
        product: args.product.clone(),
        version: args.version.clone(),
        source: PublishOrder::source_bytes(&source),
        onto: args.onto.clone(),
        entry_point: args.entrypoint.clone(),
    };
    let mut line = ProgressLine::new();
    let reply = ask(dirs, &AdminRequest::Publish(order), |event| line.show(&event));
    line.clear();
    let AdminReply::Published(report) = reply? else { return unexpected() };
    let record = &report.record;
    if args.json {
        let mut document = super::generations::record_json(record);
        document["already_published"] = json!(report.already);
        document["read_bytes"] = json!(report.read_bytes);
        document["new_chunks"] = json!(report.new_chunks);
        document["stored_bytes"] = json!(report.stored_bytes);
        print_json(&document);
    } else if report.already {
        say!("{} is published already, as tree {}", record.name(), record.tree);
    } else {
        say!("{}  {}", record.name(), record.tree);
        say!(
            "{} entries, {} of content; {} new chunks, {} stored",
            record.metadata.entry_count,
            megabytes(record.metadata.content_bytes),
            report.new_chunks,
            megabytes(report.stored_bytes)
        );
    }
    Ok(Done::Clean)
}

pub(super) fn unpublish(args: &UnpublishArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    ask_once(dirs, &AdminRequest::Unpublish(args.generation.clone()))?;
    eprintln!("manager-fs: {} is no longer published; `manager-fs gc` frees its space", args.generation);
    Ok(Done::Clean)
}
