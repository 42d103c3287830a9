//! What is asked of a repository, which snapshots stay in it, and what is found there.

use serde::{Deserialize, Serialize};

use crate::bounded::{Blob, Line, Lines, List, PathText, Paths, Word, within};
use crate::fault::Unix;
use crate::limits::{
    DUMP_BYTES_MAX, PATH_BYTES_MAX, PATTERNS_BYTES_MAX, PATTERNS_MAX, REASON_BYTES_MAX, SNAPSHOT_BYTES_MAX,
    SOURCES_SHOWN_MAX, TAG_BYTES_MAX, TAGS_MAX, VERSION_BYTES_MAX,
};
use crate::snapshot::{HostScope, SnapshotRef};

/// What is asked. Nothing is changed by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Query {
    /// Which snapshots are there?
    Snapshots(SnapshotFilter),
    /// What is in a snapshot?
    List {
        /// The one that is meant.
        snapshot: SnapshotRef,
        /// Only what lies at this path of it, an absolute one.
        #[serde(deserialize_with = "within::<_, Option<PathText>>")]
        path: Option<String>,
        /// Also what lies deeper than in that directory.
        recursive: bool,
    },
    /// Where, in which snapshots, does something with such a name lie?
    Find {
        /// The snapshots that are searched.
        snapshots: SnapshotFilter,
        /// As in [`crate::backup::BackupOptions::exclude`].
        #[serde(deserialize_with = "within::<_, Paths<PATTERNS_MAX, PATTERNS_BYTES_MAX>>")]
        patterns: Vec<String>,
    },
    /// How do two snapshots differ?
    Diff {
        /// The one before.
        old: SnapshotRef,
        /// The one after.
        new: SnapshotRef,
    },
    /// What is in a file? At most [`DUMP_BYTES_MAX`] bytes; a larger one can be restored.
    Dump {
        /// The snapshot that it is in.
        snapshot: SnapshotRef,
        /// Its absolute path.
        #[serde(deserialize_with = "within::<_, PathText>")]
        path: String,
    },
    /// As `Find`, of what was modified in a time.
    FindModified {
        /// The snapshots that are searched.
        snapshots: SnapshotFilter,
        /// As in [`crate::backup::BackupOptions::exclude`]; none: every name.
        #[serde(deserialize_with = "within::<_, Paths<PATTERNS_MAX, PATTERNS_BYTES_MAX>>")]
        patterns: Vec<String>,
        /// No earlier than this, milliseconds since 1970.
        since_unix_ms: Option<i64>,
        /// And no later than this.
        until_unix_ms: Option<i64>,
    },
}

impl Query {
    /// What it is called.
    pub fn kind(&self) -> &'static str {
        match self {
            Query::Snapshots(_) => "snapshots",
            Query::List { .. } => "ls",
            Query::Find { .. } | Query::FindModified { .. } => "find",
            Query::Diff { .. } => "diff",
            Query::Dump { .. } => "dump",
        }
    }
}

/// Some of the snapshots of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SnapshotFilter {
    /// Those of which hosts.
    pub of: HostScope,
    /// Only those with this source, an absolute path.
    #[serde(deserialize_with = "within::<_, Option<PathText>>")]
    pub source: Option<String>,
    /// Only those with all of these tags.
    #[serde(deserialize_with = "within::<_, List<Word<TAG_BYTES_MAX>, TAGS_MAX>>")]
    pub tags: Vec<String>,
}

/// Which snapshots are forgotten. Each source of each host is looked at by itself, and its newest one always stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forget {
    /// Only these are looked at.
    pub snapshots: SnapshotFilter,
    /// What stays of them.
    pub keep: Keep,
    /// Nothing is forgotten; it is only said what would be.
    pub dry_run: bool,
    /// Also free the space that nothing needs then.
    pub free: bool,
}

