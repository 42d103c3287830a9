//! The units of an operation: what each is, whose it is, whether it is permitted, and how the engine is called for it.

use std::path::{Path, PathBuf};

use agent_core::{NotPermitted, Permits};
use proto::RepositoryName;
use proto::agent::{Operation, Repository, SnapshotRef};
use proto::backup::BackupOptions;
use proto::door::{Door, DoorKey};
use proto::keeping::Keeping;
use proto::location::Location;
use proto::look::{Forget, Query};
use proto::means::Commands;
use proto::restore::{Over, RestoreOptions};

use super::fault::JobFault;
use crate::config::Role;
use crate::engine::{self, BackupEngine, EngineError, Mark, Onto, SampleBounds, SharedMeter, Work};
use crate::kept::Kept;

/// One step of an operation, after which it can be left and continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unit {
    /// Sources that become one snapshot.
    Backup {
        sources: Vec<PathBuf>,
        options: BackupOptions,
        commands: Commands,
    },
    Restore {
        snapshot: SnapshotRef,
        target: PathBuf,
        options: RestoreOptions,
        over: Option<Over>,
    },
    RestoreTest {
        snapshot: SnapshotRef,
        bounds: SampleBounds,
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
    ForgetByRules(Forget),
    Look(Query),
    Reclaim,
    Identify,
    Serve {
        name: RepositoryName,
        address: String,
        key: DoorKey,
    },
    Unserve(RepositoryName),
    Keeping(RepositoryName, Keeping),
}

/// Refuses what the role does not do; the exhaustive match makes a new operation someone's decision. Returns what it
/// works on; of one that is served its name.
pub(super) fn accept(role: Role, operation: &Operation) -> Result<Repository, JobFault> {
    let other = match operation {
        Operation::Backup { .. }
        | Operation::BackupWith { .. }
        | Operation::BackupBy { .. }
        | Operation::Restore { .. }
        | Operation::RestoreSome { .. }
        | Operation::RestoreOver { .. }
        | Operation::RestorePaced { .. }
        | Operation::RestoreTest { .. }
        | Operation::Verify { .. } => Role::Data,
        Operation::Check { .. }
        | Operation::Prune { .. }
        | Operation::Forget { .. }
        | Operation::Serve { .. }
        | Operation::Unserve { .. }
        | Operation::Keeping { .. } => Role::Media,
        // Either may be at a repository that the other is at, too.
        Operation::Identify { repository } | Operation::Look { repository, .. } => return Ok(repository.clone()),
        // The library performs those itself, and this program brings none.
        Operation::Own { kind, .. } => return Err(JobFault::NotOurs(kind.clone())),
    };
    if other == role {
        let path = if let Operation::Keeping { name, .. } = operation { name.to_string() } else { String::new() };
        return Ok(operation.repository().cloned().unwrap_or(Repository { path, password_file: None }));
    }
    let does = match role {
        Role::Data => "backup, restore and verify",
        Role::Media => "check, forget and prune, and serves repositories",
    };
    Err(JobFault::OtherRole { role, does, kind: operation.kind().to_owned(), other })
}

