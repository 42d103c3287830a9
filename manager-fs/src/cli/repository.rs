//! `repository`: what media agents serve to other hosts.

use clap::{Args, Subcommand, ValueEnum};
use proto::agent::Repository;
use proto::door::Access;
use proto::{HostName, Product, RepositoryName};
use serde_json::{Value, json};

use super::client::{ask_once, unexpected};
use super::job::{Watch, ordered};
use super::out::{self, say};
use super::units::moment;
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick, RepositoryView};
use crate::manager::repositories::RepositoryOrder;

#[derive(Debug, Subcommand)]
pub(super) enum RepositoryCommand {
    /// Have a host's media agent serve a repository to agents of other hosts; it is made if it is not there
    Create {
        /// What it will be called
        name: RepositoryName,
        /// Whose media agent serves it
        #[arg(long, value_name = "HOST")]
        on: HostName,
        /// Its directory on that host; absolute
        #[arg(long, value_name = "DIR")]
        path: String,
        /// Where agents of other hosts reach it [default: the host's name, and port 7421]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// File on that host with the password of a repository that is there already
        #[arg(long, value_name = "FILE")]
        password_file: Option<String>,
        /// Which agent of that host
        #[arg(long, default_value = "media-agent")]
        product: Product,
        #[command(flatten)]
        watch: Watch,
    },
    /// List repositories that are served
    List {
        #[command(flatten)]
        output: Json,
    },
    /// Show one of them
    Show {
        /// Its name
        name: RepositoryName,
        #[command(flatten)]
        output: Json,
    },
    /// Print the certificate that programs see there which are no agents, for `restic --cacert`
    Certificate {
        /// The repository's name
        name: RepositoryName,
        #[command(flatten)]
        output: Json,
    },
    /// Serve a repository no longer; what lies in it stays
    Remove {
        /// Its name
        name: RepositoryName,
        #[command(flatten)]
        watch: Watch,
    },
    /// Print a token that lets any program of restic's REST protocol in for a while
    Token(TokenArgs),
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// The repository's name
    name: RepositoryName,
    /// What it lets do
    #[arg(long, value_name = "ACCESS", default_value = "read")]
    access: TokenAccess,
    /// How long it is good for
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    ttl: humantime::Duration,
    #[command(flatten)]
    output: Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TokenAccess {
    /// Look, check and restore
    Read,
    /// The same, and back up; nothing can be removed or replaced
    Append,
}

pub(super) fn run(command: &RepositoryCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        RepositoryCommand::Create { name, on, path, address, password_file, product, watch } => {
            let repository = Repository { path: path.clone(), password_file: password_file.clone() };
            let (name, host, product, address) = (name.clone(), on.clone(), product.clone(), address.clone());
            let order = RepositoryOrder { name, host, product, repository, address };
            ordered(&Quick::RepositoryCreate(order), watch, here)
        }
        RepositoryCommand::Remove { name, watch } => ordered(&Quick::RepositoryRemove(name.clone()), watch, here),
        RepositoryCommand::List { output } => {
            let all = repositories(here)?;
            if output.json {
                out::json(&json!({ "repositories": all.iter().map(document).collect::<Vec<_>>() }));
                return Ok(Done::Clean);
            }
            let row = |one: &RepositoryView| {
                vec![
                    one.name.to_string(),
                    one.host.to_string(),
                    one.path.clone(),
                    one.address.clone(),
                    moment(one.created),
                ]
            };
            let rows: Vec<_> = all.iter().map(row).collect();
            out::table(&["REPOSITORY", "ON", "PATH", "ADDRESS", "SINCE"], &rows);
            Ok(Done::Clean)
        }
        RepositoryCommand::Show { name, output } => show(name, *output, here),
        RepositoryCommand::Certificate { name, output } => {
            let Some(certificate) = one(name, here)?.certificate.as_deref().map(pem) else {
                anyhow::bail!("the agent that serves '{name}' has not said it yet; see `manager-fs job list`");
            };
            if output.json {
                out::json(&json!({ "repository": name, "certificate": certificate }));
            } else {
                certificate.lines().for_each(|line| say!("{line}"));
            }
            Ok(Done::Clean)
        }
        RepositoryCommand::Token(args) => token(args, here),
    }
}

fn repositories(here: &Here) -> anyhow::Result<Vec<RepositoryView>> {
    match ask_once(here, &Quick::Repositories)? {
        AdminReply::Repositories(all) => Ok(all),
        _ => unexpected(),
    }
}

fn one(name: &RepositoryName, here: &Here) -> anyhow::Result<RepositoryView> {
    let found = repositories(here)?.into_iter().find(|one| one.name == *name);
    found.ok_or_else(|| {
        anyhow::anyhow!("there is no repository '{name}'; `manager-fs repository list` lists those that are")
    })
}

/// A certificate as programs read it from a file.
fn pem(base64: &str) -> String {
    let lines = base64.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.collect::<Vec<_>>().join("\n"))
}

fn show(name: &RepositoryName, output: Json, here: &Here) -> anyhow::Result<Done> {
    let one = one(name, here)?;
    if output.json {
        out::json(&document(&one));
        return Ok(Done::Clean);
    }
    say!("repository {name}");
    say!("  served by {} of {}, since {}", one.product, one.host, moment(one.created));
    say!("  lies in {}", one.path);
    say!("  is reached at {}", one.address);
    Ok(Done::Clean)
}

fn document(one: &RepositoryView) -> Value {
    json!({
        "repository": one.name,
        "host": one.host,
        "product": one.product,
        "path": one.path,
        "address": one.address,
        "created_unix_ms": one.created,
    })
}

fn token(args: &TokenArgs, here: &Here) -> anyhow::Result<Done> {
    let access = match args.access {
        TokenAccess::Read => Access::Read,
        TokenAccess::Append => Access::Add,
    };
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = Quick::RepositoryToken { name: args.name.clone(), access, ttl_ms };
    let AdminReply::Token(token) = ask_once(here, &request)? else { return unexpected() };
    if args.output.json {
        out::json(&json!({ "repository": args.name, "token": token, "ttl_ms": ttl_ms }));
    } else {
        say!("{token}");
    }
    Ok(Done::Clean)
}
