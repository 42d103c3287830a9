//! `rescue PRODUCT --to GENERATION`, on the host, offline.

use agent_core::AgentPaths;
use agent_core::internal::rescue::rescue;
use clap::Args;
use proto::{GenerationRef, Product};

use super::{Done, out::note};
use crate::config::Dirs;

/// Flags of `rescue`.
#[derive(Debug, Args)]
pub(super) struct RescueArgs {
    /// Whose agent does not come up
    product: Product,
    /// What its next launch starts: product@version, a tree id, or the start of one
    #[arg(long, value_name = "GENERATION")]
    to: GenerationRef,
}

pub(super) fn run(args: &RescueArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let paths = AgentPaths::new(&dirs.state, &dirs.run, args.product.clone());
    let rescued = rescue(&paths, &args.to)?;
    let back = match &rescued.last_good {
        Some(good) => format!("; if it does not prove itself, {} returns", good.version),
        None => String::new(),
    };
    note!("the next `manager-fs launch {}` starts {}{back}", args.product, rescued.to.version);
    Ok(Done::Clean)
}
