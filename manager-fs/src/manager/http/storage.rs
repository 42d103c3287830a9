//! Jobs as they can be ordered by HTTP.

use std::collections::BTreeMap;

use hyper::Method;
use proto::agent::{Operation, Repository};
use proto::backup::BackupOptions;
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::look::{Forget, Keep, Query, SnapshotFilter};
use proto::name::Target;
use proto::own::Arguments;
use proto::restore::{Over, Overwrite, RestoreOptions};
use proto::snapshot::{HostScope, SnapshotRef};
use proto::{ArgumentName, HostName, OperationKind, Product};
use schemars::JsonSchema;
use serde::Deserialize;

use super::ask::from_text;
use super::problem::Problem;
use super::route::Route;
use super::shape::{HostForm, NameForm, ProductForm, TargetForm};
use crate::manager::admin::{AdminReply, Quick};
use crate::manager::control::api_tokens::Role;
use crate::manager::documents::JobsDocument;
use crate::manager::policy::definition::{SAMPLE_FILES, SAMPLE_MIB};

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let order = Route::quick::<JobsDocument>(
        Method::POST,
        "/v1/jobs",
        Role::Operator,
        "Order a storage operation on a host, or on each host of a group. It is done when the host can; its events follow \
         it",
        |ask| Ok(vec![order(ask.json()?)?]),
        |_, mut replies| {
            let jobs = replies.next(|reply| match reply {
                AdminReply::Job(job) => Some(vec![job]),
                AdminReply::Ordered(jobs) => Some(jobs),
                _ => None,
            })?;
            Ok(JobsDocument::of(&jobs, false))
        },
    )
    .takes::<JobBody>();
    vec![order]
}

/// A storage operation.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JobBody {
    /// On this host, or on each host of this group.
    #[schemars(with = "TargetForm")]
    #[serde(deserialize_with = "from_text")]
    host: Target,
    /// Which agent does it; without it the data agent, or the media agent for check, prune and forget.
    #[schemars(with = "Option<ProductForm>")]
    product: Option<Product>,
    /// The repository's directory on the host, or the name of one that is served. Not of an operation of an agent's own.
    #[schemars(length(min = 1, max = 4096))]
    repository: Option<String>,
    /// File on the host with the repository's password.
    password_file: Option<String>,
    /// What is done.
    operation: OperationBody,
}

/// What is done.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum OperationBody {
    /// Back up directories of the host, each as one snapshot.
    Backup(BackupBody),
    /// Restore a snapshot into a directory.
    Restore(RestoreBody),
    /// Restore a sample of snapshots into a place of the agent's own, compare it, and remove it.
    RestoreTest {
        /// Which snapshots.
        #[serde(default)]
        snapshot: SnapshotBody,
        /// How many files of each at most.
        #[schemars(range(min = 1, max = 10_000))]
        files: Option<u32>,
        /// How many MiB of each at most.
        #[schemars(range(min = 1))]
        mib: Option<u32>,
    },
    /// Compare a snapshot with the directory that it was made of.
    Verify {
        /// Which.
        #[serde(default)]
        snapshot: SnapshotBody,
    },
    /// Check a repository's structure.
    Check {
        /// Also read every byte.
        #[serde(default)]
        read_data: bool,
    },
    /// Forget old snapshots and free their space.
    Prune {
        /// How many of the newest snapshots of each source stay.
        #[schemars(range(min = 1))]
        keep_last: u32,
    },
    /// Forget snapshots by the rules of a calendar.
    Forget(ForgetBody),
    /// List snapshots.
    Snapshots {
        /// Which.
        #[serde(default)]
        of: FilterBody,
    },
    /// List what is in a snapshot.
    Ls {
        /// Which.
        #[serde(default)]
        snapshot: SnapshotBody,
        /// Only what lies at this absolute path.
        path: Option<String>,
        /// Also what is in the directories.
        #[serde(default)]
        recursive: bool,
    },
    /// Find files by their names.
    Find {
        /// In which snapshots.
        #[serde(default)]
        of: FilterBody,
        /// As in a .gitignore.
        #[schemars(length(min = 1, max = 64))]
        patterns: Vec<String>,
    },
    /// How two snapshots differ.
    Diff {
        /// The one before.
        old: SnapshotBody,
        /// The one after.
        #[serde(default)]
        new: SnapshotBody,
    },
    /// A file of a snapshot, of 512 KiB at most.
    Dump {
        /// Which.
        #[serde(default)]
        snapshot: SnapshotBody,
        /// The file's absolute path.
        path: String,
    },
    /// An operation of an agent's own kind.
    Own {
        /// What its program calls it.
        #[schemars(with = "NameForm")]
        kind: OperationKind,
        /// What it is given, by name.
        #[serde(default)]
        arguments: BTreeMap<String, String>,
    },
}

