//! Values of every message, within their bounds: what an honest peer may send.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proto::agent::{
    AgentReply, AgentRequest, AgentState, AgentStatus, ChangeId, HostScope, JobId, JobOrigin, Operation, Outcome,
    Progress, Repository, SnapshotRef, Step, StepEvent, Summary,
};
use proto::backup::{BackupCounts, BackupOptions};
use proto::bundle::Touch;
use proto::daemon::{Attached, CacheReport, DaemonReply, DaemonRequest, StageProgress};
use proto::door::DoorKey;
use proto::keeping::{Keeping, Refused};
use proto::look::{Forget, Found, FoundEntry, FoundSnapshot, Keep, Query, SnapshotFilter};
use proto::means::{Commands, Pace, Ran};
use proto::message::{
    BundleFacts, ChangeOver, ChunkRange, Fault, HostReply, HostReport, HostRequest, Instance, ManagerReply,
    ManagerRequest, Role,
};
use proto::name::Target;
use proto::own::{Arguments, Finding, OwnSummary};
use proto::record::{ElfFile, HealthContract, Metadata, SchemaRange, Script};
use proto::recovery::RecoveryKey;
use proto::restore::{Over, Overwrite, RestoreOptions};
use proto::trace::{Trace, TraceEvent, TraceWhat};
use proto::{
    CommandName, GenerationRecord, GenerationRef, GroupName, HostName, ObjectId, Product, TreeId, TreePath, Version,
};

fn product() -> impl Strategy<Value = Product> {
    "[a-zA-Z0-9][a-zA-Z0-9._+-]{0,63}".prop_map(|text| text.parse().unwrap())
}

fn version() -> impl Strategy<Value = Version> {
    "[a-zA-Z0-9][a-zA-Z0-9._+~:-]{0,127}".prop_map(|text| text.parse().unwrap())
}

fn host() -> impl Strategy<Value = HostName> {
    "[a-z0-9][a-z0-9._-]{0,60}".prop_map(|text| text.parse().unwrap())
}

fn group() -> impl Strategy<Value = GroupName> {
    "[a-z0-9][a-z0-9._-]{0,60}".prop_map(|text| text.parse().unwrap())
}

fn tree() -> impl Strategy<Value = TreeId> {
    any::<[u8; 32]>().prop_map(TreeId::from_bytes)
}

fn object() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 32]>().prop_map(ObjectId::from_bytes)
}

fn job() -> impl Strategy<Value = JobId> {
    any::<u64>().prop_map(JobId)
}

fn change() -> impl Strategy<Value = ChangeId> {
    any::<u64>().prop_map(ChangeId)
}

fn blob() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..60)
}

/// A line for people: as it is once it has been cleaned.
fn line() -> impl Strategy<Value = String> {
    "[ -~äöü€]{0,40}"
}

fn path() -> impl Strategy<Value = String> {
    "(/[^\0/]{1,8}){1,4}"
}

fn tree_path() -> impl Strategy<Value = TreePath> {
    "[a-z]{1,5}(/[a-z]{1,5}){0,3}".prop_map(|text| TreePath::parse(text.as_bytes()).unwrap())
}

fn repository() -> impl Strategy<Value = Repository> {
    (path(), option::of(path())).prop_map(|(path, password_file)| Repository { path, password_file })
}

fn scope() -> impl Strategy<Value = HostScope> {
    prop_oneof![Just(HostScope::Own), host().prop_map(HostScope::Host), Just(HostScope::Any)]
}

