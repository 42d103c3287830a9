//! `job restore`: what is restored, and how.

use clap::Args;
use proto::agent::{Operation, Repository};
use proto::means::Pace;
use proto::restore::{Over, Overwrite, RestoreOptions};

use super::super::units::byte_count;
use super::scope::Scope;

/// Of which snapshot what is restored, where, and how.
#[derive(Debug, Args)]
pub(in crate::cli) struct What {
    /// Snapshot id, the start of one, or latest (latest~1 is the one before)
    #[arg(long)]
    snapshot: String,
    #[command(flatten)]
    scope: Scope,
    /// Absolute path on the host; it is made if need be
    #[arg(long, value_name = "DIR")]
    target: String,
    /// Restore only what matches, as in a .gitignore, and what leads to it; may be given several times
    #[arg(short, long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Do not restore what matches; may be given several times
    #[arg(short, long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Write nothing, and list what would be restored
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Restore into a directory that holds something, and replace it: never, if-newer, if-changed or always
    #[arg(long, value_name = "WHEN")]
    overwrite: Option<Overwrite>,
    /// Remove from what is restored whatever the snapshot does not have
    #[arg(long, requires = "overwrite")]
    delete: bool,
    /// Read no more than this of the repository in a second
    #[arg(long, value_name = "SIZE", value_parser = byte_count)]
    limit_download: Option<u64>,
}

impl What {
    /// The oldest operation that says all of it: every agent knows how to restore all of a snapshot.
    pub(super) fn operation(&self, repository: Repository) -> Operation {
        let (snapshot, target) = (self.scope.reference(&self.snapshot), self.target.clone());
        let (include, exclude) = (self.include.clone(), self.exclude.clone());
        let options = RestoreOptions { include, exclude, dry_run: self.dry_run };
        let over = self.overwrite.map(|policy| Over { policy, delete: self.delete });
        let pace = Pace { download: self.limit_download, ..Pace::default() };
        match over {
            _ if pace != Pace::default() => {
                Operation::RestorePaced { repository, snapshot, target, options, over, pace }
            }
            Some(over) => Operation::RestoreOver { repository, snapshot, target, options, over },
            None if options == RestoreOptions::default() => Operation::Restore { repository, snapshot, target },
            None => Operation::RestoreSome { repository, snapshot, target, options },
        }
    }
}
