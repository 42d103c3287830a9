//! `upgrade`: running agents change over.

use anyhow::bail;
use proto::name::Target;
use proto::{GenerationRef, Product};

use super::agents::step_line;
use super::client::{ask, unexpected};
use super::out::{self, note, say};
use super::units::count;
use super::{Done, Here, Json, rollout};
use crate::manager::admin::{AdminEvent, AdminReply, Long, Quick};
use crate::manager::documents::{self, UpgradeEventDocument, UpgradedDocument};
use crate::manager::rollout::machine::vocabulary::Wish;
use crate::manager::rollout::{Amount, Plan};
use crate::manager::upgrade::{UpgradeEvent, UpgradeOrder, UpgradeReport, Verdict};

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
    /// As a rollout: so many hosts first, or a share of them such as 10%; all of them must be good
    #[arg(long, value_name = "HOSTS")]
    canary: Option<Amount>,
    /// As a rollout: so many at once, or a share of them [default: 10%]
    #[arg(long, value_name = "HOSTS")]
    batch: Option<Amount>,
    /// As a rollout: on so many hosts it may fail [default: 0]
    #[arg(long, value_name = "HOSTS")]
    max_failures: Option<u32>,
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
    if args.canary.is_some() || args.batch.is_some() || args.max_failures.is_some() {
        return as_a_rollout(args, &order, here);
    }
    let json = args.json;
    let goes_on = "what was ordered goes on; `manager-fs agents` shows how it ends";
    let reply = ask(here, &Long::Upgrade(order), goes_on, |event| {
        if let AdminEvent::Upgrade(event) = event {
            if json {
                out::json_line(&documents::json(&UpgradeEventDocument::from(&event)))
            } else {
                print_event(&event)
            }
        }
    })?;
    let AdminReply::Upgraded(report) = reply else { return unexpected() };
    let good = report.hosts.iter().filter(|end| end.verdict.is_good()).count();
    if json {
        out::json_line(&documents::json(&UpgradedDocument::from(&report)));
    } else {
        let away = away(&report);
        let later = match away {
            0 => String::new(),
            1 => String::from("; 1 host is away and gets it when it comes"),
            many => format!("; {many} hosts are away and get it when they come"),
        };
        note!("{good} of {} as ordered{later}", count(report.hosts.len() as u64, "host"));
    }
    Ok(match good {
        all if all == report.hosts.len() => Done::Clean,
        0 if away(&report) == 0 => Done::Code(1),
        _ => Done::WithProblems,
    })
}

/// The short form of a rollout: one ring, and no pauses.
fn as_a_rollout(args: &UpgradeArgs, order: &UpgradeOrder, here: &Here) -> anyhow::Result<Done> {
    if order.retry_bad || order.timeout_ms.is_some() {
        bail!("--retry-bad and --timeout do not go with --canary, --batch and --max-failures: a rollout asks once");
    }
    let canaries = args.canary.unwrap_or(Amount::Hosts(1));
    let batch = args.batch.unwrap_or(Amount::Percent(10));
    let (product, generation) = (order.product.clone(), order.generation.clone());
    let plan = Plan {
        export: order.export,
        lazy: order.lazy,
        drain_deadline_ms: order.drain_deadline_ms,
        max_failures: args.max_failures.unwrap_or(0),
        ..Plan::short(product, generation, order.targets.clone(), canaries, batch)
    };
    let view = rollout::one(&Quick::RolloutAdd(Box::new(plan)), here)?;
    let started = rollout::one(&Quick::RolloutWish(Some(view.id), Wish::Start), here)?;
    if order.wait {
        rollout::follow(view.id, args.json, here)
    } else {
        rollout::told(&started, Json { json: args.json })
    }
}

fn away(report: &UpgradeReport) -> usize {
    report.hosts.iter().filter(|end| end.verdict == Verdict::Away).count()
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
                Verdict::Away => "away",
            };
            let reason = if end.reason.is_empty() { String::new() } else { format!(": {}", end.reason) };
            say!("{}: {how}{reason}", end.host);
        }
    }
}