fn snapshot() -> impl Strategy<Value = SnapshotRef> {
    ("[!-~]{1,64}", scope(), option::of(path())).prop_map(|(snapshot, of, source)| SnapshotRef {
        snapshot,
        of,
        source,
    })
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (repository(), vec(path(), 0..5)).prop_map(|(repository, sources)| Operation::Backup { repository, sources }),
        (repository(), snapshot(), path()).prop_map(|(repository, snapshot, target)| Operation::Restore {
            repository,
            snapshot,
            target
        }),
        (repository(), snapshot()).prop_map(|(repository, snapshot)| Operation::Verify { repository, snapshot }),
        (repository(), any::<bool>()).prop_map(|(repository, read_data)| Operation::Check { repository, read_data }),
        (repository(), any::<u32>()).prop_map(|(repository, keep_last)| Operation::Prune { repository, keep_last }),
        repository().prop_map(|repository| Operation::Identify { repository }),
        ("[a-z0-9][a-z0-9-]{0,31}", own_arguments())
            .prop_map(|(kind, arguments)| Operation::Own { kind: kind.parse().unwrap(), arguments }),
        (repository(), vec(path(), 0..5), backup_options())
            .prop_map(|(repository, sources, options)| { Operation::BackupWith { repository, sources, options } }),
        (repository(), query()).prop_map(|(repository, query)| Operation::Look { repository, query }),
        (repository(), filter(), keep(), any::<(bool, bool)>()).prop_map(|(repository, snapshots, keep, flags)| {
            let (dry_run, free) = flags;
            Operation::Forget { repository, order: Forget { snapshots, keep, dry_run, free } }
        }),
        (repository(), snapshot(), path(), vec(path(), 0..3), vec(path(), 0..3), any::<bool>()).prop_map(
            |(repository, snapshot, target, include, exclude, dry_run)| Operation::RestoreSome {
                repository,
                snapshot,
                target,
                options: RestoreOptions { include, exclude, dry_run },
            }
        ),
        (repository(), "[a-z0-9][a-z0-9-]{0,63}", "[a-z]{1,9}:[1-9]", option::of(any::<[u8; 32]>())).prop_map(
            |(repository, name, address, key)| Operation::Serve {
                repository,
                name: name.parse().unwrap(),
                address,
                key: key.map(DoorKey),
            }
        ),
        (repository(), "[a-z0-9][a-z0-9-]{0,63}")
            .prop_map(|(repository, name)| Operation::Unserve { repository, name: name.parse().unwrap() }),
        ("[a-z0-9][a-z0-9-]{0,63}", keeping())
            .prop_map(|(name, order)| Operation::Keeping { name: name.parse().unwrap(), order }),
        (repository(), snapshot(), path(), vec(path(), 0..3), any::<(bool, bool, u8)>()).prop_map(
            |(repository, snapshot, target, include, (dry_run, delete, which))| Operation::RestoreOver {
                repository,
                snapshot,
                target,
                options: RestoreOptions { include, exclude: Vec::new(), dry_run },
                over: Over { policy: Overwrite::ALL[usize::from(which % 4)], delete },
            }
        ),
        paced(),
        (repository(), snapshot(), any::<(u32, u64)>()).prop_map(|(repository, snapshot, (files, bytes))| {
            Operation::RestoreTest { repository, snapshot, files, bytes }
        }),
    ]
}

/// Those with limits of speed.
fn paced() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (repository(), vec(path(), 0..5), backup_options(), commands(), pace()).prop_map(
            |(repository, sources, options, commands, pace)| Operation::BackupBy {
                repository,
                sources,
                options,
                commands,
                pace,
            }
        ),
        (repository(), snapshot(), path(), vec(path(), 0..3), pace(), any::<(bool, bool)>()).prop_map(
            |(repository, snapshot, target, include, pace, (dry_run, over))| Operation::RestorePaced {
                repository,
                snapshot,
                target,
                options: RestoreOptions { include, exclude: Vec::new(), dry_run },
                over: over.then_some(Over { policy: Overwrite::Always, delete: dry_run }),
                pace,
            }
        ),
    ]
}

fn command_name() -> impl Strategy<Value = CommandName> {
    "[a-z0-9][a-zA-Z0-9._-]{0,63}".prop_map(|text| text.parse().unwrap())
}

fn commands() -> impl Strategy<Value = Commands> {
    (option::of(command_name()), option::of(command_name()), option::of(command_name()), any::<u32>())
        .prop_map(|(output_of, before, after, seconds)| Commands { output_of, before, after, seconds })
}

fn pace() -> impl Strategy<Value = Pace> {
    any::<[Option<u64>; 3]>().prop_map(|[read, upload, download]| Pace { read, upload, download })
}

fn ran() -> impl Strategy<Value = Ran> {
    (command_name(), line(), line(), vec(line(), 0..4), any::<u64>())
        .prop_map(|(command, moment, ended, output, duration_ms)| Ran { command, moment, ended, output, duration_ms })
}

