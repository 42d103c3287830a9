//! `launch PRODUCT`.

use agent_core::internal::stub::Outlet;
use clap::Args;
use proto::Product;

use super::log::LogArgs;
use super::{Done, Here, daemon, near};
use crate::host::control::launch;

/// Flags of `launch`.
#[derive(Debug, Args)]
pub(super) struct LaunchArgs {
    /// Which product's agent to start and watch
    product: Product,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: &LaunchArgs, here: &Here) -> anyhow::Result<Done> {
    // The log and the messages go the same way, which never waits for whoever reads it.
    let stderr = Outlet::stderr();
    let log = stderr.clone();
    args.log.start_to(move || log.clone());
    match launch::launch(&args.product, &here.dirs, stderr) {
        Ok(()) => Ok(Done::Clean),
        Err(error) => anyhow::bail!("{error:#}{}", suggestion(args, here)),
    }
}

/// A product of this host that is near to one that it does not know.
fn suggestion(args: &LaunchArgs, here: &Here) -> String {
    let generations = daemon::generations(here);
    let products = generations.iter().filter_map(|name| name.split_once('@').map(|(product, _)| product.to_owned()));
    let near = near::nearest(args.product.as_str(), &products.collect::<Vec<_>>());
    near::question(&near.into_iter().collect::<Vec<_>>())
}
