//! `token`: what a host needs to enrol.

use proto::HostName;

use super::client::{ask_once, unexpected};
use super::out::{self, say};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::documents::{self, EnrolmentDocument};

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

pub(super) fn token(args: &TokenArgs, here: &Here) -> anyhow::Result<Done> {
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = Quick::Token { host: args.host.clone(), ttl_ms };
    let AdminReply::Token(token) = ask_once(here, &request)? else { return unexpected() };
    if args.output.json {
        out::json(&documents::json(&EnrolmentDocument::of(&args.host, token, ttl_ms)));
    } else {
        say!("{token}");
    }
    Ok(Done::Clean)
}
