//! The units of an operation: what each is, whose it is, whether it is permitted, and how the engine is called for it.

use std::path::{Path, PathBuf};

use agent_core::{NotPermitted, Permits};
use proto::agent::{Operation, Repository, SnapshotRef};
use proto::backup::BackupOptions;

use super::fault::JobFault;
use crate::config::Role;
use crate::engine::{BackupEngine, EngineError, Mark, SharedMeter, Work};

/// One step of an operation, after which it can be left and continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unit {
    /// Sources that become one snapshot.
    Backup {
        sources: Vec<PathBuf>,
        options: BackupOptions,
    },
    Restore {
        snapshot: SnapshotRef,
        target: PathBuf,
    },
    Verify {
        snapshot: SnapshotRef,
    },
    Check {
        read_data: bool,
    },
    Forget {
        keep_last: u32,
    },
    Reclaim,
    Identify,
}

/// Refuses what the role does not do; the exhaustive match makes a new operation someone's decision. Returns what it
/// works on.
pub(super) fn accept(role: Role, operation: &Operation) -> Result<&Repository, JobFault> {
    let other = match operation {
        Operation::Backup { .. }
        | Operation::BackupWith { .. }
        | Operation::Restore { .. }
        | Operation::Verify { .. } => Role::Data,
        Operation::Check { .. } | Operation::Prune { .. } => Role::Media,
        // Either may be at a repository that the other is at, too.
        Operation::Identify { repository } => return Ok(repository),
        // The library performs those itself, and this program brings none.
        Operation::Own { kind, .. } => return Err(JobFault::NotOurs(kind.clone())),
    };
    if let Some(repository) = operation.repository().filter(|_| other == role) {
        return Ok(repository);
    }
    let does = match role {
        Role::Data => "backup, restore and verify",
        Role::Media => "check and prune",
    };
    Err(JobFault::OtherRole { role, does, kind: operation.kind().to_owned(), other })
}

/// Refuses what the host's administrator does not allow.
pub(super) fn permit(permits: &Permits, repository: &Repository, operation: &Operation) -> Result<(), NotPermitted> {
    let repository = Path::new(&repository.path);
    permits.repository(repository, repository.join("config").is_file())?;
    match operation {
        Operation::Backup { sources, .. } | Operation::BackupWith { sources, .. } => {
            sources.iter().try_for_each(|source| permits.backup(Path::new(source)))
        }
        Operation::Restore { target, .. } => permits.restore(Path::new(target)),
        Operation::Prune { keep_last, .. } => permits.prune(*keep_last),
        Operation::Verify { .. } | Operation::Check { .. } | Operation::Identify { .. } | Operation::Own { .. } => {
            Ok(())
        }
    }
}

pub(super) fn units(operation: &Operation) -> Result<Vec<Unit>, JobFault> {
    Ok(match operation {
        Operation::Backup { sources, .. } | Operation::BackupWith { sources, .. } if sources.is_empty() => {
            return Err(JobFault::NoSource);
        }
        Operation::Backup { sources, .. } => backups(sources, &BackupOptions::default()),
        Operation::BackupWith { sources, options, .. } => backups(sources, options),
        Operation::Restore { snapshot, target, .. } => {
            vec![Unit::Restore { snapshot: snapshot.clone(), target: target.into() }]
        }
        Operation::Verify { snapshot, .. } => vec![Unit::Verify { snapshot: snapshot.clone() }],
        Operation::Check { read_data, .. } => vec![Unit::Check { read_data: *read_data }],
        Operation::Prune { keep_last: 0, .. } => return Err(JobFault::KeepsNothing),
        Operation::Prune { keep_last, .. } => vec![Unit::Forget { keep_last: *keep_last }, Unit::Reclaim],
        Operation::Identify { .. } => vec![Unit::Identify],
        Operation::Own { kind, .. } => return Err(JobFault::NotOurs(kind.clone())),
    })
}

fn backups(sources: &[String], options: &BackupOptions) -> Vec<Unit> {
    let unit = |sources: &[String]| Unit::Backup {
        sources: sources.iter().map(PathBuf::from).collect(),
        options: options.clone(),
    };
    if options.together { vec![unit(sources)] } else { sources.chunks(1).map(unit).collect() }
}

/// Does a unit.
pub(super) fn one(
    engine: &dyn BackupEngine,
    at: &Repository,
    unit: &Unit,
    mark: &Mark,
    meter: &SharedMeter,
) -> Result<Work, EngineError> {
    match unit {
        Unit::Backup { sources, options } => {
            let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
            engine.backup(at, &sources, options, mark, meter)
        }
        Unit::Restore { snapshot, target } => engine.restore(at, snapshot, target, mark, meter),
        Unit::Verify { snapshot } => engine.verify(at, snapshot, mark, meter),
        Unit::Check { read_data } => engine.check(at, *read_data, mark, meter),
        Unit::Forget { keep_last } => engine.forget(at, *keep_last, mark, meter),
        Unit::Reclaim => engine.reclaim(at, mark, meter),
        Unit::Identify => engine.identify(at, meter),
    }
}

/// What is being done, for people.
pub(super) fn describe(unit: &Unit, activity: &str) -> String {
    let what = match unit {
        Unit::Backup { sources, options } => {
            let names: Vec<_> = sources.iter().map(|source| source.display().to_string()).collect();
            let dry = if options.dry_run { "trying to back up" } else { "backing up" };
            format!("{dry} {}", names.join(", "))
        }
        Unit::Restore { snapshot, target } => format!("restoring {} to {}", snapshot.snapshot, target.display()),
        Unit::Verify { snapshot } => format!("verifying {}", snapshot.snapshot),
        Unit::Check { read_data: true } => "checking every byte".to_owned(),
        Unit::Check { read_data: false } => "checking".to_owned(),
        Unit::Forget { .. } => "forgetting old snapshots".to_owned(),
        Unit::Reclaim => "freeing unused space".to_owned(),
        Unit::Identify => "asking the repository for its id".to_owned(),
    };
    if activity.is_empty() { what } else { format!("{what} ({activity})") }
}
