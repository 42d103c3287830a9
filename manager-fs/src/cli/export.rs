//! `export` and `unexport`.

use proto::name::Target;
use proto::{GenerationRef, HostName};

use super::client::{ask_once, unexpected};
use super::out::{self, note};
use super::{Done, Here, Json, near};
use crate::manager::admin::{AdminReply, ChangedView, Quick};
use crate::manager::documents::{self, ChangedDocument};

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// product@version, or a tree id or its start
    generation: GenerationRef,
    /// Hosts and @groups that may see and fetch it
    #[arg(long, required = true, num_args = 1.., value_name = "HOST|@GROUP")]
    to: Vec<Target>,
    #[command(flatten)]
    output: Json,
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
    #[command(flatten)]
    output: Json,
}

pub(super) fn export(args: &ExportArgs, here: &Here) -> anyhow::Result<Done> {
    let request = Quick::Export(args.generation.clone(), args.to.clone());
    let AdminReply::Changed(changed) = ask_once(here, &request)? else { return unexpected() };
    if args.output.json {
        print_changes(&args.generation, &args.to, &changed);
        return Ok(Done::Clean);
    }
    for target in &args.to {
        let how = if changed.targets.contains(target) { "exported" } else { "exported before" };
        note!("{} is {how} to {target}", args.generation);
    }
    tell_not_enrolled(&changed.not_enrolled, here);
    Ok(Done::Clean)
}

pub(super) fn unexport(args: &UnexportArgs, here: &Here) -> anyhow::Result<Done> {
    let (generation, targets) = (args.generation.clone(), args.from.clone());
    let request = Quick::Unexport { generation, targets, force: args.force };
    let AdminReply::Changed(changed) = ask_once(here, &request)? else { return unexpected() };
    if args.output.json {
        print_changes(&args.generation, &args.from, &changed);
        return Ok(Done::Clean);
    }
    for target in &args.from {
        let how = if changed.targets.contains(target) { "no longer" } else { "not" };
        note!("{} is {how} exported to {target}", args.generation);
    }
    Ok(Done::Clean)
}

/// Says which hosts are not enrolled: right before an enrolment, a typing error otherwise.
pub(super) fn tell_not_enrolled(hosts: &[HostName], here: &Here) {
    if hosts.is_empty() {
        return;
    }
    let known: Vec<String> = match ask_once(here, &Quick::Hosts) {
        Ok(AdminReply::Hosts(known)) => known.iter().map(|host| host.name.to_string()).collect(),
        // The names are only a help.
        _ => Vec::new(),
    };
    for host in hosts {
        let near: Vec<String> = near::nearest(host.as_str(), &known).into_iter().collect();
        let question = near::question(&near);
        note!("host {host} is not enrolled yet; it holds for it as soon as it is{question}");
    }
}

fn print_changes(generation: &GenerationRef, targets: &[Target], changed: &ChangedView) {
    out::json(&documents::json(&ChangedDocument::of(generation, targets, changed)));
}
