//! Which snapshots are meant, and whose.

use serde::{Deserialize, Serialize};

use crate::bounded::{PathText, Word, within};
use crate::limits::SNAPSHOT_BYTES_MAX;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_snapshots_are_those_of_the_own_host() {
        let latest = SnapshotRef::latest();
        assert_eq!((latest.snapshot.as_str(), &latest.of, &latest.source), ("latest", &HostScope::Own, &None));
        for (text, newest) in [("latest", true), ("latest~2", true), ("a1b2", false), ("late", false)] {
            assert_eq!(SnapshotRef { snapshot: text.into(), ..SnapshotRef::latest() }.is_latest(), newest, "{text}");
        }
    }
}
