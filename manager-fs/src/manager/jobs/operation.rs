//! Which operations make sense, and which must be alone.

use proto::agent::Operation;
use proto::location::{Location, LocationFault};
use proto::look::Query;
use proto::means::{Commands, Pace};
use proto::{OperationKind, RepositoryName};

/// What is wrong with an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationFault {
    /// A path that would depend on where the agent stands.
    #[error("{what} '{path}' is not an absolute path on the host")]
    RelativePath {
        /// What it is for.
        what: &'static str,
        /// The path as it was typed.
        path: String,
    },
    /// A place where no repository can lie.
    #[error(transparent)]
    Location(#[from] LocationFault),
    /// A password for a repository whose agents are told it.
    #[error("a repository that is served has its own password, which agents are told: leave out --password-file")]
    PasswordOfServed,
    /// A backup without sources.
    #[error("nothing to back up: name at least one source")]
    NothingToBackUp,
    /// A limit of nothing.
    #[error("a limit of 0 bytes a second would never come to an end")]
    StandsStill,
    /// The output of a command under several paths.
    #[error("the output of a command is one file: name one path for it")]
    OneOutput,
    /// Commands that may not take any time.
    #[error("a command that may take 0 seconds cannot be run")]
    NoTime,
    /// A prune that would leave nothing.
    #[error("prune and forget keep at least one snapshot of each source: say which (--keep-last, --keep-daily, …)")]
    NothingKept,
    /// A kind that no program brings itself.
    #[error("'{0}' is no operation of a program's own: order it with `manager-fs job {0}`")]
    NotOwn(OperationKind),
}

/// Whether an operation makes sense.
pub(super) fn check(operation: &Operation) -> Result<(), OperationFault> {
    let absolute = |what, path: &String| {
        let relative = || OperationFault::RelativePath { what, path: path.clone() };
        path.starts_with('/').then_some(()).ok_or_else(relative)
    };
    if let Some(repository) = operation.repository() {
        // One that is served has a name, which is told from a path by its first character.
        let is_named = repository.path.parse::<RepositoryName>().is_ok();
        match operation {
            Operation::Serve { .. } | Operation::Unserve { .. } => drop(repository.path.parse::<Location>()?),
            _ if is_named && repository.password_file.is_some() => return Err(OperationFault::PasswordOfServed),
            _ if is_named => {}
            _ => absolute("repository", &repository.path)?,
        }
        repository.password_file.iter().try_for_each(|path| absolute("password file", path))?;
    }
    match operation {
        Operation::Backup { sources, .. }
        | Operation::BackupWith { sources, .. }
        | Operation::BackupBy { sources, .. }
            if sources.is_empty() =>
        {
            Err(OperationFault::NothingToBackUp)
        }
        Operation::BackupBy { pace, .. } | Operation::RestorePaced { pace, .. } if stands_still(pace) => {
            Err(OperationFault::StandsStill)
        }
        Operation::BackupBy { sources, commands: Commands { output_of: Some(_), .. }, .. } if sources.len() > 1 => {
            Err(OperationFault::OneOutput)
        }
        Operation::BackupBy { commands, .. } if !commands.are_none() && commands.seconds == 0 => {
            Err(OperationFault::NoTime)
        }
        Operation::Backup { sources, .. } => sources.iter().try_for_each(|path| absolute("source", path)),
        Operation::BackupWith { sources, options, .. } | Operation::BackupBy { sources, options, .. } => {
            sources.iter().try_for_each(|path| absolute("source", path))?;
            options.exclude_files.iter().try_for_each(|path| absolute("file of patterns", path))
        }
        Operation::Restore { target, .. }
        | Operation::RestoreSome { target, .. }
        | Operation::RestoreOver { target, .. }
        | Operation::RestorePaced { target, .. } => absolute("target", target),
        Operation::Prune { keep_last: 0, .. } => Err(OperationFault::NothingKept),
        Operation::Forget { order, .. } if order.keep.is_nothing() => Err(OperationFault::NothingKept),
        Operation::Look { query: Query::Dump { path, .. } | Query::List { path: Some(path), .. }, .. } => {
            absolute("path", path)
        }
        Operation::Own { kind, .. } if Operation::KINDS.contains(&kind.as_str()) => {
            Err(OperationFault::NotOwn(kind.clone()))
        }
        Operation::Verify { .. }
        | Operation::RestoreTest { .. }
        | Operation::Check { .. }
        | Operation::Prune { .. }
        | Operation::Identify { .. }
        | Operation::Look { .. }
        | Operation::Forget { .. }
        | Operation::Serve { .. }
        | Operation::Unserve { .. }
        | Operation::Keeping { .. }
        | Operation::Own { .. } => Ok(()),
    }
}

fn stands_still(pace: &Pace) -> bool {
    [pace.read, pace.upload, pace.download].contains(&Some(0))
}

/// Prune deletes packs that nothing refers to *yet*: it must be alone. Everything else adds or reads.
pub(super) fn is_exclusive(operation: &Operation) -> bool {
    match operation {
        Operation::Prune { .. } => true,
        Operation::Forget { order, .. } => !order.dry_run,
        Operation::Backup { .. }
        | Operation::BackupWith { .. }
        | Operation::BackupBy { .. }
        | Operation::RestorePaced { .. }
        | Operation::Restore { .. }
        | Operation::RestoreSome { .. }
        | Operation::RestoreOver { .. }
        | Operation::RestoreTest { .. }
        | Operation::Verify { .. }
        | Operation::Check { .. }
        | Operation::Identify { .. }
        | Operation::Look { .. }
        | Operation::Serve { .. }
        | Operation::Unserve { .. }
        | Operation::Keeping { .. }
        | Operation::Own { .. } => false,
    }
}
