//! `recover`: the control state built anew out of the store.

use std::time::Duration;

use super::out::{self, note, say};
use super::units::{count, duration};
use super::{Done, Json};
use crate::config::Dirs;
use crate::manager::recover::{Recovered, recover};

#[derive(Debug, clap::Args)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn run(args: &RecoverArgs, dirs: &Dirs) -> anyhow::Result<Done> {
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
            note!(
                "the last of the decisions that are copied is {} old; what was decided in the second after it may be lost",
                duration(age)
            )
        }
        None => note!("there was no copy of the decisions: hosts must enrol again, and be exported to"),
    }
    if recovered.damaged_lines > 0 {
        note!(
            "{} of the copy cannot be read; what they were of is lost, and what they changed may be as it was before: \
             compare `hosts` and `generations` with what you know",
            count(recovered.damaged_lines as u64, "line")
        );
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
