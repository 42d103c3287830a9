//! What an agent is told, does and reports: its operations API (`RUN/agents/<product>.sock`).
//!
//! The mount daemon dials this socket to relay the manager's messages, and local programs may use it too. Every message
//! is a frame ([`crate::frame`]); bodies are [`crate::codec`] encodings of these types.

use serde::{Deserialize, Serialize};

use crate::bounded::{Blob, Line, Lines, List, Own, PathText, Paths, Text, Word, within};
use crate::fault::{Fault, Unix};
use crate::id::TreeId;
use crate::limits::{
    ACTIVITY_BYTES_MAX, DETAIL_BYTES_MAX, EARLIER_JOBS_MAX, FAULT_BYTES_MAX, JOBS_MAX, PROBLEM_BYTES_MAX,
    PROBLEMS_MAX, REASON_BYTES_MAX, RECORD_BYTES_MAX, SNAPSHOT_BYTES_MAX, SOURCES_BYTES_MAX, SOURCES_MAX,
    VERSION_BYTES_MAX, VERSIONS_MAX,
};
use crate::name::{OperationKind, Product, Version};
use crate::own::{Arguments, OwnSummary};

/// The manager's number of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// The manager's number of a change-over (one `upgrade` of one product on one host).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangeId(pub u64);

/// A request on the operations API.
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

/// A storage operation. Paths are on the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Back up directories; one unit (one snapshot) for each source.
    Backup {
        /// Where the snapshots go.
        repository: Repository,
        /// Absolute paths of directories or files; each is one unit, and becomes one snapshot.
        #[serde(deserialize_with = "within::<_, Paths<SOURCES_MAX, SOURCES_BYTES_MAX>>")]
        sources: Vec<String>,
    },
    /// Restore a snapshot into a directory, which is made if need be.
    Restore {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshots that are meant; more than one when several sources have a newest one.
        snapshot: SnapshotRef,
        /// Absolute path of that directory.
        #[serde(deserialize_with = "within::<_, PathText>")]
        target: String,
    },
    /// Compare snapshots with the directories that they were made of.
    Verify {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshots that are meant; more than one when several sources have a newest one.
        snapshot: SnapshotRef,
    },
    /// Check a repository's structure and, if asked, every byte of it.
    Check {
        /// The repository that it works on.
        repository: Repository,
        /// Also read all packs.
        read_data: bool,
    },
    /// Forget snapshots and free the space that nothing needs.
    Prune {
        /// The repository that it works on.
        repository: Repository,
        /// How many of the newest snapshots of each source stay; at least 1.
        keep_last: u32,
    },
    /// Say which repository this is: the one entry of the summary's `snapshots` is its own id, 64 hex digits, which
    /// it has however it is reached. The manager asks when two of its jobs may be at one repository.
    Identify {
        /// The repository that it works on.
        repository: Repository,
    },
    /// One that the agent's program brings itself.
    Own {
        /// As the program calls it; none of [`Operation::KINDS`].
        kind: OperationKind,
        /// What the program reads them as is its own affair.
        arguments: Arguments,
    },
}

/// On whose behalf an operation is done. The manager says it with the job, because only it knows: a machine's own name
/// is shared by its clones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOrigin {
    /// The enrolled host; snapshots carry its name.
    pub host: crate::name::HostName,
    /// The product that the job was ordered of.
    pub product: Product,
    /// The policy that ordered it; `None`: a person.
    #[serde(deserialize_with = "within::<_, Option<Word<VERSION_BYTES_MAX>>>")]
    pub policy: Option<String>,
    /// Hosts of earlier backup jobs of this manager, for snapshots that carry only their job's number.
    #[serde(deserialize_with = "within::<_, List<Own<(JobId, crate::name::HostName)>, EARLIER_JOBS_MAX>>")]
    pub earlier: Vec<(JobId, crate::name::HostName)>,
}

impl JobOrigin {
    /// Of a person's order.
    pub fn new(host: crate::name::HostName, product: Product) -> Self {
        Self { host, product, policy: None, earlier: Vec::new() }
    }
}

