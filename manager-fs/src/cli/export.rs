//! `export` and `unexport`.

use proto::GenerationRef;
use proto::name::Target;

use super::Done;
use super::client::{ask_once, unexpected};
use crate::config::Dirs;
use crate::manager::admin::{AdminReply, AdminRequest};

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
    /// Hosts and @groups that may see and fetch it
    #[arg(long, required = true, num_args = 1.., value_name = "HOST|@GROUP")]
    to: Vec<Target>,
}

#[derive(Debug, clap::Args)]
pub(super) struct UnexportArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
    /// Hosts and @groups that may no longer see it
    #[arg(long, visible_alias = "to", required = true, num_args = 1.., value_name = "HOST|@GROUP")]
    from: Vec<Target>,
    /// Also where it is attached
    #[arg(long)]
    force: bool,
}

pub(super) fn export(args: &ExportArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let request = AdminRequest::Export(args.generation.clone(), args.to.clone());
    let AdminReply::Changed(changed) = ask_once(dirs, &request)? else { return unexpected() };
    for target in &args.to {
        let how = if changed.contains(target) { "exported" } else { "exported before" };
        eprintln!("manager-fs: {} is {how} to {target}", args.generation);
    }
    Ok(Done::Clean)
}

pub(super) fn unexport(args: &UnexportArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let (generation, targets) = (args.generation.clone(), args.from.clone());
    let request = AdminRequest::Unexport { generation, targets, force: args.force };
    let AdminReply::Changed(changed) = ask_once(dirs, &request)? else { return unexpected() };
    for target in &args.from {
        let how = if changed.contains(target) { "no longer" } else { "not" };
        eprintln!("manager-fs: {} is {how} exported to {target}", args.generation);
    }
    Ok(Done::Clean)
}
