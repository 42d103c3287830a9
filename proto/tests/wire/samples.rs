//! One sample of every variant of every message. A variant that is added here and in no document fails the test; one that is
//! added to a message and not here does not compile.

use proto::agent::{
    AgentReply, AgentRequest, AgentState, AgentStatus, ChangeId, HostScope, JobId, JobOrigin, Operation, Outcome,
    Progress, Repository, SnapshotRef, Step, StepEvent, Summary,
};
use proto::backup::{BackupCounts, BackupOptions};
use proto::bundle::Touch;
use proto::daemon::{Attached, CacheReport, DaemonReply, DaemonRequest, StageProgress};
use proto::door::{Access, Bearer, DoorKey, Grant};
use proto::keeping::{Keeping, Refused};
use proto::look::{Forget, Found, FoundEntry, FoundSnapshot, Keep, Query, SnapshotFilter};
use proto::means::{Commands, Pace, Ran};
use proto::message::{
    BundleFacts, ChangeOver, ChunkRange, Fault, HostReply, HostReport, HostRequest, Instance, Making, ManagerReply,
    ManagerRequest, Role,
};
use proto::name::Target;
use proto::own::{Arguments, Finding, OwnSummary};
use proto::recovery::RecoveryKey;
use proto::restore::{Over, Overwrite, RestoreOptions};
use proto::trace::{Trace, TraceEvent, TraceWhat};
use proto::{GenerationRef, ObjectId, Product, TreeId, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A choice whose variants a document lists.
pub(crate) trait Choice: Serialize + DeserializeOwned + 'static {
    const NAME: &str;
    /// Name and number of each.
    const VARIANTS: &[(&str, u32)];
    fn number(&self) -> u32;
    /// At least one of each.
    fn samples() -> Vec<Self>;
}

macro_rules! choice {
    ($name:ident { $($variant:ident = $number:literal),* $(,)? } $samples:expr) => {
        impl Choice for $name {
            const NAME: &str = stringify!($name);
            const VARIANTS: &[(&str, u32)] = &[$((stringify!($variant), $number)),*];
            fn number(&self) -> u32 {
                match self { $($name::$variant { .. } => $number),* }
            }
            fn samples() -> Vec<Self> {
                $samples
            }
        }
    };
}

pub(crate) fn tree() -> TreeId {
    TreeId::from_bytes([0x7e; 32])
}

fn object() -> ObjectId {
    ObjectId::from_bytes([0x0b; 32])
}

pub(crate) fn product() -> Product {
    "agent".parse().unwrap()
}

pub(crate) fn version() -> Version {
    "1.0".parse().unwrap()
}

fn named() -> GenerationRef {
    GenerationRef::Named(product(), version())
}

pub(crate) fn repository() -> Repository {
    Repository { path: "/r".into(), password_file: Some("/p".into()) }
}

pub(crate) fn operation() -> Operation {
    Operation::Check { repository: repository(), read_data: true }
}

pub(crate) fn origin() -> JobOrigin {
    let earlier = vec![(JobId(8), "host-2".parse().unwrap())];
    JobOrigin { host: "host-1".parse().unwrap(), product: product(), policy: Some("nightly".into()), earlier }
}

pub(crate) fn snapshot() -> SnapshotRef {
    let of = HostScope::Host("host-2".parse().unwrap());
    SnapshotRef { snapshot: "a1b2".into(), of, source: Some("/data".into()) }
}

pub(crate) fn progress() -> Progress {
    Progress { units_done: 1, units: 2, bytes_done: 3, bytes: 4, activity: "/data".into(), version: "1.0".into() }
}

pub(crate) fn summary() -> Summary {
    Summary {
        snapshots: vec!["a1b2".into()],
        files: 1,
        bytes: 2,
        repository_bytes: 3,
        problems: vec!["lost".into()],
        versions: vec!["1.0".into(), "2.0".into()],
    }
}

