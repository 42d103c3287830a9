//! What an agent is told, does and reports: its operations API (`RUN/agents/<product>.sock`).
//!
//! The mount daemon dials this socket to relay the manager's messages, and local programs may use it too. Every message
//! is a frame ([`crate::frame`]); bodies are [`crate::codec`] encodings of these types.

use serde::{Deserialize, Serialize};

use crate::bounded::{Blob, Line, List, Own, Text, within};
use crate::fault::{Fault, Unix};
use crate::id::TreeId;
use crate::limits::{DETAIL_BYTES_MAX, JOBS_MAX, REASON_BYTES_MAX, RECORD_BYTES_MAX};
use crate::name::{Product, Version};

pub use crate::operation::{JobId, JobOrigin, Operation, Repository};
pub use crate::outcome::{Outcome, Progress, Summary};
pub use crate::snapshot::{HostScope, SnapshotRef};

/// The manager's number of a change-over (one `upgrade` of one product on one host).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangeId(pub u64);

/// A request on the operations API.
#[allow(clippy::large_enum_variant, reason = "a request is made, sent and dropped; none is kept in a list")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// Who are you and what are you doing? Answered by [`AgentReply::Status`].
    Status,
    /// Message A: save this record ([`crate::SignedRecord::to_bytes`]) durably. Answered by `Done` once it is on disk.
    SaveMetadata {
        /// The change-over that this message belongs to; messages B and C bear the number of their A.
        change: ChangeId,
        /// The signed record's bytes; the agent verifies them itself.
        #[serde(deserialize_with = "within::<_, Blob<RECORD_BYTES_MAX>>")]
        record: Vec<u8>,
    },
    /// Message B: release the old attachment and attach the new one. Staging begins at once; the swap itself waits for
    /// message C. Answered by `Done` when staging has begun.
    Attach {
        /// The change-over that this message belongs to; messages B and C bear the number of their A.
        change: ChangeId,
        /// What the manager believes is attached now; another tree is a refusal.
        release: Option<TreeId>,
        /// The tree of the record of message A.
        attach: TreeId,
        /// Change over before every object is local.
        lazy: bool,
        /// Try a generation that this host remembers as bad.
        retry_bad: bool,
    },
    /// Message C: finish ongoing operations, then change over. Answered by `Done` when accepted; the steps come as
    /// [`StepEvent`]s through the mount daemon.
    Finish {
        /// The change-over that this message belongs to; messages B and C bear the number of their A.
        change: ChangeId,
        /// How long operations may take to finish, milliseconds.
        drain_deadline_ms: u64,
    },
    /// Run one operation. `Event`s carry [`Progress`], the response is [`AgentReply::Outcome`].
    /// While the agent drains the answer is [`Fault::Draining`]. A job that the agent already knows (running, resumed
    /// after a change-over, or finished) is joined, not run again.
    Run {
        /// The manager's number of the job, under which it is joined, reported and cancelled.
        job: JobId,
        /// Whose snapshots it makes or means.
        origin: JobOrigin,
        /// What is done, once; a job's number never names two operations.
        operation: Operation,
    },
    /// Stop this job at its next unit boundary.
    Cancel {
        /// The manager's number of the job, under which it is joined, reported and cancelled.
        job: JobId,
    },
}

/// An answer on the operations API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentReply {
    /// To every request that answers nothing else: it is taken, and on disk where its request says so.
    Done,
    /// To [`AgentRequest::Status`].
    Status(AgentStatus),
    /// To [`AgentRequest::Run`].
    Outcome(Outcome),
    /// To any request: nothing of it was done.
    Fault(Fault),
}

/// What an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The product that it is an agent of; at most one of each runs on a host.
    pub product: Product,
    /// Its version, from its saved record.
    pub version: Version,
    /// The tree that it runs from.
    pub tree: TreeId,
    /// Process id, the same across a change-over. Of an agent that does not run: its stub's, which takes orders
    /// meanwhile, or 0 where there is no stub either.
    pub pid: u32,
    /// When this version began, milliseconds since 1970.
    pub started_unix_ms: Unix,
    /// What it is doing.
    pub state: AgentState,
    /// Jobs under way, also those that wait for a change-over to end.
    #[serde(deserialize_with = "within::<_, List<Own<JobId>, JOBS_MAX>>")]
    pub jobs: Vec<JobId>,
    /// Why this version runs: `launched`, `changed over from X`, `returned from X: …`.
    #[serde(deserialize_with = "within::<_, Line<REASON_BYTES_MAX>>")]
    pub reason: String,
}

