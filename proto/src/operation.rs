//! What an agent is ordered to do, on whose behalf, and which snapshots are meant.

use serde::{Deserialize, Serialize};

use crate::backup::BackupOptions;
use crate::bounded::{Line, List, Own, PathText, Paths, Word, within};
use crate::door::DoorKey;
use crate::keeping::Keeping;
use crate::limits::{ADDRESS_BYTES_MAX, EARLIER_JOBS_MAX, SOURCES_BYTES_MAX, SOURCES_MAX, VERSION_BYTES_MAX};
use crate::look::{Forget, Query};
use crate::means::{Commands, Pace};
use crate::name::{OperationKind, Product, RepositoryName};
use crate::own::Arguments;
use crate::restore::{Over, RestoreOptions};
use crate::snapshot::SnapshotRef;

/// The manager's number of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// A storage operation. Paths are on the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Back up directories; one unit (one snapshot) for each source.
    Backup {
        /// Where the snapshots go.
        repository: Repository,
        /// Absolute paths of directories or files; each is one unit, and becomes one snapshot.
        #[serde(deserialize_with = "within::<_, Paths<SOURCES_MAX, SOURCES_BYTES_MAX>>")]
        sources: Vec<String>,
    },
    /// Restore a snapshot into a directory, which is made if need be.
    Restore {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshots that are meant; more than one when several sources have a newest one.
        snapshot: SnapshotRef,
        /// Absolute path of that directory.
        #[serde(deserialize_with = "within::<_, PathText>")]
        target: String,
    },
    /// Compare snapshots with the directories that they were made of.
    Verify {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshots that are meant; more than one when several sources have a newest one.
        snapshot: SnapshotRef,
    },
    /// Check a repository's structure and, if asked, every byte of it.
    Check {
        /// The repository that it works on.
        repository: Repository,
        /// Also read all packs.
        read_data: bool,
    },
    /// Forget snapshots and free the space that nothing needs.
    Prune {
        /// The repository that it works on.
        repository: Repository,
        /// How many of the newest snapshots of each source stay; at least 1.
        keep_last: u32,
    },
    /// Say which repository this is: the one entry of the summary's `snapshots` is its own id, 64 hex digits, which
    /// it has however it is reached. The manager asks when two of its jobs may be at one repository.
    Identify {
        /// The repository that it works on.
        repository: Repository,
    },
    /// One that the agent's program brings itself.
    Own {
        /// As the program calls it; none of [`Operation::KINDS`].
        kind: OperationKind,
        /// What the program reads them as is its own affair.
        arguments: Arguments,
    },
    /// As `Backup`, with all that can be said of how it is done. Its outcome is [`crate::outcome::Outcome::BackedUp`].
    BackupWith {
        /// Where the snapshots go.
        repository: Repository,
        /// Absolute paths of directories or files.
        #[serde(deserialize_with = "within::<_, Paths<SOURCES_MAX, SOURCES_BYTES_MAX>>")]
        sources: Vec<String>,
        /// How.
        options: BackupOptions,
    },
    /// Look into a repository. Its outcome is [`crate::outcome::Outcome::Found`].
    Look {
        /// The repository that is looked into.
        repository: Repository,
        /// What for.
        query: Query,
    },
    /// Forget snapshots by the rules of a calendar. Its outcome is [`crate::outcome::Outcome::Found`], with every snapshot
    /// that was looked at.
    Forget {
        /// The repository that it works on.
        repository: Repository,
        /// Which.
        order: Forget,
    },
    /// As `Restore`, of a part of the snapshot, or only to say what it would do.
    RestoreSome {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshot that is meant.
        snapshot: SnapshotRef,
        /// Absolute path of the directory that it is restored into.
        #[serde(deserialize_with = "within::<_, PathText>")]
        target: String,
        /// Which part.
        options: RestoreOptions,
    },
    /// Serve a repository to agents of other hosts, from now on and after every start; it is made if it is not there.
    Serve {
        /// Where it lies.
        repository: Repository,
        /// What it is called.
        name: RepositoryName,
        /// Where others reach the agent, `HOST:PORT`. It listens on that port.
        #[serde(deserialize_with = "within::<_, Line<ADDRESS_BYTES_MAX>>")]
        address: String,
        /// What seals grants. `None` in the record of a job: it is told as the job is sent.
        key: Option<DoorKey>,
    },
    /// Serve it no longer. What lies in it stays.
    Unserve {
        /// Where it lies.
        repository: Repository,
        /// What it is called.
        name: RepositoryName,
    },
    /// Something about a repository that the agent serves, beside its data. Its outcome is
    /// [`crate::outcome::Outcome::OwnDone`].
    Keeping {
        /// What it is called.
        name: RepositoryName,
        /// What.
        order: Keeping,
    },
    /// As `RestoreSome`, over what is in the target.
    RestoreOver {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshot that is meant.
        snapshot: SnapshotRef,
        /// Absolute path of the directory that it is restored into; for one in place that of the source.
        #[serde(deserialize_with = "within::<_, PathText>")]
        target: String,
        /// Which part.
        options: RestoreOptions,
        /// What becomes of what is there.
        over: Over,
    },
    /// Restore a sample of the newest snapshots into a private place, compare it with them and, where that has not
    /// changed, with their sources, and remove it.
    RestoreTest {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshots that are meant.
        snapshot: SnapshotRef,
        /// Files of each snapshot, at most.
        files: u32,
        /// Bytes of them, at most.
        bytes: u64,
    },
    /// As `BackupWith`, with commands of the host's, or no faster than it may be. Its outcome is
    /// [`crate::outcome::Outcome::BackedUpBy`].
    BackupBy {
        /// Where the snapshots go.
        repository: Repository,
        /// Absolute paths of directories or files; of the output of a command the one path that it has in the snapshot.
        #[serde(deserialize_with = "within::<_, Paths<SOURCES_MAX, SOURCES_BYTES_MAX>>")]
        sources: Vec<String>,
        /// How.
        options: BackupOptions,
        /// What is run for it.
        commands: Commands,
        /// How fast.
        pace: Pace,
    },
    /// As `RestoreSome`, or `RestoreOver`, no faster than it may be.
    RestorePaced {
        /// Where the snapshots are.
        repository: Repository,
        /// The snapshot that is meant.
        snapshot: SnapshotRef,
        /// Absolute path of the directory that it is restored into.
        #[serde(deserialize_with = "within::<_, PathText>")]
        target: String,
        /// Which part.
        options: RestoreOptions,
        /// What becomes of what is there; none: the target is new or empty.
        over: Option<Over>,
        /// How fast.
        pace: Pace,
    },
}

