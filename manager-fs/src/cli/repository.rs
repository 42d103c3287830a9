//! `repository`: what media agents serve to other hosts.

use clap::{Args, Subcommand, ValueEnum};
use proto::agent::Repository;
use proto::door::Access;
use proto::location::Location;
use proto::{HostName, Product, RepositoryName};
use serde_json::json;

use super::client::{ask_once, unexpected};
use super::job::{Watch, ordered};
use super::out::{self, say};
use super::repository_key::{self, KeyCommand};
use super::units::moment;
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick, RepositoryTokenView, RepositoryView};
use crate::manager::documents::{self, RepositoriesDocument, RepositoryDocument, RepositoryTokensDocument};
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
        #[command(flatten)]
        lies: Lies,
        /// Where agents of other hosts reach it [default: the host's name, and port 7421]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// File on that host with the password of a repository that is there already
        #[arg(long, value_name = "FILE")]
        password_file: Option<String>,
        /// Which agent of that host
        #[arg(long, default_value = "media-agent")]
        product: Product,
        /// Take the place of the repository that has this name now, as when its host is lost
        #[arg(long)]
        adopt: bool,
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
    /// Tokens that let any program of restic's REST protocol in for a while
    #[command(subcommand)]
    Token(TokenCommand),
    /// Keys that open a repository, and passwords sealed for the day on which its host is lost
    #[command(subcommand)]
    Key(KeyCommand),
}

/// Where a repository lies.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Lies {
    /// Its directory on that host; absolute
    #[arg(long, value_name = "DIR")]
    path: Option<String>,
    /// In a bucket of S3 or of a server like it, `https://HOST/BUCKET/PREFIX`
    #[arg(long, value_name = "URL")]
    s3: Option<String>,
    /// With a server of restic's REST protocol, `https://HOST/PATH`
    #[arg(long, value_name = "URL")]
    rest: Option<String>,
    /// On a host that is reached by SSH, `sftp://USER@HOST//PATH`
    #[arg(long, value_name = "URL")]
    sftp: Option<String>,
}

impl Lies {
    /// As it is ordered. What the URL of a storage is not, is said here already.
    fn text(&self) -> anyhow::Result<String> {
        let text = match self {
            Lies { s3: Some(url), .. } => format!("s3:{}", url.trim_start_matches("s3:")),
            Lies { rest: Some(url), .. } => format!("rest:{}", url.trim_start_matches("rest:")),
            Lies { sftp: Some(url), .. } => format!("sftp:{}", url.trim_start_matches("sftp:")),
            Lies { path, .. } => return Ok(path.clone().unwrap_or_default()),
        };
        Ok(text.parse::<Location>()?.to_string())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Print a new token
    Add(TokenArgs),
    /// List the tokens of a repository that were given and have not ended
    List {
        /// The repository's name
        name: RepositoryName,
        #[command(flatten)]
        output: Json,
    },
    /// Take a token back: whoever has it is let in no longer
    Revoke {
        /// The repository's name
        name: RepositoryName,
        /// The token's number, which the list shows
        token: String,
        #[command(flatten)]
        watch: Watch,
    },
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
        RepositoryCommand::Create { name, on, lies, address, password_file, product, adopt, watch } => {
            let repository = Repository { path: lies.text()?, password_file: password_file.clone() };
            let (name, host, product, address) = (name.clone(), on.clone(), product.clone(), address.clone());
            let order = RepositoryOrder { name, host, product, repository, address, adopt: *adopt };
            ordered(&Quick::RepositoryCreate(order), watch, here)
        }
        RepositoryCommand::Remove { name, watch } => ordered(&Quick::RepositoryRemove(name.clone()), watch, here),
        RepositoryCommand::List { output } => {
            let all = repositories(here)?;
            if output.json {
                out::json(&documents::json(&RepositoriesDocument::of(&all)));
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
        RepositoryCommand::Token(TokenCommand::Add(args)) => token(args, here),
        RepositoryCommand::Token(TokenCommand::List { name, output }) => tokens(name, *output, here),
        RepositoryCommand::Token(TokenCommand::Revoke { name, token, watch }) => {
            ordered(&Quick::RepositoryTokenRevoke(name.clone(), token.clone()), watch, here)
        }
        RepositoryCommand::Key(command) => repository_key::run(command, here),
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
        out::json(&documents::json(&RepositoryDocument::from(&one)));
        return Ok(Done::Clean);
    }
    say!("repository {name}");
    say!("  served by {} of {}, since {}", one.product, one.host, moment(one.created));
    say!("  lies in {}", one.path);
    say!("  is reached at {}", one.address);
    Ok(Done::Clean)
}

fn token(args: &TokenArgs, here: &Here) -> anyhow::Result<Done> {
    let access = match args.access {
        TokenAccess::Read => Access::Read,
        TokenAccess::Append => Access::Add,
    };
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = Quick::RepositoryToken { name: args.name.clone(), access, ttl_ms };
    let AdminReply::RepositoryToken { id, token } = ask_once(here, &request)? else { return unexpected() };
    if args.output.json {
        out::json(&json!({ "repository": args.name, "id": id, "token": token, "ttl_ms": ttl_ms }));
    } else {
        say!("{token}");
    }
    Ok(Done::Clean)
}

fn tokens(name: &RepositoryName, output: Json, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::RepositoryTokens(all) = ask_once(here, &Quick::RepositoryTokens(name.clone()))? else {
        return unexpected();
    };
    let word = |access| match access {
        Access::Read => "read",
        Access::Add => "append",
    };
    if output.json {
        out::json(&documents::json(&RepositoryTokensDocument::of(name, &all)));
        return Ok(Done::Clean);
    }
    let row = |one: &RepositoryTokenView| {
        let revoked = one.revoked.map_or_else(String::new, moment);
        vec![one.id.clone(), word(one.access).to_owned(), moment(one.created), moment(one.until), revoked]
    };
    out::table(&["TOKEN", "ACCESS", "GIVEN", "UNTIL", "TAKEN BACK"], &all.iter().map(row).collect::<Vec<_>>());
    Ok(Done::Clean)
}
