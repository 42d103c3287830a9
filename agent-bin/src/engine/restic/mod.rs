//! The engine: operations on repositories of restic's format, version 2 (and 1, if somebody else made them).

mod backup;
mod look;
mod made;
mod rehearsal;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use proto::RepositoryName;
use proto::agent::{Repository as Location, SnapshotRef};
use proto::backup::BackupOptions;
use proto::keeping::Keeping;
use proto::look::{Forget, Found, FoundSnapshot, Query};
use proto::means::Commands;
use proto::restore::RestoreOptions;
use rustic_core::jiff;

use super::compare::{Compared, Comparison, Depth, LeftOut};
use super::fault::{EngineError, PasswordFault};
use super::format::blobs::{BlobFault, Blobs};
use super::format::files::FileKind;
use super::format::index::BlobKind;
use super::format::locks::Access;
use super::format::tree::{Node, NodeKind};
use super::keys;
use super::library::{self, Opened};
use super::patterns::rules_of;
use super::restore::over::{Delete, Over};
use super::restore::{self, RestoreFault};
use super::retention::fates;
use super::selection::{Rules, Selection};
use super::session::{Place, Session, keep_password, password};
use super::snapshots::Snapshot;
use super::source::Source;
use super::stores;
use super::unfinished::{OverRecord, Unfinished};
use super::wanted::Wanted;
use super::{BackupEngine, Desk, Mark, Onto, SampleBounds, SharedMeter, Work};
use crate::kept::Kept;
use look::{Findings, WouldGoOver, shown};
use made::total_bytes;

/// The engine.
pub(crate) struct Restic {
    /// The agent's directory: the password of repositories for which no other file is named, and unfinished restores.
    state: PathBuf,
    /// Of a media agent.
    desk: Option<Arc<dyn Desk>>,
}

impl Restic {
    pub(crate) fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), desk: None }
    }

    /// As [`Restic::new`]; what is to be served is given to `desk`.
    pub(crate) fn with_desk(state: &Path, desk: Arc<dyn Desk>) -> Self {
        Self { desk: Some(desk), ..Self::new(state) }
    }
}

impl BackupEngine for Restic {
    fn backup(
        &self,
        at: &Location,
        sources: &[&Path],
        options: &BackupOptions,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let rules = rules_of(options, &mark.permits)?;
        let selection = Selection::new(&rules)?;
        let open = |path: &&Path| Source::open(path, &mark.permits);
        let opened = sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        opened.iter().try_for_each(Source::must_be_readable)?;
        let mut paths: Vec<_> = opened.iter().map(|source| source.path().to_owned()).collect();
        paths.sort();
        paths.dedup();
        let order = backup::Order { at, paths, options, rules: &rules, selection: &selection };
        backup::back_up(&self.state, &order, backup::Content::Sources(&opened), mark, meter)
    }

    fn backup_output(
        &self,
        at: &Location,
        path: &Path,
        options: &BackupOptions,
        commands: &Commands,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let Some(command) = &commands.output_of else { return Ok(Work::default()) };
        let (rules, paths) = (Rules::of_output(command), vec![backup::path_of_output(path)?]);
        let order = backup::Order { at, paths, options, rules: &rules, selection: &Selection::new(&rules)? };
        backup::back_up(&self.state, &order, backup::Content::Output(commands, command), mark, meter)
    }

