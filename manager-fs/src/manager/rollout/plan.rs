//! What a rollout shall do, checked: which generation, in which rings, how carefully. `docs/rollouts.md` has the words.

use proto::name::Target;
use proto::{GenerationRef, Product};
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use crate::manager::hours::Hours;

/// Rings of one plan.
pub const RINGS_MAX: usize = 64;
/// Hosts and groups of one ring.
pub const TARGETS_MAX: usize = 1000;
/// Bytes of a ring's name.
pub const RING_NAME_BYTES_MAX: usize = 64;

/// A planned change of generation over many hosts. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Whose agents change over.
    pub product: Product,
    /// What they change over to, by name or by the start of its tree's id.
    pub generation: GenerationRef,
    /// Export it to each ring's hosts and groups when the ring begins.
    pub export: bool,
    /// Change over before every object is local.
    pub lazy: bool,
    /// How long operations may take to finish; `None`: what the generation says.
    pub drain_deadline_ms: Option<u64>,
    /// Go back by itself after a breach, newest ring first.
    pub rollback: bool,
    /// Whereto; `None`: what each host ran before.
    pub rollback_to: Option<GenerationRef>,
    /// Hosts of all rings together on which it may fail; one more stops it.
    pub max_failures: u32,
    /// Canaries of each ring that may be replaced because nothing is heard of them or they refuse.
    pub replacements: u32,
    /// How long a host that was ordered may take to say how it ended.
    pub patience_ms: u64,
    /// How long evidence may be missing before the rollout halts for want of it.
    pub inconclusive_ms: u64,
    /// What must hold beside change-overs that succeed.
    pub gates: Gates,
    /// In the order in which they change over; at least one, at most [`RINGS_MAX`].
    pub rings: Vec<RingPlan>,
}

/// Hosts that change over together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPlan {
    /// For people; each ring has another.
    pub name: String,
    /// Who is in it: as many as the groups have when it is looked. A host of an earlier ring is not in this one.
    pub to: Vec<Target>,
    /// Pause after the ring before was done (of the first: after the start).
    pub wait_ms: u64,
    /// Hosts that change over first and must all be good; 0: none.
    pub canaries: Amount,
    /// How long the canaries are watched.
    pub canary_soak_ms: u64,
    /// Hosts that change over at once, after the canaries.
    pub in_flight: Amount,
    /// Hosts of the ring on which it may fail; one more stops the rollout. A canary that fails stops it always.
    pub max_failures: u32,
    /// How long the ring is watched after its last host.
    pub soak_ms: u64,
    /// Hosts that must be good, and heard of, for the ring to be done.
    pub min_hosts: u32,
    /// When hosts are told to change over; `None`: at any time. Kept beside the plan (`control/state/rollouts.rs`), as
    /// plans of earlier versions do not have it.
    #[serde(skip)]
    pub hours: Option<Hours>,
}

/// What must hold beside change-overs that succeed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// The success of storage operations of hosts that have changed over.
    pub jobs: Option<JobGate>,
    /// How often agents of the new version may be started anew after they had proved themselves, over all hosts.
    pub max_restarts: Option<u32>,
}

/// The success of storage operations, in percent of those that ended done or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobGate {
    /// Operations that must have ended before anything is said.
    pub min: u32,
    /// So many of a hundred must be done, whatever it was before.
    pub success_percent: Option<u8>,
    /// So many points of a hundred it may lie below what it was before the rollout; `None`: it is not compared.
    pub below_baseline: Option<u8>,
}
