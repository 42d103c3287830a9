//! `hosts`, `host`, `token`, `enroll`.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use proto::token::Token;
use proto::{GroupName, HostName};
use serde_json::{Value, json};

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::units::moment;
use super::{Done, Here, Json};
use crate::config::Dirs;
use crate::host::enroll;
use crate::manager::admin::{AdminReply, Quick};

/// The variable of `--token`: only this user and root can read a process's environment.
const TOKEN_VARIABLE: &str = "MANAGER_FS_TOKEN";
/// More than any token has.
const TOKEN_BYTES_MAX: u64 = 4096;

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

#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// The name that the host will have
    host: HostName,
    /// How long the token may be used
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    ttl: humantime::Duration,
    #[command(flatten)]
    output: Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct EnrollArgs {
    /// The manager's address
    #[arg(long, env = "MANAGER_FS_MANAGER", value_name = "HOST:PORT")]
    manager: String,
    /// File with what `manager-fs token` printed on the manager; - reads it from standard input
    #[arg(long, env = "MANAGER_FS_TOKEN_FILE", value_name = "FILE", required_unless_present = "token")]
    token_file: Option<PathBuf>,
    /// The token itself, which every user of this machine can read in the list of processes: better use --token-file
    #[arg(long, env = TOKEN_VARIABLE, value_name = "TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// Replace the identity that this host has
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: Json,
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
        HostCommand::Group(GroupCommand::Add { group, hosts, output }) => {
            changed(&Quick::GroupAdd(group.clone(), hosts.clone()), group, *output, here)
        }
        HostCommand::Group(GroupCommand::Remove { group, hosts, output }) => {
            changed(&Quick::GroupRemove(group.clone(), hosts.clone()), group, *output, here)
        }
        HostCommand::Group(GroupCommand::Delete { group, output }) => {
            ask_once(here, &Quick::GroupDelete(group.clone()))?;
            if output.json {
                out::json(&json!({ "group": group, "deleted": true }));
            }
            Ok(Done::Clean)
        }
        HostCommand::Group(GroupCommand::List { output }) => list_groups(*output, here),
    }
}

/// Changes a group, and shows it as it is then.
fn changed(request: &Quick, group: &GroupName, output: Json, here: &Here) -> anyhow::Result<Done> {
    let not_enrolled = match ask_once(here, request)? {
        AdminReply::Changed(changed) => changed.not_enrolled,
        _ => Vec::new(),
    };
    if !output.json {
        super::export::tell_not_enrolled(&not_enrolled, here);
    } else {
        let AdminReply::Groups(groups) = ask_once(here, &Quick::Groups)? else { return unexpected() };
        // Of a group whose last host was removed nothing may be left.
        let hosts = groups.into_iter().find(|(name, _)| name == group).map(|(_, hosts)| hosts).unwrap_or_default();
        out::json(&json!({ "group": group, "hosts": hosts, "not_enrolled": not_enrolled }));
    }
    Ok(Done::Clean)
}

pub(super) fn token(args: &TokenArgs, here: &Here) -> anyhow::Result<Done> {
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = Quick::Token { host: args.host.clone(), ttl_ms };
    let AdminReply::Token(token) = ask_once(here, &request)? else { return unexpected() };
    if args.output.json {
        out::json(&json!({ "host": args.host, "token": token, "ttl_ms": ttl_ms }));
    } else {
        say!("{token}");
    }
    Ok(Done::Clean)
}

pub(super) fn enroll(args: &EnrollArgs, dirs: &Dirs) -> anyhow::Result<Done> {
    let token = args.token()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let identity = runtime.block_on(enroll::enroll(&dirs.state, &args.manager, &token, args.force))?;
    if args.output.json {
        out::json(&json!({
            "host": identity.host,
            "manager": identity.manager,
            "certificate_expires_unix_ms": identity.not_after,
        }));
    } else {
        let (host, end) = (&identity.host, moment(identity.not_after));
        note!("enrolled as {host}; the certificate ends {end} and is renewed in time");
    }
    Ok(Done::Clean)
}

impl EnrollArgs {
    /// The token, from wherever it is.
    fn token(&self) -> anyhow::Result<Token> {
        if let Some(file) = &self.token_file {
            return token_in(file);
        }
        let token =
            self.token.clone().context("no token: give it with --token-file FILE, or - for standard input")?;
        // clap does not say here whether it was typed; what stands in the variable too is no secret to tell of.
        if std::env::var(TOKEN_VARIABLE).ok().and_then(|text| text.parse().ok()).as_ref() != Some(&token) {
            note!(
                "a token on the command line can be read by every user of this machine while the command runs: \
                 use --token-file FILE, or --token-file - and standard input"
            );
        }
        Ok(token)
    }
}

/// The token in a file; `-` is standard input.
fn token_in(file: &Path) -> anyhow::Result<Token> {
    let mut text = String::new();
    let (name, read) = if file.as_os_str() == "-" {
        if std::io::stdin().is_terminal() {
            note!("paste the token that `manager-fs token` printed on the manager, then Enter");
            (String::from("standard input"), std::io::stdin().read_line(&mut text))
        } else {
            (String::from("standard input"), std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        }
    } else {
        let file_name = file.display().to_string();
        (file_name, std::fs::File::open(file).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text)))
    };
    read.with_context(|| format!("cannot read the token from {name}"))?;
    match text.trim() {
        "" => bail!("there is no token in {name}"),
        text => text.parse().with_context(|| format!("what {name} has is no token")),
    }
}

fn list_groups(output: Json, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Groups(groups) = ask_once(here, &Quick::Groups)? else { return unexpected() };
    if output.json {
        let list: Vec<Value> = groups.iter().map(|(group, hosts)| json!({ "name": group, "hosts": hosts })).collect();
        out::json(&json!({ "groups": list }));
    } else {
        for (group, hosts) in groups {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            say!("@{group}: {}", hosts.join(" "));
        }
    }
    Ok(Done::Clean)
}