fn keeping() -> impl Strategy<Value = Keeping> {
    let grant =
        ("[ -~]{0,64}", any::<u64>()).prop_map(|(what, until_unix_ms)| Refused::Grant { what, until_unix_ms });
    let host = ("[a-z][a-z0-9]{0,30}", any::<u64>())
        .prop_map(|(host, until_unix_ms)| Refused::Host { host: host.parse().unwrap(), until_unix_ms });
    prop_oneof![
        Just(Keeping::Keys),
        any::<[u8; 32]>().prop_map(|key| Keeping::AddKey(RecoveryKey(key))),
        "[0-9a-f]{64}".prop_map(Keeping::RemoveKey),
        any::<[u8; 32]>().prop_map(|key| Keeping::Escrow(RecoveryKey(key))),
        vec(prop_oneof![grant, host], 0..4).prop_map(Keeping::Refuse),
    ]
}

fn backup_options() -> impl Strategy<Value = BackupOptions> {
    let lists = (vec(path(), 0..4), vec(path(), 0..3), vec(path(), 0..3), vec("[!-~]{1,128}", 0..3));
    let flags = any::<(bool, bool, bool, bool, bool)>();
    (lists, flags, any::<(Option<u64>, Option<u8>, Option<u8>)>()).prop_map(|(lists, flags, numbers)| {
        let (exclude, exclude_files, exclude_if_present, tags) = lists;
        let (exclude_caches, one_file_system, together, dry_run, force) = flags;
        let (exclude_larger_than, readers, compression) = numbers;
        BackupOptions {
            exclude,
            exclude_files,
            exclude_if_present,
            exclude_caches,
            exclude_larger_than,
            one_file_system,
            together,
            tags,
            dry_run,
            force,
            readers,
            compression,
        }
    })
}

fn filter() -> impl Strategy<Value = SnapshotFilter> {
    (scope(), option::of(path()), vec("[!-~]{1,128}", 0..3)).prop_map(|(of, source, tags)| SnapshotFilter {
        of,
        source,
        tags,
    })
}

fn keep() -> impl Strategy<Value = Keep> {
    (any::<[u32; 6]>(), any::<Option<u64>>(), vec("[!-~]{1,128}", 0..3)).prop_map(|(counts, within_seconds, tags)| {
        let [last, hourly, daily, weekly, monthly, yearly] = counts;
        Keep { last, hourly, daily, weekly, monthly, yearly, within_seconds, tags }
    })
}

fn query() -> impl Strategy<Value = Query> {
    prop_oneof![
        filter().prop_map(Query::Snapshots),
        (snapshot(), option::of(path()), any::<bool>()).prop_map(|(snapshot, path, recursive)| Query::List {
            snapshot,
            path,
            recursive
        }),
        (filter(), vec(path(), 0..3)).prop_map(|(snapshots, patterns)| Query::Find { snapshots, patterns }),
        (snapshot(), snapshot()).prop_map(|(old, new)| Query::Diff { old, new }),
        (snapshot(), path()).prop_map(|(snapshot, path)| Query::Dump { snapshot, path }),
        (filter(), vec(path(), 0..3), any::<[Option<i64>; 2]>()).prop_map(
            |(snapshots, patterns, [since_unix_ms, until_unix_ms])| Query::FindModified {
                snapshots,
                patterns,
                since_unix_ms,
                until_unix_ms,
            }
        ),
    ]
}

fn found() -> impl Strategy<Value = Found> {
    let texts = ("[!-~]{1,64}", line(), line(), option::of(line()));
    let lists = (vec(line(), 0..3), vec(line(), 0..3));
    (texts, lists, any::<[u64; 3]>(), any::<(Option<u32>, Option<i64>, bool, u8)>()).prop_map(
        |(
            (id, one, other, change),
            (sources, tags),
            [at_unix_ms, files, bytes],
            (mode, mtime_unix_ms, flag, which),
        )| {
            match which % 3 {
                0 => Found::Snapshot(FoundSnapshot {
                    id,
                    owner: one,
                    at_unix_ms,
                    sources,
                    tags,
                    files,
                    bytes,
                    forgotten: flag,
                    why: other,
                }),
                1 => Found::Entry(FoundEntry {
                    snapshot: id,
                    path: one,
                    kind: other,
                    mode,
                    user: mode,
                    group: None,
                    size: bytes,
                    mtime_unix_ms,
                    change,
                }),
                _ => Found::Content(one.into_bytes()),
            }
        },
    )
}

