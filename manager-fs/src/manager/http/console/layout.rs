//! The frame of every page, and the small things that pages are made of.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use proto::message::Unix;

use super::super::ask::encoded;
use super::super::caller::Caller;
use super::super::problem::Problem;
use super::Shown;
use crate::units::{ago, moment};

/// How everything looks, in light and dark, on a wide screen and a narrow one.
pub(in crate::manager::http) const STYLE: &str = include_str!("style.css");

const PLACES: [(&str, &str); 6] = [
    ("/", "Fleet"),
    ("/hosts", "Hosts"),
    ("/rollouts", "Rollouts"),
    ("/failures", "Failures"),
    ("/generations", "Generations"),
    ("/work", "Jobs and protection"),
];

/// A whole page for somebody who is known.
pub(in crate::manager::http) fn page(caller: &Caller, path: &str, shown: &Shown) -> Markup {
    let here = |place: &str| path == place || (place != "/" && path.starts_with(&format!("{place}/")));
    frame(
        &shown.title,
        shown.again,
        &html! {
            header {
                a.skip href="#main" { "To the page" }
                nav aria-label="Pages" {
                    @for (place, name) in PLACES {
                        a href=(place) aria-current=[here(place).then_some("page")] { (name) }
                    }
                }
                form.out method="post" action="/sign-out" {
                    span { (caller.name.as_str()) " · " (caller.role.as_str()) }
                    (form_key(caller))
                    @if caller.form_key.is_some() { button { "Sign out" } }
                }
            }
            main #main { h1 { (shown.title) } (shown.body) }
        },
    )
}

/// The page that says why there is none.
pub(in crate::manager::http) fn fault_page(problem: &Problem) -> Markup {
    frame(
        &problem.title,
        None,
        &html! {
            main #main {
                h1 { (problem.title) }
                p.bad { (problem.detail) }
                p { a href="/" { "To the fleet" } " · " a href="/sign-in" { "Sign in" } }
            }
        },
    )
}

/// Title and style around whatever is shown.
pub(super) fn frame(title: &str, again: Option<u32>, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(seconds) = again { meta http-equiv="refresh" content=(seconds); }
                title { (title) " · manager-fs" }
                link rel="stylesheet" href="/style.css";
            }
            body { (body) }
        }
    }
}

/// What shows that a form was made for this sign-in.
pub(super) fn form_key(caller: &Caller) -> Markup {
    html! { @if let Some(key) = &caller.form_key { input type="hidden" name="form_key" value=(key); } }
}

/// A moment: how long ago, and when.
pub(super) fn since(at: Unix) -> Markup {
    if at == 0 {
        return html! { "never" };
    }
    html! { time datetime=(moment(at)) title=(moment(at)) { (ago(at)) } }
}

/// A link to a host.
pub(super) fn host_link(host: &str) -> Markup {
    html! { a href=(format!("/hosts/{}", encoded(host))) { (host) } }
}

/// A part of a bar: how much, and which class of the style it has.
pub(super) struct Part {
    pub(super) much: u64,
    pub(super) class: &'static str,
}

/// A bar of parts of a whole, with what it says in words beside it.
pub(super) fn bar(parts: &[Part], whole: u64, words: &str) -> Markup {
    let mut at = 0.0;
    let mut pieces = String::new();
    for part in parts.iter().filter(|part| part.much > 0 && whole > 0) {
        let wide = part.much as f64 * 100.0 / whole as f64;
        pieces.push_str(&format!(
            "<rect class=\"{}\" x=\"{at:.2}%\" width=\"{wide:.2}%\" height=\"100%\"/>",
            part.class
        ));
        at += wide;
    }
    html! {
        span.barred {
            // Figures and names of the style alone.
            svg.bar role="img" aria-label=(words) { (PreEscaped(pieces)) }
            span { (words) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_anybody_calls_something_is_text() {
        let hostile = "\"><script>alert(1)</script>";
        let text = host_link(hostile).into_string();
        assert!(!text.contains("<script") && text.contains("&lt;script&gt;"), "{text}");
        assert!(text.contains("href=\"/hosts/%22%3E%3Cscript%3E"), "{text}");
        let drawn = bar(&[Part { much: 1, class: "good" }], 2, hostile).into_string();
        assert!(!drawn.contains("<script") && drawn.contains("width=\"50.00%\""), "{drawn}");
        let problem = Problem::not_found(hostile);
        assert!(!fault_page(&problem).into_string().contains("<script"));
    }

    #[test]
    fn a_bar_of_nothing_is_empty_and_parts_follow_each_other() {
        let none = bar(&[Part { much: 0, class: "good" }], 0, "none").into_string();
        assert!(!none.contains("<rect"), "{none}");
        let parts =
            [Part { much: 1, class: "good" }, Part { much: 0, class: "warn" }, Part { much: 2, class: "bad" }];
        let drawn = bar(&parts, 4, "3 of 4").into_string();
        assert!(drawn.contains("class=\"bad\" x=\"25.00%\" width=\"50.00%\"") && !drawn.contains("warn"), "{drawn}");
    }
}
