//! Rollouts: every one, and each with its rings, its gates, what failed, and what can be wished of it.

use maud::{Markup, html};
use proto::number::RolloutId;

use super::layout::{Part, bar, form_key, host_link, since};
use super::{Order, Page, Shown};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::http::ask::{Ask, encoded};
use crate::manager::http::caller::Caller;
use crate::manager::http::orders::wish_of;
use crate::manager::http::problem::Problem;
use crate::manager::http::route::Replies;
use crate::manager::rollout::machine::vocabulary::{Counts, Jobs, State};
use crate::manager::rollout::{ProblemGroup, RingView, RolloutView, counts_words, state_words, words};
use crate::units::{count, moment};

pub(super) fn pages() -> [Page; 3] {
    [
        Page {
            path: "/rollouts",
            role: Role::Viewer,
            ask: |_| Ok(vec![Quick::Rollouts]),
            show: |_, _, mut replies| {
                let all =
                    replies.next(|reply| if let AdminReply::Rollouts(all) = reply { Some(all) } else { None })?;
                Ok(Shown::new("Rollouts", list(&all)))
            },
        },
        Page {
            path: "/rollouts/{rollout}",
            role: Role::Viewer,
            ask: asks,
            show: |caller, _, mut replies| {
                let view = view(&mut replies)?;
                let again = view.state.is_live().then_some(5);
                Ok(Shown { again, ..Shown::new(title(&view), one(caller, &view)) })
            },
        },
        Page {
            path: "/rollouts/{rollout}/{wish}",
            role: Role::Operator,
            ask: asks,
            show: |caller, ask, mut replies| {
                let wish: String = ask.path("wish")?;
                wish_of(&wish)?;
                confirm(caller, &view(&mut replies)?, &wish)
            },
        },
    ]
}

/// A wish, once it was confirmed.
pub(super) fn order() -> Order {
    Order {
        path: "/rollouts/{rollout}/{wish}",
        role: Role::Operator,
        ask: |ask| {
            let id: RolloutId = ask.path("rollout")?;
            Ok(vec![Quick::RolloutWish(Some(id), wish_of(&ask.path::<String>("wish")?)?)])
        },
        then: |ask| Ok(format!("/rollouts/{}", ask.path::<RolloutId>("rollout")?)),
    }
}

fn asks(ask: &Ask) -> Result<Vec<Quick>, Problem> {
    Ok(vec![Quick::Rollout(Some(ask.path("rollout")?))])
}

fn view(replies: &mut Replies) -> Result<RolloutView, Problem> {
    Ok(*replies.next(|reply| if let AdminReply::Rollout(view) = reply { Some(view) } else { None })?)
}

fn title(view: &RolloutView) -> String {
    format!("Rollout of {}@{}", view.product, view.version)
}

fn list(all: &[RolloutView]) -> Markup {
    html! {
        @if all.is_empty() {
            p.quiet { "There is none; " code { "manager-fs rollout plan FILE" } " makes one." }
        }
        div.scroll { table.stack {
            thead { tr { th { "Rollout" } th { "State" } th { "Since" } th { "Hosts" } } }
            tbody { @for view in all.iter().rev() { tr {
                td { a href=(format!("/rollouts/{}", view.id)) { (view.product.as_str()) "@" (view.version.as_str()) } }
                td { span class=(class_of(view.state)) { (state_words(view.state)) } }
                td { (since(view.since)) }
                td { (hosts_bar(&sum(view))) }
            } } }
        } }
    }
}

/// The counts of all rings.
fn sum(view: &RolloutView) -> Counts {
    let mut all = Counts::default();
    for Counts { ready, away, in_flight, good, failed, refused, silent, returning, returned, stuck } in
        view.rings.iter().map(|ring| ring.hosts)
    {
        all.ready += ready;
        all.away += away;
        all.in_flight += in_flight;
        all.good += good;
        all.failed += failed;
        all.refused += refused;
        all.silent += silent;
        all.returning += returning;
        all.returned += returned;
        all.stuck += stuck;
    }
    all
}

fn class_of(state: State) -> &'static str {
    match state {
        State::Halted | State::RollingBack => "bad",
        State::Paused | State::RolledBack | State::Aborted => "warn",
        State::Running => "busy",
        State::Done => "good",
        State::Planned => "quiet",
    }
}

/// How many hosts are in which state, as a bar and in words.
fn hosts_bar(of: &Counts) -> Markup {
    let bad = of.failed + of.stuck;
    let parts = [
        Part { much: u64::from(of.good), class: "good" },
        Part { much: u64::from(bad), class: "bad" },
        Part { much: u64::from(of.refused + of.silent), class: "warn" },
        Part { much: u64::from(of.in_flight + of.returning), class: "busy" },
        Part { much: u64::from(of.returned), class: "rest" },
    ];
    bar(&parts, u64::from(of.total()), &counts_words(of))
}