/// On whose behalf an operation is done. The manager says it with the job, because only it knows: a machine's own name
/// is shared by its clones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOrigin {
    /// The enrolled host; snapshots carry its name.
    pub host: crate::name::HostName,
    /// The product that the job was ordered of.
    pub product: Product,
    /// The policy that ordered it; `None`: a person.
    #[serde(deserialize_with = "within::<_, Option<Word<VERSION_BYTES_MAX>>>")]
    pub policy: Option<String>,
    /// Hosts of earlier backup jobs of this manager, for snapshots that carry only their job's number.
    #[serde(deserialize_with = "within::<_, List<Own<(JobId, crate::name::HostName)>, EARLIER_JOBS_MAX>>")]
    pub earlier: Vec<(JobId, crate::name::HostName)>,
}

impl JobOrigin {
    /// Of a person's order.
    pub fn new(host: crate::name::HostName, product: Product) -> Self {
        Self { host, product, policy: None, earlier: Vec::new() }
    }
}

/// A restic-compatible repository on the agent's host, or one that another host serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Repository {
    /// Absolute path of its directory, which a backup makes if it is not there; or, to an agent, a [`crate::door::Door`];
    /// or, in a job's record, the name of one that is served.
    #[serde(deserialize_with = "within::<_, PathText>")]
    pub path: String,
    /// File on the host with the password; `None`: `STATE/repository.password`, made at first use.
    #[serde(deserialize_with = "within::<_, Option<PathText>>")]
    pub password_file: Option<String>,
}

impl Operation {
    /// The kinds that every program means the same by, and none brings itself.
    pub const KINDS: [&str; 6] = ["backup", "restore", "verify", "check", "prune", "identify"];

    /// One of [`Operation::KINDS`], or the program's own.
    pub fn kind(&self) -> &str {
        match self {
            Operation::Backup { .. } | Operation::BackupWith { .. } | Operation::BackupBy { .. } => "backup",
            Operation::Restore { .. }
            | Operation::RestoreSome { .. }
            | Operation::RestoreOver { .. }
            | Operation::RestorePaced { .. } => "restore",
            Operation::RestoreTest { .. } => "restore-test",
            Operation::Verify { .. } => "verify",
            Operation::Check { .. } => "check",
            Operation::Prune { .. } => "prune",
            Operation::Identify { .. } => "identify",
            Operation::Own { kind, .. } => kind.as_str(),
            Operation::Look { query, .. } => query.kind(),
            Operation::Forget { .. } => "forget",
            Operation::Serve { .. } => "serve",
            Operation::Unserve { .. } => "unserve",
            Operation::Keeping { order, .. } => order.kind(),
        }
    }