    fn restore(
        &self,
        at: &Location,
        reference: &SnapshotRef,
        target: &Path,
        options: &RestoreOptions,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Shared, false, mark, meter)?;
        session.restore(&self.state, reference, &Onto { target, options, over: None }, mark, meter)
    }

    fn restore_over(
        &self,
        at: &Location,
        reference: &SnapshotRef,
        onto: &Onto<'_>,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Shared, false, mark, meter)?;
        session.restore(&self.state, reference, onto, mark, meter)
    }

    fn restore_test(
        &self,
        at: &Location,
        reference: &SnapshotRef,
        bounds: SampleBounds,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Shared, false, mark, meter)?;
        rehearsal::restore_test(&session, &self.state, reference, bounds, mark, meter)
    }

    fn verify(
        &self,
        at: &Location,
        reference: &SnapshotRef,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Shared, false, mark, meter)?;
        let snapshots = session.snapshots(&mark.origin, reference.is_latest(), meter)?;
        let found = snapshots.resolve(reference, mark.origin.host.as_str());
        let found = found.map_err(|fault| session.reference_fault(fault))?;
        let index = session.index(meter)?;
        let blobs = session.blobs(&index);
        meter.begin("comparing");
        meter.expect(found.iter().map(|snapshot| total_bytes(snapshot)).sum());
        let mut sum = Compared::default();
        for snapshot in &found {
            for source in snapshot.sources() {
                match node_at(&blobs, snapshot, &source) {
                    Ok(node) if snapshot.rules.output_of.is_some() => {
                        sum.add(read_all(&blobs, &node, &source, meter)?)
                    }
                    Ok(node) => sum.add(compare_source(&blobs, &node, &source, snapshot, mark, meter)?),
                    Err(fault) => meter.problem(format!("{}: cannot be compared: {fault}", source.display())),
                }
            }
        }
        let snapshots = found.iter().map(|snapshot| snapshot.id.to_string()).collect();
        Ok(Work { snapshots, files: sum.files, bytes: sum.bytes, ..Work::default() })
    }

    fn check(&self, at: &Location, read_data: bool, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Shared, false, mark, meter)?;
        library::check(&session.path, &session.repository, read_data, meter)?;
        let (packs, bytes) = session.packs()?;
        Ok(Work { files: packs, bytes: if read_data { bytes } else { 0 }, ..Work::default() })
    }

    fn forget(&self, at: &Location, keep_last: u32, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Alone, false, mark, meter)?;
        let snapshots = session.snapshots(&mark.origin, false, meter)?;
        session.must_be_sound(&snapshots)?;
        let (surplus, unknown) = snapshots.surplus(usize::try_from(keep_last).unwrap_or(usize::MAX));
        if unknown > 0 {
            meter.problem(format!(
                "{unknown} old snapshots are kept: jobs made them that nobody remembers, so it is not known of which host \
                 they are; `restic forget` removes them"
            ));
        }
        let mut forgotten = Vec::new();
        for snapshot in surplus {
            if meter.is_stopped() {
                return Err(EngineError::Stopped);
            }
            session.files.remove(FileKind::Snapshot, &snapshot.id)?;
            forgotten.push(snapshot.id.to_string());
        }
        Ok(Work { snapshots: forgotten, ..Work::default() })
    }

    fn forget_by_rules(
        &self,
        at: &Location,
        order: &Forget,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let access = if order.dry_run { Access::Shared } else { Access::Alone };
        let session = Session::open(&self.state, at, access, false, mark, meter)?;
        let snapshots = session.snapshots(&mark.origin, false, meter)?;
        session.must_be_sound(&snapshots)?;
        let host = mark.origin.host.as_str();
        let fates = fates(&snapshots, &order.snapshots, &order.keep, host, &jiff::Zoned::now())?;
        let (mut findings, mut forgotten) = (Findings::default(), 0);
        for (snapshot, fate) in fates {
            if meter.is_stopped() {
                return Err(EngineError::Stopped);
            }
            if fate.forgotten && !order.dry_run {
                session.files.remove(FileKind::Snapshot, &snapshot.id)?;
            }
            forgotten += u64::from(fate.forgotten);
            let (forgotten, why) = (fate.forgotten, fate.why);
            findings.add(Found::Snapshot(FoundSnapshot { forgotten, why, ..shown(snapshot) }));
        }
        Ok(Work { files: forgotten, found: findings.found, left_out: findings.left_out, ..Work::default() })
    }

    fn look(&self, at: &Location, query: &Query, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        if let Query::Dump { path, .. } = query {
            mark.permits.show(Path::new(path))?;
        }
        let session = Session::open(&self.state, at, Access::Shared, false, mark, meter)?;
        look::look(&session, query, mark, meter)
    }

    fn reclaim(&self, at: &Location, mark: &Mark, meter: &SharedMeter) -> Result<Work, EngineError> {
        let session = Session::open(&self.state, at, Access::Alone, false, mark, meter)?;
        session.must_be_sound(&session.snapshots(&mark.origin, false, meter)?)?;
        let (_, before) = session.packs()?;
        library::prune(&session.path, &session.repository, meter)?;
        let (_, after) = session.packs()?;
        Ok(Work { repository_bytes: before.saturating_sub(after), ..Work::default() })
    }

    fn identify(&self, at: &Location, meter: &SharedMeter) -> Result<Work, EngineError> {
        let repository = Place::of(&self.state, at, meter)?.open(false, meter)?;
        Ok(Work { snapshots: vec![id_of(&repository)], ..Work::default() })
    }

    fn serve(&self, kept: &Kept, password_file: Option<&Path>, meter: &SharedMeter) -> Result<Work, EngineError> {
        let desk = self.desk.as_ref().ok_or(EngineError::NoDesk)?;
        // Whoever has mistyped something is told so at once.
        stores::reach(&self.state, &kept.location(), meter)?;
        let file = Kept::password_file(&self.state, &kept.name);
        if let Some(theirs) = password_file {
            let text = password(theirs, false)?;
            let fault = |error| EngineError::Password { path: file.clone(), why: PasswordFault::Make(error) };
            keep_password(&file, &text).map_err(fault)?;
        }
        let repository = Place::kept(&self.state, kept, meter)?.open(true, meter)?;
        let certificate = Some(desk.begin(kept)?);
        Ok(Work { snapshots: vec![id_of(&repository)], certificate, ..Work::default() })
    }

    fn unserve(&self, name: &RepositoryName) -> Result<Work, EngineError> {
        let desk = self.desk.as_ref().ok_or(EngineError::NoDesk)?;
        desk.end(name)?;
        Ok(Work::default())
    }

    fn keeping(
        &self,
        name: &RepositoryName,
        order: &Keeping,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let desk = self.desk.as_ref().ok_or(EngineError::NoDesk)?;
        if let Keeping::Refuse(grants) = order {
            desk.refuse(name, grants)?;
            return Ok(Work::default());
        }
        let kept = Kept::read(&self.state, name)?.ok_or_else(|| EngineError::NotServed(name.clone()))?;
        let said = keys::keeping(&self.state, &kept, order, mark, meter)?;
        Ok(Work { said, ..Work::default() })
    }
}

