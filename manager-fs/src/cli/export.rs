//! `export` and `unexport`.

use proto::name::Target;
use proto::{GenerationRef, HostName};

use super::Done;
use super::client::{ask_once, unexpected};
use crate::config::Dirs;
use crate::manager::admin::{AdminReply, Quick};

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
    let request = Quick::Export(args.generation.clone(), args.to.clone());
    let AdminReply::Changed(changed) = ask_once(dirs, &request)? else { return unexpected() };
    for target in &args.to {
        let how = if changed.targets.contains(target) { "exported" } else { "exported before" };
        eprintln!("manager-fs: {} is {how} to {target}", args.generation);
    }
    tell_not_enrolled(&changed.not_enrolled);
    Ok(Done::Clean)
}

pub(super) fn unexport(args: &UnexportArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let (generation, targets) = (args.generation.clone(), args.from.clone());
    let request = Quick::Unexport { generation, targets, force: args.force };
    let AdminReply::Changed(changed) = ask_once(dirs, &request)? else { return unexpected() };
    for target in &args.from {
        let how = if changed.targets.contains(target) { "no longer" } else { "not" };
        eprintln!("manager-fs: {} is {how} exported to {target}", args.generation);
    }
    Ok(Done::Clean)
}

/// Says which hosts are not enrolled: right before an enrolment, a typing error otherwise.
pub(super) fn tell_not_enrolled(hosts: &[HostName]) {
    for host in hosts {
        eprintln!("manager-fs: host {host} is not enrolled yet; it holds for it as soon as it is");
    }
}