impl AgentStatus {
    /// Whether an order to change over can be given: an agent runs, or its stub is there in its place.
    pub fn takes_orders(&self) -> bool {
        self.pid != 0
    }
}

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Started, not yet believed.
    Probation,
    /// Believed, and takes operations.
    Serving,
    /// Takes operations; a new generation is being staged beside it.
    Staging,
    /// Takes no new operation; ongoing ones finish.
    Draining,
    /// Between drain and exec.
    Swapping,
    /// Not running (said by the mount daemon or the stub, never by the agent).
    Stopped,
}

/// One step of a change-over, as it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Which change-over; 0 for a start or return that nobody ordered.
    pub change: ChangeId,
    /// The product whose agent takes the step.
    pub product: Product,
    /// The tree it leaves.
    pub from: Option<TreeId>,
    /// The tree it goes to.
    pub to: TreeId,
    /// Which step ended, or in which way the change-over did.
    pub step: Step,
    /// When it ended, milliseconds since 1970.
    pub at_unix_ms: Unix,
    /// How long it took, microseconds.
    pub duration_us: u64,
    /// Reason or detail, for people; may be empty.
    #[serde(deserialize_with = "within::<_, Text<DETAIL_BYTES_MAX>>")]
    pub detail: String,
}

/// The steps of a change-over, in order; then the ways in which it ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The record is on disk (message A).
    MetadataSaved,
    /// Every object of the new and of the running generation is local, the new one is mounted (message B).
    Staged,
    /// Its start-up files are in the page cache.
    Warmed,
    /// No operation is under way (message C).
    Drained,
    /// The intent is on disk.
    Journaled,
    /// The `current` link leads to the new tree.
    Swapped,
    /// The new version has begun: from `execve` to its first report.
    Started,
    /// The new version has proved itself.
    Confirmed,
    /// A start by the stub, without a change-over.
    Launched,
    /// The agent or the host refused; nothing changed.
    Refused,
    /// `execve` returned; the old version serves on.
    ExecFailed,
    /// The new version failed its probation; `detail` has exit status and last stderr.
    ProbationFailed,
    /// The previous version is running again.
    Returned,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Step; 13] = [
        Step::MetadataSaved,
        Step::Staged,
        Step::Warmed,
        Step::Drained,
        Step::Journaled,
        Step::Swapped,
        Step::Started,
        Step::Confirmed,
        Step::Launched,
        Step::Refused,
        Step::ExecFailed,
        Step::ProbationFailed,
        Step::Returned,
    ];

    /// Whether the change-over is over, and whether it succeeded.
    pub fn ends(self) -> Option<bool> {
        match self {
            Step::Confirmed => Some(true),
            Step::Refused | Step::ExecFailed | Step::Returned => Some(false),
            Step::MetadataSaved
            | Step::Staged
            | Step::Warmed
            | Step::Drained
            | Step::Journaled
            | Step::Swapped
            | Step::Started
            | Step::Launched
            | Step::ProbationFailed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_over_ends_with_these_steps_and_no_other() {
        use Step::*;
        let ends = |steps: &[Step], end| assert!(steps.iter().all(|step| step.ends() == end), "{end:?}");
        ends(&[Confirmed], Some(true));
        ends(&[Refused, ExecFailed, Returned], Some(false));
        ends(&[MetadataSaved, Staged, Warmed, Drained, Journaled, Swapped, Started, Launched, ProbationFailed], None);
    }

    #[test]
    fn an_agent_takes_orders_as_long_as_it_or_its_stub_is_there() {
        let status = |pid| AgentStatus {
            product: "agent".parse().unwrap(),
            version: "1".parse().unwrap(),
            tree: TreeId::of(b"tree"),
            pid,
            started_unix_ms: 0,
            state: AgentState::Stopped,
            jobs: vec![],
            reason: String::new(),
        };
        assert!(status(1).takes_orders() && !status(0).takes_orders());
    }
}