fn id_of(repository: &Opened) -> String {
    repository.config().id.to_hex().to_string()
}

impl Session {
    fn restore(
        &self,
        state: &Path,
        reference: &SnapshotRef,
        onto: &Onto<'_>,
        mark: &Mark,
        meter: &SharedMeter,
    ) -> Result<Work, EngineError> {
        let Onto { target, options, .. } = *onto;
        let snapshots = self.snapshots(&mark.origin, reference.is_latest(), meter)?;
        let host = mark.origin.host.as_str();
        let snapshot = snapshots.resolve_one(reference, host).map_err(|fault| self.reference_fault(fault))?;
        let index = self.index(meter)?;
        let blobs = self.blobs(&index);
        let (root, path) = content_of(self, &blobs, snapshot)?;
        let mut wanted = Wanted::new(options, path)?;
        meter.begin("choosing");
        wanted.lead(&blobs, &root);
        let (sources, delete) = (snapshot.sources(), onto.over.filter(|over| over.delete));
        let selection = delete.map(|_| Selection::new(&snapshot.rules)).transpose()?;
        let delete = selection.as_ref().map(|selection| Delete { sources: &sources, selection });
        if options.dry_run {
            let over = onto.over.map(|over| WouldGoOver { policy: over.policy, delete: delete.as_ref(), target });
            return look::would_restore(snapshot, &blobs, &root, &wanted, over.as_ref(), meter);
        }
        let unfinished = Unfinished::begin(state, target, snapshot.id, onto.over.is_some())?;
        meter.begin("writing files");
        meter.expect(total_bytes(snapshot));
        let (target, continued) = (&unfinished.target, unfinished.continued);
        let (blobs, root, wanted) = (&blobs, &root, &wanted);
        let over = onto.over.zip(unfinished.over.as_ref());
        let over = over.map(|(over, OverRecord { draft, made })| Over {
            policy: over.policy,
            draft,
            sweep: continued,
            made: *made,
            delete,
        });
        let (continued, beside) = (continued && over.is_none(), over.is_some());
        let order = restore::Order { blobs, root, target, wanted, continued, over, meter };
        let restored = restore::restore(&order).map_err(stopped_or_io)?;
        meter.begin("comparing");
        let depth = Depth { contents: false, ownership: rustix::process::geteuid().is_root() };
        let (known, kept, wanted) = (&restored.missing, &restored.kept, Some(wanted));
        let (live, since, left_out) = (target, None, None);
        let comparison = Comparison { blobs, live, depth, known, kept, beside, since, wanted, left_out, meter };
        comparison.run(root, &place_of(root)).map_err(|_| EngineError::Stopped)?;
        unfinished.end()?;
        let snapshots = vec![snapshot.id.to_string()];
        Ok(Work { snapshots, files: restored.files, bytes: restored.bytes, ..Work::default() })
    }
}

