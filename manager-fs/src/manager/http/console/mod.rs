//! The console: what the manager knows, as pages. They are made here, work without any script, and show what the same
//! commands answer that the interface asks; what they order goes through a page that asks once more.
//!
//! Whatever is shown is escaped by the templates: what hosts, archives and people call things is never markup.

mod failures;
mod fleet;
mod generations;
mod hosts;
mod layout;
mod rollouts;
mod sign_in;
mod work;

use maud::Markup;

use super::ask::Ask;
use super::caller::Caller;
use super::problem::Problem;
use super::route::Replies;
use crate::manager::admin::Quick;
use crate::manager::control::api_tokens::Role;

pub(super) use generations::PUBLISH;
pub(super) use layout::{STYLE, fault_page, page};
pub(super) use sign_in::sign_in_page;

/// A page without its frame.
pub(super) struct Shown {
    /// What it is called.
    pub(super) title: String,
    /// It is about something that goes on: it is loaded anew after so many seconds.
    pub(super) again: Option<u32>,
    pub(super) body: Markup,
}

impl Shown {
    fn new(title: impl Into<String>, body: Markup) -> Self {
        Self { title: title.into(), again: None, body }
    }
}

/// One page: what it asks of the manager, and how it shows the answers.
pub(super) struct Page {
    /// With `{name}` in the places of what is asked for.
    pub(super) path: &'static str,
    /// What it takes at least.
    pub(super) role: Role,
    pub(super) ask: fn(&Ask) -> Result<Vec<Quick>, Problem>,
    pub(super) show: fn(&Caller, &Ask, Replies) -> Result<Shown, Problem>,
}

/// One thing that is ordered by a form: the command, and the page that is shown then.
pub(super) struct Order {
    pub(super) path: &'static str,
    /// What it takes at least.
    pub(super) role: Role,
    pub(super) ask: fn(&Ask) -> Result<Vec<Quick>, Problem>,
    pub(super) then: fn(&Ask) -> Result<String, Problem>,
}

/// Every page.
pub(super) fn pages() -> Vec<Page> {
    let mut all = vec![fleet::page(), failures::page(), work::page()];
    all.extend(hosts::pages());
    all.extend(rollouts::pages());
    all.extend(generations::pages());
    all
}

/// Everything that can be ordered.
pub(super) fn orders() -> Vec<Order> {
    vec![rollouts::order()]
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
