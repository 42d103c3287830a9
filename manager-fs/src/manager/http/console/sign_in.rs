//! Where a token is shown once, and a session begins.

use maud::{Markup, html};

use super::layout::frame;

/// The page, with what was wrong the last time.
pub(in crate::manager::http) fn sign_in_page(wrong: Option<&str>) -> Markup {
    frame(
        "Sign in",
        None,
        &html! {
            main #main {
                h1 { "manager-fs" }
                @if let Some(wrong) = wrong { p.bad role="alert" { (wrong) } }
                form method="post" action="/sign-in" {
                    p { label for="token" {
                        "Token"
                        input #token name="token" type="password" autocomplete="current-password" size="40" required autofocus;
                    } }
                    p { button { "Sign in" } }
                }
                p.quiet { "An admin makes one on the manager's machine: " code { "manager-fs api-token add NAME --role viewer" } }
            }
        },
    )
}
