//! What differs between two trees.

use std::collections::{BTreeMap, BTreeSet};

use proto::manifest::{Node, NodeKind};
use proto::width;
use proto::{Manifest, TreePath};
use serde::{Deserialize, Serialize};

/// Paths listed; the counts are always of all.
const ENTRIES_MAX: usize = 20_000;

/// What differs between two trees, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReport {
    /// Paths that only the second tree has.
    pub added: u64,
    /// Paths that only the first tree has.
    pub removed: u64,
    /// Paths of both that differ.
    pub changed: u64,
    /// Paths of both that are equal.
    pub equal: u64,
    /// Bytes of contents that only the second tree has.
    pub new_object_bytes: u64,
    /// Bytes of chunks that only the second tree has: what a host with the first must fetch at most.
    pub new_chunk_bytes: u64,
    /// Each difference, ordered by path; the first twenty thousand.
    pub entries: Vec<DiffEntry>,
}

/// What differs between two generations for one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchitectureDiff {
    /// For which; `None`: any.
    pub architecture: Option<String>,
    /// What differs.
    pub report: DiffReport,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffEntry {
    /// The path in the trees, made printable.
    pub path: String,
    /// In which of the two trees it is.
    pub difference: Difference,
    /// What of it, such as `content, mode`.
    pub what: String,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// Only in the second tree.
    Added,
    /// Only in the first tree.
    Removed,
    /// In both, different.
    Changed,
}

/// Compares two trees path by path.
pub(super) fn compare(old: &Manifest, new: &Manifest) -> DiffReport {
    let nodes = |tree: &Manifest| -> BTreeMap<TreePath, Node> {
        tree.entries.iter().map(|entry| (entry.path.clone(), tree.node(entry).clone())).collect()
    };
    let (before, after) = (nodes(old), nodes(new));
    let mut report = DiffReport::default();
    let paths: BTreeSet<&TreePath> = before.keys().chain(after.keys()).collect();
    for path in paths {
        let (difference, what) = match (before.get(path), after.get(path)) {
            (Some(_), None) => (Difference::Removed, String::new()),
            (None, Some(_)) => (Difference::Added, String::new()),
            (Some(a), Some(b)) if a != b => (Difference::Changed, differences(a, b).join(", ")),
            _ => {
                report.equal += 1;
                continue;
            }
        };
        match difference {
            Difference::Added => report.added += 1,
            Difference::Removed => report.removed += 1,
            Difference::Changed => report.changed += 1,
        }
        if report.entries.len() < ENTRIES_MAX {
            let path = if path.as_bytes().is_empty() { String::from(".") } else { path.to_string() };
            report.entries.push(DiffEntry { path, difference, what });
        }
    }
    let known: BTreeSet<_> = old.objects.iter().map(|object| object.id).collect();
    let mut chunks: BTreeSet<_> = old.objects.iter().flat_map(|object| object.chunks.iter().copied()).collect();
    for object in new.objects.iter().filter(|object| !known.contains(&object.id)) {
        report.new_object_bytes += object.bytes;
        for (index, chunk) in object.chunks.iter().enumerate() {
            if chunks.insert(*chunk) {
                report.new_chunk_bytes +=
                    u64::from(object.chunk_len(width::count(index), new.chunk_bytes).unwrap_or(0));
            }
        }
    }
    report
}

fn differences(old: &Node, new: &Node) -> Vec<&'static str> {
    let kind = match (&old.kind, &new.kind) {
        (a, b) if a == b => None,
        (NodeKind::File(_) | NodeKind::EmptyFile, NodeKind::File(_) | NodeKind::EmptyFile) => Some("content"),
        (NodeKind::Symlink(_), NodeKind::Symlink(_)) => Some("target"),
        _ => Some("kind"),
    };
    let others = [
        (old.mode != new.mode, "mode"),
        ((old.uid, old.gid) != (new.uid, new.gid), "owner"),
        ((old.mtime_s, old.mtime_ns) != (new.mtime_s, new.mtime_ns), "time"),
        (old.xattrs != new.xattrs, "xattrs"),
    ];
    kind.into_iter().chain(others.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what)).collect()
}
