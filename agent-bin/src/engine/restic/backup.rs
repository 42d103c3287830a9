//! A backup, from the open repository to the snapshot that names what was stored.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use proto::CommandName;
use proto::agent::Repository as Location;
use proto::backup::BackupOptions;
use proto::means::Commands;

use super::super::archive::{self, ArchiveFault, Checkpoints, Input, Parent, Seen, archive};
use super::super::command::output_of;
use super::super::fault::{CommandFault, EngineError, Refusal};
use super::super::format::chunker::Chunker;
use super::super::format::files::FileKind;
use super::super::format::id::Id;
use super::super::format::index::Index;
use super::super::format::locks::Access;
use super::super::format::packs::{Added, Packs};
use super::super::selection::{Rules, Selection};
use super::super::session::Session;
use super::super::snapshots::{self, Snapshot};
use super::super::source::Source;
use super::super::{Mark, SharedMeter, Work};
use super::made::{finish_snapshot, finished, must_be_free, new_snapshot, total_bytes, work_of};
use super::{compression, id_of};

/// What is backed up, and how.
pub(super) struct Order<'a> {
    pub(super) at: &'a Location,
    /// Under which the snapshot has it; sorted, each once.
    pub(super) paths: Vec<PathBuf>,
    pub(super) options: &'a BackupOptions,
    /// What is left out, as the snapshot keeps it, and as it is asked.
    pub(super) rules: &'a Rules,
    pub(super) selection: &'a Selection,
}

/// Where it comes from.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Sources(&'a [Source]),
    /// What this one of the commands prints.
    Output(&'a Commands, &'a CommandName),
}

/// The path that the output of a command has in its snapshot: one that a file can have.
pub(super) fn path_of_output(path: &Path) -> Result<PathBuf, EngineError> {
    let is_clear = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    if is_clear && path.file_name().is_some() {
        return Ok(path.components().collect());
    }
    Err(EngineError::refused(path, Refusal::SourceNotAbsolute))
}

/// Backs up into one snapshot.
pub(super) fn back_up(
    state: &Path,
    order: &Order<'_>,
    content: Content<'_>,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Work, EngineError> {
    let Order { at, paths, options, rules, .. } = order;
    options.tags.iter().try_for_each(|tag| must_be_free(tag))?;
    let session = Session::open(state, at, Access::Shared, !options.dry_run, mark, meter)?;
    let snapshots = session.snapshots(&mark.origin, false, meter)?;
    if mark.look
        && let Some(snapshot) = finished(&snapshots, paths, mark)
    {
        return Ok(work_of(snapshot.id, &snapshot.file));
    }
    let parent = snapshots.parent(mark.origin.host.as_str(), paths);
    let mut file = new_snapshot(mark, paths, parent);
    options.tags.iter().for_each(|tag| file.tags.add(tag.clone()));
    let index = session.index(meter)?;
    let parent = parent.filter(|_| !options.force);
    // What is only tried is not gone on with, and what a command prints has no other end.
    let going_on = !options.dry_run && matches!(content, Content::Sources(_));
    let checkpoints = going_on.then(|| Checkpoints::new(state, id_of(&session.repository), mark.job, options.force));
    let ((tree, seen, added), ran) = match content {
        Content::Sources(sources) => {
            let reading = Reading { input: Input::Sources(sources), parent, checkpoints: checkpoints.as_ref() };
            (session.store(order, reading, &index, meter)?, None)
        }
        Content::Output(commands, name) => {
            let path = paths.first().map(PathBuf::as_path).unwrap_or(Path::new("/stdin"));
            let (stored, ran) = output_of(commands, name, path, mark, meter, |stdout| {
                let from = File::from(OwnedFd::from(stdout));
                let reading = Reading { input: Input::Output(path, &from), parent: None, checkpoints: None };
                let stored = session.store(order, reading, &index, meter)?;
                let unread = || EngineError::Command {
                    name: name.clone(),
                    moment: "output",
                    fault: Box::new(CommandFault::Unread),
                };
                if stored.1.files_new == 1 { Ok(stored) } else { Err(unread()) }
            })?;
            (stored, Some(ran))
        }
    };
    finish_snapshot(&mut file, &tree, &seen, &added);
    let done = |id, snapshots| Work { snapshots, ran: ran.into_iter().collect(), ..work_of(id, &file) };
    if options.dry_run {
        return Ok(done(tree, Vec::new()));
    }
    // The lock is what kept others from removing what this snapshot needs.
    if let Some(lock) = &session.lock {
        lock.is_held().map_err(|fault| EngineError::Lock { path: session.path.clone(), fault })?;
    }
    let document = snapshots::write(&file, rules).map_err(|e| session.store_fault(e.into(), meter))?;
    let level = compression(&session.repository);
    let sealed = session.key.seal_document(&document, level).map_err(|e| session.store_fault(e.into(), meter))?;
    let id = session.files.write(FileKind::Snapshot, &sealed).map_err(|e| session.store_fault(e.into(), meter))?;
    if let Some(checkpoints) = checkpoints {
        checkpoints.end();
    }
    Ok(done(id, vec![id.to_string()]))
}

/// What is read, and what of it is known already.
struct Reading<'a> {
    input: Input<'a>,
    parent: Option<&'a Snapshot>,
    checkpoints: Option<&'a Checkpoints>,
}

impl Session {
    /// Everything of a backup but its snapshot.
    fn store(
        &self,
        order: &Order<'_>,
        reading: Reading<'_>,
        index: &Index,
        meter: &SharedMeter,
    ) -> Result<(Id, Seen, Added), EngineError> {
        let Order { selection, options, .. } = *order;
        let Reading { input, parent, checkpoints } = reading;
        let config = self.repository.config();
        let chunker =
            Chunker::new(config).map_err(|fault| EngineError::Chunker { path: self.path.clone(), fault })?;
        let level = match (compression(&self.repository), options.compression) {
            // A repository of version 1 knows none.
            (None, _) | (_, Some(0)) => None,
            (own, asked) => asked.map(i32::from).or(own),
        };
        let packs = Packs::new(&self.files, &self.key, index, level).dry(options.dry_run).paced(&self.upload);
        meter.begin("reading");
        meter.expect(parent.map_or(0, total_bytes));
        let parent = parent.and_then(|parent| Some(Parent { tree: parent.tree()?, began: parent.at() }));
        let (reading, readers) = (&self.reading, options.readers);
        let order = archive::Order { input, reading, parent, selection, readers, checkpoints };
        let blobs = self.blobs(index);
        let archived = archive(&blobs, &packs, &chunker, &order, meter);
        let stopped = matches!(archived, Err(ArchiveFault::Stopped));
        // Also of a backup that was stopped: what is stored and indexed need not be stored again.
        let added = if stopped || archived.is_ok() { packs.finish() } else { Ok(Added::default()) };
        // And of what ended in another way at least what is indexed.
        checkpoints.inspect(|checkpoints| checkpoints.note(&packs));
        match archived {
            _ if meter.is_stopped() => Err(EngineError::Stopped),
            Ok((tree, seen)) => Ok((tree, seen, added.map_err(|fault| self.store_fault(fault, meter))?)),
            Err(ArchiveFault::Stopped) => Err(EngineError::Stopped),
            Err(ArchiveFault::Store(fault)) => Err(self.store_fault(fault, meter)),
            Err(ArchiveFault::Encode(fault)) => Err(self.store_fault(fault.into(), meter)),
            Err(fault @ (ArchiveFault::Panicked(_) | ArchiveFault::Output(_))) => {
                Err(EngineError::Library { path: self.path.clone(), what: fault.to_string() })
            }
        }
    }
}
