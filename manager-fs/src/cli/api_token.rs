//! `api-token`: who may use the HTTP interface and the console.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use proto::name::ApiTokenName;
use serde_json::json;

use super::client::{ask_once, unexpected};
use super::out::{self, note, say};
use super::units::moment;
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, ApiTokenAnswer, ApiTokenAsk, ApiTokenView, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::{self, ApiTokensDocument};
use crate::net::tls::fingerprint;

#[derive(Debug, Subcommand)]
pub(super) enum ApiTokenCommand {
    /// Let somebody in; prints the token once
    Add {
        /// What it will be called
        name: ApiTokenName,
        /// What whoever has it may do: viewer, operator, publisher or admin
        #[arg(long)]
        role: Role,
        /// How long it is good [default: until it is taken back]
        #[arg(long, value_name = "DURATION")]
        expires: Option<humantime::Duration>,
        /// Let in whoever has the key of this certificate (PEM), in the place of a token
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        #[command(flatten)]
        output: Json,
    },
    /// Who is let in, as what, and until when
    List {
        #[command(flatten)]
        output: Json,
    },
    /// Let somebody in no longer; it counts at once
    Revoke {
        /// As `api-token list` shows it
        name: ApiTokenName,
        #[command(flatten)]
        output: Json,
    },
}

pub(super) fn run(command: &ApiTokenCommand, here: &Here) -> anyhow::Result<Done> {
    match command {
        ApiTokenCommand::Add { name, role, expires, certificate, output } => {
            let ttl_ms = expires.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let certificate = certificate.as_ref().map(|file| {
                let pem = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                anyhow::Ok(fingerprint(&pem)?)
            });
            let ask =
                ApiTokenAsk::Add { name: name.clone(), role: *role, ttl_ms, certificate: certificate.transpose()? };
            let ApiTokenAnswer::Added(token) = answer(ask, here)? else { return unexpected() };
            if output.json {
                out::json(&json!({ "name": name, "role": role, "ttl_ms": ttl_ms, "token": token }));
            } else if let Some(token) = token {
                say!("{token}");
            } else {
                note!("whoever has the key of the certificate is {name}, as {role}");
            }
        }
        ApiTokenCommand::List { output } => list(*output, here)?,
        ApiTokenCommand::Revoke { name, output } => {
            answer(ApiTokenAsk::Revoke(name.clone()), here)?;
            if output.json {
                out::json(&json!({ "name": name, "revoked": true }));
            }
        }
    }
    Ok(Done::Clean)
}

fn answer(ask: ApiTokenAsk, here: &Here) -> anyhow::Result<ApiTokenAnswer> {
    match ask_once(here, &Quick::ApiToken(ask))? {
        AdminReply::ApiToken(answer) => Ok(answer),
        _ => unexpected(),
    }
}

fn list(output: Json, here: &Here) -> anyhow::Result<()> {
    let ApiTokenAnswer::All(all) = answer(ApiTokenAsk::List, here)? else { return unexpected() };
    if output.json {
        out::json(&documents::json(&ApiTokensDocument::of(&all)));
    } else if all.is_empty() {
        note!("there is none; `manager-fs api-token add NAME --role viewer` makes one");
    } else {
        let row = |one: &ApiTokenView| {
            let by = if one.certificate { "certificate" } else { "token" };
            let until = one.until.map_or_else(String::new, moment);
            vec![one.name.to_string(), one.role.to_string(), by.to_owned(), moment(one.created), until]
        };
        out::table(&["NAME", "ROLE", "BY", "SINCE", "UNTIL"], &all.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}
