//! `record`: records of the control state that cannot be read. `recover`: the control state built anew.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::{Done, Here, Json};
use crate::config::Dirs;
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::recover::{Recovered, recover};

#[derive(Debug, Subcommand)]
pub(super) enum RecordCommand {
    /// Show the records that cannot be read, and why not
    List {
        #[command(flatten)]
        output: Json,
    },
    /// Remove a record that cannot be read; one that can is never removed
    Remove {
        /// Its key, as `record list` shows it
        key: String,
        #[command(flatten)]
        output: Json,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn run(command: &RecordCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        RecordCommand::List { output } => list(*output, here),
        RecordCommand::Remove { key, output } => {
            ask_once(here, &Quick::RemoveDamaged(key.clone()))?;
            if output.json {
                out::json(&json!({ "key": key, "removed": true }));
            }
            Ok(Done::Clean)
        }
    }
}

fn list(output: Json, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Damaged(records) = ask_once(here, &Quick::Damaged)? else { return unexpected() };
    if output.json {
        let list: Vec<_> = records.iter().map(|(key, reason)| json!({ "key": key, "reason": reason })).collect();
        out::json(&json!({ "damaged": list }));
    } else if records.is_empty() {
        note!("every record can be read");
    } else {
        let rows: Vec<Vec<String>> = records.iter().map(|(key, reason)| vec![key.clone(), reason.clone()]).collect();
        out::table(&["RECORD", "WHY IT CANNOT BE READ"], &rows);
    }
    Ok(if records.is_empty() { Done::Clean } else { Done::WithProblems })
}

pub(super) fn recover_store(args: &RecoverArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let recovered = recover(&dirs.store)?;
    if args.output.json {
        out::json(&serde_json::to_value(&recovered)?);
    } else {
        for (kind, count) in &recovered.records {
            say!("{kind}: {count}");
        }
        tell(&recovered);
    }
    let whole = recovered.damaged_lines == 0
        && recovered.damaged_files.is_empty()
        && recovered.without_tree.is_empty()
        && recovered.copy_age_ms.is_some();
    Ok(if whole { Done::Clean } else { Done::WithProblems })
}

/// What did not come back, and what an operator does about it.
fn tell(recovered: &Recovered) {
    match recovered.copy_age_ms.map(|age| Duration::from_secs(age / 1000)) {
        Some(age) => {
            note!("the copy of the decisions is {} old; what was decided since is lost", super::units::duration(age))
        }
        None => note!("there was no copy of the decisions: hosts must enrol again, and be exported to"),
    }
    if recovered.damaged_lines > 0 {
        note!("{} of the copy cannot be read", super::units::count(recovered.damaged_lines as u64, "line"));
    }
    for name in &recovered.from_files {
        note!("{name} was only found as a file, and is exported to nobody");
    }
    for name in &recovered.without_tree {
        note!("the tree of {name} is not in the store: publish its files again");
    }
    for name in &recovered.damaged_files {
        note!("the record file '{name}' cannot be read");
    }
    if let Some(kept) = &recovered.kept {
        note!("the damaged control state lies in {}", kept.display());
    }
}
