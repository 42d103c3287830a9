//! What people ask of a repository: which snapshots, what is in them, where something lies, how two differ.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use proto::agent::SnapshotRef;
use proto::limits::{DUMP_BYTES_MAX, FOUND_MAX};
use proto::look::{Found, FoundEntry, FoundSnapshot, Query, SnapshotFilter};
use proto::restore::Overwrite;
use rustix::fs::OFlags;

use super::super::beneath::Beneath;
use super::super::facts::Facts;
use super::super::fault::{EngineError, Refusal};
use super::super::format::blobs::Blobs;
use super::super::format::index::BlobKind;
use super::super::format::tree::{Node, NodeKind};
use super::super::live::time;
use super::super::restore::over::{Delete, Fate, fate};
use super::super::selection::matcher;
use super::super::session::Session;
use super::super::snapshots::{Snapshot, Snapshots};
use super::super::wanted::Wanted;
use super::super::{Mark, SharedMeter, Work};
use super::{node_at, root_of};

/// Text of all that is found, so that a job's record with it stays below 1 MiB.
const FOUND_BYTES_MAX: usize = 512 << 10;

/// What was found, as much as a message takes.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) found: Vec<Found>,
    pub(super) left_out: u64,
    bytes: usize,
}

impl Findings {
    pub(super) fn add(&mut self, found: Found) {
        let bytes = size_of(&found);
        // Once something did not fit nothing that comes later may stand behind it.
        if self.left_out > 0 || self.found.len() >= FOUND_MAX || self.bytes + bytes > FOUND_BYTES_MAX {
            self.left_out += 1;
            return;
        }
        self.bytes += bytes;
        self.found.push(found);
    }

    fn is_full(&self) -> bool {
        self.left_out > 0
    }
}

fn size_of(found: &Found) -> usize {
    match found {
        Found::Snapshot(FoundSnapshot { owner, sources, tags, why, .. }) => {
            128 + owner.len() + why.len() + sources.iter().chain(tags).map(|text| 8 + text.len()).sum::<usize>()
        }
        Found::Entry(entry) => 144 + entry.path.len(),
        Found::Content(_) => 0,
    }
}

/// A snapshot, for people.
pub(super) fn shown(snapshot: &Snapshot) -> FoundSnapshot {
    let summary = snapshot.file.summary.as_ref();
    FoundSnapshot {
        id: snapshot.id.to_string(),
        owner: snapshot.owner.to_string(),
        at_unix_ms: u64::try_from(snapshot.at().as_millisecond()).unwrap_or(0),
        sources: snapshot.sources().iter().map(|source| source.display().to_string()).collect(),
        tags: snapshot.file.tags.iter().cloned().collect(),
        files: summary.map_or(0, |summary| summary.total_files_processed),
        bytes: summary.map_or(0, |summary| summary.total_bytes_processed),
        forgotten: false,
        why: String::new(),
    }
}

/// Looks for what is asked.
pub(super) fn look(session: &Session, query: &Query, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
    let snapshots = session.snapshots(&mark.origin, true, meter)?;
    let index = session.index(meter)?;
    let look = Look { session, snapshots: &snapshots, blobs: session.blobs(&index), mark, meter };
    meter.begin("looking");
    let mut findings = Findings::default();
    match query {
        Query::Snapshots(filter) => {
            look.filtered(filter).for_each(|snapshot| findings.add(Found::Snapshot(shown(snapshot))));
        }
        Query::List { snapshot, path, recursive } => {
            look.list(look.one(snapshot)?, path.as_deref(), *recursive, &mut findings)?;
        }
        Query::Find { snapshots, patterns } => look.find(snapshots, patterns, (None, None), &mut findings)?,
        Query::FindModified { snapshots, patterns, since_unix_ms, until_unix_ms } => {
            look.find(snapshots, patterns, (*since_unix_ms, *until_unix_ms), &mut findings)?;
        }
        Query::Diff { old, new } => {
            let (old, new) = (look.one(old)?, look.one(new)?);
            let roots = (look.root(old)?, look.root(new)?);
            look.diff((Some(&roots.0), Some(&roots.1)), (old, new), Path::new("/"), &mut findings)?;
        }
        Query::Dump { snapshot, path } => {
            findings.add(Found::Content(look.dump(look.one(snapshot)?, Path::new(path))?));
        }
    }
    let files = findings.found.len() as u64 + findings.left_out;
    Ok(Work { files, found: findings.found, left_out: findings.left_out, ..Work::default() })
}