/// Refuses what the host's administrator does not allow.
pub(super) fn permit(permits: &Permits, operation: &Operation) -> Result<(), NotPermitted> {
    // Of one that is served it is decided where it is known whether it lies here; and a storage elsewhere has an entry of
    // the administrator's, or is not used.
    let is_path = |repository: &&Repository| {
        let is_elsewhere = repository.path.parse().is_ok_and(|location: Location| !location.is_directory());
        !Door::is(&repository.path) && !is_elsewhere
    };
    if let Some(repository) = operation.repository().filter(is_path) {
        let repository = Path::new(&repository.path);
        permits.repository(repository, repository.join("config").is_file())?;
    }
    match operation {
        Operation::Backup { sources, .. } | Operation::BackupWith { sources, .. } => {
            sources.iter().try_for_each(|source| permits.backup(Path::new(source)))
        }
        Operation::BackupBy { sources, commands, .. } => {
            commands.all().try_for_each(|name| permits.command(name).map(drop))?;
            // Of the output of a command nothing is read there.
            let read = sources.iter().filter(|_| commands.output_of.is_none());
            read.into_iter().try_for_each(|source| permits.backup(Path::new(source)))
        }
        Operation::Restore { target, .. }
        | Operation::RestoreSome { target, .. }
        | Operation::RestorePaced { target, over: None, .. } => permits.restore(Path::new(target)),
        Operation::RestoreOver { target, .. } | Operation::RestorePaced { target, over: Some(_), .. } => {
            permits.restore_over(Path::new(target))
        }
        Operation::RestoreTest { .. } => permits.restore_test(),
        Operation::Prune { keep_last, .. } => permits.prune(*keep_last),
        Operation::Forget { order, .. } => permits.prune(order.keep.last),
        Operation::Serve { .. } | Operation::Keeping { .. } => permits.serve(),
        // What a look shows is decided where it is known what that is.
        Operation::Verify { .. }
        | Operation::Check { .. }
        | Operation::Identify { .. }
        | Operation::Look { .. }
        | Operation::Unserve { .. }
        | Operation::Own { .. } => Ok(()),
    }
}

pub(super) fn units(operation: &Operation) -> Result<Vec<Unit>, JobFault> {
    Ok(match operation {
        Operation::Backup { sources, .. }
        | Operation::BackupWith { sources, .. }
        | Operation::BackupBy { sources, .. }
            if sources.is_empty() =>
        {
            return Err(JobFault::NoSource);
        }
        Operation::BackupBy { sources, commands: Commands { output_of: Some(_), .. }, .. } if sources.len() > 1 => {
            return Err(JobFault::OnePath);
        }
        Operation::Backup { sources, .. } => backups(sources, &BackupOptions::default(), &Commands::default()),
        Operation::BackupWith { sources, options, .. } => backups(sources, options, &Commands::default()),
        Operation::BackupBy { sources, options, commands, .. } => backups(sources, options, commands),
        Operation::Restore { snapshot, target, .. } => {
            vec![restore(snapshot, target, &RestoreOptions::default(), None)]
        }
        Operation::RestoreSome { snapshot, target, options, .. } => vec![restore(snapshot, target, options, None)],
        Operation::RestoreOver { snapshot, target, options, over, .. } => {
            vec![restore(snapshot, target, options, Some(*over))]
        }
        Operation::RestorePaced { snapshot, target, options, over, .. } => {
            vec![restore(snapshot, target, options, *over)]
        }
        Operation::RestoreTest { snapshot, files, bytes, .. } => {
            let bounds = SampleBounds { files: *files, bytes: *bytes };
            vec![Unit::RestoreTest { snapshot: snapshot.clone(), bounds }]
        }
        Operation::Verify { snapshot, .. } => vec![Unit::Verify { snapshot: snapshot.clone() }],
        Operation::Check { read_data, .. } => vec![Unit::Check { read_data: *read_data }],
        Operation::Prune { keep_last: 0, .. } => return Err(JobFault::KeepsNothing),
        Operation::Prune { keep_last, .. } => vec![Unit::Forget { keep_last: *keep_last }, Unit::Reclaim],
        Operation::Forget { order, .. } if order.keep.is_nothing() => return Err(JobFault::KeepsNothing),
        Operation::Forget { order, .. } => {
            let reclaim = (order.free && !order.dry_run).then_some(Unit::Reclaim);
            std::iter::once(Unit::ForgetByRules(order.clone())).chain(reclaim).collect()
        }
        Operation::Look { query, .. } => vec![Unit::Look(query.clone())],
        Operation::Identify { .. } => vec![Unit::Identify],
        Operation::Serve { name, address, key, .. } => {
            let key = key.ok_or(JobFault::NoKey)?;
            vec![Unit::Serve { name: name.clone(), address: address.clone(), key }]
        }
        Operation::Unserve { name, .. } => vec![Unit::Unserve(name.clone())],
        Operation::Keeping { name, order } => vec![Unit::Keeping(name.clone(), order.clone())],
        Operation::Own { kind, .. } => return Err(JobFault::NotOurs(kind.clone())),
    })
}

