//! `record …`: records of the control state that cannot be read.

use clap::Subcommand;
use serde_json::json;

use super::client::{ask_once, unexpected};
use super::out::{self, note};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick};

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
