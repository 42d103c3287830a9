//! `attach` and `release`: a generation that this host keeps.

use anyhow::Result;
use clap::Args;
use proto::GenerationRef;
use proto::daemon::DaemonRequest;
use serde_json::json;

use super::out::{self, note, say};
use super::{Done, Here, Json, daemon};

/// `attach GENERATION`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
    #[command(flatten)]
    output: Json,
}

/// `release GENERATION`.
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// product@version, a tree id, or the start of one
    generation: GenerationRef,
    #[command(flatten)]
    output: Json,
}

pub(super) fn attach(args: &AttachArgs, here: &Here) -> Result<Done> {
    let request = DaemonRequest::Attach { generation: args.generation.clone() };
    let attached = daemon::attached(daemon::request(here, &request)?)?;
    if args.output.json {
        out::json(&json!({
            "generation": args.generation.to_string(),
            "tree_id": attached.tree,
            "path": attached.path,
            "namespace_pid": attached.namespace_pid,
        }));
        return Ok(Done::Clean);
    }
    if let Some(pid) = attached.namespace_pid {
        note!(
            "this path is valid inside the mount daemon's namespace, where `manager-fs exec` and `manager-fs launch` \
             run programs; a shell there: nsenter --preserve-credentials -U -m -t {pid}"
        );
    }
    say!("{}", attached.path);
    Ok(Done::Clean)
}

pub(super) fn release(args: &ReleaseArgs, here: &Here) -> Result<Done> {
    let request = DaemonRequest::Release { generation: args.generation.clone() };
    daemon::done(daemon::request(here, &request)?)?;
    if args.output.json {
        out::json(&json!({ "generation": args.generation.to_string(), "released": true }));
    }
    Ok(Done::Clean)
}
