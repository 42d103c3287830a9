//! Every bound is a number that two versions agree on, and every field with one takes that much and no more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proto::adapter::{Adapter, Drain, DrainSignal, Handover, Listen, ListenAddress, Variable};
use proto::agent::{
    AgentReply, AgentRequest, AgentState, AgentStatus, ChangeId, HostScope, JobId, JobOrigin, Operation, Outcome,
    Progress, Repository, SnapshotRef, Step, StepEvent, Summary,
};
use proto::backup::BackupOptions;
use proto::bundle::{TOUCHES_MAX, Touch};
use proto::codec;
use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::health::HealthProbe;
use proto::limits::*;
use proto::look::{Found, Keep, Query, SnapshotFilter};
use proto::message::{
    ChangeOver, ChunkRange, Fault, HostReply, HostReport, HostRequest, Instance, ManagerReply, Role,
};
use proto::own::{Finding, OwnSummary};
use proto::record::{ElfFile, Metadata, Script, SignedRecord};
use proto::restore::RestoreOptions;
use proto::{ObjectId, TreeId, TreePath};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A peer of another version counts on these. What makes one smaller refuses what was taken before.
#[test]
fn the_bounds_are_these_numbers() {
    let kib = 1024;
    let mib = 1024 * kib;
    let bytes: [(usize, usize); 31] = [
        (MESSAGE_BYTES_MAX, 16 * mib),
        (HOST_REQUEST_BYTES_MAX, 1088 * kib),
        (BULK_BYTES_MAX, mib + 64),
        (MANIFEST_BYTES_MAX, 256 * mib),
        (RECORD_BYTES_MAX, 8 * mib),
        (CHUNK_BYTES_MIN as usize, 4 * kib),
        (CHUNK_BYTES_MAX as usize, mib),
        (CHUNK_BYTES as usize, 256 * kib),
        (NAME_BYTES_MAX, 255),
        (PATH_BYTES_MAX, 4095),
        (XATTR_BYTES_MAX, 64 * kib),
        (VERSION_BYTES_MAX, 128),
        (ACTIVITY_BYTES_MAX, 512),
        (REASON_BYTES_MAX, kib),
        (FAULT_BYTES_MAX, 4 * kib),
        (DETAIL_BYTES_MAX, 24 * kib),
        (WRONG_HASH_BYTES_MAX, 512),
        (PROBLEM_BYTES_MAX, kib),
        (SOURCES_BYTES_MAX, 256 * kib),
        (SNAPSHOT_BYTES_MAX, 64),
        (CERTIFICATE_BYTES_MAX, 16 * kib),
        (CSR_BYTES_MAX, 8 * kib),
        (SECRET_BYTES_MAX, 64),
        (STATUS_BYTES_MAX, 8 * mib),
        (ARGUMENT_BYTES_MAX, 64 * kib),
        (ELF_TEXT_BYTES_MAX, 16 * kib),
        (ARGUMENT_VALUE_BYTES_MAX, 4 * kib),
        (RESULT_BYTES_MAX, kib),
        (SIGNATURE_BYTES, 64),
        (LISTEN_NAME_BYTES_MAX, 64),
        (UNIX_PATH_BYTES_MAX, 107),
    ];
    assert_eq!(bytes.map(|(is, _)| is), bytes.map(|(_, should)| should));
    let counts: [(usize, usize); 20] = [
        (PATH_DEPTH_MAX, 128),
        (ENTRIES_MAX, 1_000_000),
        (XATTRS_MAX, 256),
        (CHUNKS_PER_REQUEST_MAX, 1024),
        (PROBLEMS_MAX, 256),
        (SOURCES_MAX, 1024),
        (EARLIER_JOBS_MAX, 10_000),
        (VERSIONS_MAX, 64),
        (AGENTS_MAX, 64),
        (JOBS_MAX, 256),
        (REPORTS_MAX, 256),
        (TREES_MAX, 4096),
        (EXPORTS_MAX, 16_384),
        (PUBLISHERS_MAX, 64),
        (ARGUMENTS_MAX, 4096),
        (NEEDED_MAX, 1024),
        (OWN_ARGUMENTS_MAX, 64),
        (OWN_RESULTS_MAX, 64),
        (LISTEN_MAX, 64),
        (ENVIRONMENT_MAX, 256),
    ];
    assert_eq!(counts.map(|(is, _)| is), counts.map(|(_, should)| should));
    assert_eq!((FILE_BYTES_MAX, TREE_BYTES_MAX), (64 << 30, 256 << 30));
    assert_eq!((STDERR_TAIL_BYTES_MAX, READ_DEADLINE_MS), (16 * kib, 30_000));
    assert_eq!((TOUCHES_MAX, proto::bundle::PAGES_BYTES_MAX), (65_536, 256 << 20));
}