fn backup_counts() -> impl Strategy<Value = BackupCounts> {
    any::<[u64; 8]>().prop_map(|[files_new, files_changed, files_unmodified, dirs_new, dirs_changed, rest @ ..]| {
        let [dirs_unmodified, added_bytes, duration_ms] = rest;
        BackupCounts {
            files_new,
            files_changed,
            files_unmodified,
            dirs_new,
            dirs_changed,
            dirs_unmodified,
            added_bytes,
            duration_ms,
        }
    })
}

fn own_arguments() -> impl Strategy<Value = Arguments> {
    btree_map("[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", "[^\0]{0,40}", 0..5).prop_map(|pairs| {
        let mut arguments = Arguments::default();
        pairs.iter().for_each(|(name, value)| arguments.add(name.parse().unwrap(), value).unwrap());
        arguments
    })
}

fn own_summary() -> impl Strategy<Value = OwnSummary> {
    let finding = ("[a-z]{1,8}", line()).prop_map(|(name, text)| Finding { name: name.parse().unwrap(), text });
    (vec(finding, 0..4), vec(line(), 0..4), vec(line(), 0..4)).prop_map(|(results, problems, versions)| OwnSummary {
        results,
        problems,
        versions,
    })
}

fn origin() -> impl Strategy<Value = JobOrigin> {
    (host(), product(), option::of("[!-~]{1,128}"), vec((job(), host()), 0..4))
        .prop_map(|(host, product, policy, earlier)| JobOrigin { host, product, policy, earlier })
}

pub(crate) fn progress() -> impl Strategy<Value = Progress> {
    (any::<(u32, u32, u64, u64)>(), line(), line()).prop_map(
        |((units_done, units, bytes_done, bytes), activity, version)| Progress {
            units_done,
            units,
            bytes_done,
            bytes,
            activity,
            version,
        },
    )
}

fn summary() -> impl Strategy<Value = Summary> {
    (vec("[!-~]{1,64}", 0..4), any::<(u64, u64, u64)>(), vec(line(), 0..4), vec(line(), 0..4)).prop_map(
        |(snapshots, (files, bytes, repository_bytes), problems, versions)| Summary {
            snapshots,
            files,
            bytes,
            repository_bytes,
            problems,
            versions,
        },
    )
}

pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        summary().prop_map(Outcome::Done),
        own_summary().prop_map(Outcome::OwnDone),
        (summary(), backup_counts()).prop_map(|(summary, counts)| Outcome::BackedUp { summary, counts }),
        (summary(), backup_counts(), vec(ran(), 0..4)).prop_map(|(summary, counts, ran)| Outcome::BackedUpBy {
            summary,
            counts,
            ran
        }),
        summary().prop_map(Outcome::Cancelled),
        line().prop_map(Outcome::Failed),
        (summary(), vec(found(), 0..4), any::<u64>()).prop_map(|(summary, found, left_out)| Outcome::Found {
            summary,
            found,
            left_out
        }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        line().prop_map(Fault::NotExported),
        line().prop_map(Fault::Refused),
        line().prop_map(Fault::NotFound),
        line().prop_map(Fault::BadRequest),
        Just(Fault::Draining),
        line().prop_map(Fault::Unavailable),
        line().prop_map(Fault::Failed),
    ]
}

fn state() -> impl Strategy<Value = AgentState> {
    use AgentState::*;
    prop::sample::select(vec![Probation, Serving, Staging, Draining, Swapping, Stopped])
}