/// Which snapshots are meant.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
struct SnapshotBody {
    /// Its id, the start of one, or latest (latest~1 is the one before).
    id: Option<String>,
    /// Of this host, in the place of the one that does it.
    #[schemars(with = "Option<HostForm>")]
    of_host: Option<HostName>,
    /// Of any host.
    #[serde(default)]
    any_host: bool,
    /// Of this source.
    source: Option<String>,
}

impl SnapshotBody {
    fn reference(self) -> SnapshotRef {
        let of = scope(self.of_host, self.any_host);
        SnapshotRef { snapshot: self.id.unwrap_or_else(|| String::from("latest")), of, source: self.source }
    }
}

/// Which snapshots are looked at.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
struct FilterBody {
    /// Of this host, in the place of the one that does it.
    #[schemars(with = "Option<HostForm>")]
    of_host: Option<HostName>,
    /// Of any host.
    #[serde(default)]
    any_host: bool,
    /// Of this source.
    source: Option<String>,
    /// With all of these tags.
    #[serde(default)]
    tags: Vec<String>,
}

impl FilterBody {
    fn filter(self) -> SnapshotFilter {
        SnapshotFilter { of: scope(self.of_host, self.any_host), source: self.source, tags: self.tags }
    }
}

fn scope(of_host: Option<HostName>, any_host: bool) -> HostScope {
    match of_host {
        Some(host) => HostScope::Host(host),
        None if any_host => HostScope::Any,
        None => HostScope::Own,
    }
}

/// A backup.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BackupBody {
    /// Absolute paths on the host.
    #[schemars(length(min = 1, max = 64))]
    sources: Vec<String>,
    /// What is left out, as in a .gitignore.
    #[serde(default)]
    exclude: Vec<String>,
    /// Directories in which a file of this name lies are left out.
    #[serde(default)]
    exclude_if_present: Vec<String>,
    /// Directories are left out that say that they are caches.
    #[serde(default)]
    exclude_caches: bool,
    /// Larger files are left out.
    exclude_larger_than: Option<u64>,
    /// What is mounted below the sources is left out.
    #[serde(default)]
    one_file_system: bool,
    /// The sources become one snapshot.
    #[serde(default)]
    together: bool,
    /// Tags of the snapshots.
    #[serde(default)]
    tags: Vec<String>,
    /// Only say what would be stored.
    #[serde(default)]
    dry_run: bool,
    /// Read every file, also those that seem unchanged.
    #[serde(default)]
    force: bool,
}

/// A restore.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RestoreBody {
    /// Which snapshot.
    #[serde(default)]
    snapshot: SnapshotBody,
    /// Absolute path of the directory on the host, which is made if need be.
    target: String,
    /// Only what lies at these, as in a .gitignore.
    #[serde(default)]
    include: Vec<String>,
    /// Not what lies at these.
    #[serde(default)]
    exclude: Vec<String>,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
    /// Restore over what is there.
    overwrite: Option<OverwriteBody>,
    /// Remove from what is restored over whatever the snapshot does not have.
    #[serde(default)]
    delete: bool,
}

/// When an entry that is there gives way.
#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum OverwriteBody {
    /// Only what is missing is restored.
    Never,
    /// If the snapshot's was modified later.
    IfNewer,
    /// Unless they seem to be the same.
    IfChanged,
    /// Always.
    Always,
}

/// Which snapshots stay; at least one rule.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ForgetBody {
    /// Which are looked at.
    #[serde(default)]
    of: FilterBody,
    /// So many of the newest.
    #[serde(default)]
    keep_last: u32,
    /// The newest of each of so many hours.
    #[serde(default)]
    keep_hourly: u32,
    /// Of so many days.
    #[serde(default)]
    keep_daily: u32,
    /// Of so many weeks.
    #[serde(default)]
    keep_weekly: u32,
    /// Of so many months.
    #[serde(default)]
    keep_monthly: u32,
    /// Of so many years.
    #[serde(default)]
    keep_yearly: u32,
    /// All that are no older.
    keep_within_seconds: Option<u64>,
    /// All that have one of these tags.
    #[serde(default)]
    keep_tags: Vec<String>,
    /// Only say what would stay.
    #[serde(default)]
    dry_run: bool,
    /// Free the space that nothing needs then.
    #[serde(default)]
    prune: bool,
}

