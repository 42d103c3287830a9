//! What hosts report: where it is kept apart from what was decided.
//!
//! A *decision* (ordered, exported, enrolled) must never be lost. An *observation* (what runs on a host, how far a
//! change-over or a job is) comes often, is bounded, and its loss costs knowledge and nothing else: hosts say again what
//! is so now. So observations have a store of their own, which writes what came from many hosts in one go, and which is
//! begun anew when it is damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::agent::{AgentStatus, JobId, Progress, StepEvent};
use proto::message::Unix;
use proto::{HostName, Product, TreeId};
use serde::{Deserialize, Serialize};

use super::contract::Pending;

mod bounds;
mod database;
#[cfg(test)]
mod tests;

pub(crate) use bounds::cut;
pub(super) use database::Filling;
pub use database::LocalObservations;

/// What a host last said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Version of its `manager-fs`.
    pub software: String,
    /// When it was last heard of.
    pub last_seen: Unix,
    /// Its agents, as it reported them last.
    pub agents: Vec<AgentStatus>,
    /// The trees attached there.
    pub attached: Vec<TreeId>,
    /// The last wrong hashes that it found, with times.
    pub wrong_hashes: Vec<(Unix, String)>,
}

/// One thing that a host said, or that was seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// It was there.
    Seen {
        /// When the manager heard it.
        at: Unix,
        /// The version of its `manager-fs`, when it said so.
        software: Option<String>,
    },
    /// All its agents.
    Agents {
        /// What they are and do.
        agents: Vec<AgentStatus>,
        /// When it said so.
        at: Unix,
    },
    /// All trees attached there.
    Attached {
        /// All trees that are attached there, no others.
        trees: Vec<TreeId>,
        /// When it said so.
        at: Unix,
    },
    /// Bytes came with a wrong hash.
    WrongHash {
        /// What the bytes should have been.
        what: String,
        /// When the manager heard it.
        at: Unix,
    },
    /// A step of a change-over or a start.
    Step(StepEvent),
    /// How far a job is.
    Progress {
        /// The manager's number of the job.
        job: JobId,
        /// How far it is, as its agent reported last.
        progress: Progress,
        /// When it was so.
        at: Unix,
    },
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSeen {
    /// When an agent was first seen at it.
    pub since: Unix,
    /// How far it was last.
    pub progress: Progress,
}

/// What became of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It is on disk.
    New,
    /// It was there already: hosts send again what was not answered.
    Known,
}

/// What hosts report. No method waits on the caller's thread.
pub trait Observations: Send + Sync + 'static {
    /// Keeps what was seen of a host, cut to what may be kept of one; answered when it is on disk. What comes from many
    /// hosts within some milliseconds shares one sync.
    ///
    /// # Errors
    /// It could not be written; the host keeps it and sends it again.
    fn note(&self, host: &HostName, seen: Vec<Observation>) -> Pending<'_, Vec<Noted>>;

    /// What each host last said; hosts that said nothing are missing.
    ///
    /// # Errors
    /// It cannot be read.
    fn statuses(&self) -> Pending<'_, BTreeMap<HostName, Arc<HostStatus>>>;

    /// What a host last said.
    ///
    /// # Errors
    /// It cannot be read.
    fn status<'a>(&'a self, host: &'a HostName) -> Pending<'a, Arc<HostStatus>>;

    /// The last steps of an agent, in the order of their arrival.
    ///
    /// # Errors
    /// They cannot be read.
    fn steps<'a>(&'a self, host: &'a HostName, product: &'a Product) -> Pending<'a, Vec<StepEvent>>;

    /// How far a job was last.
    ///
    /// # Errors
    /// It cannot be read.
    fn progress(&self, job: JobId) -> Pending<'_, Option<JobSeen>>;

    /// Forgets all of a host.
    ///
    /// # Errors
    /// It could not be written.
    fn forget_host<'a>(&'a self, host: &'a HostName) -> Pending<'a, ()>;
}