/// A reference to snapshots, and among whose it is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// Snapshot id, the start of one, `latest`, or `latest~N` for the Nth before it.
    #[serde(deserialize_with = "within::<_, Word<SNAPSHOT_BYTES_MAX>>")]
    pub snapshot: String,
    /// Among the snapshots of which hosts.
    pub of: HostScope,
    /// Only snapshots of this source, an absolute path.
    #[serde(deserialize_with = "within::<_, Option<PathText>>")]
    pub source: Option<String>,
}

impl SnapshotRef {
    /// The newest of each source of the own host.
    pub fn latest() -> Self {
        Self { snapshot: "latest".to_owned(), of: HostScope::Own, source: None }
    }

    /// Whether it asks for what is newest, and so depends on every snapshot.
    pub fn is_latest(&self) -> bool {
        self.snapshot.starts_with("latest")
    }
}

/// Of which hosts snapshots are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostScope {
    /// Of the host that does the operation.
    Own,
    /// Of this host of the manager, which need not be the one that does the operation.
    Host(crate::name::HostName),
    /// Of all, also of machines that are no hosts of the manager.
    Any,
}

/// A restic-compatible repository on the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Repository {
    /// Absolute path of its directory. A backup makes it if it is not there.
    #[serde(deserialize_with = "within::<_, PathText>")]
    pub path: String,
    /// File on the host with the password; `None`: `STATE/repository.password`, made at first use.
    #[serde(deserialize_with = "within::<_, Option<PathText>>")]
    pub password_file: Option<String>,
}

impl Operation {
    /// The kinds that every program means the same by, and none brings itself.
    pub const KINDS: [&str; 6] = ["backup", "restore", "verify", "check", "prune", "identify"];

    /// One of [`Operation::KINDS`], or the program's own.
    pub fn kind(&self) -> &str {
        match self {
            Operation::Backup { .. } => "backup",
            Operation::Restore { .. } => "restore",
            Operation::Verify { .. } => "verify",
            Operation::Check { .. } => "check",
            Operation::Prune { .. } => "prune",
            Operation::Identify { .. } => "identify",
            Operation::Own { kind, .. } => kind.as_str(),
        }
    }

    /// The repository that it works on; `None`: that is known to the program alone.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Operation::Backup { repository, .. }
            | Operation::Restore { repository, .. }
            | Operation::Verify { repository, .. }
            | Operation::Check { repository, .. }
            | Operation::Prune { repository, .. }
            | Operation::Identify { repository } => Some(repository),
            Operation::Own { .. } => None,
        }
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Units finished; none of them is done again after a change-over.
    pub units_done: u32,
    /// Units in all, at least 1: of a backup one a source, of most other operations one.
    pub units: u32,
    /// Bytes done in the current unit.
    pub bytes_done: u64,
    /// Bytes of the current unit, 0 while unknown.
    pub bytes: u64,
    /// What is being done, for people.
    #[serde(deserialize_with = "within::<_, Line<ACTIVITY_BYTES_MAX>>")]
    pub activity: String,
    /// The version that is doing it.
    #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
    pub version: String,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done to the end; the summary's problems say with what left over.
    Done(Summary),
    /// Stopped on request at a unit boundary.
    Cancelled(Summary),
    /// Broken off by an error: why, for people. What earlier units did stays.
    Failed(#[serde(deserialize_with = "within::<_, Line<FAULT_BYTES_MAX>>")] String),
    /// An operation of the program's own kind is done.
    OwnDone(OwnSummary),
}

impl Outcome {
    /// Errors passed over, each one line; none of one that failed.
    pub fn problems(&self) -> &[String] {
        match self {
            Outcome::Done(Summary { problems, .. })
            | Outcome::Cancelled(Summary { problems, .. })
            | Outcome::OwnDone(OwnSummary { problems, .. }) => problems,
            Outcome::Failed(_) => &[],
        }
    }

    /// The versions that took part; none of one that failed.
    pub fn versions(&self) -> &[String] {
        match self {
            Outcome::Done(Summary { versions, .. })
            | Outcome::Cancelled(Summary { versions, .. })
            | Outcome::OwnDone(OwnSummary { versions, .. }) => versions,
            Outcome::Failed(_) => &[],
        }
    }