pub(crate) fn backup_options() -> BackupOptions {
    BackupOptions {
        exclude: vec!["*.o".into(), "!a.o".into()],
        exclude_files: vec!["/etc/x".into()],
        exclude_if_present: vec![".no".into()],
        exclude_caches: true,
        exclude_larger_than: Some(9),
        one_file_system: true,
        together: true,
        tags: vec!["weekly".into()],
        dry_run: false,
        force: true,
        readers: Some(4),
        compression: Some(19),
    }
}

pub(crate) fn commands() -> Commands {
    let (output_of, before) = (Some("dump".parse().unwrap()), Some("freeze".parse().unwrap()));
    Commands { output_of, before, after: None, seconds: 3600 }
}

pub(crate) fn pace() -> Pace {
    Pace { read: None, upload: Some(1 << 20), download: None }
}

pub(crate) fn ran() -> Ran {
    Ran {
        command: "freeze".parse().unwrap(),
        moment: "before".into(),
        ended: "exit status: 0".into(),
        output: vec!["frozen".into()],
        duration_ms: 12,
    }
}

pub(crate) fn snapshot_filter() -> SnapshotFilter {
    SnapshotFilter { of: HostScope::Any, source: Some("/data".into()), tags: vec!["weekly".into()] }
}

pub(crate) fn keep() -> Keep {
    Keep {
        last: 1,
        hourly: 2,
        daily: 3,
        weekly: 4,
        monthly: 5,
        yearly: 6,
        within_seconds: Some(7),
        tags: vec!["for-ever".into()],
    }
}

pub(crate) fn forget() -> Forget {
    Forget { snapshots: snapshot_filter(), keep: keep(), dry_run: true, free: false }
}

pub(crate) fn found_snapshot() -> FoundSnapshot {
    FoundSnapshot {
        id: "a1b2".into(),
        owner: "host-1".into(),
        at_unix_ms: 1,
        sources: vec!["/data".into()],
        tags: vec!["weekly".into()],
        files: 2,
        bytes: 3,
        forgotten: true,
        why: "daily".into(),
    }
}

pub(crate) fn found_entry() -> FoundEntry {
    FoundEntry {
        snapshot: "a1b2".into(),
        path: "/data/a".into(),
        kind: "file".into(),
        mode: Some(0o644),
        user: Some(1),
        group: None,
        size: 4,
        mtime_unix_ms: Some(-1),
        change: Some("added".into()),
    }
}

fn refused() -> Refused {
    Refused::Grant { what: "token 7".into(), until_unix_ms: 1000 }
}

pub(crate) fn grant() -> Grant {
    Grant {
        repository: "main".parse().unwrap(),
        bearer: Bearer::Host("web".parse().unwrap()),
        access: Access::Add,
        until_unix_ms: 1000,
        what: "job 7".into(),
    }
}

pub(crate) fn restore_options() -> RestoreOptions {
    RestoreOptions { include: vec!["/data/a".into()], exclude: vec!["*.o".into()], dry_run: true }
}

pub(crate) fn backup_counts() -> BackupCounts {
    BackupCounts {
        files_new: 1,
        files_changed: 2,
        files_unmodified: 3,
        dirs_new: 4,
        dirs_changed: 5,
        dirs_unmodified: 6,
        added_bytes: 7,
        duration_ms: 8,
    }
}

fn arguments() -> Arguments {
    let mut arguments = Arguments::default();
    arguments.add("keep".parse().unwrap(), "7").unwrap();
    arguments.add("log".parse().unwrap(), "/l").unwrap();
    arguments
}

pub(crate) fn finding() -> Finding {
    Finding { name: "rotated".parse().unwrap(), text: "3".into() }
}

fn own_summary() -> OwnSummary {
    OwnSummary { results: vec![finding()], problems: vec!["lost".into()], versions: vec!["1.0".into()] }
}

pub(crate) fn status() -> AgentStatus {
    AgentStatus {
        product: product(),
        version: version(),
        tree: tree(),
        pid: 4711,
        started_unix_ms: 1_700_000_000_000,
        state: AgentState::Serving,
        jobs: vec![JobId(9)],
        reason: "launched".into(),
    }
}

