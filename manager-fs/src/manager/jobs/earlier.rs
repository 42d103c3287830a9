//! The hosts of earlier backups, for snapshots that carry only their job's number: agents before 0.6 made them, under the
//! machine's own name, which clones share.

use std::collections::BTreeMap;

use proto::HostName;
use proto::agent::{HostScope, JobId, Operation};
use proto::limits::EARLIER_JOBS_MAX;

/// Every backup that is remembered, by its host.
#[derive(Default)]
pub(super) struct Earlier(BTreeMap<HostName, Vec<JobId>>);

impl Earlier {
    /// Notes an order.
    pub(super) fn note(&mut self, host: &HostName, job: JobId, operation: &Operation) {
        if let Operation::Backup { .. } | Operation::BackupWith { .. } | Operation::BackupBy { .. } = operation {
            self.0.entry(host.clone()).or_default().push(job);
        }
    }

    /// What an agent must know for this operation: of its own host; of another one whose snapshots are meant; of all, if
    /// it removes or chooses among those of all. The oldest first, if there are too many: those are the snapshots that do
    /// not say it themselves.
    pub(super) fn of(&self, host: &HostName, operation: &Operation) -> Vec<(JobId, HostName)> {
        let other = match operation {
            Operation::Prune { .. } | Operation::Forget { .. } | Operation::Look { .. } => None,
            Operation::Restore { snapshot, .. }
            | Operation::RestoreSome { snapshot, .. }
            | Operation::RestoreOver { snapshot, .. }
            | Operation::RestorePaced { snapshot, .. }
            | Operation::RestoreTest { snapshot, .. }
            | Operation::Verify { snapshot, .. } => match &snapshot.of {
                HostScope::Any => None,
                HostScope::Own => Some(host),
                HostScope::Host(other) => Some(other),
            },
            Operation::Backup { .. } | Operation::BackupWith { .. } | Operation::BackupBy { .. } => Some(host),
            Operation::Check { .. }
            | Operation::Identify { .. }
            | Operation::Serve { .. }
            | Operation::Unserve { .. }
            | Operation::Keeping { .. }
            | Operation::Own { .. } => return Vec::new(),
        };
        let is_wanted = |of: &HostName| other.is_none_or(|other| of == other || of == host);
        let of_hosts = self.0.iter().filter(|(of, _)| is_wanted(of));
        let mut all: Vec<_> = of_hosts.flat_map(|(of, jobs)| jobs.iter().map(|job| (*job, of.clone()))).collect();
        all.sort_unstable();
        all.truncate(EARLIER_JOBS_MAX);
        all
    }
}

#[cfg(test)]
mod tests {
    use proto::agent::{Repository, SnapshotRef};

    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn at() -> Repository {
        Repository { path: "/r".into(), password_file: None }
    }

    fn backup() -> Operation {
        Operation::Backup { repository: at(), sources: vec!["/a".into()] }
    }

    fn restore(of: HostScope) -> Operation {
        let snapshot = SnapshotRef { of, ..SnapshotRef::latest() };
        Operation::Restore { repository: at(), snapshot, target: "/t".into() }
    }

    #[test]
    fn an_agent_learns_of_the_hosts_that_its_operation_concerns() {
        let mut earlier = Earlier::default();
        for (job, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "a")] {
            earlier.note(&host(name), JobId(job), &backup());
        }
        earlier.note(&host("a"), JobId(5), &Operation::Check { repository: at(), read_data: false });
        let of = |operation: &Operation| -> Vec<u64> {
            earlier.of(&host("a"), operation).iter().map(|(job, _)| job.0).collect()
        };
        assert_eq!(of(&backup()), [1, 4]);
        assert_eq!(of(&restore(HostScope::Own)), [1, 4]);
        assert_eq!(of(&restore(HostScope::Host(host("b")))), [1, 2, 4]);
        assert_eq!(of(&restore(HostScope::Any)), [1, 2, 3, 4]);
        assert_eq!(of(&Operation::Prune { repository: at(), keep_last: 1 }), [1, 2, 3, 4]);
        assert_eq!(of(&Operation::Check { repository: at(), read_data: true }), [] as [u64; 0]);
    }

    #[test]
    fn of_too_many_the_oldest_are_named() {
        let mut earlier = Earlier::default();
        for job in 0..EARLIER_JOBS_MAX as u64 + 7 {
            earlier.note(&host("a"), JobId(job), &backup());
        }
        let named = earlier.of(&host("a"), &backup());
        assert_eq!((named.len(), named[0].0), (EARLIER_JOBS_MAX, JobId(0)));
    }
}
