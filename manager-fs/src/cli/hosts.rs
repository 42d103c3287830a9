//! `hosts` and `host …`.

use clap::Subcommand;
use proto::HostName;
use proto::name::Target;
use serde_json::{Value, json};

use super::client::{ask_once, unexpected};
use super::group::{self, GroupCommand};
use super::out::{self, note};
use super::units::moment;
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, HOSTS_PAGE, HostFilter, HostState, HostView, Quick};
use crate::manager::documents::{self, HostsDocument};
use crate::manager::labels::{LabelChange, Labels, Selector};

/// The words of `--only`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum StateArg {
    /// Connected now
    Connected,
    /// Enrolled and not connected
    Away,
    /// Revoked
    Revoked,
}

impl From<StateArg> for HostState {
    fn from(word: StateArg) -> Self {
        match word {
            StateArg::Connected => HostState::Connected,
            StateArg::Away => HostState::Away,
            StateArg::Revoked => HostState::Revoked,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct HostsArgs {
    /// Only these hosts, or those of these groups (@GROUP)
    #[arg(value_name = "HOST|@GROUP")]
    of: Vec<Target>,
    /// Only hosts with this label: site=fra, site!=fra, site (some value), !site (none); all of several
    #[arg(long = "label", value_name = "SELECTOR")]
    labels: Vec<Selector>,
    /// Only hosts in this state
    #[arg(long, value_enum, value_name = "STATE")]
    only: Option<StateArg>,
    /// Only so many of them, in the order of their names
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only those whose names come after this one
    #[arg(long, value_name = "HOST")]
    after: Option<HostName>,
    #[command(flatten)]
    output: Json,
}

impl HostsArgs {
    fn all(output: Json) -> Self {
        Self { of: Vec::new(), labels: Vec::new(), only: None, limit: None, after: None, output }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Refuse a host from now on; its connections are cut
    Revoke {
        /// The host's name, as `hosts` lists it
        host: HostName,
        #[command(flatten)]
        output: Json,
    },
    /// Forget a host with its groups, the exports to it and what it reported; it must enrol to come back
    Forget {
        /// The host's name, as `hosts` lists it
        host: HostName,
        #[command(flatten)]
        output: Json,
    },
    /// Say something of hosts by which they are chosen: site=fra sets a label, site- takes it away
    Label {
        /// The host, or the group whose hosts are meant now (@GROUP)
        of: Target,
        /// KEY=VALUE, or KEY- to take it away
        #[arg(required = true, value_name = "LABEL")]
        labels: Vec<LabelChange>,
        #[command(flatten)]
        output: Json,
    },
    /// Groups of hosts
    #[command(subcommand)]
    Group(GroupCommand),
}

pub(super) fn hosts(args: &HostsArgs, here: &Here) -> anyhow::Result<Done> {
    let hosts = meant(args, here)?;
    if args.output.json {
        out::json(&documents::json(&HostsDocument::of(&hosts)));
        return Ok(Done::Clean);
    }
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|host| {
            let state = match (host.revoked, host.connected_since) {
                (Some(at), _) => format!("revoked {}", moment(at)),
                (None, Some(since)) => format!("connected since {}", moment(since)),
                (None, None) => format!("last seen {}", moment(host.last_seen)),
            };
            let wrong = match host.wrong_hashes.len() {
                0 => String::new(),
                count => format!(", found {count} wrong hashes"),
            };
            vec![
                host.name.to_string(),
                format!("{state}{wrong}"),
                host.certificate_expires.map_or_else(|| String::from("-"), moment),
                host.groups.iter().map(|group| format!("@{group}")).collect::<Vec<_>>().join(" "),
                shown(&host.labels).join(" "),
                host.software.clone(),
            ]
        })
        .collect();
    out::table(&["HOST", "STATE", "CERTIFICATE ENDS", "GROUPS", "LABELS", "SOFTWARE"], &rows);
    Ok(Done::Clean)
}

fn shown(labels: &Labels) -> Vec<String> {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// The hosts that are asked for, page by page.
fn meant(args: &HostsArgs, here: &Here) -> anyhow::Result<Vec<HostView>> {
    let mut filter = HostFilter {
        to: args.of.clone(),
        labels: args.labels.clone(),
        state: args.only.map(HostState::from),
        after: args.after.clone(),
    };
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut hosts = Vec::new();
    loop {
        let AdminReply::Hosts(page) = ask_once(here, &Quick::HostPage(filter.clone()))? else { return unexpected() };
        let is_last = page.len() < HOSTS_PAGE;
        hosts.extend(page);
        if is_last || hosts.len() >= limit {
            hosts.truncate(limit);
            return Ok(hosts);
        }
        filter.after = hosts.last().map(|host| host.name.clone());
    }
}

pub(super) fn host(command: &HostCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        HostCommand::Revoke { host, output } => {
            ask_once(here, &Quick::Revoke(host.clone()))?;
            if output.json {
                out::json(&json!({ "host": host, "revoked": true }));
            } else {
                note!("{host} is revoked; it may enrol again with a new token");
            }
            Ok(Done::Clean)
        }
        HostCommand::Forget { host, output } => {
            ask_once(here, &Quick::Forget(host.clone()))?;
            if output.json {
                out::json(&json!({ "host": host, "forgotten": true }));
            } else {
                note!("{host} is forgotten; it must enrol to come back");
            }
            Ok(Done::Clean)
        }
        HostCommand::Label { of, labels, output } => {
            ask_once(here, &Quick::Label(vec![of.clone()], labels.clone()))?;
            let filter = HostsArgs { of: vec![of.clone()], ..HostsArgs::all(*output) };
            if output.json {
                // One that is not enrolled yet has labels, and stands in no list.
                let hosts = meant(&filter, here).unwrap_or_default();
                let list: Vec<Value> =
                    hosts.iter().map(|host| json!({ "name": host.name, "labels": shown(&host.labels) })).collect();
                out::json(&json!({ "of": of.to_string(), "hosts": list }));
            }
            Ok(Done::Clean)
        }
        HostCommand::Group(command) => group::run(command, here),
    }
}
