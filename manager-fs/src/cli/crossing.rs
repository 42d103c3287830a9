//! `save` and `load`: generations for a manager that no network reaches.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use proto::{GenerationRef, Publishers};
use serde_json::json;

use super::client::{ask, unexpected};
use super::out::{self, note, say};
use super::progress::ProgressLine;
use super::units::{bytes, count};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, LoadOrder, Long};
use crate::manager::crossing::Order;

#[derive(Debug, clap::Args)]
pub(super) struct SaveArgs {
    /// product@version, or a tree id or its start
    #[arg(required = true, num_args = 1.., value_name = "GENERATION")]
    generations: Vec<GenerationRef>,
    /// The file, which is made
    #[arg(required = true)]
    file: PathBuf,
    /// Leave out what the other side has: what `load --have` printed there
    #[arg(long, value_name = "FILE")]
    have: Option<PathBuf>,
    #[command(flatten)]
    output: Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// The file that `save` made
    #[arg(required_unless_present = "have")]
    file: Option<PathBuf>,
    /// Print what this side has, for `save --have`, instead
    #[arg(long, conflicts_with_all = ["file", "publisher", "json"])]
    have: bool,
    /// Believe the records of this publisher, too: the key that `show` prints where they were saved
    #[arg(long, value_name = "KEY", value_parser = publisher)]
    publisher: Vec<Key>,
    #[command(flatten)]
    output: Json,
}

/// A publisher's public key.
#[derive(Debug, Clone, Copy)]
struct Key([u8; 32]);

fn publisher(text: &str) -> Result<Key, String> {
    let keys = Publishers::parse(text).map_err(|error| error.to_string())?;
    keys.keys().first().map(|key| Key(key.to_bytes())).ok_or_else(|| String::from("want 64 lowercase hex digits"))
}

pub(super) fn save(args: &SaveArgs, here: &Here) -> anyhow::Result<Done> {
    let absolute = |path: &PathBuf| std::path::absolute(path).map(|path| path.as_os_str().as_bytes().to_vec());
    let order = Order {
        generations: args.generations.clone(),
        file: absolute(&args.file)?,
        have: args.have.as_ref().map(absolute).transpose()?,
    };
    let mut line = ProgressLine::new();
    let interrupted = "what was written stays beside it as .part; the same line goes on there";
    let reply = ask(here, &Long::Save(order), interrupted, |event| line.show(&event));
    line.clear();
    let AdminReply::Saved(saved) = reply? else { return unexpected() };
    if args.output.json {
        let mut document = serde_json::to_value(&saved)?;
        document["file"] = json!(args.file);
        out::json(&document);
        return Ok(Done::Clean);
    }
    say!(
        "{}: {}, {}",
        bytes(saved.bytes),
        count(saved.generations.len() as u64, "generation"),
        count(saved.chunks, "chunk")
    );
    if !saved.relies_on.is_empty() {
        note!("{} left out: the other side has {}", count(saved.left_out, "chunk"), saved.relies_on.join(", "));
    }
    if saved.unknown > 0 {
        note!("{} of the other side's are not known here and save nothing", count(saved.unknown, "tree"));
    }
    for publisher in &saved.publishers {
        note!("signed by publisher {publisher}");
    }
    Ok(Done::Clean)
}

pub(super) fn load(args: &LoadArgs, here: &Here) -> anyhow::Result<Done> {
    let Some(file) = &args.file else { return have(here) };
    let file = std::path::absolute(file)?.as_os_str().as_bytes().to_vec();
    let order = LoadOrder { file, publishers: args.publisher.iter().map(|key| key.0).collect() };
    let mut line = ProgressLine::new();
    let interrupted = "nothing is visible, unless it was just done; the same line goes on with what was copied";
    let reply = ask(here, &Long::Load(order), interrupted, |event| line.show(&event));
    line.clear();
    let AdminReply::Loaded(loaded) = reply? else { return unexpected() };
    if args.output.json {
        let generations: Vec<_> = loaded
            .generations
            .iter()
            .map(|loaded| {
                json!({
                    "generation": loaded.record.name(),
                    "architecture": loaded.record.metadata.architecture,
                    "tree_id": loaded.record.tree,
                    "sequence": loaded.record.sequence,
                    "already_published": loaded.already,
                })
            })
            .collect();
        out::json(&json!({
            "generations": generations, "new_chunks": loaded.new_chunks, "stored_bytes": loaded.stored_bytes,
        }));
        return Ok(Done::Clean);
    }
    for loaded in &loaded.generations {
        let already = if loaded.already { "  was here already" } else { "" };
        say!("{}  {}{already}", loaded.record.name(), loaded.record.tree);
    }
    say!("{}, {} stored", count(loaded.new_chunks, "new chunk"), bytes(loaded.stored_bytes));
    Ok(Done::Clean)
}

fn have(here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Have(text) = ask(here, &Long::Have, "", |_| {})? else { return unexpected() };
    text.lines().for_each(|line| say!("{line}"));
    Ok(Done::Clean)
}
