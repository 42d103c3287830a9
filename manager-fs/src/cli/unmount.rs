//! `unmount`: ends the mount daemon of this host.

use anyhow::Result;
use clap::Args;
use proto::daemon::DaemonRequest;
use serde_json::json;

use super::{Done, Here, Json, daemon, out};

/// `unmount`.
#[derive(Debug, Args)]
pub(super) struct UnmountArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn unmount(args: &UnmountArgs, here: &Here) -> Result<Done> {
    let ran = daemon::runs(here);
    match daemon::request(here, &DaemonRequest::Unmount) {
        // The daemon may be gone before its answer is on the way: then it has done what was asked.
        Err(_) if ran && !daemon::runs(here) => {}
        answer => daemon::done(answer?)?,
    }
    if args.output.json {
        out::json(&json!({ "unmounted": true }));
    }
    Ok(Done::Clean)
}
