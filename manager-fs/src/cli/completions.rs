//! `completions SHELL`: made from the commands themselves.

use anyhow::Result;
use clap_complete::Shell;

use super::{Done, manual, out};

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<Done> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut manual::commands(), "manager-fs", &mut script);
    out::print(&script);
    Ok(Done::Clean)
}
