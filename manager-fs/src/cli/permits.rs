//! `permits check`, on the host: whether its `permits.toml` is understood, and what it says to an order.

use std::path::PathBuf;

use agent_core::Permits;
use clap::Subcommand;
use proto::{CommandName, OperationKind};
use serde_json::json;

use super::out::{self, say};
use super::{Done, Json};
use crate::config::Dirs;

#[derive(Debug, Subcommand)]
pub(super) enum PermitsCommand {
    /// Say whether this host's permits.toml is understood, and whether it permits an order
    Check {
        /// Also ask whether this may be backed up; absolute
        #[arg(long, value_name = "SOURCE")]
        backup: Vec<PathBuf>,
        /// Also ask whether something may be restored to here; absolute
        #[arg(long, value_name = "DIR")]
        restore: Vec<PathBuf>,
        /// Also ask whether something may be restored over what is here; absolute
        #[arg(long, value_name = "DIR")]
        over: Vec<PathBuf>,
        /// Also ask whether an operation of a program's own kind may be ordered
        #[arg(long, value_name = "KIND")]
        operation: Vec<OperationKind>,
        /// Also ask whether backups may run this command
        #[arg(long, value_name = "COMMAND")]
        command: Vec<CommandName>,
        #[command(flatten)]
        output: Json,
    },
}

pub(super) fn run(command: &PermitsCommand, dirs: &Dirs) -> anyhow::Result<Done> {
    let PermitsCommand::Check { backup, restore, over, operation, command, output } = command;
    let permits = Permits::read(&dirs.state, &dirs.run)?;
    let asked = backup.iter().map(|source| permits.backup(source));
    let asked = asked.chain(restore.iter().map(|target| permits.restore(target)));
    let asked = asked.chain(over.iter().map(|target| permits.restore_over(target)));
    let asked = asked.chain(operation.iter().map(|kind| permits.own(kind)));
    let asked = asked.chain(command.iter().map(|name| permits.command(name).map(drop)));
    let refused: Vec<String> = asked.filter_map(|answer| Some(answer.err()?.to_string())).collect();
    if output.json {
        out::json(&json!({ "file": permits.file(), "there": permits.is_there(), "refused": refused }));
    } else if permits.is_there() {
        say!("{} is understood", permits.file().display());
    } else {
        say!("there is no {}: the default holds", permits.file().display());
    }
    for why in refused.iter().filter(|_| !output.json) {
        say!("{why}");
    }
    Ok(if refused.is_empty() { Done::Clean } else { Done::Code(1) })
}