fn compression(repository: &Opened) -> Option<i32> {
    repository.config().zstd().ok().flatten()
}

/// What is restored: a snapshot's one source, or everything of a snapshot of several; and the path in the snapshot that the
/// target stands for.
fn content_of(session: &Session, blobs: &Blobs<'_>, snapshot: &Snapshot) -> Result<(Node, PathBuf), EngineError> {
    let fault = |fault| session.damaged(format!("snapshot {:.8}", snapshot.id), fault);
    let sources = snapshot.sources();
    if let [source] = sources.as_slice() {
        match node_at(blobs, snapshot, source) {
            // restic stores a source that was named by a relative path under just that.
            Err(BlobFault::NoEntry { .. }) => {}
            node => {
                let node = node.map_err(fault)?;
                let above = || source.parent().unwrap_or(source).to_owned();
                let path = if node.kind == NodeKind::Dir { source.clone() } else { above() };
                return Ok((node, path));
            }
        }
    }
    let root = root_of(snapshot).map_err(fault)?;
    root.subtree.map(|tree| blobs.tree(&tree)).transpose().map_err(fault)?;
    Ok((root, PathBuf::from("/")))
}

fn root_of(snapshot: &Snapshot) -> Result<Node, BlobFault> {
    let mut root = Node::new(OsStr::new(""), NodeKind::Dir);
    root.subtree = snapshot.tree();
    Ok(root)
}

fn node_at(blobs: &Blobs<'_>, snapshot: &Snapshot, path: &Path) -> Result<Node, BlobFault> {
    let mut node = root_of(snapshot)?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let no_entry = || BlobFault::NoEntry { path: path.to_owned() };
        let tree = blobs.tree(&node.subtree.ok_or_else(no_entry)?)?;
        node = tree.nodes.into_iter().find(|node| node.file_name() == name).ok_or_else(no_entry)?;
    }
    Ok(node)
}

fn stopped_or_io(fault: RestoreFault) -> EngineError {
    match fault {
        RestoreFault::Stopped => EngineError::Stopped,
        RestoreFault::Target { path, source } => EngineError::Io { path, source },
    }
}

/// Where a node lies below the directory that it was restored into.
fn place_of(root: &Node) -> PathBuf {
    if root.kind == NodeKind::Dir { PathBuf::new() } else { root.file_name().into() }
}

/// What came out of a command: there is nothing to compare it with, but that every byte can be had.
fn read_all(blobs: &Blobs<'_>, node: &Node, path: &Path, meter: &SharedMeter) -> Result<Compared, EngineError> {
    for piece in node.content.iter().flatten() {
        if meter.is_stopped() {
            return Err(EngineError::Stopped);
        }
        match blobs.read(BlobKind::Data, piece) {
            Ok(bytes) => meter.advance(bytes.len() as u64),
            Err(fault) => meter.problem(format!("{}: cannot be read: {fault}", path.display())),
        }
    }
    Ok(Compared { files: 1, bytes: node.size })
}

/// A source of a snapshot beside what it is now.
fn compare_source(
    blobs: &Blobs<'_>,
    node: &Node,
    source: &Path,
    snapshot: &Snapshot,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Compared, EngineError> {
    // Rules that are none of ours say nothing.
    let selection = Selection::new(&snapshot.rules).ok();
    match Source::open(source, &mark.permits) {
        Ok(source) => {
            let ((live, name), depth) = (source.place(), Depth { contents: true, ownership: true });
            let left_out = selection.as_ref().map(|selection| LeftOut { selection, source: &source });
            // By a policy the proof is wanted, not the changes of each day.
            let since = mark.origin.policy.as_ref().map(|_| snapshot.at());
            let (known, kept, beside, wanted) = (&HashSet::new(), &HashSet::new(), false, None);
            let comparison = Comparison { blobs, live, depth, known, kept, beside, since, wanted, left_out, meter };
            comparison.run(node, name).map_err(|_| EngineError::Stopped)
        }
        Err(error) => {
            let what = match error {
                EngineError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                    "is in the snapshot and not in the directory".to_owned()
                }
                EngineError::Io { source, .. } => format!("cannot be compared: {source}"),
                other => format!("cannot be compared: {other}"),
            };
            meter.problem(format!("{}: {what}", source.display()));
            Ok(Compared::default())
        }
    }
}

#[cfg(test)]
mod tests;
