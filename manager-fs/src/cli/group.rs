//! `host group …`.

use clap::Subcommand;
use proto::{GroupName, HostName};
use serde_json::json;

use super::client::{ask_once, unexpected};
use super::out::{self, say};
use super::{Done, Here, Json, export};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::documents::{self, GroupChangedDocument, GroupsDocument};
use crate::manager::labels::Selector;

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Add hosts to a group, which is made if need be
    Add {
        /// The group's name, without @
        group: GroupName,
        /// The hosts' names
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<HostName>,
        #[command(flatten)]
        output: Json,
    },
    /// Remove hosts from a group
    Remove {
        /// The group's name, without @
        group: GroupName,
        /// The hosts' names
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<HostName>,
        #[command(flatten)]
        output: Json,
    },
    /// Say which hosts are in a group by their labels, beside those that were added to it
    Rule {
        /// The group's name, without @; it is made if need be
        group: GroupName,
        /// What all of its hosts meet: site=fra, site!=fra, site (some value), !site (none)
        #[arg(required_unless_present = "none", conflicts_with = "none", value_name = "SELECTOR")]
        rule: Vec<Selector>,
        /// Take the rule away; hosts that were added by name stay
        #[arg(long)]
        none: bool,
        #[command(flatten)]
        output: Json,
    },
    /// Every group with its hosts
    List {
        #[command(flatten)]
        output: Json,
    },
    /// Delete a group and the exports to it
    Delete {
        /// The group's name, without @
        group: GroupName,
        #[command(flatten)]
        output: Json,
    },
}

pub(super) fn run(command: &GroupCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        GroupCommand::Add { group, hosts, output } => {
            changed(&Quick::GroupAdd(group.clone(), hosts.clone()), group, *output, here)
        }
        GroupCommand::Remove { group, hosts, output } => {
            changed(&Quick::GroupRemove(group.clone(), hosts.clone()), group, *output, here)
        }
        // Without selectors, `--none` was given.
        GroupCommand::Rule { group, rule, none: _, output } => {
            changed(&Quick::GroupRule(group.clone(), rule.clone()), group, *output, here)
        }
        GroupCommand::Delete { group, output } => {
            ask_once(here, &Quick::GroupDelete(group.clone()))?;
            if output.json {
                out::json(&json!({ "group": group, "deleted": true }));
            }
            Ok(Done::Clean)
        }
        GroupCommand::List { output } => list(*output, here),
    }
}

/// Changes a group, and shows it as it is then.
fn changed(request: &Quick, group: &GroupName, output: Json, here: &Here) -> anyhow::Result<Done> {
    let not_enrolled = match ask_once(here, request)? {
        AdminReply::Changed(changed) => changed.not_enrolled,
        _ => Vec::new(),
    };
    if !output.json {
        export::tell_not_enrolled(&not_enrolled, here);
    } else {
        let AdminReply::Groups(groups) = ask_once(here, &Quick::Groups)? else { return unexpected() };
        out::json(&documents::json(&GroupChangedDocument::of(group, &groups, &not_enrolled)));
    }
    Ok(Done::Clean)
}

fn list(output: Json, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Groups(groups) = ask_once(here, &Quick::Groups)? else { return unexpected() };
    let AdminReply::Rules(rules) = ask_once(here, &Quick::Rules)? else { return unexpected() };
    let rule = |group: &GroupName| -> Vec<String> {
        rules.get(group).into_iter().flatten().map(ToString::to_string).collect()
    };
    if output.json {
        out::json(&documents::json(&GroupsDocument::of(&groups, &rules)));
    } else {
        for (group, hosts) in groups {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let rule = rule(&group).join(" ");
            let rule = if rule.is_empty() { rule } else { format!(" ({rule})") };
            say!("@{group}{rule}: {}", hosts.join(" "));
        }
    }
    Ok(Done::Clean)
}
