//! `upgrade` and `agents`.

use proto::agent::StepEvent;
use proto::name::Target;
use proto::{GenerationRef, Product};
use serde_json::{Value, json};

use super::client::{ask, ask_once, unexpected};
use super::out::{self, note, say};
use super::units::{count, moment};
use super::{Done, Here, Json, units};
use crate::manager::admin::{AdminEvent, AdminReply, AgentView, Long, Quick};
use crate::manager::upgrade::{HostEnd, UpgradeEvent, UpgradeOrder, Verdict};

#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    /// Which agent
    product: Product,
    /// To which generation: product@version, or a tree id or its start; later or earlier than the running one
    generation: GenerationRef,
    /// Hosts and @groups
    #[arg(long, required = true, num_args = 1.., value_name = "HOST|@GROUP")]
    to: Vec<Target>,
    /// Change over before every object is on the host's disk
    #[arg(long)]
    lazy: bool,
    /// How long ongoing operations may take to finish, instead of what the generation says
    #[arg(long, value_name = "DURATION")]
    drain_deadline: Option<humantime::Duration>,
    /// Try a generation that a host remembers as bad
    #[arg(long)]
    retry_bad: bool,
    /// Export the generation to the hosts first
    #[arg(long)]
    export: bool,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
    /// Wait at most this long; the change-over itself goes on
    #[arg(long, value_name = "DURATION", conflicts_with = "no_wait")]
    timeout: Option<humantime::Duration>,
    /// Print one JSON line an event, and a final one
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct AgentsArgs {
    #[command(flatten)]
    output: Json,
}

pub(super) fn upgrade(args: &UpgradeArgs, here: &Here) -> anyhow::Result<Done> {
    let ms = |duration: humantime::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let order = UpgradeOrder {
        product: args.product.clone(),
        generation: args.generation.clone(),
        targets: args.to.clone(),
        lazy: args.lazy,
        drain_deadline_ms: args.drain_deadline.map(ms),
        retry_bad: args.retry_bad,
        export: args.export,
        wait: !args.no_wait,
        timeout_ms: args.timeout.map(ms),
    };
    let json = args.json;
    let goes_on = "what was ordered goes on; `manager-fs agents` shows how it ends";
    let reply = ask(here, &Long::Upgrade(order), goes_on, |event| {
        if let AdminEvent::Upgrade(event) = event {
            if json { out::json_line(&event_json(&event)) } else { print_event(&event) }
        }
    })?;
    let AdminReply::Upgraded(report) = reply else { return unexpected() };
    let good = report.hosts.iter().filter(|end| end.verdict.is_good()).count();
    if json {
        let hosts: Vec<Value> = report.hosts.iter().map(end_json).collect();
        out::json_line(&json!({
            "event": "report", "product": report.product, "version": report.version, "tree_id": report.tree,
            "confirmed": good == report.hosts.len(), "hosts": hosts,
        }));
    } else {
        note!("{good} of {} as ordered", count(report.hosts.len() as u64, "host"));
    }
    Ok(match good {
        all if all == report.hosts.len() => Done::Clean,
        0 => Done::Code(1),
        _ => Done::WithProblems,
    })
}

pub(super) fn agents(args: &AgentsArgs, here: &Here) -> anyhow::Result<Done> {
    let AdminReply::Agents(agents) = ask_once(here, &Quick::Agents)? else { return unexpected() };
    if args.output.json {
        out::json(&json!({ "agents": agents.iter().map(agent_json).collect::<Vec<_>>() }));
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

fn agent_json(view: &AgentView) -> Value {
    let status = &view.status;
    let change = view.last_change.last().map(|last| {
        json!({
            "change": last.change,
            "from": last.from,
            "to": last.to,
            "ended": last.step.ends().is_some(),
            "confirmed": last.step.ends(),
            "steps": view.last_change.iter().map(step_json).collect::<Vec<_>>(),
        })
    });
    json!({
        "host": view.host,
        "connected": view.connected,
        "last_seen_unix_ms": view.last_seen,
        "product": status.product,
        "version": status.version,
        "tree_id": status.tree,
        "pid": status.pid,
        "state": status.state,
        "started_unix_ms": status.started_unix_ms,
        "reason": status.reason,
        "jobs": status.jobs,
        "last_change": change,
    })
}

fn state_name(view: &AgentView) -> String {
    serde_json::to_value(view.status.state).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

fn step_json(event: &StepEvent) -> Value {
    json!({
        "step": event.step,
        "at_unix_ms": event.at_unix_ms,
        "duration_us": event.duration_us,
        "detail": event.detail,
        "from": event.from,
        "to": event.to,
    })
}

fn event_json(event: &UpgradeEvent) -> Value {
    match event {
        UpgradeEvent::Accepted { host, change } => json!({ "event": "accepted", "host": host, "change": change }),
        UpgradeEvent::Step { host, event } => {
            let mut line = step_json(event);
            line["event"] = json!("step");
            line["host"] = json!(host);
            line["change"] = json!(event.change);
            line
        }
        UpgradeEvent::Ended(end) => {
            let mut line = end_json(end);
            line["event"] = json!("ended");
            line
        }
    }
}

fn end_json(end: &HostEnd) -> Value {
    json!({
        "host": end.host,
        "change": end.change,
        "verdict": end.verdict,
        "reason": end.reason,
        "steps": end.steps.iter().map(step_json).collect::<Vec<_>>(),
    })
}

fn print_event(event: &UpgradeEvent) {
    match event {
        UpgradeEvent::Accepted { host, change } => say!("{host}: accepted as change-over {change}"),
        UpgradeEvent::Step { host, event } => say!("{host}: {}", step_line(event)),
        UpgradeEvent::Ended(end) => {
            let how = match end.verdict {
                Verdict::Confirmed => "confirmed",
                Verdict::Already => "nothing to do",
                Verdict::Ordered => "ordered",
                Verdict::Failed => "failed",
                Verdict::Refused => "refused",
                Verdict::Unfinished => "unfinished",
            };
            let reason = if end.reason.is_empty() { String::new() } else { format!(": {}", end.reason) };
            say!("{}: {how}{reason}", end.host);
        }
    }
}

fn step_line(event: &StepEvent) -> String {
    let name = serde_json::to_value(event.step).ok();
    let name = name.and_then(|name| name.as_str().map(|name| name.replace('_', " "))).unwrap_or_default();
    let took = units::duration(std::time::Duration::from_micros(event.duration_us));
    format!("{name:<17}{took:>10}  {}", event.detail).trim_end().to_owned()
}
