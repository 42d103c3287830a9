//! `status`: what the mount daemon of this host does.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::out::{self, note, say};
use super::{Done, Here, Json, daemon};

/// `status` ends within this time, whatever the daemon is doing; within a second if it is stopped.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn status(args: &StatusArgs, here: &Here) -> Result<Done> {
    let (document, running) = match daemon::status(here, STATUS_WITHIN) {
        Ok(document) => (document, true),
        Err(error) => {
            let reason = format!("{error:#}");
            note!("{reason}");
            (without_daemon(here, &reason), false)
        }
    };
    if args.output.json {
        out::json(&document);
    } else {
        super::status_text::lines(&document).iter().for_each(|line| say!("{line}"));
    }
    Ok(if running { Done::Clean } else { Done::WithProblems })
}

/// What can be said of a host whose mount daemon does not answer.
fn without_daemon(here: &Here, reason: &str) -> Value {
    let state = &here.dirs.state;
    let identity = crate::host::enroll::Identity::load(state);
    let attached = std::fs::read_to_string(state.join("attached")).unwrap_or_default();
    let attachments = attached.lines().filter_map(|line| line.split_once(' '));
    let attachments: Vec<_> = attachments.map(|(tree, name)| json!({ "tree_id": tree, "name": name })).collect();
    json!({
        "daemon": { "running": false, "reason": reason },
        "host": identity.as_ref().ok().map(|identity| &identity.host),
        "manager": { "address": identity.as_ref().ok().map(|identity| &identity.manager), "connected": false },
        "fuse": { "requests": {} },
        "fetched_bytes": 0,
        "generations": [],
        "attachments": attachments,
        "agents": [],
    })
}
