//! `hosts` and `host …`.

use clap::Subcommand;
use proto::HostName;
use serde_json::{Value, json};

use super::client::{ask_once, unexpected};
use super::group::{self, GroupCommand};
use super::out::{self, note};
use super::units::moment;
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick};

#[derive(Debug, clap::Args)]
pub(super) struct HostsArgs {
    #[command(flatten)]
    output: Json,
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
    /// Groups of hosts
    #[command(subcommand)]
    Group(GroupCommand),
}

pub(super) fn hosts(args: &HostsArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Hosts(hosts) = ask_once(here, &Quick::Hosts)? else { return unexpected() };
    if args.output.json {
        let list: Vec<Value> = hosts
            .iter()
            .map(|host| {
                let wrong = host.wrong_hashes.iter();
                let wrong: Vec<Value> = wrong.map(|(at, what)| json!({ "at_unix_ms": at, "what": what })).collect();
                json!({
                    "name": host.name,
                    "connected": host.connected_since.is_some(),
                    "connected_since_unix_ms": host.connected_since,
                    "last_seen_unix_ms": host.last_seen,
                    "enrolled_unix_ms": host.enrolled,
                    "certificate_expires_unix_ms": host.certificate_expires,
                    "revoked_unix_ms": host.revoked,
                    "groups": host.groups,
                    "software": host.software,
                    "attached": host.attached,
                    "wrong_hashes": wrong,
                })
            })
            .collect();
        out::json(&json!({ "hosts": list }));
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
                host.software.clone(),
            ]
        })
        .collect();
    out::table(&["HOST", "STATE", "CERTIFICATE ENDS", "GROUPS", "SOFTWARE"], &rows);
    Ok(Done::Clean)
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
        HostCommand::Group(command) => group::run(command, here),
    }
}
