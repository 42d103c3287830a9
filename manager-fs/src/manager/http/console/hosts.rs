//! Hosts: a list that can be searched, and each with what happened on it.

use maud::{Markup, html};
use proto::HostName;
use proto::agent::StepEvent;
use proto::name::Target;

use super::fleet::is_ill;
use super::layout::{host_link, since};
use super::{Page, Shown};
use crate::manager::admin::{AdminReply, AgentView, HOSTS_PAGE, HostFilter, HostView, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::control::jobs::JobRecord;
use crate::manager::http::ask::{Ask, encoded};
use crate::manager::http::problem::Problem;
use crate::manager::http::reads::ask_hosts;
use crate::manager::http::route::Replies;
use crate::manager::jobs::{JobFilter, JobPage};
use crate::metrics::word;
use crate::units::{duration, moment};

/// Hosts on one page.
const ROWS_MAX: usize = 100;

pub(super) fn pages() -> [Page; 2] {
    [
        Page { path: "/hosts", role: Role::Viewer, ask: list_asks, show: |_, ask, replies| list(ask, replies) },
        Page { path: "/hosts/{host}", role: Role::Viewer, ask: one_asks, show: |_, ask, replies| one(ask, replies) },
    ]
}

fn list_asks(ask: &Ask) -> Result<Vec<Quick>, Problem> {
    ask_hosts(&found(ask))
}

/// A form sends its empty fields, too; they ask for nothing.
fn found(ask: &Ask) -> Ask {
    let query = ask.query.iter().filter(|(name, text)| !text.is_empty() && name != "q").cloned().collect();
    Ask { path: Vec::new(), query, body: ask.body.clone(), role: ask.role }
}

fn field(ask: &Ask, name: &str) -> String {
    ask.query.iter().find(|(of, _)| of == name).map(|(_, text)| text.clone()).unwrap_or_default()
}

fn list(ask: &Ask, mut replies: Replies) -> Result<Shown, Problem> {
    let hosts = replies.next(|reply| if let AdminReply::Hosts(hosts) = reply { Some(hosts) } else { None })?;
    let (text, label, only) = (field(ask, "q"), field(ask, "label"), field(ask, "only"));
    let was_cut = hosts.len() == HOSTS_PAGE;
    let last = hosts.last().map(|host| host.name.to_string());
    let meant: Vec<&HostView> = hosts.iter().filter(|host| host.name.as_str().contains(&text)).collect();
    let shown = &meant[..meant.len().min(ROWS_MAX)];
    // What was not looked through begins after the last host that was.
    let after = match shown.last() {
        Some(host) if meant.len() > ROWS_MAX => Some(host.name.to_string()),
        _ if was_cut => last,
        _ => None,
    };
    let next = after.map(|after| {
        format!(
            "/hosts?q={}&label={}&only={}&after={}",
            encoded(&text),
            encoded(&label),
            encoded(&only),
            encoded(&after)
        )
    });
    Ok(Shown::new(
        "Hosts",
        html! {
            form.find method="get" action="/hosts" role="search" {
                label { "Name has" input type="search" name="q" value=(text); }
                label { "Label, such as site=fra or !spare" input name="label" value=(label); }
                label { "State" select name="only" {
                    @for word in ["", "connected", "away", "revoked"] {
                        option value=(word) selected[only == word] { (if word.is_empty() { "any" } else { word }) }
                    }
                } }
                button { "Show" }
            }
            @if shown.is_empty() { p.quiet { "No host is meant." } }
            div.scroll { table.stack {
                thead { tr { th { "Host" } th { "State" } th { "Groups" } th { "Labels" } th { "Software" } } }
                tbody { @for host in shown { (row(host)) } }
            } }
            @if let Some(next) = next { p { a href=(next) rel="next" { "More" } } }
        },
    ))
}

fn state(host: &HostView) -> Markup {
    html! {
        @match (host.revoked, host.connected_since) {
            (Some(at), _) => { span.bad { "revoked " } (since(at)) }
            (None, Some(at)) => { span.good { "connected " } (since(at)) }
            (None, None) => { span.warn { "away, seen " } (since(host.last_seen)) }
        }
    }
}

fn row(host: &HostView) -> Markup {
    html! {
        tr {
            td { (host_link(host.name.as_str())) }
            td { (state(host)) @if !host.wrong_hashes.is_empty() { " " span.bad { "found wrong hashes" } } }
            td { @for group in &host.groups { "@" (group.as_str()) " " } }
            td { @for (key, value) in &host.labels { (key.as_str()) "=" (value.as_str()) " " } }
            td { (host.software) }
        }
    }
}

fn one_asks(ask: &Ask) -> Result<Vec<Quick>, Problem> {
    let host: HostName = ask.path("host")?;
    let to = vec![Target::Host(host.clone())];
    let jobs = JobFilter { limit: 20, host: Some(Target::Host(host)), ..JobFilter::default() };
    Ok(vec![Quick::HostPage(HostFilter { to, ..HostFilter::default() }), Quick::Agents, Quick::Jobs(jobs)])
}

fn one(ask: &Ask, mut replies: Replies) -> Result<Shown, Problem> {
    let name: HostName = ask.path("host")?;
    let hosts = replies.next(|reply| if let AdminReply::Hosts(hosts) = reply { Some(hosts) } else { None })?;
    let mut agents = replies.next(|reply| if let AdminReply::Agents(all) = reply { Some(all) } else { None })?;
    let JobPage { jobs, .. } =
        replies.next(|reply| if let AdminReply::Jobs(page) = reply { Some(page) } else { None })?;
    let host = hosts.first().ok_or_else(|| Problem::not_found(format!("there is no host {name}")))?;
    agents.retain(|agent| agent.host == name);
    Ok(Shown::new(
        name.to_string(),
        html! {
            dl {
                dt { "State" } dd { (state(host)) }
                dt { "Enrolled" } dd { (since(host.enrolled)) }
                dt { "Certificate ends" } dd { (host.certificate_expires.map_or_else(|| "-".to_owned(), moment)) }
                dt { "Groups" } dd { @for group in &host.groups { "@" (group.as_str()) " " } }
                dt { "Labels" } dd { @for (key, value) in &host.labels { (key.as_str()) "=" (value.as_str()) " " } }
                dt { "Software" } dd { (host.software) @if let Some(machine) = &host.machine { ", " (machine) } }
            }
            @for (at, what) in &host.wrong_hashes { p.bad { "Wrong hash " (since(*at)) ": " (what) } }
            h2 { "Agents, and how they came to what they run" }
            @if agents.is_empty() { p.quiet { "It has reported none." } }
            @for agent in &agents { (timeline(agent)) }
            h2 { "Trees attached" }
            @if host.attached.is_empty() { p.quiet { "None." } }
            ul { @for tree in &host.attached { li { a href=(format!("/generations/{tree}")) { code { (tree.to_string()) } } } } }
            h2 { "Jobs" }
            (job_rows(&jobs))
        },
    ))
}

fn timeline(agent: &AgentView) -> Markup {
    let status = &agent.status;
    html! {
        h3 { (status.product.as_str()) "@" (status.version.as_str()) }
        p {
            span.bad[is_ill(agent)] { (word(&status.state)) }
            " · pid " (status.pid) " · since " (since(status.started_unix_ms)) " · " (status.reason)
        }
        @if !agent.last_change.is_empty() {
            div.scroll { table.stack {
                thead { tr { th { "When" } th { "Step" } th { "Took" } th { "Why, with the evidence" } } }
                tbody { @for event in &agent.last_change { (step(event)) } }
            } }
        }
    }
}

fn step(event: &StepEvent) -> Markup {
    let took = duration(std::time::Duration::from_micros(event.duration_us));
    html! {
        tr {
            td { time { (moment(event.at_unix_ms)) } }
            td { span.bad[event.step.ends() == Some(false)] { (word(&event.step).replace('_', " ")) } }
            td.num { (took) }
            td { (event.detail) }
        }
    }
}

/// A table of jobs, the newest first.
pub(super) fn job_rows(jobs: &[JobRecord]) -> Markup {
    html! {
        @if jobs.is_empty() { p.quiet { "None." } }
        @else {
            div.scroll { table.stack {
                thead { tr { th { "Job" } th { "On" } th { "What" } th { "State" } th { "Ordered" } th { "What it says" } } }
                tbody { @for job in jobs.iter().rev() { tr {
                    td { code { (job.id.to_string()) } }
                    td { (host_link(job.host.as_str())) }
                    td { (job.operation.kind()) @if let Some(run) = &job.run { " of " (run.policy.as_str()) } }
                    td { (state_of(job)) }
                    td { (since(job.created)) }
                    td { (said(job)) }
                } } }
            } }
        }
    }
}

fn state_of(job: &JobRecord) -> Markup {
    use crate::manager::control::jobs::JobState;
    let class = match job.state {
        JobState::Failed => "bad",
        JobState::Cancelled => "warn",
        JobState::Running | JobState::Queued => "busy",
        JobState::Done => "good",
    };
    html! { span class=(class) { (word(&job.state)) } }
}

/// Why a job failed, what it waits for, or what it does.
pub(super) fn said(job: &JobRecord) -> String {
    use proto::agent::Outcome;
    match (&job.outcome, &job.waiting, &job.progress) {
        (Some(Outcome::Failed(error)), ..) => error.clone(),
        (Some(outcome), ..) => outcome.problems().first().cloned().unwrap_or_default(),
        (None, Some(waiting), _) => format!("waits: {waiting}"),
        (None, None, Some(progress)) => progress.activity.clone(),
        (None, None, None) => String::new(),
    }
}