pub(crate) fn step() -> StepEvent {
    StepEvent {
        change: ChangeId(3),
        product: product(),
        from: Some(TreeId::from_bytes([0x01; 32])),
        to: tree(),
        step: Step::Drained,
        at_unix_ms: 1_700_000_000_000,
        duration_us: 250,
        detail: "idle".into(),
    }
}

pub(crate) fn attached() -> Attached {
    Attached {
        tree: tree(),
        path: "/run/t".into(),
        namespace_pid: Some(12),
        record: Some(vec![0xaa, 0xbb]),
        warm_us: 7,
    }
}

pub(crate) fn touch() -> Touch {
    Touch { object: 1, first: 2, count: 3 }
}

pub(crate) fn range() -> ChunkRange {
    ChunkRange { object: object(), first: 0, count: 2 }
}

pub(crate) fn facts() -> BundleFacts {
    BundleFacts { plain_bytes: 1, bundle_bytes: 2, objects: 3 }
}

pub(crate) fn change_over() -> ChangeOver {
    ChangeOver {
        change: ChangeId(3),
        product: product(),
        record: vec![0xaa, 0xbb],
        attach: tree(),
        lazy: false,
        drain_deadline_ms: 60_000,
        retry_bad: true,
    }
}

pub(crate) fn making() -> Making {
    Making { elapsed_ms: 5_000 }
}

pub(crate) fn stage_progress() -> StageProgress {
    StageProgress { local_bytes: 1, object_bytes: 2 }
}

choice!(Fault {
    NotExported = 0, Refused = 1, NotFound = 2, BadRequest = 3, Draining = 4, Unavailable = 5, Failed = 6,
} {
    let why = || String::from("why");
    vec![
        Fault::NotExported(why()), Fault::Refused(why()), Fault::NotFound(why()), Fault::BadRequest(why()),
        Fault::Draining, Fault::Unavailable(why()), Fault::Failed(why()),
    ]
});

choice!(Role { Control = 0, Bulk = 1 } vec![Role::Control, Role::Bulk]);

choice!(HostRequest {
    Hello = 0, Enroll = 1, Renew = 2, Exports = 3, Manifest = 4, Chunks = 5, Report = 6, Delta = 7, Start = 8, Profile = 9,
    ExportList = 10, HelloFrom = 11, StartOf = 12,
} vec![
    HostRequest::Hello { protocol: 2, software: "0.1.0".into(), role: Role::Bulk, instance: Instance([0x15; 16]) },
    HostRequest::Enroll { protocol: 2, secret: vec![1, 2, 3], csr: vec![0x30, 0x82] },
    HostRequest::Renew { csr: vec![0x30, 0x82] },
    HostRequest::Exports,
    HostRequest::Manifest { tree: tree() },
    HostRequest::Chunks { tree: tree(), wants: vec![range()] },
    HostRequest::Report { reports: vec![HostReport::Attached(vec![])] },
    HostRequest::Delta { from: TreeId::from_bytes([1; 32]), to: tree() },
    HostRequest::Start { generation: named(), from: None, manifest: true },
    HostRequest::Profile { tree: tree(), touches: vec![touch()] },
    HostRequest::ExportList { have: vec![[0x1d; 32]] },
    HostRequest::HelloFrom {
        protocol: 2,
        software: "0.1.0".into(),
        role: Role::Control,
        instance: Instance([0x15; 16]),
        machine: "x86_64".into(),
    },
    HostRequest::StartOf { generation: named(), from: None, manifest: true, program: "bin/agent".into() },
]);

choice!(ManagerReply {
    Welcome = 0, Certificate = 1, Exports = 2, Sent = 3, Done = 4, Fault = 5, Bundle = 6, ExportList = 7,
} vec![
    ManagerReply::Welcome { host: "host-1".parse().unwrap(), now: 1_700_000_000_000 },
    ManagerReply::Certificate {
        host: "host-1".parse().unwrap(),
        certificate: "PEM".into(),
        authority: "PEM".into(),
        publishers: vec![[0x9a; 32]],
    },
    ManagerReply::Exports(vec![vec![0xaa, 0xbb]]),
    ManagerReply::Sent(17),
    ManagerReply::Done,
    ManagerReply::Fault(Fault::Draining),
    ManagerReply::Bundle(facts()),
    ManagerReply::ExportList { number: 5, ids: vec![[0x1d; 32]], records: vec![vec![0xaa, 0xbb]] },
]);

