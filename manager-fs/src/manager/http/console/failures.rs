//! What failed, by the reason: rollouts that are not over, agents that do not serve, jobs.

use std::collections::BTreeMap;

use maud::{Markup, html};
use proto::message::Unix;

use super::fleet::is_ill;
use super::hosts::said;
use super::layout::{host_link, since};
use super::rollouts::problems;
use super::{Page, Shown};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::control::jobs::JobState;
use crate::manager::jobs::{JobFilter, JobPage};
use crate::manager::now;
use crate::units::count;

/// Hosts that are named of one reason.
const NAMED_MAX: usize = 20;
/// How far back jobs are looked at, milliseconds.
const BACK_MS: u64 = 7 * 24 * 3600 * 1000;

/// What went wrong in one way.
#[derive(Default)]
struct Group {
    hosts: Vec<String>,
    first: Unix,
    last: Unix,
}

pub(super) fn page() -> Page {
    Page {
        path: "/failures",
        role: Role::Viewer,
        ask: |_| {
            let since = Some(now().saturating_sub(BACK_MS));
            let failed = JobFilter { limit: 1000, states: vec![JobState::Failed], since, ..JobFilter::default() };
            Ok(vec![Quick::Rollouts, Quick::Agents, Quick::Jobs(failed)])
        },
        show: |_, _, mut replies| {
            let rollouts =
                replies.next(|reply| if let AdminReply::Rollouts(all) = reply { Some(all) } else { None })?;
            let agents = replies.next(|reply| if let AdminReply::Agents(all) = reply { Some(all) } else { None })?;
            let JobPage { jobs, .. } =
                replies.next(|reply| if let AdminReply::Jobs(page) = reply { Some(page) } else { None })?;
            let ill = grouped(agents.iter().filter(|agent| is_ill(agent)).map(|agent| {
                let reason = format!("{}@{}: {}", agent.status.product, agent.status.version, agent.status.reason);
                (reason, agent.host.to_string(), agent.status.started_unix_ms)
            }));
            let failed =
                grouped(jobs.iter().map(|job| {
                    (format!("{}: {}", job.operation.kind(), said(job)), job.host.to_string(), job.created)
                }));
            let with_problems = rollouts.iter().rev().filter(|view| !view.problems.is_empty());
            Ok(Shown::new(
                "Failures, by the reason",
                html! {
                    h2 { "Rollouts" }
                    @for view in with_problems {
                        h3 { a href=(format!("/rollouts/{}", view.id)) { (view.product.as_str()) "@" (view.version.as_str()) } }
                        (problems(&view.problems))
                    }
                    @if rollouts.iter().all(|view| view.problems.is_empty()) { p.good { "None." } }
                    h2 { "Agents that do not serve" }
                    (groups(&ill))
                    h2 { "Jobs of the last seven days" }
                    (groups(&failed))
                },
            ))
        },
    }
}

/// Those with one reason together, the most hosts first.
fn grouped(all: impl Iterator<Item = (String, String, Unix)>) -> Vec<(String, Group)> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (reason, host, at) in all {
        let group = groups.entry(reason).or_insert_with(|| Group { first: at, ..Group::default() });
        group.first = group.first.min(at);
        group.last = group.last.max(at);
        group.hosts.push(host);
    }
    let mut groups: Vec<(String, Group)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.hosts.len()));
    groups
}

fn groups(all: &[(String, Group)]) -> Markup {
    html! {
        @if all.is_empty() { p.good { "None." } }
        @for (reason, group) in all {
            h3 { (count(group.hosts.len() as u64, "time")) ", first " (since(group.first)) ", last " (since(group.last)) }
            pre { (reason) }
            p {
                @for host in group.hosts.iter().take(NAMED_MAX) { (host_link(host)) " " }
                @if group.hosts.len() > NAMED_MAX { "…" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_in_one_way_is_one_group_with_its_first_and_last_time() {
        let of = |reason: &str, host: &str, at| (reason.to_owned(), host.to_owned(), at);
        let all = [of("disk full", "a", 5), of("no space", "b", 1), of("disk full", "c", 2)];
        let groups = grouped(all.into_iter());
        assert_eq!(groups[0].0, "disk full");
        assert_eq!((groups[0].1.first, groups[0].1.last, groups[0].1.hosts.len()), (2, 5, 2));
        assert_eq!(groups[1].0, "no space");
    }
}