fn status() -> impl Strategy<Value = AgentStatus> {
    (product(), version(), tree(), any::<(u32, u64)>(), state(), vec(job(), 0..4), line()).prop_map(
        |(product, version, tree, (pid, started_unix_ms), state, jobs, reason)| AgentStatus {
            product,
            version,
            tree,
            pid,
            started_unix_ms,
            state,
            jobs,
            reason,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop::sample::select(vec![
        MetadataSaved,
        Staged,
        Warmed,
        Drained,
        Journaled,
        Swapped,
        Started,
        Confirmed,
        Launched,
        Refused,
        ExecFailed,
        ProbationFailed,
        Returned,
    ])
}

pub(crate) fn step_event() -> impl Strategy<Value = StepEvent> {
    (change(), product(), option::of(tree()), tree(), step(), any::<(u64, u64)>(), "[ -~\n\t]{0,60}").prop_map(
        |(change, product, from, to, step, (at_unix_ms, duration_us), detail)| StepEvent {
            change,
            product,
            from,
            to,
            step,
            at_unix_ms,
            duration_us,
            detail,
        },
    )
}

fn touch() -> impl Strategy<Value = Touch> {
    any::<(u32, u32, u32)>().prop_map(|(object, first, count)| Touch { object, first, count })
}

fn range() -> impl Strategy<Value = ChunkRange> {
    (object(), any::<(u32, u32)>()).prop_map(|(object, (first, count))| ChunkRange { object, first, count })
}

pub(crate) fn generation() -> impl Strategy<Value = GenerationRef> {
    prop_oneof![
        (product(), version()).prop_map(|(product, version)| GenerationRef::Named(product, version)),
        "[0-9a-f]{4,64}".prop_map(GenerationRef::TreePrefix),
    ]
}

pub(crate) fn target() -> impl Strategy<Value = Target> {
    prop_oneof![host().prop_map(Target::Host), group().prop_map(Target::Group)]
}

pub(crate) fn host_report() -> impl Strategy<Value = HostReport> {
    prop_oneof![
        step_event().prop_map(HostReport::Step),
        vec(status(), 0..3).prop_map(HostReport::Agents),
        (job(), progress()).prop_map(|(job, progress)| HostReport::JobProgress { job, progress }),
        (job(), outcome()).prop_map(|(job, outcome)| HostReport::JobOutcome { job, outcome }),
        vec(tree(), 0..4).prop_map(HostReport::Attached),
        line().prop_map(|what| HostReport::WrongHash { what }),
        (tree(), vec(touch(), 0..4)).prop_map(|(tree, touches)| HostReport::Touched { tree, touches }),
    ]
}

pub(crate) fn host_request() -> impl Strategy<Value = HostRequest> {
    let role = prop_oneof![Just(Role::Control), Just(Role::Bulk)];
    let instance = any::<[u8; 16]>().prop_map(Instance);
    prop_oneof![
        (any::<u16>(), line(), role, instance).prop_map(|(protocol, software, role, instance)| HostRequest::Hello {
            protocol,
            software,
            role,
            instance
        }),
        (any::<u16>(), blob(), blob()).prop_map(|(protocol, secret, csr)| HostRequest::Enroll {
            protocol,
            secret,
            csr
        }),
        blob().prop_map(|csr| HostRequest::Renew { csr }),
        Just(HostRequest::Exports),
        tree().prop_map(|tree| HostRequest::Manifest { tree }),
        (tree(), vec(range(), 0..4)).prop_map(|(tree, wants)| HostRequest::Chunks { tree, wants }),
        vec(host_report(), 0..3).prop_map(|reports| HostRequest::Report { reports }),
        (tree(), tree()).prop_map(|(from, to)| HostRequest::Delta { from, to }),
        (generation(), option::of(tree()), any::<bool>())
            .prop_map(|(generation, from, manifest)| HostRequest::Start { generation, from, manifest }),
        (tree(), vec(touch(), 0..4)).prop_map(|(tree, touches)| HostRequest::Profile { tree, touches }),
        vec(any::<[u8; 32]>(), 0..4).prop_map(|have| HostRequest::ExportList { have }),
        (any::<u16>(), line(), any::<[u8; 16]>(), line()).prop_map(|(protocol, software, instance, machine)| {
            HostRequest::HelloFrom { protocol, software, role: Role::Control, instance: Instance(instance), machine }
        }),
        (generation(), option::of(tree()), any::<bool>(), path()).prop_map(
            |(generation, from, manifest, program)| { HostRequest::StartOf { generation, from, manifest, program } }
        ),
    ]
}

fn facts() -> impl Strategy<Value = BundleFacts> {
    any::<(u64, u64, u64)>().prop_map(|(plain_bytes, bundle_bytes, objects)| BundleFacts {
        plain_bytes,
        bundle_bytes,
        objects,
    })
}

pub(crate) fn manager_reply() -> impl Strategy<Value = ManagerReply> {
    let ids = || vec(any::<[u8; 32]>(), 0..4);
    prop_oneof![
        (host(), any::<u64>()).prop_map(|(host, now)| ManagerReply::Welcome { host, now }),
        (host(), "[ -~\n]{0,60}", "[ -~\n]{0,60}", ids()).prop_map(|(host, certificate, authority, publishers)| {
            ManagerReply::Certificate { host, certificate, authority, publishers }
        }),
        vec(blob(), 0..4).prop_map(ManagerReply::Exports),
        any::<u32>().prop_map(ManagerReply::Sent),
        Just(ManagerReply::Done),
        fault().prop_map(ManagerReply::Fault),
        facts().prop_map(ManagerReply::Bundle),
        (any::<u64>(), ids(), vec(blob(), 0..4)).prop_map(|(number, ids, records)| ManagerReply::ExportList {
            number,
            ids,
            records
        }),
    ]
}

pub(crate) fn manager_request() -> impl Strategy<Value = ManagerRequest> {
    let change_over = (change(), product(), blob(), tree(), any::<(bool, u64, bool)>()).prop_map(
        |(change, product, record, attach, (lazy, drain_deadline_ms, retry_bad))| ChangeOver {
            change,
            product,
            record,
            attach,
            lazy,
            drain_deadline_ms,
            retry_bad,
        },
    );
    prop_oneof![
        Just(ManagerRequest::ExportsChanged),
        change_over.prop_map(ManagerRequest::ChangeOver),
        (product(), job(), origin(), operation()).prop_map(|(product, job, origin, operation)| ManagerRequest::Run {
            product,
            job,
            origin,
            operation
        }),
        (product(), job()).prop_map(|(product, job)| ManagerRequest::Cancel { product, job }),
        Just(ManagerRequest::Agents),
        Just(ManagerRequest::Alive),
        tree().prop_map(|tree| ManagerRequest::Manifest { tree }),
        (tree(), vec(range(), 0..4)).prop_map(|(tree, wants)| ManagerRequest::Chunks { tree, wants }),
    ]
}

pub(crate) fn host_reply() -> impl Strategy<Value = HostReply> {
    prop_oneof![
        Just(HostReply::Done),
        vec(status(), 0..3).prop_map(HostReply::Agents),
        outcome().prop_map(HostReply::Outcome),
        fault().prop_map(HostReply::Fault),
        any::<u32>().prop_map(HostReply::Sent),
    ]
}

pub(crate) fn agent_request() -> impl Strategy<Value = AgentRequest> {
    prop_oneof![
        Just(AgentRequest::Status),
        (change(), blob()).prop_map(|(change, record)| AgentRequest::SaveMetadata { change, record }),
        (change(), option::of(tree()), tree(), any::<(bool, bool)>()).prop_map(
            |(change, release, attach, (lazy, retry_bad))| AgentRequest::Attach {
                change,
                release,
                attach,
                lazy,
                retry_bad
            }
        ),
        (change(), any::<u64>())
            .prop_map(|(change, drain_deadline_ms)| AgentRequest::Finish { change, drain_deadline_ms }),
        (job(), origin(), operation()).prop_map(|(job, origin, operation)| AgentRequest::Run {
            job,
            origin,
            operation
        }),
        job().prop_map(|job| AgentRequest::Cancel { job }),
    ]
}

pub(crate) fn agent_reply() -> impl Strategy<Value = AgentReply> {
    prop_oneof![
        Just(AgentReply::Done),
        status().prop_map(AgentReply::Status),
        outcome().prop_map(AgentReply::Outcome),
        fault().prop_map(AgentReply::Fault),
    ]
}

pub(crate) fn daemon_request() -> impl Strategy<Value = DaemonRequest> {
    prop_oneof![
        Just(DaemonRequest::Status),
        product().prop_map(|product| DaemonRequest::Newest { product }),
        generation().prop_map(|generation| DaemonRequest::Attach { generation }),
        generation().prop_map(|generation| DaemonRequest::Release { generation }),
        generation().prop_map(|generation| DaemonRequest::Hold { generation }),
        (tree(), option::of(tree()), any::<bool>()).prop_map(|(tree, running, lazy)| DaemonRequest::Stage {
            tree,
            running,
            lazy
        }),
        step_event().prop_map(|event| DaemonRequest::Report { event }),
        product().prop_map(|product| DaemonRequest::Changed { product }),
        Just(DaemonRequest::Unmount),
        (tree(), vec(touch(), 0..4)).prop_map(|(tree, touches)| DaemonRequest::Profile { tree, touches }),
        any::<bool>().prop_map(|repair| DaemonRequest::Check { repair }),
        tree().prop_map(|tree| DaemonRequest::HoldLocal { tree }),
        (generation(), path()).prop_map(|(generation, program)| DaemonRequest::HoldFor { generation, program }),
        Just(DaemonRequest::TraceBegin),
        Just(DaemonRequest::TraceEnd),
    ]
}

pub(crate) fn daemon_reply() -> impl Strategy<Value = DaemonReply> {
    let attached = (tree(), path(), any::<Option<u32>>(), option::of(blob()), any::<u64>()).prop_map(
        |(tree, path, namespace_pid, record, warm_us)| Attached { tree, path, namespace_pid, record, warm_us },
    );
    let objects = vec(any::<[u8; 32]>().prop_map(ObjectId::from_bytes), 0..3);
    let checked = (any::<[u64; 4]>(), objects).prop_map(|([objects, bytes, wrong, fetched], missing)| {
        DaemonReply::Checked(CacheReport { objects, bytes, wrong, fetched, missing })
    });
    prop_oneof![
        Just(DaemonReply::Done),
        "[^\0]{0,40}".prop_map(DaemonReply::Status),
        blob().prop_map(DaemonReply::Record),
        attached.prop_map(DaemonReply::Attached),
        fault().prop_map(DaemonReply::Fault),
        facts().prop_map(DaemonReply::Bundle),
        checked,
        trace().prop_map(DaemonReply::Traced),
    ]
}

fn trace() -> impl Strategy<Value = Trace> {
    let what = proptest::sample::select(vec![
        TraceWhat::Present,
        TraceWhat::Missing,
        TraceWhat::Chunks,
        TraceWhat::Background,
        TraceWhat::Start,
        TraceWhat::Arrived,
        TraceWhat::Manifest,
        TraceWhat::Delta,
    ]);
    let event = (what, any::<[u64; 5]>(), any::<Option<u32>>()).prop_map(
        |(what, [from_us, until_us, cpu_us, bytes, offset], file)| TraceEvent {
            what,
            from_us,
            until_us,
            cpu_us,
            bytes,
            offset,
            file,
        },
    );
    (vec(event, 0..3), vec(path(), 0..3), any::<u64>()).prop_map(|(events, files, left_out)| Trace {
        events,
        files,
        left_out,
    })
}

pub(crate) fn stage_progress() -> impl Strategy<Value = StageProgress> {
    any::<(u64, u64)>().prop_map(|(local_bytes, object_bytes)| StageProgress { local_bytes, object_bytes })
}

fn elf_file() -> impl Strategy<Value = ElfFile> {
    let texts = (option::of(line()), vec(line(), 0..3), option::of(line()), option::of(line()), option::of(line()));
    (tree_path(), line(), line(), texts, any::<u64>()).prop_map(
        |(path, architecture, kind, (interpreter, needed, soname, runpath, build_id), bytes)| ElfFile {
            path,
            architecture,
            kind,
            interpreter,
            needed,
            soname,
            runpath,
            build_id,
            bytes,
        },
    )
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let script = (tree_path(), line()).prop_map(|(path, interpreter)| Script { path, interpreter });
    let programs = (vec(elf_file(), 0..3), vec(script, 0..3));
    let start = (option::of(tree_path()), vec("[^\0]{0,9}", 0..3), option::of(line()));
    (start, programs, any::<[u64; 4]>(), any::<(u32, u32, u64, u64)>()).prop_map(
        |((entry_point, arguments, architecture), (elf_files, scripts), counts, (min, max, drain, probation_ms))| {
            let [entry_count, file_count, content_bytes, object_bytes] = counts;
            Metadata {
                entry_point,
                arguments,
                architecture,
                elf_files,
                scripts,
                entry_count,
                file_count,
                content_bytes,
                object_bytes,
                state_schemas: SchemaRange { min, max },
                drain_deadline_ms: drain,
                health: HealthContract { probation_ms, check: None },
                adapter: None,
            }
        },
    )
}

pub(crate) fn record() -> impl Strategy<Value = GenerationRecord> {
    (product(), version(), tree(), any::<[u64; 3]>(), metadata()).prop_map(
        |(product, version, tree, [sequence, manifest_bytes, published_unix_ms], metadata)| GenerationRecord {
            product,
            version,
            sequence,
            tree,
            manifest_bytes,
            published_unix_ms,
            metadata,
        },
    )
}
