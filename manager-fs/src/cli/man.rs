//! `man DIR`: the manual pages, made from the commands themselves.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use serde_json::json;

use super::out::{self, note};
use super::{Done, Json, manual, units};

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Where the pages go; made if need be
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    output: Json,
}

pub(super) fn run(args: &ManArgs) -> Result<Done> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut commands = manual::commands().disable_help_subcommand(true);
    commands.build();
    let mut pages = Vec::new();
    write_pages(&commands, "", dir, &mut pages)?;
    if args.output.json {
        out::json(&json!({ "pages": pages }));
    } else {
        note!("{} are in {}", units::count(pages.len() as u64, "manual page"), dir.display());
    }
    Ok(Done::Clean)
}

/// Writes the page of a command and those of its subcommands: `manager-fs-job-backup.1`.
fn write_pages(command: &Command, path: &str, dir: &Path, written: &mut Vec<String>) -> Result<()> {
    let name = format!("{}.1", command.get_display_name().unwrap_or(command.get_name()));
    let file = dir.join(name);
    std::fs::write(&file, manual::man_page(command, path)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    written.push(file.to_string_lossy().into_owned());
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        let path = format!("{path} {}", below.get_name());
        write_pages(below, path.trim_start(), dir, written)?;
    }
    Ok(())
}
