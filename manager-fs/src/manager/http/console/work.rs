//! Jobs, and what is protected.

use maud::{Markup, html};

use super::hosts::job_rows;
use super::layout::{host_link, since};
use super::{Page, Shown};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::risk_words;
use crate::manager::jobs::{JobFilter, JobPage};
use crate::manager::policy::{PolicyAnswer, PolicyAsk, ProtectionView, RunFact};
use crate::units::count;

/// Jobs that are shown.
const JOBS_MAX: u32 = 50;
/// Sources that are shown.
const SOURCES_MAX: usize = 500;

pub(super) fn page() -> Page {
    Page {
        path: "/work",
        role: Role::Viewer,
        ask: |_| {
            let jobs = JobFilter { limit: JOBS_MAX, ..JobFilter::default() };
            Ok(vec![Quick::Policy(PolicyAsk::Protection), Quick::Jobs(jobs)])
        },
        show: |_, _, mut replies| {
            let protection = replies.next(|reply| match reply {
                AdminReply::Policy(PolicyAnswer::Protection(view)) => Some(view),
                _ => None,
            })?;
            let JobPage { jobs, .. } =
                replies.next(|reply| if let AdminReply::Jobs(page) = reply { Some(page) } else { None })?;
            Ok(Shown::new(
                "Jobs and protection",
                html! {
                    h2 { "Protection" }
                    (sources(&protection))
                    h2 { "The newest jobs" }
                    (job_rows(&jobs))
                },
            ))
        },
    }
}

fn sources(view: &ProtectionView) -> Markup {
    let last = |run: &Option<RunFact>| {
        html! {
            @match run { Some(run) => (since(run.ordered)), None => span.quiet { "never" } }
        }
    };
    html! {
        p.bad[view.at_risk > 0].good[view.at_risk == 0 && view.sources > 0] {
            (view.at_risk) " of " (count(view.sources, "source")) " at risk"
        }
        @if !view.rows.is_empty() {
            div.scroll { table.stack {
                thead { tr { th { "Host" } th { "Source" } th { "Policy" } th { "Last good backup" } th { "Verified" }
                    th { "Restored" } th { "At risk" } } }
                tbody { @for row in view.rows.iter().take(SOURCES_MAX) { tr {
                    td { (host_link(row.host.as_str())) }
                    td { code { (row.source) } }
                    td { (row.policy.as_str()) }
                    td { (last(&row.backup)) }
                    td { (last(&row.verified)) }
                    td { (last(&row.tested)) }
                    td.bad { @for risk in &row.risks { div { (risk_words(risk, &row.host)) } } }
                } } }
            } }
        }
        @if !view.without_policy.is_empty() {
            p.warn {
                "No policy backs up "
                @for host in view.without_policy.iter().take(20) { (host_link(host.as_str())) " " }
                @if view.without_policy.len() > 20 { "and " (view.without_policy.len() - 20) " more" }
            }
        }
    }
}
