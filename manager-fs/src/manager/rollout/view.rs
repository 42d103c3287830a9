//! A rollout as an operator sees it.

use proto::message::Unix;
use proto::number::RolloutId;
use proto::{HostName, Product, Version};
use serde::{Deserialize, Serialize};

use super::machine::vocabulary::{Counts, Jobs, Phase, Progress, State};

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its number; 0 of one that was only looked at.
    pub id: RolloutId,
    /// Whose agents change over.
    pub product: Product,
    /// The version that they change over to.
    pub version: Version,
    /// What becomes of it.
    pub state: State,
    /// Since when that holds, milliseconds since 1970.
    pub since: Unix,
    /// When it was planned.
    pub planned: Unix,
    /// When it was started.
    pub started: Option<Unix>,
    /// Why it stopped itself, for people.
    pub halted: Option<String>,
    /// When something is due next, if nothing happens before.
    pub next: Option<Unix>,
    /// Each ring, in order.
    pub rings: Vec<RingView>,
    /// Storage operations of hosts that have changed over.
    pub jobs: Jobs,
    /// Those before the rollout.
    pub baseline: Jobs,
    /// Agents that were started anew after they had proved themselves.
    pub restarts: u32,
    /// Hosts that are not as ordered, by the reason.
    pub problems: Vec<ProblemGroup>,
    /// What happened, oldest first.
    pub lines: Vec<(Unix, String)>,
}

/// How far a ring is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingView {
    /// Its name in the plan.
    pub name: String,
    /// What happens in it.
    pub phase: Phase,
    /// Since when that holds, milliseconds since 1970.
    pub since: Unix,
    /// Canaries that it has.
    pub canaries: u32,
    /// Hosts that change over at once.
    pub in_flight: u32,
    /// What most of its hosts ran when the rollout was started, or run now.
    pub before: Option<Version>,
    /// How many of its hosts are in which state.
    pub hosts: Counts,
    /// When its hosts may be told to change over; `None`: at any time.
    pub window: Option<WindowView>,
}

/// The hours of a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowView {
    /// As the plan has them: `22:00-06:00 Europe/Berlin`.
    pub hours: String,
    /// When they begin next, milliseconds since 1970; `None`: they have begun.
    pub opens: Option<Unix>,
}

/// Hosts with one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemGroup {
    /// `failed`, `refused`, `silent` or `stuck`.
    pub state: String,
    /// What they all say, one line for people.
    pub reason: String,
    /// How many hosts say so, those in `hosts` among them.
    pub count: u32,
    /// The first of them.
    pub hosts: Vec<HostName>,
}

/// A phase, for people.
pub fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waits",
        Phase::Canaries => "canaries",
        Phase::CanarySoak => "canaries are watched",
        Phase::Waves => "waves",
        Phase::Soak => "watched",
        Phase::Done => "done",
    }
}

/// How many hosts of a ring are in which state, for people: `3 of 12 good, 1 failed`.
pub fn counts_words(of: &Counts) -> String {
    let named = [
        (of.in_flight, "in flight"),
        (of.failed, "failed"),
        (of.refused, "refused"),
        (of.silent, "silent"),
        (of.returning, "going back"),
        (of.returned, "back"),
        (of.stuck, "stuck"),
        (of.away, "away"),
    ];
    let parts: Vec<String> =
        named.iter().filter(|(many, _)| *many > 0).map(|(many, name)| format!(", {many} {name}")).collect();
    format!("{} of {} good{}", of.good, of.total(), parts.concat())
}

/// A state, for people.
pub fn state_words(state: State) -> &'static str {
    match state {
        State::Planned => "planned",
        State::Running => "running",
        State::Paused => "paused",
        State::Halted => "halted",
        State::RollingBack => "rolling back",
        State::RolledBack => "rolled back",
        State::Done => "done",
        State::Aborted => "aborted",
    }
}

/// What has changed, for people.
pub(super) fn lines(before: &Progress, after: &Progress, view: &RolloutView) -> Vec<String> {
    let mut lines = Vec::new();
    for ((old, new), ring) in before.rings.iter().zip(&after.rings).zip(&view.rings) {
        if old.phase != new.phase {
            lines.push(format!("ring {}: {}", ring.name, words(new.phase)));
        }
        if !old.back && new.back {
            lines.push(format!("ring {}: back to what it was", ring.name));
        }
    }
    if before.state != after.state {
        let why = match (after.state, &view.halted) {
            (State::Halted | State::RollingBack, Some(why)) if before.halted != after.halted => format!(": {why}"),
            _ => String::new(),
        };
        lines.push(format!("{}{why}", state_words(after.state)));
    }
    lines
}
