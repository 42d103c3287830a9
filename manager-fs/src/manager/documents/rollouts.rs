//! Rollouts.

use proto::message::Unix;
use schemars::JsonSchema;
use serde::Serialize;

use super::{each, texts};
use crate::manager::rollout::machine::vocabulary::{Counts, Jobs, Phase};
use crate::manager::rollout::{ProblemGroup, RingView, RolloutView};
use crate::metrics::word;

/// Every rollout.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RolloutsDocument {
    /// The newest last.
    pub(crate) rollouts: Vec<RolloutDocument>,
}

impl RolloutsDocument {
    /// All that were asked for.
    pub(crate) fn of(views: &[RolloutView]) -> Self {
        Self { rollouts: each(views) }
    }
}

/// How far a rollout is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RolloutDocument {
    /// Its number; 0: nothing was kept.
    rollout: String,
    /// Which agents.
    product: String,
    /// To which version.
    version: String,
    /// planned, running, paused, halted, rolling_back, rolled_back, done or aborted.
    state: String,
    /// Since when.
    since_unix_ms: Unix,
    /// When it was planned.
    planned_unix_ms: Unix,
    /// When it was started.
    started_unix_ms: Option<Unix>,
    /// Why it stopped itself, for people.
    halted: Option<String>,
    /// When something is due next, if nothing happens before.
    next_unix_ms: Option<Unix>,
    /// Each ring, in order.
    rings: Vec<RingDocument>,
    /// Operations of hosts that have changed over.
    jobs: EndedDocument,
    /// Those before the rollout.
    baseline: EndedDocument,
    /// Agents that were started anew after they had proved themselves.
    restarts: u32,
    /// Hosts that are not as ordered, by the reason.
    problems: Vec<ProblemDocument>,
    /// What happened, oldest first.
    history: Vec<LineDocument>,
}

/// How operations ended.
#[derive(Debug, Serialize, JsonSchema)]
struct EndedDocument {
    /// So many are done.
    done: u32,
    /// So many failed.
    failed: u32,
}

/// Hosts with one reason.
#[derive(Debug, Serialize, JsonSchema)]
struct ProblemDocument {
    /// failed, refused, silent or stuck.
    state: String,
    /// What they all say, for people.
    reason: String,
    /// How many hosts say so.
    count: u32,
    /// The first of them.
    hosts: Vec<String>,
}

/// Something that happened.
#[derive(Debug, Serialize, JsonSchema)]
struct LineDocument {
    /// When.
    at_unix_ms: Unix,
    /// What, for people.
    text: String,
}

/// How far a ring is.
#[derive(Debug, Serialize, JsonSchema)]
struct RingDocument {
    /// Its name in the plan.
    name: String,
    /// waiting, canaries, canary_soak, waves, soak or done.
    phase: String,
    /// Whether it has the new version.
    done: bool,
    /// Since when.
    since_unix_ms: Unix,
    /// Canaries that it has.
    canaries: u32,
    /// Hosts that change over at once.
    at_once: u32,
    /// The version that most of its hosts ran before.
    before: Option<String>,
    /// When its hosts may be ordered; null: whenever.
    window: Option<WindowDocument>,
    /// How many hosts are in which state.
    hosts: CountsDocument,
}

/// When something may be ordered.
#[derive(Debug, Serialize, JsonSchema)]
struct WindowDocument {
    /// The hours, as the plan has them.
    hours: String,
    /// When they begin next; null: they are now.
    opens_unix_ms: Option<Unix>,
}

/// Hosts of a ring, by state.
#[derive(Debug, Serialize, JsonSchema)]
struct CountsDocument {
    /// All of them.
    total: u32,
    /// There, and not ordered yet.
    ready: u32,
    /// Not there.
    away: u32,
    /// Ordered.
    in_flight: u32,
    /// The new version runs and has proved itself.
    good: u32,
    /// It was tried, and the version before runs.
    failed: u32,
    /// It was not tried.
    refused: u32,
    /// Nothing is heard of it.
    silent: u32,
    /// On the way back.
    returning: u32,
    /// Back.
    returned: u32,
    /// The way back failed.
    stuck: u32,
}

impl From<&RolloutView> for RolloutDocument {
    fn from(view: &RolloutView) -> Self {
        let line = |(at, text): &(Unix, String)| LineDocument { at_unix_ms: *at, text: text.clone() };
        Self {
            rollout: view.id.to_string(),
            product: view.product.to_string(),
            version: view.version.to_string(),
            state: word(&view.state),
            since_unix_ms: view.since,
            planned_unix_ms: view.planned,
            started_unix_ms: view.started,
            halted: view.halted.clone(),
            next_unix_ms: view.next,
            rings: each(&view.rings),
            jobs: EndedDocument::from(&view.jobs),
            baseline: EndedDocument::from(&view.baseline),
            restarts: view.restarts,
            problems: each(&view.problems),
            history: view.lines.iter().map(line).collect(),
        }
    }
}

impl From<&Jobs> for EndedDocument {
    fn from(jobs: &Jobs) -> Self {
        Self { done: jobs.done, failed: jobs.failed }
    }
}

impl From<&ProblemGroup> for ProblemDocument {
    fn from(group: &ProblemGroup) -> Self {
        let ProblemGroup { state, reason, count, hosts } = group;
        Self { state: state.clone(), reason: reason.clone(), count: *count, hosts: texts(hosts) }
    }
}

impl From<&RingView> for RingDocument {
    fn from(ring: &RingView) -> Self {
        Self {
            name: ring.name.clone(),
            phase: word(&ring.phase),
            done: ring.phase == Phase::Done,
            since_unix_ms: ring.since,
            canaries: ring.canaries,
            at_once: ring.in_flight,
            before: ring.before.as_ref().map(ToString::to_string),
            window: ring
                .window
                .as_ref()
                .map(|window| WindowDocument { hours: window.hours.clone(), opens_unix_ms: window.opens }),
            hosts: CountsDocument::from(&ring.hosts),
        }
    }
}

impl From<&Counts> for CountsDocument {
    fn from(of: &Counts) -> Self {
        Self {
            total: of.total(),
            ready: of.ready,
            away: of.away,
            in_flight: of.in_flight,
            good: of.good,
            failed: of.failed,
            refused: of.refused,
            silent: of.silent,
            returning: of.returning,
            returned: of.returned,
            stuck: of.stuck,
        }
    }
}