choice!(ManagerRequest {
    ExportsChanged = 0, ChangeOver = 1, Run = 2, Cancel = 3, Agents = 4, Alive = 5, Manifest = 6, Chunks = 7,
} vec![
    ManagerRequest::ExportsChanged,
    ManagerRequest::ChangeOver(change_over()),
    ManagerRequest::Run { product: product(), job: JobId(9), origin: origin(), operation: operation() },
    ManagerRequest::Cancel { product: product(), job: JobId(9) },
    ManagerRequest::Agents,
    ManagerRequest::Alive,
    ManagerRequest::Manifest { tree: tree() },
    ManagerRequest::Chunks { tree: tree(), wants: vec![range()] },
]);

choice!(HostReply { Done = 0, Agents = 1, Outcome = 2, Fault = 3, Sent = 4 } vec![
    HostReply::Done,
    HostReply::Agents(vec![status()]),
    HostReply::Outcome(Outcome::Failed("why".into())),
    HostReply::Fault(Fault::Draining),
    HostReply::Sent(3),
]);

choice!(HostReport {
    Step = 0, Agents = 1, JobProgress = 2, JobOutcome = 3, Attached = 4, WrongHash = 5, Touched = 6,
} vec![
    HostReport::Step(step()),
    HostReport::Agents(vec![status()]),
    HostReport::JobProgress { job: JobId(9), progress: progress() },
    HostReport::JobOutcome { job: JobId(9), outcome: Outcome::Failed("why".into()) },
    HostReport::Attached(vec![tree()]),
    HostReport::WrongHash { what: "chunk".into() },
    HostReport::Touched { tree: tree(), touches: vec![touch()] },
]);

choice!(AgentRequest { Status = 0, SaveMetadata = 1, Attach = 2, Finish = 3, Run = 4, Cancel = 5 } vec![
    AgentRequest::Status,
    AgentRequest::SaveMetadata { change: ChangeId(3), record: vec![0xaa, 0xbb] },
    AgentRequest::Attach {
        change: ChangeId(3),
        release: Some(TreeId::from_bytes([1; 32])),
        attach: tree(),
        lazy: false,
        retry_bad: true,
    },
    AgentRequest::Finish { change: ChangeId(3), drain_deadline_ms: 60_000 },
    AgentRequest::Run { job: JobId(9), origin: origin(), operation: operation() },
    AgentRequest::Cancel { job: JobId(9) },
]);

choice!(AgentReply { Done = 0, Status = 1, Outcome = 2, Fault = 3 } vec![
    AgentReply::Done,
    AgentReply::Status(status()),
    AgentReply::Outcome(Outcome::Failed("why".into())),
    AgentReply::Fault(Fault::Draining),
]);

