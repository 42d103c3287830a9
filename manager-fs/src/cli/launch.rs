//! `launch PRODUCT`.

use clap::Args;
use proto::Product;

use super::Done;
use crate::config::Dirs;
use crate::host::control::launch;

/// Flags of `launch`.
#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// Which product's agent to start and watch
    product: Product,
}

pub(crate) fn run(args: &LaunchArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    super::log::start();
    launch::launch(&args.product, dirs)?;
    Ok(Done::Clean)
}
