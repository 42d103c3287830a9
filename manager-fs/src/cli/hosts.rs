//! `hosts`, `host`, `token`, `enroll`.

use clap::Subcommand;
use proto::token::Token;
use proto::{GroupName, HostName};
use serde_json::{Value, json};

use super::Done;
use super::client::{ask_once, moment, print_json, print_table, unexpected};
use super::out::say;
use crate::config::Dirs;
use crate::host::enroll;
use crate::manager::admin::{AdminReply, Quick};

#[derive(Debug, clap::Args)]
pub(super) struct HostsArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Refuse a host from now on; its connections are cut
    Revoke {
        /// Which
        host: HostName,
    },
    /// Groups of hosts
    #[command(subcommand)]
    Group(GroupCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Add hosts to a group, which is made if need be
    Add {
        /// Which group
        group: GroupName,
        /// Which hosts
        #[arg(required = true)]
        hosts: Vec<HostName>,
    },
    /// Remove hosts from a group
    Remove {
        /// Which group
        group: GroupName,
        /// Which hosts
        #[arg(required = true)]
        hosts: Vec<HostName>,
    },
    /// Every group with its hosts
    List {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Delete a group and the exports to it
    Delete {
        /// Which group
        group: GroupName,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// The name that the host will have
    host: HostName,
    /// How long the token may be used
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    ttl: humantime::Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct EnrollArgs {
    /// The manager's address
    #[arg(long, env = "MANAGER_FS_MANAGER", value_name = "HOST:PORT")]
    manager: String,
    /// What `manager-fs token` printed on the manager
    #[arg(long, env = "MANAGER_FS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Token,
    /// Replace the identity that this host has
    #[arg(long)]
    force: bool,
}

pub(super) fn hosts(args: &HostsArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let AdminReply::Hosts(hosts) = ask_once(dirs, &Quick::Hosts)? else { return unexpected() };
    if args.json {
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
        print_json(&json!({ "hosts": list }));
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
    print_table(&["HOST", "STATE", "CERTIFICATE ENDS", "GROUPS", "SOFTWARE"], &rows);
    Ok(Done::Clean)
}

pub(super) fn host(command: &HostCommand, dirs: &Dirs) -> anyhow::Result<Done> {
    let request = match command {
        HostCommand::Revoke { host } => Quick::Revoke(host.clone()),
        HostCommand::Group(GroupCommand::Add { group, hosts }) => Quick::GroupAdd(group.clone(), hosts.clone()),
        HostCommand::Group(GroupCommand::Remove { group, hosts }) => Quick::GroupRemove(group.clone(), hosts.clone()),
        HostCommand::Group(GroupCommand::Delete { group }) => Quick::GroupDelete(group.clone()),
        HostCommand::Group(GroupCommand::List { json }) => return list_groups(*json, dirs),
    };
    if let AdminReply::Changed(changed) = ask_once(dirs, &request)? {
        super::export::tell_not_enrolled(&changed.not_enrolled);
    }
    if let HostCommand::Revoke { host } = command {
        eprintln!("manager-fs: {host} is revoked; it may enrol again with a new token");
    }
    Ok(Done::Clean)
}

pub(super) fn token(args: &TokenArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = Quick::Token { host: args.host.clone(), ttl_ms };
    let AdminReply::Token(token) = ask_once(dirs, &request)? else { return unexpected() };
    say!("{token}");
    Ok(Done::Clean)
}

pub(super) fn enroll(args: &EnrollArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let identity = runtime.block_on(enroll::enroll(&dirs.state, &args.manager, &args.token, args.force))?;
    eprintln!(
        "manager-fs: enrolled as {}; the certificate ends {} and is renewed in time",
        identity.host,
        moment(identity.not_after)
    );
    Ok(Done::Clean)
}

fn list_groups(as_json: bool, dirs: &Dirs) -> anyhow::Result<Done> {
    let AdminReply::Groups(groups) = ask_once(dirs, &Quick::Groups)? else { return unexpected() };
    if as_json {
        let list: Vec<Value> = groups.iter().map(|(group, hosts)| json!({ "name": group, "hosts": hosts })).collect();
        print_json(&json!({ "groups": list }));
    } else {
        for (group, hosts) in groups {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            say!("@{group}: {}", hosts.join(" "));
        }
    }
    Ok(Done::Clean)
}