choice!(Operation { Backup = 0, Restore = 1, Verify = 2, Check = 3, Prune = 4, Identify = 5, Own = 6,
    BackupWith = 7, Look = 8, Forget = 9, RestoreSome = 10, Serve = 11, Unserve = 12,
    Keeping = 13, RestoreOver = 14, RestoreTest = 15, BackupBy = 16, RestorePaced = 17 } vec![
    Operation::Backup { repository: repository(), sources: vec!["/data".into()] },
    Operation::Restore { repository: repository(), snapshot: snapshot(), target: "/back".into() },
    Operation::Verify { repository: repository(), snapshot: SnapshotRef::latest() },
    operation(),
    Operation::Prune { repository: repository(), keep_last: 7 },
    Operation::Identify { repository: repository() },
    Operation::Own { kind: "rotate".parse().unwrap(), arguments: arguments() },
    Operation::BackupWith { repository: repository(), sources: vec!["/data".into()], options: backup_options() },
    Operation::Look { repository: repository(), query: Query::Snapshots(snapshot_filter()) },
    Operation::Forget { repository: repository(), order: forget() },
    Operation::RestoreSome {
        repository: repository(),
        snapshot: SnapshotRef::latest(),
        target: "/back".into(),
        options: restore_options(),
    },
    Operation::Serve {
        repository: repository(),
        name: "main".parse().unwrap(),
        address: "vault.example:7421".into(),
        key: Some(DoorKey([0x17; 32])),
    },
    Operation::Unserve { repository: repository(), name: "main".parse().unwrap() },
    Operation::Keeping { name: "main".parse().unwrap(), order: Keeping::Keys },
    Operation::RestoreOver {
        repository: repository(),
        snapshot: SnapshotRef::latest(),
        target: "/data".into(),
        options: RestoreOptions::default(),
        over: Over { policy: Overwrite::IfChanged, delete: true },
    },
    Operation::RestoreTest { repository: repository(), snapshot: SnapshotRef::latest(), files: 100, bytes: 1 << 20 },
    Operation::BackupBy {
        repository: repository(),
        sources: vec!["/dump.sql".into()],
        options: BackupOptions::default(),
        commands: commands(),
        pace: pace(),
    },
    Operation::RestorePaced {
        repository: repository(),
        snapshot: SnapshotRef::latest(),
        target: "/back".into(),
        options: RestoreOptions::default(),
        over: Some(Over { policy: Overwrite::IfNewer, delete: false }),
        pace: pace(),
    },
]);

choice!(Keeping { Keys = 0, AddKey = 1, RemoveKey = 2, Escrow = 3, Refuse = 4 } vec![
    Keeping::Keys,
    Keeping::AddKey(RecoveryKey([0x17; 32])),
    Keeping::RemoveKey("5e".repeat(32)),
    Keeping::Escrow(RecoveryKey([0x17; 32])),
    Keeping::Refuse(vec![refused()]),
]);

choice!(Refused { Grant = 0, Host = 1 } vec![
    refused(),
    Refused::Host { host: "web".parse().unwrap(), until_unix_ms: 1000 },
]);

choice!(Overwrite { Never = 0, IfNewer = 1, IfChanged = 2, Always = 3 } vec![
    Overwrite::Never,
    Overwrite::IfNewer,
    Overwrite::IfChanged,
    Overwrite::Always,
]);

choice!(Query { Snapshots = 0, List = 1, Find = 2, Diff = 3, Dump = 4, FindModified = 5 } vec![
    Query::Snapshots(snapshot_filter()),
    Query::List { snapshot: SnapshotRef::latest(), path: Some("/data".into()), recursive: true },
    Query::Find { snapshots: snapshot_filter(), patterns: vec!["*.o".into()] },
    Query::Diff { old: snapshot(), new: SnapshotRef::latest() },
    Query::Dump { snapshot: SnapshotRef::latest(), path: "/data/a".into() },
    Query::FindModified {
        snapshots: snapshot_filter(),
        patterns: vec!["*.o".into()],
        since_unix_ms: Some(1000),
        until_unix_ms: None,
    },
]);

choice!(Found { Snapshot = 0, Entry = 1, Content = 2 } vec![
    Found::Snapshot(found_snapshot()),
    Found::Entry(found_entry()),
    Found::Content(b"abc".to_vec()),
]);

choice!(HostScope { Own = 0, Host = 1, Any = 2 } vec![
    HostScope::Own, HostScope::Host("host-2".parse().unwrap()), HostScope::Any,
]);

choice!(Outcome { Done = 0, Cancelled = 1, Failed = 2, OwnDone = 3, BackedUp = 4,
    Found = 5, BackedUpBy = 6 } vec![
    Outcome::Done(summary()),
    Outcome::Cancelled(Summary::default()),
    Outcome::Failed("why".into()),
    Outcome::OwnDone(own_summary()),
    Outcome::BackedUp { summary: Summary::default(), counts: backup_counts() },
    Outcome::Found { summary: Summary::default(), found: vec![Found::Content(b"a".to_vec())], left_out: 2 },
    Outcome::BackedUpBy { summary: Summary::default(), counts: backup_counts(), ran: vec![ran()] },
]);