struct Look<'a> {
    session: &'a Session,
    snapshots: &'a Snapshots,
    blobs: Blobs<'a>,
    mark: &'a Mark,
    meter: &'a SharedMeter,
}

impl<'a> Look<'a> {
    fn own_host(&self) -> &str {
        self.mark.origin.host.as_str()
    }

    fn one(&self, reference: &SnapshotRef) -> Result<&'a Snapshot, EngineError> {
        let found = self.snapshots.resolve_one(reference, self.own_host());
        found.map_err(|fault| self.session.reference_fault(fault))
    }

    fn filtered(&self, filter: &'a SnapshotFilter) -> impl Iterator<Item = &'a Snapshot> {
        self.snapshots.filtered(filter, self.own_host()).collect::<Vec<_>>().into_iter()
    }

    fn root(&self, snapshot: &Snapshot) -> Result<Node, EngineError> {
        root_of(snapshot).map_err(|fault| self.session.damaged(format!("snapshot {:.8}", snapshot.id), fault))
    }

    fn node(&self, snapshot: &Snapshot, path: &Path) -> Result<Node, EngineError> {
        let fault = |fault| self.session.damaged(format!("{} of snapshot {:.8}", path.display(), snapshot.id), fault);
        node_at(&self.blobs, snapshot, path).map_err(fault)
    }

    /// What is in a directory; one that cannot be read is a problem.
    fn entries(&self, node: &Node, path: &Path) -> Result<Vec<Node>, EngineError> {
        if self.meter.is_stopped() {
            return Err(EngineError::Stopped);
        }
        self.meter.at(path);
        match node.subtree.map(|tree| self.blobs.tree(&tree)) {
            Some(Ok(tree)) => Ok(tree.nodes),
            Some(Err(fault)) => {
                self.meter.problem(format!("{}: what is in it cannot be read: {fault}", path.display()));
                Ok(Vec::new())
            }
            None => Ok(Vec::new()),
        }
    }

    fn list(
        &self,
        snapshot: &Snapshot,
        path: Option<&str>,
        recursive: bool,
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        let path = Path::new(path.unwrap_or("/"));
        let node = self.node(snapshot, path)?;
        if node.kind != NodeKind::Dir {
            findings.add(entry(snapshot, path, &node, None));
            return Ok(());
        }
        self.below(snapshot, &node, path, recursive, &mut |_, _| true, findings)
    }

    fn find(
        &self,
        filter: &'a SnapshotFilter,
        patterns: &[String],
        (since, until): (Option<i64>, Option<i64>),
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        let (any, patterns) = (patterns.is_empty(), matcher(patterns)?);
        let in_time = |node: &Node| match node.mtime.map(|at| at.as_millisecond()) {
            Some(at) => since.is_none_or(|since| at >= since) && until.is_none_or(|until| at <= until),
            None => since.is_none() && until.is_none(),
        };
        let mut wanted = |path: &Path, node: &Node| {
            in_time(node) && (any || patterns.matched(path, node.kind == NodeKind::Dir).is_ignore())
        };
        for snapshot in self.filtered(filter) {
            self.below(snapshot, &self.root(snapshot)?, Path::new("/"), true, &mut wanted, findings)?;
        }
        Ok(())
    }

    fn below(
        &self,
        snapshot: &Snapshot,
        directory: &Node,
        path: &Path,
        recursive: bool,
        wanted: &mut dyn FnMut(&Path, &Node) -> bool,
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        for node in self.entries(directory, path)? {
            let path = path.join(node.file_name());
            if wanted(&path, &node) {
                findings.add(entry(snapshot, &path, &node, None));
            }
            // How much more there is in a repository of millions of files is not worth reading all of it.
            if recursive && node.kind == NodeKind::Dir && !findings.is_full() {
                self.below(snapshot, &node, &path, recursive, wanted, findings)?;
            }
        }
        Ok(())
    }

    /// Everything that one of two nodes at a path has and the other one has not, or otherwise.
    fn diff(
        &self,
        nodes: (Option<&Node>, Option<&Node>),
        of: (&Snapshot, &Snapshot),
        path: &Path,
        findings: &mut Findings,
    ) -> Result<(), EngineError> {
        let change = match nodes {
            (Some(old), Some(new)) => difference(old, new),
            (None, Some(_)) => Some("added"),
            (Some(_), None) => Some("removed"),
            (None, None) => None,
        };
        if let (Some(change), Some((snapshot, node))) =
            (change, nodes.1.map(|new| (of.1, new)).or(nodes.0.map(|old| (of.0, old))))
        {
            findings.add(entry(snapshot, path, node, Some(change)));
        }
        let tree = |node: Option<&Node>| node.filter(|node| node.kind == NodeKind::Dir).and_then(|node| node.subtree);
        if tree(nodes.0) == tree(nodes.1) || findings.is_full() {
            return Ok(());
        }
        let entries = |node: Option<&Node>| match node.filter(|node| node.kind == NodeKind::Dir) {
            Some(node) => self.entries(node, path),
            None => Ok(Vec::new()),
        };
        let (mut old, new) = (entries(nodes.0)?, entries(nodes.1)?);
        for new in &new {
            let before = old.iter().position(|old| old.stored_name() == new.stored_name());
            let before = before.map(|at| old.remove(at));
            self.diff((before.as_ref(), Some(new)), of, &path.join(new.file_name()), findings)?;
        }
        for old in &old {
            self.diff((Some(old), None), of, &path.join(old.file_name()), findings)?;
        }
        Ok(())
    }

    fn dump(&self, snapshot: &Snapshot, path: &Path) -> Result<Vec<u8>, EngineError> {
        let node = self.node(snapshot, path)?;
        if node.kind != NodeKind::File {
            return Err(EngineError::refused(path, Refusal::NotAFile(node.kind.word())));
        }
        let length = |piece| self.blobs.index().find(BlobKind::Data, piece).next().map(|at| at.plain_length());
        let all: u64 = node.content.iter().flatten().filter_map(length).sum();
        if all > DUMP_BYTES_MAX as u64 {
            return Err(EngineError::refused(path, Refusal::TooLargeToDump(all)));
        }
        let mut content = Vec::new();
        for piece in node.content.iter().flatten() {
            let bytes = self.blobs.read(BlobKind::Data, piece);
            content.extend(bytes.map_err(|fault| self.session.damaged(path.display().to_string(), fault))?);
        }
        Ok(content)
    }
}