    /// The repository whose data it works on; `None`: that is known to the program alone, or it works on none.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Operation::Backup { repository, .. }
            | Operation::BackupWith { repository, .. }
            | Operation::BackupBy { repository, .. }
            | Operation::Restore { repository, .. }
            | Operation::Verify { repository, .. }
            | Operation::Check { repository, .. }
            | Operation::Prune { repository, .. }
            | Operation::Look { repository, .. }
            | Operation::Forget { repository, .. }
            | Operation::RestoreSome { repository, .. }
            | Operation::RestoreOver { repository, .. }
            | Operation::RestorePaced { repository, .. }
            | Operation::RestoreTest { repository, .. }
            | Operation::Serve { repository, .. }
            | Operation::Unserve { repository, .. }
            | Operation::Identify { repository } => Some(repository),
            Operation::Own { .. } | Operation::Keeping { .. } => None,
        }
    }

    /// The same, to be changed.
    pub fn repository_mut(&mut self) -> Option<&mut Repository> {
        match self {
            Operation::Backup { repository, .. }
            | Operation::BackupWith { repository, .. }
            | Operation::BackupBy { repository, .. }
            | Operation::Restore { repository, .. }
            | Operation::Verify { repository, .. }
            | Operation::Check { repository, .. }
            | Operation::Prune { repository, .. }
            | Operation::Look { repository, .. }
            | Operation::Forget { repository, .. }
            | Operation::RestoreSome { repository, .. }
            | Operation::RestoreOver { repository, .. }
            | Operation::RestorePaced { repository, .. }
            | Operation::RestoreTest { repository, .. }
            | Operation::Serve { repository, .. }
            | Operation::Unserve { repository, .. }
            | Operation::Identify { repository } => Some(repository),
            Operation::Own { .. } | Operation::Keeping { .. } => None,
        }
    }

    /// Whether the first agents did not know it.
    pub fn is_newer(&self) -> bool {
        match self {
            Operation::Backup { .. }
            | Operation::Restore { .. }
            | Operation::Verify { .. }
            | Operation::Check { .. }
            | Operation::Prune { .. }
            | Operation::Identify { .. } => false,
            Operation::Own { .. }
            | Operation::BackupWith { .. }
            | Operation::Look { .. }
            | Operation::RestoreSome { .. }
            | Operation::RestoreOver { .. }
            | Operation::RestoreTest { .. }
            | Operation::BackupBy { .. }
            | Operation::RestorePaced { .. }
            | Operation::Serve { .. }
            | Operation::Unserve { .. }
            | Operation::Keeping { .. }
            | Operation::Forget { .. } => true,
        }
    }

    /// The same in the words of agents that do not know the newer ones, if nothing is lost by it but what is counted.
    pub fn plain(&self) -> Option<Operation> {
        match self {
            Operation::BackupWith { repository, sources, options } if *options == BackupOptions::default() => {
                Some(Operation::Backup { repository: repository.clone(), sources: sources.clone() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::{Keep, SnapshotFilter};
    use crate::restore::Overwrite;
    use crate::snapshot::HostScope;

    fn repository(path: &str) -> Repository {
        Repository { path: path.to_owned(), password_file: None }
    }

    #[test]
    fn an_operation_has_a_kind_and_works_on_one_repository() {
        let at = |path| repository(path);
        let latest = SnapshotRef::latest;
        let all = || SnapshotFilter { of: HostScope::Any, source: None, tags: vec![] };
        let look = |query| Operation::Look { repository: at("/l"), query };
        let forget = Forget { snapshots: all(), keep: Keep::default(), dry_run: false, free: false };
        let operations = [
            (Operation::Backup { repository: at("/a"), sources: vec![] }, "backup", "/a"),
            (Operation::Restore { repository: at("/b"), snapshot: latest(), target: "/t".into() }, "restore", "/b"),
            (Operation::Verify { repository: at("/c"), snapshot: latest() }, "verify", "/c"),
            (Operation::Check { repository: at("/d"), read_data: false }, "check", "/d"),
            (Operation::Prune { repository: at("/e"), keep_last: 1 }, "prune", "/e"),
            (Operation::Identify { repository: at("/f") }, "identify", "/f"),
        ];
        let newer = [
            (look(Query::Snapshots(all())), "snapshots", "/l"),
            (look(Query::List { snapshot: latest(), path: None, recursive: true }), "ls", "/l"),
            (look(Query::Find { snapshots: all(), patterns: vec![] }), "find", "/l"),
            (look(Query::Diff { old: latest(), new: latest() }), "diff", "/l"),
            (look(Query::Dump { snapshot: latest(), path: "/p".into() }), "dump", "/l"),
            (Operation::Forget { repository: at("/m"), order: forget }, "forget", "/m"),
        ];
        for (operation, kind, path) in newer {
            assert_eq!((operation.kind(), operation.repository()), (kind, Some(&repository(path))));
            // A program that brings one of this name goes on bringing it.
            assert!(operation.is_newer() && !Operation::KINDS.contains(&kind));
        }
        for ((operation, kind, path), listed) in operations.into_iter().zip(Operation::KINDS) {
            assert_eq!((operation.kind(), operation.repository()), (kind, Some(&repository(path))));
            assert_eq!(kind, listed);
        }
        let with = |options| Operation::BackupWith { repository: at("/g"), sources: vec!["/s".into()], options };
        let plain = with(BackupOptions::default());
        assert_eq!((plain.kind(), plain.repository()), ("backup", Some(&repository("/g"))));
        assert_eq!(plain.plain(), Some(Operation::Backup { repository: at("/g"), sources: vec!["/s".into()] }));
        assert_eq!(with(BackupOptions { force: true, ..BackupOptions::default() }).plain(), None);
        let own = Operation::Own { kind: "rotate".parse().unwrap(), arguments: Arguments::default() };
        assert_eq!((own.kind(), own.repository()), ("rotate", None));
        assert!(own.is_newer() && plain.is_newer() && !plain.plain().unwrap().is_newer());
    }

    #[test]
    fn restoring_over_something_and_testing_a_restore_are_newer() {
        let (at, snapshot) = (|| repository("/r"), SnapshotRef::latest);
        let (options, over) = (RestoreOptions::default(), Over { policy: Overwrite::Never, delete: false });
        let target = "/t".to_owned();
        let over = Operation::RestoreOver { repository: at(), snapshot: snapshot(), target, options, over };
        let test = Operation::RestoreTest { repository: at(), snapshot: snapshot(), files: 1, bytes: 1 };
        let (sources, options, commands) = (vec!["/s".into()], BackupOptions::default(), Commands::default());
        let by = Operation::BackupBy { repository: at(), sources, options, commands, pace: Pace::default() };
        let (options, target, pace) = (RestoreOptions::default(), "/t".to_owned(), Pace::default());
        let paced =
            Operation::RestorePaced { repository: at(), snapshot: snapshot(), target, options, over: None, pace };
        let all = [(over, "restore"), (test, "restore-test"), (by, "backup"), (paced, "restore")];
        for (mut operation, kind) in all {
            assert_eq!((operation.kind(), operation.repository()), (kind, Some(&repository("/r"))));
            assert!(operation.is_newer() && operation.plain().is_none() && operation.repository_mut().is_some());
        }
    }

    #[test]
    fn serving_is_newer_and_a_repository_can_be_named_otherwise() {
        let name: RepositoryName = "main".parse().unwrap();
        let (address, key) = ("m:1".to_owned(), Some(DoorKey([1; 32])));
        let serve = Operation::Serve { repository: repository("/r"), name: name.clone(), address, key };
        let unserve = Operation::Unserve { repository: repository("/r"), name: name.clone() };
        let keep = Operation::Keeping { name, order: Keeping::Keys };
        assert!(keep.is_newer() && keep.plain().is_none() && keep.repository().is_none());
        assert_eq!(keep.kind(), "keys");
        for (mut operation, kind) in [(serve, "serve"), (unserve, "unserve")] {
            assert_eq!((operation.kind(), operation.repository()), (kind, Some(&repository("/r"))));
            assert!(operation.is_newer() && operation.plain().is_none());
            operation.repository_mut().unwrap().path = "other".into();
            assert_eq!(operation.repository(), Some(&repository("other")));
        }
        let mut own = Operation::Own { kind: "rotate".parse().unwrap(), arguments: Arguments::default() };
        assert_eq!(own.repository_mut(), None);
        assert!("/main".parse::<RepositoryName>().is_err() && "Main".parse::<RepositoryName>().is_err());
    }

    #[test]
    fn a_persons_order_has_no_policy_and_no_history() {
        let origin = JobOrigin::new("host-1".parse().unwrap(), "agent".parse().unwrap());
        assert_eq!((origin.host.as_str(), origin.product.as_str()), ("host-1", "agent"));
        assert_eq!((origin.policy, origin.earlier), (None, vec![]));
    }
}
