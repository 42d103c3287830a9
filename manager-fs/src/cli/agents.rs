//! `agents`: what runs where, and the steps by which it came there.

use proto::agent::StepEvent;

use super::client::{ask_once, unexpected};
use super::out::{self, say};
use super::units::{self, moment};
use super::{Done, Here, Json};
use crate::manager::admin::{AdminReply, AgentView, Quick};
use crate::manager::documents::{self, AgentsDocument};

#[derive(Debug, clap::Args)]
pub(super) struct AgentsArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn agents(args: &AgentsArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Agents(agents) = ask_once(here, &Quick::Agents)? else { return unexpected() };
    if args.output.json {
        out::json(&documents::json(&AgentsDocument::of(&agents)));
        return Ok(Done::Clean);
    }
    for view in &agents {
        let status = &view.status;
        let away = if view.connected { String::new() } else { format!(" (as of {})", moment(view.last_seen)) };
        say!(
            "{}  {}@{}  {}  pid {}  since {}  {}{away}",
            view.host,
            status.product,
            status.version,
            state_name(view),
            status.pid,
            moment(status.started_unix_ms),
            status.reason
        );
        for event in &view.last_change {
            say!("    {}", step_line(event));
        }
    }
    Ok(Done::Clean)
}

fn state_name(view: &AgentView) -> String {
    serde_json::to_value(view.status.state).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

/// One step, as every command tells it.
pub(super) fn step_line(event: &StepEvent) -> String {
    let name = serde_json::to_value(event.step).ok();
    let name = name.and_then(|name| name.as_str().map(|name| name.replace('_', " "))).unwrap_or_default();
    let took = units::duration(std::time::Duration::from_micros(event.duration_us));
    format!("{name:<17}{took:>10}  {}", event.detail).trim_end().to_owned()
}
