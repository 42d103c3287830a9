//! Generations: their sizes, who may see them, who runs them, and what differs from one to the next.

use maud::{Markup, html};

use super::layout::{form_key, host_link, since};
use super::{Page, Shown};
use crate::manager::admin::{AdminReply, AgentView, ArchitectureDiff, Difference, GenerationView, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::http::ask::{Ask, encoded};
use crate::manager::http::caller::Caller;
use crate::manager::http::problem::Problem;
use crate::manager::http::route::Replies;
use crate::units::{bytes, count, ms};

/// Hosts that are named.
const NAMED_MAX: usize = 50;
/// Differences that are listed.
const ENTRIES_MAX: usize = 500;

/// Where a form publishes.
pub(in crate::manager::http) const PUBLISH: &str = "/publish";

pub(super) fn pages() -> [Page; 4] {
    [
        Page {
            path: PUBLISH,
            role: Role::Publisher,
            ask: |_| Ok(Vec::new()),
            show: |caller, _, _| Ok(Shown::new("Publish", publish_form(caller))),
        },
        Page {
            path: "/generations",
            role: Role::Viewer,
            ask: |_| Ok(vec![Quick::Generations(None), Quick::Agents]),
            show: |caller, _, mut replies| {
                let all =
                    replies.next(|reply| if let AdminReply::Generations(all) = reply { Some(all) } else { None })?;
                let agents =
                    replies.next(|reply| if let AdminReply::Agents(all) = reply { Some(all) } else { None })?;
                Ok(Shown::new("Generations", list(caller, &all, &agents)))
            },
        },
        Page {
            path: "/generations/{generation}",
            role: Role::Viewer,
            ask: |ask| Ok(vec![Quick::Show(ask.path("generation")?), Quick::Generations(None), Quick::Agents]),
            show: |_, _, mut replies| {
                let one =
                    replies.next(|reply| if let AdminReply::Generation(one) = reply { Some(one) } else { None })?;
                let all =
                    replies.next(|reply| if let AdminReply::Generations(all) = reply { Some(all) } else { None })?;
                let agents =
                    replies.next(|reply| if let AdminReply::Agents(all) = reply { Some(all) } else { None })?;
                Ok(Shown::new(one.record.name(), show(&one, &all, &agents)))
            },
        },
        Page {
            path: "/diff",
            role: Role::Viewer,
            ask: |ask| match (ask.one("old")?, ask.one("new")?) {
                (Some(old), Some(new)) => Ok(vec![Quick::Diff(old, new)]),
                _ => Err(Problem::bad_request("say from which generation (old) to which (new)")),
            },
            show: diff,
        },
    ]
}

fn runs(view: &GenerationView, agents: &[AgentView]) -> usize {
    agents.iter().filter(|agent| agent.status.tree == view.record.tree).count()
}

fn list(caller: &Caller, all: &[GenerationView], agents: &[AgentView]) -> Markup {
    let mut newest_first: Vec<&GenerationView> = all.iter().collect();
    newest_first.sort_by_key(|view| std::cmp::Reverse(view.record.published_unix_ms));
    html! {
        @if caller.role >= Role::Publisher { div.acts { a.button href=(PUBLISH) { "Publish" } } }
        @if all.is_empty() { p.quiet { "Nothing is published; " code { "manager-fs publish" } " does." } }
        div.scroll { table.stack {
            thead { tr { th { "Generation" } th { "Published" } th { "Content" } th { "Agents" } th { "Exported to" } } }
            tbody { @for view in newest_first {
                @let name = view.record.name();
                tr {
                    td { a href=(format!("/generations/{}", encoded(&name))) { (name) } }
                    td { (since(view.record.published_unix_ms)) }
                    td.num { (bytes(view.record.metadata.content_bytes)) }
                    td.num { (runs(view, agents)) }
                    td { @for export in &view.exports { (export.target.to_string()) " " } }
                }
            } }
        } }
    }
}

/// What is to be published. The key stands before the file: without it nothing of that is kept.
fn publish_form(caller: &Caller) -> Markup {
    html! {
        form method="post" action=(PUBLISH) enctype="multipart/form-data" {
            (form_key(caller))
            p { label { "Product" input name="product" required autocomplete="off"; } }
            p { label { "Version" input name="version" required autocomplete="off"; } }
            p { label { "Program to start, if the archive does not say it" input name="entrypoint" autocomplete="off"; } }
            p { label { "Of a service pack: the generation that it is laid over" input name="onto" autocomplete="off"; } }
            p { label { "Archive (tar, .deb, .rpm, wheel, zip or image)" input name="archive" type="file" required; } }
            p { button { "Publish" } }
        }
        p.quiet { "The page of the generation is shown when all of it is there and was taken in." }
    }
}

fn show(one: &GenerationView, all: &[GenerationView], agents: &[AgentView]) -> Markup {
    let (record, metadata) = (&one.record, &one.record.metadata);
    let others = all.iter().filter(|of| of.record.product == record.product && of.record.version != record.version);
    let here: Vec<&AgentView> = agents.iter().filter(|agent| agent.status.tree == record.tree).collect();
    html! {
        dl {
            dt { "Tree" } dd { code { (record.tree.to_string()) } }
            dt { "Published" } dd { (since(record.published_unix_ms)) }
            dt { "Architecture" } dd { (metadata.architecture.as_deref().unwrap_or("any")) }
            dt { "Starts" } dd { @if let Some(entry) = &metadata.entry_point { code { (entry.to_string()) } } }
            dt { "Content" } dd {
                (bytes(metadata.content_bytes)) " in " (count(metadata.file_count, "file"))
                ", distinct " (bytes(metadata.object_bytes))
            }
            dt { "Operations may take" } dd { (ms(metadata.drain_deadline_ms)) }
            dt { "Exported to" } dd { @for export in &one.exports { (export.target.to_string()) " " } }
        }
        h2 { "Who runs it" }
        p {
            (count(here.len() as u64, "agent")) ": "
            @for agent in here.iter().take(NAMED_MAX) { (host_link(agent.host.as_str())) " " }
            @if here.len() > NAMED_MAX { "…" }
        }
        h2 { "What differs" }
        ul { @for other in others {
            @let (old, new) = (other.record.name(), record.name());
            li { a href=(format!("/diff?old={}&new={}", encoded(&old), encoded(&new))) { "from " (old) } }
        } }
    }
}

fn diff(_: &Caller, ask: &Ask, mut replies: Replies) -> Result<Shown, Problem> {
    let found = replies.next(|reply| if let AdminReply::Diff(found) = reply { Some(found) } else { None })?;
    let name = |of: &str| ask.one::<String>(of).ok().flatten().unwrap_or_default();
    let title = format!("From {} to {}", name("old"), name("new"));
    Ok(Shown::new(title, html! { @for of in &found { (differences(of)) } }))
}

fn differences(of: &ArchitectureDiff) -> Markup {
    let report = &of.report;
    html! {
        @if let Some(architecture) = &of.architecture { h2 { (architecture) } }
        p {
            (report.added) " added, " (report.removed) " removed, " (report.changed) " changed, " (report.equal)
            " equal; new content " (bytes(report.new_object_bytes)) ", of it " (bytes(report.new_chunk_bytes))
            " in chunks that the first does not have"
        }
        div.scroll { table.stack { thead { tr { th { "Difference" } th { "Path" } th { "What of it" } } } tbody { @for entry in report.entries.iter().take(ENTRIES_MAX) { tr {
            td {
                @match entry.difference {
                    Difference::Added => span.good { "added" },
                    Difference::Removed => span.bad { "removed" },
                    Difference::Changed => span.busy { "changed" },
                }
            }
            td { code { (entry.path) } }
            td { (entry.what) }
        } } } } }
        @if report.entries.len() > ENTRIES_MAX { p.quiet { "and more" } }
    }
}
