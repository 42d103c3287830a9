//! `__adapter TREE` and `__keep …`: an unchanged program as an agent. Neither is for people; the stub and the adapter
//! start them.

use std::path::PathBuf;

use clap::Args;

use super::Done;
use super::log::LogArgs;
use crate::host::adapter::{self, Keep};

/// What the stub gives to an adapter.
#[derive(Debug, Args)]
pub(super) struct AdapterArgs {
    /// The attached tree
    tree: PathBuf,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn adapter(args: &AdapterArgs) -> anyhow::Result<Done> {
    args.log.start();
    adapter::run(&args.tree)?;
    Ok(Done::Clean)
}

pub(super) fn keep(args: &Keep) -> anyhow::Result<Done> {
    Ok(Done::Code(adapter::keep(args)?))
}
