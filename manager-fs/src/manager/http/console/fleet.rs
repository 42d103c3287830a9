//! The first page: what is broken, since when, and what has changed; then what runs where.

use std::collections::BTreeMap;

use maud::{Markup, html};
use proto::agent::AgentState;
use proto::message::Unix;

use super::layout::{Part, bar, host_link, since};
use super::{Page, Shown};
use crate::manager::admin::{AdminReply, AgentView, GenerationView, HostView, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::control::jobs::{JobRecord, JobState};
use crate::manager::http::ask::encoded;
use crate::manager::http::problem::Problem;
use crate::manager::http::route::Replies;
use crate::manager::jobs::{JobFilter, JobPage};
use crate::manager::now;
use crate::manager::policy::{PolicyAnswer, PolicyAsk, ProtectionView};
use crate::manager::rollout::machine::vocabulary::State;
use crate::manager::rollout::{RolloutView, state_words};
use crate::units::count;

/// Of what is broken, so many are named.
const NAMED_MAX: usize = 8;
/// Of what has changed, so many lines.
const LINES_MAX: usize = 25;
/// How long a failed job is news, milliseconds.
const NEWS_MS: u64 = 24 * 3600 * 1000;

pub(super) fn page() -> Page {
    Page {
        path: "/",
        role: Role::Viewer,
        ask: |_| {
            let failed = JobFilter {
                limit: 50,
                states: vec![JobState::Failed],
                since: Some(now().saturating_sub(NEWS_MS)),
                ..JobFilter::default()
            };
            Ok(vec![
                Quick::Hosts,
                Quick::Agents,
                Quick::Rollouts,
                Quick::Generations(None),
                Quick::Policy(PolicyAsk::Protection),
                Quick::Jobs(failed),
                Quick::Damaged,
            ])
        },
        show: |_, _, replies| Ok(Shown { again: Some(30), ..Shown::new("Fleet", show(&Picture::of(replies)?)) }),
    }
}

/// All that the page is made of.
struct Picture {
    hosts: Vec<HostView>,
    agents: Vec<AgentView>,
    rollouts: Vec<RolloutView>,
    generations: Vec<GenerationView>,
    protection: ProtectionView,
    failed: Vec<JobRecord>,
    damaged: Vec<(String, String)>,
}

impl Picture {
    fn of(mut replies: Replies) -> Result<Self, Problem> {
        Ok(Self {
            hosts: replies.next(|reply| if let AdminReply::Hosts(all) = reply { Some(all) } else { None })?,
            agents: replies.next(|reply| if let AdminReply::Agents(all) = reply { Some(all) } else { None })?,
            rollouts: replies.next(|reply| if let AdminReply::Rollouts(all) = reply { Some(all) } else { None })?,
            generations: replies
                .next(|reply| if let AdminReply::Generations(all) = reply { Some(all) } else { None })?,
            protection: replies.next(|reply| match reply {
                AdminReply::Policy(PolicyAnswer::Protection(view)) => Some(view),
                _ => None,
            })?,
            failed: replies.next(|reply| match reply {
                AdminReply::Jobs(JobPage { jobs, .. }) => Some(jobs),
                _ => None,
            })?,
            damaged: replies.next(|reply| if let AdminReply::Damaged(all) = reply { Some(all) } else { None })?,
        })
    }
}

/// Something that is broken: since when, and what.
struct Broken {
    since: Unix,
    is_bad: bool,
    what: Markup,
}

fn show(of: &Picture) -> Markup {
    let mut broken = broken(of);
    broken.sort_by_key(|one| (!one.is_bad, std::cmp::Reverse(one.since)));
    html! {
        section aria-labelledby="broken" {
            h2 #broken { "What is broken, and since when" }
            @if broken.is_empty() { p.good { "Nothing that the manager knows of." } }
            ul.broken {
                @for one in &broken {
                    li.warn[!one.is_bad] { (one.what) @if one.since > 0 { " · " (since(one.since)) } }
                }
            }
        }
        section aria-labelledby="changed" { h2 #changed { "What changed" } (changed(of)) }
        section aria-labelledby="hosts" { h2 #hosts { "Hosts" } (cards(of)) }
        section aria-labelledby="versions" { h2 #versions { "Versions" } (versions(&of.agents)) }
    }
}

fn broken(of: &Picture) -> Vec<Broken> {
    let mut all = Vec::new();
    let mut is = |since, is_bad, what| all.push(Broken { since, is_bad, what });
    for rollout in &of.rollouts {
        if matches!(rollout.state, State::Halted | State::RollingBack) {
            let why = rollout.halted.as_deref().unwrap_or("an operator takes it back");
            is(
                rollout.since,
                true,
                html! {
                    a href=(format!("/rollouts/{}", rollout.id)) {
                        "Rollout of " (rollout.product.as_str()) "@" (rollout.version.as_str())
                    }
                    " " (state_words(rollout.state)) ": " (why)
                },
            );
        }
    }
    let ill: Vec<&AgentView> = of.agents.iter().filter(|agent| agent.connected && is_ill(agent)).collect();
    for agent in ill.iter().take(NAMED_MAX) {
        is(
            agent.status.started_unix_ms,
            true,
            html! {
                (host_link(agent.host.as_str())) ": " (agent.status.product.as_str()) " does not serve: " (agent.status.reason)
            },
        );
    }
    if ill.len() > NAMED_MAX {
        is(0, true, html! { "and " (count((ill.len() - NAMED_MAX) as u64, "more agent")) " that do not serve" });
    }
    let mut away: Vec<&HostView> =
        of.hosts.iter().filter(|host| host.revoked.is_none() && host.connected_since.is_none()).collect();
    away.sort_by_key(|host| std::cmp::Reverse(host.last_seen));
    if let Some(last) = away.first() {
        is(
            last.last_seen,
            false,
            html! {
                a href="/hosts?only=away" { (count(away.len() as u64, "host")) " away" }
                ": " @for host in away.iter().take(NAMED_MAX) { (host_link(host.name.as_str())) " " }
                "— the last one went"
            },
        );
    }
    for host in of.hosts.iter().filter(|host| !host.wrong_hashes.is_empty()).take(NAMED_MAX) {
        let (at, what) = host.wrong_hashes.last().cloned().unwrap_or_default();
        is(at, true, html! { (host_link(host.name.as_str())) " received bytes with a wrong hash: " (what) });
    }
    if of.protection.at_risk > 0 {
        is(
            0,
            true,
            html! { a href="/work" { (count(of.protection.at_risk, "source")) " at risk" } " of "
            (of.protection.sources) },
        );
    }
    if let Some(last) = of.failed.last() {
        is(
            last.created,
            false,
            html! {
            a href="/failures" { (count(of.failed.len() as u64, "job")) " failed" } " within a day, the last ordered" },
        );
    }
    for (key, reason) in of.damaged.iter().take(NAMED_MAX) {
        is(0, true, html! { "The record " code { (key) } " cannot be read: " (reason) });
    }
    all
}

/// Whether an agent is there and does not do its work.
pub(super) fn is_ill(agent: &AgentView) -> bool {
    !matches!(
        agent.status.state,
        AgentState::Serving | AgentState::Staging | AgentState::Draining | AgentState::Probation
    )
}

/// What has changed, the newest first: rollouts, publications, change-overs that ended.
fn changed(of: &Picture) -> Markup {
    let mut lines: Vec<(Unix, Markup)> = Vec::new();
    for rollout in &of.rollouts {
        let name = format!("{}@{}", rollout.product, rollout.version);
        for (at, text) in rollout.lines.iter().rev().take(LINES_MAX) {
            let place = format!("/rollouts/{}", rollout.id);
            lines.push((*at, html! { a href=(place) { "rollout of " (name) } ": " (text) }));
        }
    }
    for generation in &of.generations {
        let name = generation.record.name();
        let place = format!("/generations/{}", encoded(&name));
        lines.push((generation.record.published_unix_ms, html! { a href=(place) { (name) } " was published" }));
    }
    for agent in &of.agents {
        if let Some(last) = agent.last_change.last().filter(|last| last.step.ends().is_some()) {
            let (status, went) = (&agent.status, last.step.ends() == Some(true));
            lines.push((last.at_unix_ms, html! {
                (host_link(agent.host.as_str())) ": " (status.product.as_str()) " runs " (status.version.as_str()) ", "
                span.bad[!went] { (status.reason) }
            }));
        }
    }
    lines.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    html! {
        @if lines.is_empty() { p.quiet { "Nothing yet." } }
        @else { table.stack { thead { tr { th { "When" } th { "What" } } } tbody {
            @for (at, line) in lines.iter().take(LINES_MAX) { tr { td { (since(*at)) } td { (line) } } }
        } } }
    }
}

fn cards(of: &Picture) -> Markup {
    let revoked = of.hosts.iter().filter(|host| host.revoked.is_some()).count();
    let connected = of.hosts.iter().filter(|host| host.revoked.is_none() && host.connected_since.is_some()).count();
    let away = of.hosts.len() - revoked - connected;
    let card = |many: usize, only: &str, class: &str| {
        html! {
            li { b class=(if many > 0 { class } else { "" }) { (many) } a href=(format!("/hosts?only={only}")) { (only) } }
        }
    };
    html! {
        ul.cards {
            (card(connected, "connected", "good"))
            (card(away, "away", "warn"))
            (card(revoked, "revoked", "quiet"))
            li { b { (of.agents.len()) } "agents" }
        }
    }
}

fn versions(agents: &[AgentView]) -> Markup {
    let mut products: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for agent in agents {
        let versions = products.entry(agent.status.product.as_str()).or_default();
        *versions.entry(agent.status.version.as_str()).or_default() += 1;
    }
    html! {
        @if products.is_empty() { p.quiet { "No host has reported an agent." } }
        @for (product, versions) in &products {
            @let all: u64 = versions.values().sum();
            h3 { (product) }
            div.scroll { table { thead { tr { th { "Version" } th { "Agents" } } } tbody {
                @for (version, many) in versions.iter().rev() {
                    tr {
                        td { a href=(format!("/generations/{}", encoded(&format!("{product}@{version}")))) { (version) } }
                        td { (bar(&[Part { much: *many, class: "busy" }], all, &format!("{many} of {all}"))) }
                    }
                }
            } } }
        }
    }
}