/// One fits into the other, as their comments say.
#[test]
fn the_bounds_fit_each_other() {
    const { assert!(BULK_BYTES_MAX >= CHUNK_BYTES_MAX as usize + proto::bulk::CHUNK_HEAD_BYTES) };
    const { assert!(RECORD_BYTES_MAX < MESSAGE_BYTES_MAX && STATUS_BYTES_MAX < MESSAGE_BYTES_MAX) };
    const { assert!(TOUCHES_MAX * size_of::<Touch>() < HOST_REQUEST_BYTES_MAX) };
    const { assert!(STDERR_TAIL_BYTES_MAX < DETAIL_BYTES_MAX) };
    const { assert!(CHUNKS_PER_REQUEST_MAX * 40 < HOST_REQUEST_BYTES_MAX) };
    const { assert!(OWN_ARGUMENTS_MAX * (ARGUMENT_VALUE_BYTES_MAX + 64 + 16) < 512 << 10) };
    const { assert!(OWN_RESULTS_MAX * (RESULT_BYTES_MAX + 64) < SOURCES_BYTES_MAX) };
    const { assert!(PROBLEMS_MAX * PROBLEM_BYTES_MAX + SOURCES_BYTES_MAX + DETAIL_BYTES_MAX < 1 << 20) };
    const { assert!(RAN_MAX * OUTPUT_LINES_MAX * PROBLEM_BYTES_MAX + PATTERNS_BYTES_MAX < SOURCES_BYTES_MAX) };
}

fn arrived<T: Serialize + DeserializeOwned>(sent: &T) -> Result<T, codec::CodecError> {
    codec::decode::<T, { 64 << 20 }>(&codec::encode(sent).unwrap())
}

/// A field that is refused beyond its bound.
#[track_caller]
fn refused_beyond<T: Serialize + DeserializeOwned + PartialEq>(what: &str, max: usize, with: impl Fn(usize) -> T) {
    for count in [0, 1, max] {
        // An identifier has at least one character; what it is besides has been tested where it is made.
        assert!(arrived(&with(count)).is_ok_and(|got| got == with(count)) || count == 0, "{what}: {count}");
    }
    assert!(arrived(&with(max + 1)).is_err(), "{what}: {}", max + 1);
}

/// Text for people, which is cut.
#[track_caller]
fn cut_beyond<T: Serialize + DeserializeOwned>(
    what: &str,
    max: usize,
    with: impl Fn(String) -> T,
    of: impl Fn(T) -> String,
) {
    let got = |bytes: usize| of(arrived(&with("x".repeat(bytes))).unwrap_or_else(|error| panic!("{what}: {error}")));
    assert_eq!(got(max), "x".repeat(max), "{what}");
    let cut = got(max + 1);
    assert!(cut.len() <= max && cut.contains(&format!("cut: {} bytes in all", max + 1)), "{what}: {cut}");
}