    /// Says which versions took part, where there is room for it.
    pub fn set_versions(&mut self, taking_part: Vec<String>) {
        match self {
            Outcome::Done(Summary { versions, .. })
            | Outcome::Cancelled(Summary { versions, .. })
            | Outcome::OwnDone(OwnSummary { versions, .. }) => *versions = taking_part,
            Outcome::Failed(_) => {}
        }
    }
}

/// What an operation did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Snapshot ids made or read, in order.
    #[serde(deserialize_with = "within::<_, List<Word<SNAPSHOT_BYTES_MAX>, SOURCES_MAX>>")]
    pub snapshots: Vec<String>,
    /// Files read or written.
    pub files: u64,
    /// Bytes read or written.
    pub bytes: u64,
    /// Bytes added to (or, by prune, freed from) the repository.
    pub repository_bytes: u64,
    /// Differences found, errors passed over: each one line. Empty means clean.
    #[serde(deserialize_with = "within::<_, Lines<PROBLEM_BYTES_MAX, PROBLEMS_MAX>>")]
    pub problems: Vec<String>,
    /// The versions that took part, in order (more than one when a change-over came between).
    #[serde(deserialize_with = "within::<_, Lines<VERSION_BYTES_MAX, VERSIONS_MAX>>")]
    pub versions: Vec<String>,
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

    fn repository(path: &str) -> Repository {
        Repository { path: path.to_owned(), password_file: None }
    }

    #[test]
    fn an_operation_has_a_kind_and_works_on_one_repository() {
        let at = |path| repository(path);
        let latest = SnapshotRef::latest;
        let operations = [
            (Operation::Backup { repository: at("/a"), sources: vec![] }, "backup", "/a"),
            (Operation::Restore { repository: at("/b"), snapshot: latest(), target: "/t".into() }, "restore", "/b"),
            (Operation::Verify { repository: at("/c"), snapshot: latest() }, "verify", "/c"),
            (Operation::Check { repository: at("/d"), read_data: false }, "check", "/d"),
            (Operation::Prune { repository: at("/e"), keep_last: 1 }, "prune", "/e"),
            (Operation::Identify { repository: at("/f") }, "identify", "/f"),
        ];
        for ((operation, kind, path), listed) in operations.into_iter().zip(Operation::KINDS) {
            assert_eq!((operation.kind(), operation.repository()), (kind, Some(&repository(path))));
            assert_eq!(kind, listed);
        }
        let own = Operation::Own { kind: "rotate".parse().unwrap(), arguments: Arguments::default() };
        assert_eq!((own.kind(), own.repository()), ("rotate", None));
    }

    #[test]
    fn a_change_over_ends_with_these_steps_and_no_other() {
        use Step::*;
        let ends = |steps: &[Step], end| assert!(steps.iter().all(|step| step.ends() == end), "{end:?}");
        ends(&[Confirmed], Some(true));
        ends(&[Refused, ExecFailed, Returned], Some(false));
        ends(&[MetadataSaved, Staged, Warmed, Drained, Journaled, Swapped, Started, Launched, ProbationFailed], None);
    }

    #[test]
    fn the_latest_snapshots_are_those_of_the_own_host() {
        let latest = SnapshotRef::latest();
        assert_eq!((latest.snapshot.as_str(), &latest.of, &latest.source), ("latest", &HostScope::Own, &None));
        for (text, newest) in [("latest", true), ("latest~2", true), ("a1b2", false), ("late", false)] {
            assert_eq!(SnapshotRef { snapshot: text.into(), ..SnapshotRef::latest() }.is_latest(), newest, "{text}");
        }
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

    #[test]
    fn a_persons_order_has_no_policy_and_no_history() {
        let origin = JobOrigin::new("host-1".parse().unwrap(), "agent".parse().unwrap());
        assert_eq!((origin.host.as_str(), origin.product.as_str()), ("host-1", "agent"));
        assert_eq!((origin.policy, origin.earlier), (None, vec![]));
    }
}