fn one(caller: &Caller, view: &RolloutView) -> Markup {
    html! {
        p {
            strong class=(class_of(view.state)) { (state_words(view.state)) }
            " " (since(view.since))
            @if let Some(next) = view.next { " · due next: " time { (moment(next)) } }
        }
        @if let Some(why) = &view.halted { p.bad role="alert" { "It stopped itself: " (why) } }
        @if caller.role >= Role::Operator { (acts(view)) }
        h2 { "Rings" }
        div.scroll { table.stack {
            thead { tr { th { "Ring" } th { "Now" } th { "Since" } th { "Hosts" } th { "At once" } th { "Ran before" } } }
            tbody { @for ring in &view.rings { (ring_row(ring)) } }
        } }
        h2 { "Gates" }
        (gates(view))
        h2 { "Hosts that are not as ordered, by the reason" }
        (problems(&view.problems))
        h2 { "What happened" }
        div.scroll { table.stack { thead { tr { th { "When" } th { "What" } } } tbody { @for (at, text) in view.lines.iter().rev() {
            tr { td { time { (moment(*at)) } } td { (text) } }
        } } } }
    }
}

fn ring_row(ring: &RingView) -> Markup {
    html! {
        tr {
            td { (ring.name) }
            td {
                (words(ring.phase))
                @if let Some(window) = &ring.window {
                    div.quiet { (window.hours) @if let Some(opens) = window.opens { ", from " time { (moment(opens)) } " on" } }
                }
            }
            td { (since(ring.since)) }
            td { (hosts_bar(&ring.hosts)) }
            td.num { (ring.in_flight) " (" (count(u64::from(ring.canaries), "canary")) ")" }
            td { @if let Some(before) = &ring.before { (before.as_str()) } }
        }
    }
}

fn gates(view: &RolloutView) -> Markup {
    let share = |jobs: &Jobs| match jobs.ended() {
        0 => String::from("none ended"),
        ended => format!("{} of {ended} done ({:.1} %)", jobs.done, f64::from(jobs.done) * 100.0 / f64::from(ended)),
    };
    html! {
        dl {
            dt { "Storage operations of the new version" } dd { (share(&view.jobs)) }
            dt { "Before the rollout" } dd { (share(&view.baseline)) }
            dt { "Starts anew after they had proved themselves" } dd { (view.restarts) }
        }
    }
}

/// Hosts that are not as ordered, one paragraph a reason.
pub(super) fn problems(groups: &[ProblemGroup]) -> Markup {
    html! {
        @if groups.is_empty() { p.good { "None." } }
        @for group in groups {
            h3 { span.bad { (group.state) } " on " (count(u64::from(group.count), "host")) }
            pre { (group.reason) }
            p {
                @for host in &group.hosts { (host_link(host.as_str())) " " }
                @if usize::try_from(group.count).is_ok_and(|all| all > group.hosts.len()) { "…" }
            }
        }
    }
}

/// What can be wished of it now.
fn acts(view: &RolloutView) -> Markup {
    let wishes: &[(&str, &str)] = match view.state {
        State::Planned => &[("start", "Start"), ("abort", "Give up")],
        State::Running => &[("pause", "Pause"), ("abort", "Give up"), ("rollback", "Roll back")],
        State::Paused | State::Halted => &[("resume", "Go on"), ("abort", "Give up"), ("rollback", "Roll back")],
        State::Done | State::Aborted => &[("rollback", "Roll back")],
        State::RollingBack | State::RolledBack => &[],
    };
    html! {
        div.acts {
            @for (wish, name) in wishes {
                a.button.bad[matches!(*wish, "abort" | "rollback")] href=(format!("/rollouts/{}/{wish}", view.id)) { (name) }
            }
        }
    }
}

/// Asks once more, and says what it comes to.
fn confirm(caller: &Caller, view: &RolloutView, wish: &str) -> Result<Shown, Problem> {
    let (verb, comes_to) = match wish {
        "start" => ("Start", "The canaries of the first ring are ordered at once."),
        "pause" => ("Pause", "Nothing more is ordered; what was ordered goes on."),
        "resume" => ("Go on", "What has failed until now is accepted, and the next hosts are ordered."),
        "abort" => ("Give up", "Nothing more is ordered, for ever; hosts that have changed over stay as they are."),
        "rollback" => ("Roll back", "Hosts go back to what they ran, the newest ring first."),
        _ => return Err(Problem::not_found("of a rollout one can wish start, pause, resume, abort and rollback")),
    };
    let place = format!("/rollouts/{}", encoded(&view.id.to_string()));
    Ok(Shown::new(
        format!("{verb}: {}?", title(view)),
        html! {
            p { (comes_to) }
            p { (hosts_bar(&sum(view))) }
            form.acts method="post" action=(format!("{place}/{wish}")) {
                (form_key(caller))
                button.bad { (verb) }
                a.button href=(place) { "Leave it" }
            }
        },
    ))
}