fn order(body: JobBody) -> Result<Quick, Problem> {
    let JobBody { host, product, repository, password_file, operation } = body;
    let usual = match operation {
        OperationBody::Check { .. } | OperationBody::Prune { .. } | OperationBody::Forget(_) => Some("media-agent"),
        OperationBody::Own { .. } => None,
        _ => Some("data-agent"),
    };
    let product = match (product, usual.and_then(|usual| usual.parse().ok())) {
        (Some(product), _) | (None, Some(product)) => product,
        (None, None) => return Err(Problem::bad_request("product: name the agent whose own operation it is")),
    };
    let operation = match (operation, repository) {
        (OperationBody::Own { kind, arguments }, None) => own(kind, arguments)?,
        (OperationBody::Own { .. }, Some(_)) => {
            return Err(Problem::bad_request("repository: an operation of an agent's own works on none"));
        }
        (_, None) => return Err(Problem::bad_request("repository: say which")),
        (operation, Some(path)) => on(Repository { path, password_file }, operation)?,
    };
    let operation = bounded(&operation)?;
    Ok(match host {
        Target::Host(host) => Quick::JobRun { host, product, operation },
        Target::Group(group) => Quick::JobRunOnGroup { group, product, operation },
    })
}

fn own(kind: OperationKind, given: BTreeMap<String, String>) -> Result<Operation, Problem> {
    let wrong =
        |fault: &dyn std::fmt::Display| Problem::bad_request(proto::text::line(&format!("arguments: {fault}"), 400));
    let mut arguments = Arguments::default();
    for (name, value) in given {
        let name: ArgumentName = name.parse().map_err(|fault| wrong(&fault))?;
        arguments.add(name, &value).map_err(|fault| wrong(&fault))?;
    }
    Ok(Operation::Own { kind, arguments })
}

/// One that works on a repository.
fn on(repository: Repository, operation: OperationBody) -> Result<Operation, Problem> {
    let look = |repository, query| Operation::Look { repository, query };
    Ok(match operation {
        OperationBody::Backup(body) => body.operation(repository),
        OperationBody::Restore(body) => body.operation(repository),
        OperationBody::RestoreTest { snapshot, files, mib } => Operation::RestoreTest {
            repository,
            snapshot: snapshot.reference(),
            files: files.unwrap_or(SAMPLE_FILES),
            bytes: u64::from(mib.unwrap_or(SAMPLE_MIB)) << 20,
        },
        OperationBody::Verify { snapshot } => Operation::Verify { repository, snapshot: snapshot.reference() },
        OperationBody::Check { read_data } => Operation::Check { repository, read_data },
        OperationBody::Prune { keep_last } => Operation::Prune { repository, keep_last },
        OperationBody::Forget(body) => Operation::Forget { repository, order: body.order() },
        OperationBody::Snapshots { of } => look(repository, Query::Snapshots(of.filter())),
        OperationBody::Ls { snapshot, path, recursive } => {
            look(repository, Query::List { snapshot: snapshot.reference(), path, recursive })
        }
        OperationBody::Find { of, patterns } => look(repository, Query::Find { snapshots: of.filter(), patterns }),
        OperationBody::Diff { old, new } => {
            look(repository, Query::Diff { old: old.reference(), new: new.reference() })
        }
        OperationBody::Dump { snapshot, path } => {
            look(repository, Query::Dump { snapshot: snapshot.reference(), path })
        }
        OperationBody::Own { .. } => return Err(Problem::unexpected()),
    })
}

impl BackupBody {
    fn operation(self, repository: Repository) -> Operation {
        let options = BackupOptions {
            exclude: self.exclude,
            exclude_if_present: self.exclude_if_present,
            exclude_caches: self.exclude_caches,
            exclude_larger_than: self.exclude_larger_than,
            one_file_system: self.one_file_system,
            together: self.together,
            tags: self.tags,
            dry_run: self.dry_run,
            force: self.force,
            ..BackupOptions::default()
        };
        Operation::BackupWith { repository, sources: self.sources, options }
    }
}

impl RestoreBody {
    fn operation(self, repository: Repository) -> Operation {
        let (snapshot, target) = (self.snapshot.reference(), self.target);
        let options = RestoreOptions { include: self.include, exclude: self.exclude, dry_run: self.dry_run };
        let policy = self.overwrite.map(|when| match when {
            OverwriteBody::Never => Overwrite::Never,
            OverwriteBody::IfNewer => Overwrite::IfNewer,
            OverwriteBody::IfChanged => Overwrite::IfChanged,
            OverwriteBody::Always => Overwrite::Always,
        });
        match policy {
            Some(policy) => {
                let over = Over { policy, delete: self.delete };
                Operation::RestoreOver { repository, snapshot, target, options, over }
            }
            None if options == RestoreOptions::default() => Operation::Restore { repository, snapshot, target },
            None => Operation::RestoreSome { repository, snapshot, target, options },
        }
    }
}

