//! Whose turn it is at a repository.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use proto::HostName;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::operation::is_exclusive;
use crate::manager::control::jobs::JobRecord;
use crate::sync::lock;

/// A host and the path of a repository there.
type RepositoryKey = (HostName, String);

/// The repositories that jobs hold or wait for.
#[derive(Default)]
pub(super) struct Repositories(Mutex<HashMap<RepositoryKey, Arc<RwLock<()>>>>);

/// A job's turn at its repository, until it is dropped.
pub(super) enum Turn {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
}

impl Repositories {
    /// The job's turn, if it is its turn now.
    pub(super) fn try_turn(&self, record: &JobRecord) -> Option<Turn> {
        let lock = self.lock_of(record);
        if is_exclusive(&record.operation) {
            lock.try_write_owned().ok().map(|guard| Turn::Exclusive { _guard: guard })
        } else {
            lock.try_read_owned().ok().map(|guard| Turn::Shared { _guard: guard })
        }
    }

    /// The job's turn, when it comes.
    pub(super) async fn turn(&self, record: &JobRecord) -> Turn {
        let lock = self.lock_of(record);
        if is_exclusive(&record.operation) {
            Turn::Exclusive { _guard: lock.write_owned().await }
        } else {
            Turn::Shared { _guard: lock.read_owned().await }
        }
    }

    fn lock_of(&self, record: &JobRecord) -> Arc<RwLock<()>> {
        let path = record.operation.repository().path.trim_end_matches('/').to_owned();
        let mut repositories = lock(&self.0);
        // Forget those that no job holds or waits for.
        repositories.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(repositories.entry((record.host.clone(), path)).or_default())
    }
}