fn restore(snapshot: &SnapshotRef, target: &str, options: &RestoreOptions, over: Option<Over>) -> Unit {
    Unit::Restore { snapshot: snapshot.clone(), target: target.into(), options: options.clone(), over }
}

fn backups(sources: &[String], options: &BackupOptions, commands: &Commands) -> Vec<Unit> {
    let unit = |sources: &[String]| Unit::Backup {
        sources: sources.iter().map(PathBuf::from).collect(),
        options: options.clone(),
        commands: commands.clone(),
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
        Unit::Backup { sources, options, commands } => {
            let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
            let back_up = || match (&commands.output_of, &sources[..]) {
                (Some(_), [path]) => engine.backup_output(at, path, options, commands, mark, meter),
                _ => engine.backup(at, &sources, options, mark, meter),
            };
            // To try something is not to do it.
            if options.dry_run { back_up() } else { engine::around(commands, &sources, mark, meter, back_up) }
        }
        Unit::Restore { snapshot, target, options, over: None } => {
            engine.restore(at, snapshot, target, options, mark, meter)
        }
        Unit::Restore { snapshot, target, options, over } => {
            engine.restore_over(at, snapshot, &Onto { target, options, over: *over }, mark, meter)
        }
        Unit::RestoreTest { snapshot, bounds } => engine.restore_test(at, snapshot, *bounds, mark, meter),
        Unit::Verify { snapshot } => engine.verify(at, snapshot, mark, meter),
        Unit::Check { read_data } => engine.check(at, *read_data, mark, meter),
        Unit::Forget { keep_last } => engine.forget(at, *keep_last, mark, meter),
        Unit::ForgetByRules(order) => engine.forget_by_rules(at, order, mark, meter),
        Unit::Look(query) => engine.look(at, query, mark, meter),
        Unit::Reclaim => engine.reclaim(at, mark, meter),
        Unit::Identify => engine.identify(at, meter),
        Unit::Serve { name, address, key } => {
            let (host, path) = (mark.origin.host.clone(), PathBuf::from(&at.path));
            let kept = Kept::new(name.clone(), host, path, address.clone(), *key);
            engine.serve(&kept, at.password_file.as_deref().map(Path::new), meter)
        }
        Unit::Unserve(name) => engine.unserve(name),
        Unit::Keeping(name, order) => engine.keeping(name, order, mark, meter),
    }
}

/// What is being done, for people.
pub(super) fn describe(unit: &Unit, activity: &str) -> String {
    let what = match unit {
        Unit::Backup { sources, options, commands } => {
            let names: Vec<_> = sources.iter().map(|source| source.display().to_string()).collect();
            let dry = if options.dry_run { "trying to back up" } else { "backing up" };
            let output = commands.output_of.as_ref().map(|name| format!("the output of {name} as "));
            format!("{dry} {}{}", output.unwrap_or_default(), names.join(", "))
        }
        Unit::Restore { snapshot, target, over, .. } => {
            let to = if over.is_some() { "over what is in" } else { "to" };
            format!("restoring {} {to} {}", snapshot.snapshot, target.display())
        }
        Unit::RestoreTest { snapshot, .. } => format!("testing a restore of {}", snapshot.snapshot),
        Unit::Verify { snapshot } => format!("verifying {}", snapshot.snapshot),
        Unit::Check { read_data: true } => "checking every byte".to_owned(),
        Unit::Check { read_data: false } => "checking".to_owned(),
        Unit::ForgetByRules(order) if order.dry_run => "trying what would be forgotten".to_owned(),
        Unit::Forget { .. } | Unit::ForgetByRules(_) => "forgetting old snapshots".to_owned(),
        Unit::Look(query) => format!("{} of the repository", query.kind()),
        Unit::Reclaim => "freeing unused space".to_owned(),
        Unit::Identify => "asking the repository for its id".to_owned(),
        Unit::Serve { name, address, .. } => format!("beginning to serve {name} at {address}"),
        Unit::Unserve(name) => format!("ending to serve {name}"),
        Unit::Keeping(name, order) => format!("{} of {name}", order.kind()),
    };
    if activity.is_empty() { what } else { format!("{what} ({activity})") }
}