/// How a restore would go over what is there.
pub(super) struct WouldGoOver<'a> {
    pub(super) policy: Overwrite,
    pub(super) delete: Option<&'a Delete<'a>>,
    pub(super) target: &'a Path,
}

impl WouldGoOver<'_> {
    /// What would become of an entry: `None`, if it stays, and whether what is in it is looked at.
    fn would(&self, target: Option<&Beneath>, below: &Path, node: &Node) -> (Option<&'static str>, bool) {
        let Some(Ok(found)) = target.map(|target| target.look(below)) else { return (Some("added"), true) };
        let facts = &found.facts;
        match fate(self.policy, node, facts) {
            // A directory is entered, whatever becomes of its own metadata.
            _ if node.kind == NodeKind::Dir && facts.kind == NodeKind::Dir => (None, true),
            Fate::Kept => (None, false),
            Fate::Same => (None, true),
            Fate::Replaced => (Some("overwritten"), true),
        }
    }

    /// Tells what would be removed of a directory.
    fn would_remove(
        &self,
        target: Option<&Beneath>,
        (below, tree): (&Path, &[Node]),
        wanted: &Wanted,
        mut tell: impl FnMut(&Path, &Node),
    ) {
        let (Some(delete), Some(target)) = (self.delete, target) else { return };
        let Ok(directory) = target.open(below, OFlags::RDONLY | OFlags::DIRECTORY, 0) else { return };
        let is_kept = |name: &OsStr| tree.iter().any(|node| node.file_name() == name);
        for name in delete.extra(&directory, below, wanted, is_kept).unwrap_or_default() {
            let Ok(facts) = Facts::of_entry(&directory, &name) else { continue };
            let mut node = Node::new(&name, facts.kind);
            node.set_mode(facts.mode);
            (node.size, node.mtime) = (facts.size, time(facts.mtime));
            tell(&wanted.path(&below.join(name)), &node);
        }
    }
}