fn tree() -> TreeId {
    TreeId::of(b"tree")
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn repository() -> Repository {
    Repository { path: "/r".into(), password_file: None }
}

fn origin() -> JobOrigin {
    JobOrigin::new("host-1".parse().unwrap(), "agent".parse().unwrap())
}

fn status() -> AgentStatus {
    AgentStatus {
        product: "agent".parse().unwrap(),
        version: "1.0".parse().unwrap(),
        tree: tree(),
        pid: 7,
        started_unix_ms: 0,
        state: AgentState::Serving,
        jobs: vec![],
        reason: String::new(),
    }
}

fn progress() -> Progress {
    Progress { units_done: 0, units: 1, bytes_done: 0, bytes: 0, activity: String::new(), version: String::new() }
}

#[test]
fn how_a_repository_is_worked_on() {
    let options = BackupOptions::default;
    let list = |n| vec!["/a".to_owned(); n];
    refused_beyond("patterns", PATTERNS_MAX, |n| BackupOptions { exclude: list(n), ..options() });
    refused_beyond("bytes of patterns", PATTERNS_BYTES_MAX / 4000, |n| BackupOptions {
        exclude: vec![text(4000); n],
        ..options()
    });
    refused_beyond("files of patterns", EXCLUDE_FILES_MAX, |n| BackupOptions { exclude_files: list(n), ..options() });
    refused_beyond("marks", EXCLUDE_FILES_MAX, |n| BackupOptions { exclude_if_present: list(n), ..options() });
    refused_beyond("tags", TAGS_MAX, |n| BackupOptions { tags: list(n), ..options() });
    refused_beyond("a tag", TAG_BYTES_MAX, |n| BackupOptions { tags: vec![text(n)], ..options() });
    let some = |include, exclude| RestoreOptions { include, exclude, dry_run: false };
    refused_beyond("patterns that are restored", PATTERNS_MAX, |n| some(list(n), vec![]));
    refused_beyond("patterns that are not", PATTERNS_MAX, |n| some(vec![], list(n)));
    let filter = |source: usize, tags: usize| SnapshotFilter {
        of: HostScope::Any,
        source: Some(text(source)),
        tags: vec!["t".into(); tags],
    };
    refused_beyond("source of a filter", PATH_BYTES_MAX, |n| filter(n, 1));
    refused_beyond("tags of a filter", TAGS_MAX, |n| filter(1, n));
    refused_beyond("tags that are kept", TAGS_MAX, |n| Keep { tags: vec!["t".into(); n], ..Keep::default() });
    refused_beyond("path of a dump", PATH_BYTES_MAX, |n| Query::Dump {
        snapshot: SnapshotRef::latest(),
        path: text(n),
    });
    refused_beyond("patterns that are looked for", PATTERNS_MAX, |n| Query::Find {
        snapshots: filter(1, 1),
        patterns: list(n),
    });
    refused_beyond("content", DUMP_BYTES_MAX, |n| Found::Content(vec![7; n]));
    refused_beyond("what is found", FOUND_MAX, |n| Outcome::Found {
        summary: Summary::default(),
        found: vec![Found::Content(Vec::new()); n],
        left_out: 0,
    });
}

#[test]
fn what_an_agent_is_told() {
    let change = ChangeId(1);
    refused_beyond("record", RECORD_BYTES_MAX, |n| AgentRequest::SaveMetadata { change, record: vec![7; n] });
    refused_beyond("policy", VERSION_BYTES_MAX, |n| JobOrigin { policy: Some(text(n)), ..origin() });
    let host: proto::HostName = "h".parse().unwrap();
    let earlier = |n| vec![(JobId(1), host.clone()); n];
    refused_beyond("earlier jobs", EARLIER_JOBS_MAX, |n| JobOrigin { earlier: earlier(n), ..origin() });
    let backup = |sources| Operation::Backup { repository: repository(), sources };
    refused_beyond("sources", SOURCES_MAX, |n| backup(vec!["/a".into(); n]));
    refused_beyond("bytes of a source", PATH_BYTES_MAX, |n| backup(vec![text(n)]));
    refused_beyond("bytes of all sources", SOURCES_BYTES_MAX / 4000, |n| backup(vec![text(4000); n]));
    let snapshot = |snapshot: usize, source: usize| SnapshotRef {
        snapshot: text(snapshot),
        of: HostScope::Any,
        source: Some(text(source)),
    };
    refused_beyond("snapshot", SNAPSHOT_BYTES_MAX, |n| snapshot(n, 1));
    refused_beyond("source of a snapshot", PATH_BYTES_MAX, |n| snapshot(1, n));
    refused_beyond("target", PATH_BYTES_MAX, |n| Operation::Restore {
        repository: repository(),
        snapshot: snapshot(1, 1),
        target: text(n),
    });
    let own = |arguments: Vec<(String, String)>| ("rotate".to_owned(), arguments);
    let named = |n: usize| own((0..n).map(|n| (format!("a{n:03}"), String::new())).collect());
    let arrives = |own: &(String, Vec<(String, String)>)| {
        // The number of `Operation::Own`, then what it carries.
        let bytes = [&6_u32.to_le_bytes()[..], &codec::encode(own).unwrap()].concat();
        codec::decode::<Operation, MESSAGE_BYTES_MAX>(&bytes).is_ok()
    };
    assert!(arrives(&named(OWN_ARGUMENTS_MAX)) && !arrives(&named(OWN_ARGUMENTS_MAX + 1)));
    let valued = |n: usize| own(vec![("a".into(), text(n))]);
    assert!(arrives(&valued(ARGUMENT_VALUE_BYTES_MAX)) && !arrives(&valued(ARGUMENT_VALUE_BYTES_MAX + 1)));
    let called = |n: usize| (text(n), Vec::new());
    assert!(arrives(&called(32)) && !arrives(&called(33)));
    refused_beyond("repository", PATH_BYTES_MAX, |n| Repository { path: text(n), password_file: None });
    refused_beyond("password", PATH_BYTES_MAX, |n| Repository { password_file: Some(text(n)), ..repository() });
}

#[test]
fn what_an_agent_tells() {
    cut_beyond("activity", ACTIVITY_BYTES_MAX, |activity| Progress { activity, ..progress() }, |got| got.activity);
    cut_beyond("version", VERSION_BYTES_MAX, |version| Progress { version, ..progress() }, |got| got.version);
    let summary = Summary::default;
    refused_beyond("snapshots", SOURCES_MAX, |n| Summary { snapshots: vec!["a1".into(); n], ..summary() });
    refused_beyond("id", SNAPSHOT_BYTES_MAX, |n| Summary { snapshots: vec![text(n)], ..summary() });
    let problem = |problem| Summary { problems: vec![problem], ..summary() };
    cut_beyond("problem", PROBLEM_BYTES_MAX, problem, |got| got.problems[0].clone());
    let version = |version| Summary { versions: vec![version], ..summary() };
    cut_beyond("version of a job", VERSION_BYTES_MAX, version, |got| got.versions[0].clone());
    let counted = |problems: usize, versions: usize| {
        let sent =
            Summary { problems: vec!["p".into(); problems], versions: vec!["v".into(); versions], ..summary() };
        let got = arrived(&sent).unwrap();
        (got.problems.last().unwrap().clone(), got.versions.last().unwrap().clone(), got.problems.len())
    };
    assert_eq!(counted(PROBLEMS_MAX, VERSIONS_MAX), ("p".into(), "v".into(), PROBLEMS_MAX));
    let more = || "… and 2 more".to_owned();
    assert_eq!(counted(PROBLEMS_MAX + 1, VERSIONS_MAX + 1), (more(), more(), PROBLEMS_MAX));
    let finding = |text| Finding { name: "rotated".parse().unwrap(), text };
    cut_beyond("result", RESULT_BYTES_MAX, finding, |got| got.text);
    let own = OwnSummary::default;
    refused_beyond("results", OWN_RESULTS_MAX, |n| OwnSummary { results: vec![finding("3".into()); n], ..own() });
    let failed = |got| match got {
        Outcome::Failed(why) => why,
        other => panic!("{other:?}"),
    };
    cut_beyond("failure", FAULT_BYTES_MAX, Outcome::Failed, failed);
    refused_beyond("jobs", JOBS_MAX, |n| AgentStatus { jobs: vec![JobId(1); n], ..status() });
    cut_beyond("reason", REASON_BYTES_MAX, |reason| AgentStatus { reason, ..status() }, |got| got.reason);
    let step = |detail| StepEvent {
        change: ChangeId(1),
        product: "agent".parse().unwrap(),
        from: None,
        to: tree(),
        step: Step::Staged,
        at_unix_ms: 0,
        duration_us: 0,
        detail,
    };
    cut_beyond("detail", DETAIL_BYTES_MAX, step, |got| got.detail);
    for kind in
        [Fault::NotExported, Fault::Refused, Fault::NotFound, Fault::BadRequest, Fault::Unavailable, Fault::Failed]
    {
        cut_beyond(
            "fault",
            FAULT_BYTES_MAX,
            |why| AgentReply::Fault(kind(why)),
            |got| match got {
                AgentReply::Fault(
                    Fault::NotExported(why)
                    | Fault::Refused(why)
                    | Fault::NotFound(why)
                    | Fault::BadRequest(why)
                    | Fault::Unavailable(why)
                    | Fault::Failed(why),
                ) => why,
                other => panic!("{other:?}"),
            },
        );
    }
}

#[test]
fn what_a_host_says() {
    let hello =
        |software| HostRequest::Hello { protocol: 2, software, role: Role::Bulk, instance: Instance([0; 16]) };
    cut_beyond("software", VERSION_BYTES_MAX, hello, |got| match got {
        HostRequest::Hello { software, .. } => software,
        other => panic!("{other:?}"),
    });
    let from = |machine| HostRequest::HelloFrom {
        protocol: 2,
        software: String::new(),
        role: Role::Bulk,
        instance: Instance([0; 16]),
        machine,
    };
    cut_beyond("machine", VERSION_BYTES_MAX, from, |got| match got {
        HostRequest::HelloFrom { machine, .. } => machine,
        other => panic!("{other:?}"),
    });
    let enroll =
        |secret: usize, csr: usize| HostRequest::Enroll { protocol: 2, secret: vec![7; secret], csr: vec![7; csr] };
    refused_beyond("secret", SECRET_BYTES_MAX, |n| enroll(n, 1));
    refused_beyond("request", CSR_BYTES_MAX, |n| enroll(1, n));
    refused_beyond("renewal", CSR_BYTES_MAX, |n| HostRequest::Renew { csr: vec![7; n] });
    let want = ChunkRange { object: ObjectId::of(b""), first: 0, count: 1 };
    refused_beyond("wants", CHUNKS_PER_REQUEST_MAX, |n| HostRequest::Chunks { tree: tree(), wants: vec![want; n] });
    let report = HostReport::Attached(vec![]);
    refused_beyond("reports", REPORTS_MAX, |n| HostRequest::Report { reports: vec![report.clone(); n] });
    let touch = Touch { object: 0, first: 0, count: 1 };
    refused_beyond("profile", TOUCHES_MAX, |n| HostRequest::Profile { tree: tree(), touches: vec![touch; n] });
    refused_beyond("touched", TOUCHES_MAX, |n| HostReport::Touched { tree: tree(), touches: vec![touch; n] });
    refused_beyond("local profile", TOUCHES_MAX, |n| DaemonRequest::Profile {
        tree: tree(),
        touches: vec![touch; n],
    });
    refused_beyond("records at hand", EXPORTS_MAX, |n| HostRequest::ExportList { have: vec![[7; 32]; n] });
    refused_beyond("agents", AGENTS_MAX, |n| HostReply::Agents(vec![status(); n]));
    refused_beyond("agents reported", AGENTS_MAX, |n| HostReport::Agents(vec![status(); n]));
    refused_beyond("trees", TREES_MAX, |n| HostReport::Attached(vec![tree(); n]));
    cut_beyond(
        "wrong hash",
        WRONG_HASH_BYTES_MAX,
        |what| HostReport::WrongHash { what },
        |got| match got {
            HostReport::WrongHash { what } => what,
            other => panic!("{other:?}"),
        },
    );
}

#[test]
fn what_the_manager_says() {
    let certificate = |certificate: usize, authority: usize, publishers: usize| ManagerReply::Certificate {
        host: "host-1".parse().unwrap(),
        certificate: text(certificate),
        authority: text(authority),
        publishers: vec![[7; 32]; publishers],
    };
    refused_beyond("certificate", CERTIFICATE_BYTES_MAX, |n| certificate(n, 1, 1));
    refused_beyond("authority", CERTIFICATE_BYTES_MAX, |n| certificate(1, n, 1));
    refused_beyond("publishers", PUBLISHERS_MAX, |n| certificate(1, 1, n));
    refused_beyond("exports", EXPORTS_MAX, |n| ManagerReply::Exports(vec![vec![7]; n]));
    refused_beyond("bytes of an export", RECORD_BYTES_MAX, |n| ManagerReply::Exports(vec![vec![7; n]]));
    let list = |ids: usize, records: usize, bytes: usize| ManagerReply::ExportList {
        number: 1,
        ids: vec![[7; 32]; ids],
        records: vec![vec![7; bytes]; records],
    };
    refused_beyond("ids", EXPORTS_MAX, |n| list(n, 0, 0));
    refused_beyond("records", EXPORTS_MAX, |n| list(0, n, 1));
    refused_beyond("bytes of a record", RECORD_BYTES_MAX, |n| list(0, 1, n));
    refused_beyond("record of a change-over", RECORD_BYTES_MAX, |n| ChangeOver {
        change: ChangeId(1),
        product: "agent".parse().unwrap(),
        record: vec![7; n],
        attach: tree(),
        lazy: false,
        drain_deadline_ms: 0,
        retry_bad: false,
    });
}

#[test]
fn what_the_daemon_says() {
    refused_beyond("status", STATUS_BYTES_MAX, |n| DaemonReply::Status(text(n)));
    refused_beyond("record", RECORD_BYTES_MAX, |n| DaemonReply::Record(vec![7; n]));
    let attached = |path: usize, record: usize| Attached {
        tree: tree(),
        path: text(path),
        namespace_pid: None,
        record: Some(vec![7; record]),
        warm_us: 0,
    };
    refused_beyond("path", PATH_BYTES_MAX, |n| attached(n, 1));
    refused_beyond("record of a generation", RECORD_BYTES_MAX, |n| attached(1, n));
}

fn elf() -> ElfFile {
    ElfFile {
        path: TreePath::root(),
        architecture: String::new(),
        kind: String::new(),
        interpreter: None,
        needed: vec![],
        soname: None,
        runpath: None,
        build_id: None,
        bytes: 0,
    }
}

#[test]
fn what_stands_in_a_record() {
    let signed = |payload: usize, signature: usize| SignedRecord {
        format: proto::record::Format::One,
        publisher: [7; 32],
        payload: vec![7; payload],
        signature: vec![7; signature],
    };
    refused_beyond("payload", RECORD_BYTES_MAX, |n| signed(n, 1));
    refused_beyond("signature", SIGNATURE_BYTES, |n| signed(1, n));
    refused_beyond("arguments", ARGUMENTS_MAX, |n| Metadata {
        arguments: vec!["a".into(); n],
        ..Metadata::default()
    });
    refused_beyond("argument", ARGUMENT_BYTES_MAX, |n| Metadata { arguments: vec![text(n)], ..Metadata::default() });
    let architecture = |text| Metadata { architecture: Some(text), ..Metadata::default() };
    cut_beyond("architecture", VERSION_BYTES_MAX, architecture, |got| got.architecture.unwrap());
    cut_beyond(
        "machine",
        VERSION_BYTES_MAX,
        |architecture| ElfFile { architecture, ..elf() },
        |got| got.architecture,
    );
    cut_beyond("kind", VERSION_BYTES_MAX, |kind| ElfFile { kind, ..elf() }, |got| got.kind);
    refused_beyond("needed", NEEDED_MAX, |n| ElfFile { needed: vec!["a".into(); n], ..elf() });
    let needed = |text| ElfFile { needed: vec![text], ..elf() };
    cut_beyond("library", ELF_TEXT_BYTES_MAX, needed, |got| got.needed[0].clone());
    let some = |text: String| Some(text);
    let with = |text| ElfFile { interpreter: some(text), ..elf() };
    cut_beyond("interpreter", ELF_TEXT_BYTES_MAX, with, |got| got.interpreter.unwrap());
    cut_beyond(
        "soname",
        ELF_TEXT_BYTES_MAX,
        |text| ElfFile { soname: some(text), ..elf() },
        |got| got.soname.unwrap(),
    );
    cut_beyond(
        "runpath",
        ELF_TEXT_BYTES_MAX,
        |text| ElfFile { runpath: some(text), ..elf() },
        |got| got.runpath.unwrap(),
    );
    cut_beyond(
        "build id",
        ELF_TEXT_BYTES_MAX,
        |text| ElfFile { build_id: some(text), ..elf() },
        |got| got.build_id.unwrap(),
    );
    let script = |interpreter| Script { path: TreePath::root(), interpreter };
    cut_beyond("script", ELF_TEXT_BYTES_MAX, script, |got| got.interpreter);
}

#[test]
fn what_stands_in_an_adapter() {
    let listen = |name: String| Listen { name, at: ListenAddress::Unix("/s".into()) };
    let variable = |name: String, value: String| Variable { name, value };
    let adapter = |sockets: usize, variables: usize| Adapter {
        handover: Handover::Sockets,
        listen: vec![listen("a".into()); sockets],
        drain: Drain { signal: DrainSignal::Term, deadline_ms: 1 },
        environment: vec![variable("A".into(), String::new()); variables],
    };
    refused_beyond("sockets", LISTEN_MAX, |n| adapter(n, 0));
    refused_beyond("variables", ENVIRONMENT_MAX, |n| adapter(0, n));
    refused_beyond("name of a socket", LISTEN_NAME_BYTES_MAX, |n| listen("a".repeat(n)));
    refused_beyond("name of a variable", LISTEN_NAME_BYTES_MAX, |n| variable("a".repeat(n), String::new()));
    refused_beyond("value", ARGUMENT_BYTES_MAX, |n| variable("a".into(), text(n)));
    refused_beyond("path of a socket", UNIX_PATH_BYTES_MAX, |n| ListenAddress::Unix(text(n)));
    refused_beyond("words of a command", ARGUMENTS_MAX, |n| HealthProbe::Command(vec!["a".into(); n]));
    refused_beyond("word of a command", ARGUMENT_BYTES_MAX, |n| HealthProbe::Command(vec![text(n)]));
    let address = "127.0.0.1:80".parse().unwrap();
    refused_beyond("path of a URL", PATH_BYTES_MAX, |n| HealthProbe::Http { address, path: text(n) });
    // Nothing but the names of signals, and addresses, is read as one.
    let bytes = proto::codec::encode(&("SIGKILL", 1_u64)).unwrap();
    assert!(proto::codec::decode::<Drain, 64>(&bytes).unwrap_err().to_string().contains("SIGTERM"));
    let bytes = proto::codec::encode(&(0_u32, "example.org:80")).unwrap();
    assert!(proto::codec::decode::<ListenAddress, 64>(&bytes).is_err());
}
