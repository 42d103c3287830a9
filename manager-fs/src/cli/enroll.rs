//! `enroll`: this host becomes one of a manager's.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use proto::token::Token;
use serde_json::json;

use super::out::{self, note};
use super::units::moment;
use super::{Done, Json};
use crate::config::Dirs;
use crate::host::enroll;

/// The variable of `--token`: only this user and root can read a process's environment.
const TOKEN_VARIABLE: &str = "MANAGER_FS_TOKEN";
/// More than any token has.
const TOKEN_BYTES_MAX: u64 = 4096;

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