impl ForgetBody {
    fn order(self) -> Forget {
        let keep = Keep {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within_seconds: self.keep_within_seconds,
            tags: self.keep_tags,
        };
        Forget { snapshots: self.of.filter(), keep, dry_run: self.dry_run, free: self.prune }
    }
}

/// The same within the bounds that an agent reads it by.
fn bounded(operation: &Operation) -> Result<Operation, Problem> {
    let wrong =
        |fault: &dyn std::fmt::Display| Problem::bad_request(proto::text::line(&format!("operation: {fault}"), 400));
    let bytes = codec::encode(operation).map_err(|fault| wrong(&fault))?;
    codec::decode::<Operation, MESSAGE_BYTES_MAX>(&bytes).map_err(|fault| wrong(&fault))
}

#[cfg(test)]
mod tests {
    use super::super::ask::Ask;
    use super::*;
    use hyper::body::Bytes;

    fn ordered(body: &str) -> Result<Quick, String> {
        let body = Bytes::from(body.to_owned());
        let ask = Ask { path: Vec::new(), query: Vec::new(), body, role: Role::Operator };
        ask.json().and_then(order).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_body_is_the_operation_that_the_command_line_orders() {
        let on = |operation: &str| format!(r#"{{"host": "h", "repository": "/r", "operation": {operation}}}"#);
        for (body, kind, product) in [
            (r#"{"backup": {"sources": ["/etc"], "tags": ["a"]}}"#, "backup", "data-agent"),
            (r#"{"restore": {"target": "/t"}}"#, "restore", "data-agent"),
            (r#"{"restore": {"target": "/t", "overwrite": "if-newer", "delete": true}}"#, "restore", "data-agent"),
            (r#"{"restore-test": {}}"#, "restore-test", "data-agent"),
            (r#"{"verify": {"snapshot": {"id": "latest~1", "any_host": true}}}"#, "verify", "data-agent"),
            (r#"{"check": {"read_data": true}}"#, "check", "media-agent"),
            (r#"{"prune": {"keep_last": 3}}"#, "prune", "media-agent"),
            (r#"{"forget": {"keep_daily": 7, "prune": true}}"#, "forget", "media-agent"),
            (r#"{"snapshots": {}}"#, "snapshots", "data-agent"),
            (r#"{"ls": {"path": "/etc"}}"#, "ls", "data-agent"),
            (r#"{"find": {"patterns": ["*.conf"]}}"#, "find", "data-agent"),
            (r#"{"diff": {"old": {"id": "latest~1"}}}"#, "diff", "data-agent"),
            (r#"{"dump": {"path": "/etc/hosts"}}"#, "dump", "data-agent"),
        ] {
            let Ok(Quick::JobRun { product: by, operation, .. }) = ordered(&on(body)) else { panic!("{body}") };
            assert_eq!((operation.kind(), by.as_str()), (kind, product), "{body}");
            assert_eq!(operation.repository().unwrap().path, "/r");
        }
        let own = r#"{"host": "@g", "product": "worker", "operation": {"own": {"kind": "digest", "arguments": {"a": "1"}}}}"#;
        let Ok(Quick::JobRunOnGroup { operation, .. }) = ordered(own) else { panic!() };
        assert_eq!(operation.kind(), "digest");
    }

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        let long = "x".repeat(1 << 18);
        let large =
            format!(r#"{{"host": "h", "repository": "/r", "operation": {{"backup": {{"sources": ["/{long}"]}}}}}}"#);
        for (body, said) in [
            (r#"{"host": "h", "operation": {"check": {}}}"#, "repository: say which"),
            (r#"{"host": "h", "operation": {"own": {"kind": "digest"}}}"#, "product: name the agent"),
            (r#"{"host": "h", "repository": "/r", "operation": {"serve": {}}}"#, "unknown variant"),
            (r#"{"host": "h", "repository": "/r", "operation": {"check": {"depth": 1}}}"#, "unknown field"),
            (large.as_str(), "operation: "),
        ] {
            let refused = ordered(body).unwrap_err();
            assert!(refused.contains(said) && refused.len() <= 450, "{refused}");
        }
    }
}
