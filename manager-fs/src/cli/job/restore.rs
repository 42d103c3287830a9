//! Which operation a restore is.

use proto::agent::{Operation, Repository, SnapshotRef};
use proto::restore::{Over, RestoreOptions};

/// The oldest operation that says all of it: every agent knows how to restore all of a snapshot.
pub(super) fn operation(
    repository: Repository,
    snapshot: SnapshotRef,
    target: String,
    options: RestoreOptions,
    over: Option<Over>,
) -> Operation {
    match over {
        Some(over) => Operation::RestoreOver { repository, snapshot, target, options, over },
        None if options == RestoreOptions::default() => Operation::Restore { repository, snapshot, target },
        None => Operation::RestoreSome { repository, snapshot, target, options },
    }
}
