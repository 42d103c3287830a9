//! `repository key`: what opens a repository that a media agent serves, and what its operator keeps elsewhere.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use proto::RepositoryName;
use proto::agent::Outcome;
use proto::keeping::Keeping;
use proto::own::Finding;
use proto::recovery::{RecoveryKey, RecoverySecret, Sealed};
use serde_json::json;

use super::client::{ask_once, unexpected};
use super::job::{Watch, followed, ordered};
use super::out::{self, note, say};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick};
use crate::net::tls::random;

/// Keys and sealed passwords are lines.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a recovery key: the secret goes into a new file, its public half is printed
    New {
        /// The file of the secret, which must not be there yet; keep it away from all hosts
        secret: PathBuf,
        #[command(flatten)]
        output: Json,
    },
    /// Print the repository's password, sealed to a recovery key
    Escrow {
        /// The repository's name
        name: RepositoryName,
        /// The public half of a recovery key, or a file with it
        #[arg(long, value_name = "KEY")]
        to: String,
        #[command(flatten)]
        output: Json,
    },
    /// Print what is in a sealed password; needs neither manager nor host
    Recover {
        /// The file of the sealed password
        sealed: PathBuf,
        /// The file of the secret
        #[arg(long, value_name = "FILE")]
        secret: PathBuf,
        #[command(flatten)]
        output: Json,
    },
    /// Make a further key of the repository, and print its password, sealed to a recovery key
    Add {
        /// The repository's name
        name: RepositoryName,
        /// The public half of a recovery key, or a file with it
        #[arg(long, value_name = "KEY")]
        to: String,
        #[command(flatten)]
        output: Json,
    },
    /// List the keys that open a repository
    List {
        /// The repository's name
        name: RepositoryName,
        #[command(flatten)]
        output: Json,
    },
    /// Remove a key; what was read by it before is known to whoever did
    Remove {
        /// The repository's name
        name: RepositoryName,
        /// The key's id, which the list shows
        key: String,
        #[command(flatten)]
        watch: Watch,
    },
}

pub(super) fn run(command: &KeyCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        KeyCommand::New { secret, output } => new(secret, *output),
        KeyCommand::Recover { sealed, secret, output } => recover(sealed, secret, *output),
        KeyCommand::Escrow { name, to, output } => sealed(name, Keeping::Escrow(recovery_key(to)?), *output, here),
        KeyCommand::Add { name, to, output } => sealed(name, Keeping::AddKey(recovery_key(to)?), *output, here),
        KeyCommand::List { name, output } => list(name, *output, here),
        KeyCommand::Remove { name, key, watch } => {
            ordered(&Quick::RepositoryKeeping(name.clone(), Keeping::RemoveKey(key.clone())), watch, here)
        }
    }
}

/// The one line of a file.
fn line_of(path: &Path) -> anyhow::Result<String> {
    let read = || {
        if fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(ErrorKind::FileTooLarge.into());
        }
        fs::read_to_string(path)
    };
    Ok(read().with_context(|| path.display().to_string())?.trim().to_owned())
}

fn recovery_key(text: &str) -> anyhow::Result<RecoveryKey> {
    // A file may have any name, but one of this form.
    text.parse().or_else(|_| line_of(Path::new(text))?.parse().with_context(|| text.to_owned()))
}

fn new(path: &Path, output: Json) -> anyhow::Result<Done> {
    let secret = RecoverySecret::derive(&random()?);
    let key = secret.key()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{} is not made (a secret is never written over)", path.display()))?;
    writeln!(file, "{}", secret.text())?;
    file.sync_all()?;
    if output.json {
        out::json(&json!({ "secret_file": path, "key": key.to_string() }));
    } else {
        note!("whoever has {} can open what is sealed to this key, and nobody else can", path.display());
        say!("{key}");
    }
    Ok(Done::Clean)
}

fn recover(path: &Path, secret: &Path, output: Json) -> anyhow::Result<Done> {
    let sealed: Sealed = line_of(path)?.parse().with_context(|| path.display().to_string())?;
    let opened: RecoverySecret = line_of(secret)?.parse().with_context(|| secret.display().to_string())?;
    let password = sealed.open(&opened).with_context(|| path.display().to_string())?;
    let Sealed { repository, id, key, .. } = &sealed;
    if output.json {
        out::json(&json!({ "repository": repository, "id": id, "key": key, "password": password }));
    } else {
        note!("opens the repository {id} ('{repository}')");
        say!("{password}");
    }
    Ok(Done::Clean)
}

/// What a job says that has come to a good end; otherwise it is shown, and there is nothing.
fn results(name: &RepositoryName, order: Keeping, here: &Here) -> anyhow::Result<Option<Vec<Finding>>> {
    let AdminReply::Job(job) = ask_once(here, &Quick::RepositoryKeeping(name.clone(), order))? else {
        return unexpected();
    };
    let job = followed(job.id, here)?;
    Ok(job.and_then(|job| if let Some(Outcome::OwnDone(own)) = job.outcome { Some(own.results) } else { None }))
}

fn sealed(name: &RepositoryName, order: Keeping, output: Json, here: &Here) -> anyhow::Result<Done> {
    let Some(results) = results(name, order, here)? else { return Ok(Done::Code(1)) };
    let text = |of: &str| results.iter().find(|found| found.name.as_str() == of).map(|found| found.text.as_str());
    let (Some(key), Some(sealed)) = (text("key"), text("sealed")) else {
        anyhow::bail!("the agent that serves '{name}' says nothing of a sealed password; upgrade it");
    };
    if output.json {
        out::json(&json!({ "repository": name, "key": key, "sealed": sealed }));
    } else {
        say!("{sealed}");
    }
    Ok(Done::Clean)
}

fn list(name: &RepositoryName, output: Json, here: &Here) -> anyhow::Result<Done> {
    let Some(results) = results(name, Keeping::Keys, here)? else { return Ok(Done::Code(1)) };
    let more = results.iter().find(|found| found.name.as_str() == "more").map(|found| found.text.as_str());
    let rows: Vec<Vec<String>> = results
        .iter()
        .filter(|found| found.name.as_str().starts_with("key-"))
        .map(|found| {
            let mut words = found.text.splitn(4, ' ').map(str::to_owned);
            std::array::from_fn::<_, 4, _>(|_| words.next().unwrap_or_default()).to_vec()
        })
        .collect();
    if output.json {
        let one =
            |row: &Vec<String>| json!({ "key": row[0], "own": row[1] == "own", "by": row[2], "created": row[3] });
        let keys: Vec<_> = rows.iter().map(one).collect();
        let more: u64 = more.and_then(|more| more.parse().ok()).unwrap_or_default();
        out::json(&json!({ "repository": name, "keys": keys, "left_out": more }));
        return Ok(Done::Clean);
    }
    out::table(&["KEY", "OWN", "MADE BY", "CREATED"], &rows);
    if let Some(more) = more {
        say!("and {more} more");
    }
    Ok(Done::Clean)
}