choice!(AgentState { Probation = 0, Serving = 1, Staging = 2, Draining = 3, Swapping = 4, Stopped = 5 } vec![
    AgentState::Probation, AgentState::Serving, AgentState::Staging, AgentState::Draining, AgentState::Swapping,
    AgentState::Stopped,
]);

choice!(Step {
    MetadataSaved = 0, Staged = 1, Warmed = 2, Drained = 3, Journaled = 4, Swapped = 5, Started = 6, Confirmed = 7,
    Launched = 8, Refused = 9, ExecFailed = 10, ProbationFailed = 11, Returned = 12,
} vec![
    Step::MetadataSaved, Step::Staged, Step::Warmed, Step::Drained, Step::Journaled, Step::Swapped, Step::Started,
    Step::Confirmed, Step::Launched, Step::Refused, Step::ExecFailed, Step::ProbationFailed, Step::Returned,
]);

choice!(DaemonRequest {
    Status = 0, Newest = 1, Attach = 2, Release = 3, Hold = 4, Stage = 5, Report = 6, Changed = 7, Unmount = 8, Profile = 9, Check = 10,
    HoldLocal = 11, HoldFor = 12, TraceBegin = 13, TraceEnd = 14,
} vec![
    DaemonRequest::Status,
    DaemonRequest::Newest { product: product() },
    DaemonRequest::Attach { generation: named() },
    DaemonRequest::Release { generation: named() },
    DaemonRequest::Hold { generation: GenerationRef::TreePrefix("7e7e".into()) },
    DaemonRequest::Stage { tree: tree(), running: None, lazy: true },
    DaemonRequest::Report { event: step() },
    DaemonRequest::Changed { product: product() },
    DaemonRequest::Unmount,
    DaemonRequest::Profile { tree: tree(), touches: vec![touch()] },
    DaemonRequest::Check { repair: true },
    DaemonRequest::HoldLocal { tree: tree() },
    DaemonRequest::HoldFor { generation: named(), program: "bin/agent".into() },
    DaemonRequest::TraceBegin,
    DaemonRequest::TraceEnd,
]);

choice!(DaemonReply { Done = 0, Status = 1, Record = 2, Attached = 3, Fault = 4, Bundle = 5, Checked = 6, Traced = 7 } vec![
    DaemonReply::Done,
    DaemonReply::Status("{}".into()),
    DaemonReply::Record(vec![0xaa, 0xbb]),
    DaemonReply::Attached(attached()),
    DaemonReply::Fault(Fault::Draining),
    DaemonReply::Bundle(facts()),
    DaemonReply::Checked(CacheReport {
        objects: 9,
        bytes: 1 << 20,
        wrong: 2,
        fetched: 1,
        missing: vec![proto::ObjectId::from_bytes([0x0b; 32])],
    }),
    DaemonReply::Traced(Trace {
        events: vec![TraceEvent {
            what: TraceWhat::Missing,
            from_us: 1000,
            until_us: 1500,
            cpu_us: 90,
            bytes: 4096,
            offset: 8192,
            file: Some(0),
        }],
        files: vec!["bin/agent".into()],
        left_out: 0,
    }),
]);

choice!(TraceWhat {
    Present = 0, Missing = 1, Chunks = 2, Background = 3, Start = 4, Arrived = 5, Manifest = 6, Delta = 7,
} vec![
    TraceWhat::Present, TraceWhat::Missing, TraceWhat::Chunks, TraceWhat::Background, TraceWhat::Start,
    TraceWhat::Arrived, TraceWhat::Manifest, TraceWhat::Delta,
]);

choice!(GenerationRef { Named = 0, TreePrefix = 1 } vec![named(), GenerationRef::TreePrefix("7e7e".into())]);

choice!(Target { Host = 0, Group = 1 } vec!["host-1".parse().unwrap(), "@web".parse().unwrap()]);