/// What a restore would write, and remove.
pub(super) fn would_restore(
    snapshot: &Snapshot,
    blobs: &Blobs<'_>,
    root: &Node,
    wanted: &Wanted,
    over: Option<&WouldGoOver<'_>>,
    meter: &SharedMeter,
) -> Result<Work, EngineError> {
    let mut sum = Work { snapshots: vec![snapshot.id.to_string()], ..Work::default() };
    let mut findings = Findings::default();
    let find =
        |over: &WouldGoOver<'_>| Beneath::find(over.target).map_err(|error| EngineError::io(over.target, error));
    let target = over.map(find).transpose()?.flatten();
    let place = if root.kind == NodeKind::Dir { PathBuf::new() } else { root.file_name().into() };
    let mut waiting = vec![(place, root.clone())];
    while let Some((below, node)) = waiting.pop() {
        if meter.is_stopped() {
            return Err(EngineError::Stopped);
        }
        let (change, goes_in) = match over {
            Some(over) => over.would(target.as_ref(), &below, &node),
            None => (None, true),
        };
        if !goes_in || (over.is_some() && change.is_none() && node.kind != NodeKind::Dir) {
            continue;
        }
        if node.kind == NodeKind::File {
            sum.files += 1;
            sum.bytes += node.size;
        }
        if !below.as_os_str().is_empty() && (over.is_none() || change.is_some()) {
            findings.add(entry(snapshot, &wanted.path(&below), &node, change));
        }
        match node.subtree.filter(|_| node.kind == NodeKind::Dir).map(|tree| blobs.tree(&tree)) {
            Some(Ok(tree)) => {
                if let Some(over) = over {
                    over.would_remove(target.as_ref(), (&below, &tree.nodes), wanted, |path, node| {
                        findings.add(entry(snapshot, path, node, Some("removed")));
                    });
                }
                let inside = tree.nodes.into_iter().map(|node| (below.join(node.file_name()), node));
                let inside = inside.filter(|(path, node)| wanted.takes(path, node.kind == NodeKind::Dir));
                let first = waiting.len();
                waiting.extend(inside);
                waiting[first..].reverse();
            }
            Some(Err(fault)) => meter.problem(format!("{}: {fault}", wanted.path(&below).display())),
            None => {}
        }
    }
    (sum.found, sum.left_out) = (findings.found, findings.left_out);
    Ok(sum)
}

/// In which way two entries of one name differ, apart from what is in a directory.
fn difference(old: &Node, new: &Node) -> Option<&'static str> {
    if old.kind != new.kind {
        return Some("kind");
    }
    if old.content != new.content || old.link_target() != new.link_target() || old.device != new.device {
        return Some("content");
    }
    let about = |node: &Node| (node.mode(), node.uid, node.gid, node.extended_attributes.clone());
    // A directory's time changes with what is in it, which is told by itself.
    let touched = old.kind != NodeKind::Dir && old.mtime != new.mtime;
    (about(old) != about(new) || touched).then_some("metadata")
}

fn entry(snapshot: &Snapshot, path: &Path, node: &Node, change: Option<&str>) -> Found {
    Found::Entry(FoundEntry {
        snapshot: snapshot.id.to_string(),
        path: PathBuf::from(path).display().to_string(),
        kind: node.kind.word().to_owned(),
        mode: node.mode(),
        user: node.uid,
        group: node.gid,
        size: node.size,
        mtime_unix_ms: node.mtime.map(|at| at.as_millisecond()),
        change: change.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_nothing_stands_behind_it() {
        let mut findings = Findings::default();
        let of = |length: usize| {
            Found::Entry(FoundEntry {
                snapshot: "a".into(),
                path: "p".repeat(length),
                kind: "file".into(),
                mode: None,
                user: None,
                group: None,
                size: 0,
                mtime_unix_ms: None,
                change: None,
            })
        };
        findings.add(of(4000));
        findings.add(of(FOUND_BYTES_MAX));
        findings.add(of(1));
        assert_eq!((findings.found.len(), findings.left_out), (1, 2));
        let mut many = Findings::default();
        (0..FOUND_MAX + 3).for_each(|_| many.add(Found::Content(Vec::new())));
        assert_eq!((many.found.len(), many.left_out), (FOUND_MAX, 3));
    }

    #[test]
    fn a_difference_has_a_word() {
        let node = |change: &dyn Fn(&mut Node)| {
            let mut node = Node::new(OsStr::new("a"), NodeKind::File);
            change(&mut node);
            node
        };
        let plain = node(&|_| {});
        assert_eq!(difference(&plain, &plain), None);
        assert_eq!(difference(&plain, &Node::new(OsStr::new("a"), NodeKind::Fifo)), Some("kind"));
        assert_eq!(difference(&plain, &node(&|node| node.content = Some(vec![]))), Some("content"));
        assert_eq!(difference(&plain, &node(&|node| node.set_mode(0o600))), Some("metadata"));
        assert_eq!(difference(&plain, &node(&|node| node.uid = Some(7))), Some("metadata"));
    }
}