/// What stays of the snapshots of one source: whatever one of these rules keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keep {
    /// So many of the newest.
    pub last: u32,
    /// The newest of each of so many hours that have one.
    pub hourly: u32,
    /// Of so many days.
    pub daily: u32,
    /// Of so many weeks.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
    /// Of so many years.
    pub yearly: u32,
    /// All that are no older than this before the newest one, seconds.
    pub within_seconds: Option<u64>,
    /// All with one of these tags.
    #[serde(deserialize_with = "within::<_, List<Word<TAG_BYTES_MAX>, TAGS_MAX>>")]
    pub tags: Vec<String>,
}

impl Keep {
    /// Whether it keeps nothing.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// A snapshot, where the question was for them.
    Snapshot(FoundSnapshot),
    /// An entry of one.
    Entry(FoundEntry),
    /// The content of a file.
    Content(#[serde(deserialize_with = "within::<_, Blob<DUMP_BYTES_MAX>>")] Vec<u8>),
}

/// A snapshot, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSnapshot {
    /// Its id in the repository, hexadecimal.
    #[serde(deserialize_with = "within::<_, Word<SNAPSHOT_BYTES_MAX>>")]
    pub id: String,
    /// Whose it is: a host, or a machine that is none.
    #[serde(deserialize_with = "within::<_, Line<REASON_BYTES_MAX>>")]
    pub owner: String,
    /// When it was begun, milliseconds since 1970.
    pub at_unix_ms: Unix,
    /// What it was made of; more than some are counted in the last line.
    #[serde(deserialize_with = "within::<_, Lines<PATH_BYTES_MAX, SOURCES_SHOWN_MAX>>")]
    pub sources: Vec<String>,
    /// The words that it was given at its backup, in their order.
    #[serde(deserialize_with = "within::<_, Lines<TAG_BYTES_MAX, TAGS_MAX>>")]
    pub tags: Vec<String>,
    /// Files in it, 0 if it does not say.
    pub files: u64,
    /// Bytes of these files as they were in their source, 0 if it does not say.
    pub bytes: u64,
    /// It is forgotten, or would be.
    pub forgotten: bool,
    /// Why it stays, where that was the question.
    #[serde(deserialize_with = "within::<_, Line<REASON_BYTES_MAX>>")]
    pub why: String,
}

/// An entry of a snapshot, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundEntry {
    /// The snapshot that it is in.
    #[serde(deserialize_with = "within::<_, Word<SNAPSHOT_BYTES_MAX>>")]
    pub snapshot: String,
    /// Its path from the root of the host that it was saved on.
    #[serde(deserialize_with = "within::<_, Line<PATH_BYTES_MAX>>")]
    pub path: String,
    /// What it is, in words: `file`, `directory`, `symbolic link` and so on.
    #[serde(deserialize_with = "within::<_, Line<VERSION_BYTES_MAX>>")]
    pub kind: String,
    /// Permission bits, if they are known.
    pub mode: Option<u32>,
    /// Number of the user.
    pub user: Option<u32>,
    /// Number of the group.
    pub group: Option<u32>,
    /// Bytes of a file's content; 0 of everything else.
    pub size: u64,
    /// When it was changed, milliseconds since 1970.
    pub mtime_unix_ms: Option<i64>,
    /// In which way it differs, where that was the question.
    #[serde(deserialize_with = "within::<_, Option<Line<VERSION_BYTES_MAX>>>")]
    pub change: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_alone_keeps_something() {
        assert!(Keep::default().is_nothing());
        let rules = [
            Keep { last: 1, ..Keep::default() },
            Keep { hourly: 1, ..Keep::default() },
            Keep { daily: 1, ..Keep::default() },
            Keep { weekly: 1, ..Keep::default() },
            Keep { monthly: 1, ..Keep::default() },
            Keep { yearly: 1, ..Keep::default() },
            Keep { within_seconds: Some(0), ..Keep::default() },
            Keep { tags: vec!["a".into()], ..Keep::default() },
        ];
        assert!(rules.iter().all(|keep| !keep.is_nothing()));
    }
}
