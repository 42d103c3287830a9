//! How far an operation is, and how it ended.

use serde::{Deserialize, Serialize};

use crate::backup::BackupCounts;
use crate::bounded::{Line, Lines, List, Own, Word, within};
use crate::limits::{
    ACTIVITY_BYTES_MAX, FAULT_BYTES_MAX, FOUND_MAX, PROBLEM_BYTES_MAX, PROBLEMS_MAX, RAN_MAX, SNAPSHOT_BYTES_MAX,
    SOURCES_MAX, VERSION_BYTES_MAX, VERSIONS_MAX,
};
use crate::look::Found;
use crate::means::Ran;
use crate::own::OwnSummary;

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
    /// A [`crate::agent::Operation::BackupWith`] is done to the end.
    BackedUp {
        /// As of every operation.
        summary: Summary,
        /// What it found and stored, of all units together.
        counts: BackupCounts,
    },
    /// A look at a repository, or a [`crate::operation::Operation::Forget`], is done.
    Found {
        /// As of every operation.
        summary: Summary,
        /// In its order; as much as a message takes.
        #[serde(deserialize_with = "within::<_, List<Own<Found>, FOUND_MAX>>")]
        found: Vec<Found>,
        /// How much more there was.
        left_out: u64,
    },
    /// A [`crate::operation::Operation::BackupBy`] is done to the end.
    BackedUpBy {
        /// As of every operation.
        summary: Summary,
        /// What it found and stored, of all units together.
        counts: BackupCounts,
        /// The commands that ran, in order; the first of them, if there are many.
        #[serde(deserialize_with = "within::<_, List<Own<Ran>, RAN_MAX>>")]
        ran: Vec<Ran>,
    },
}

impl Outcome {
    /// What a backup found and stored, if it says so.
    pub fn counts(&self) -> Option<&BackupCounts> {
        match self {
            Outcome::BackedUp { counts, .. } | Outcome::BackedUpBy { counts, .. } => Some(counts),
            _ => None,
        }
    }

    /// The commands that ran for a backup.
    pub fn ran(&self) -> &[Ran] {
        match self {
            Outcome::BackedUpBy { ran, .. } => ran,
            _ => &[],
        }
    }

    /// What an operation on a repository did; none of one that failed, or of a program's own.
    pub fn summary(&self) -> Option<&Summary> {
        match self {
            Outcome::Done(summary) | Outcome::Cancelled(summary) => Some(summary),
            Outcome::BackedUp { summary, .. }
            | Outcome::BackedUpBy { summary, .. }
            | Outcome::Found { summary, .. } => Some(summary),
            Outcome::Failed(_) | Outcome::OwnDone(_) => None,
        }
    }

    /// Errors passed over, each one line; none of one that failed.
    pub fn problems(&self) -> &[String] {
        match self {
            Outcome::Done(Summary { problems, .. })
            | Outcome::Cancelled(Summary { problems, .. })
            | Outcome::BackedUp { summary: Summary { problems, .. }, .. }
            | Outcome::BackedUpBy { summary: Summary { problems, .. }, .. }
            | Outcome::Found { summary: Summary { problems, .. }, .. }
            | Outcome::OwnDone(OwnSummary { problems, .. }) => problems,
            Outcome::Failed(_) => &[],
        }
    }

    /// The versions that took part; none of one that failed.
    pub fn versions(&self) -> &[String] {
        match self {
            Outcome::Done(Summary { versions, .. })
            | Outcome::Cancelled(Summary { versions, .. })
            | Outcome::BackedUp { summary: Summary { versions, .. }, .. }
            | Outcome::BackedUpBy { summary: Summary { versions, .. }, .. }
            | Outcome::Found { summary: Summary { versions, .. }, .. }
            | Outcome::OwnDone(OwnSummary { versions, .. }) => versions,
            Outcome::Failed(_) => &[],
        }
    }

    /// Says which versions took part, where there is room for it.
    pub fn set_versions(&mut self, taking_part: Vec<String>) {
        match self {
            Outcome::Done(Summary { versions, .. })
            | Outcome::Cancelled(Summary { versions, .. })
            | Outcome::BackedUp { summary: Summary { versions, .. }, .. }
            | Outcome::BackedUpBy { summary: Summary { versions, .. }, .. }
            | Outcome::Found { summary: Summary { versions, .. }, .. }
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
