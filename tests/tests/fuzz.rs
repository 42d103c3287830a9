//! Whatever reads bytes from outside has a target in `tests/fuzz`, or a reason why it needs none of its own.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;

use tests::repository::{Source, root};

/// What reads bytes into something.
const READERS: [&str; 11] = [
    "codec::decode",
    "serde_json::from_slice",
    "serde_json::from_str",
    "toml::from_str",
    "DeTable::parse",
    "from_le_bytes",
    "from_be_bytes",
    "ZipArchive::new",
    "parse_x509",
    "from_der",
    "Decoder::new",
];

/// Where bytes are read, and the target that brings any bytes there.
const COVERED: &[(&str, &str)] = &[
    ("proto/src/bulk.rs", "chunk"),
    ("proto/src/bundle.rs", "bundle_stream"),
    ("proto/src/delta.rs", "delta_stream"),
    ("proto/src/frame.rs", "frame"),
    ("proto/src/local_greeting.rs", "local_greeting"),
    ("proto/src/manifest/bytes.rs", "manifest"),
    ("proto/src/preamble.rs", "manifest"),
    ("proto/src/record.rs", "record"),
    ("proto/src/relative.rs", "delta_stream"),
    ("agent-bin/src/engine/sftp/packet.rs", "sftp_packet"),
    ("agent-core/src/channel.rs", "agent_files"),
    ("agent-core/src/control.rs", "agent_reply"),
    ("agent-core/src/handoff.rs", "agent_files"),
    ("agent-core/src/inherited.rs", "agent_files"),
    ("agent-core/src/jobs/record.rs", "agent_files"),
    ("agent-core/src/journal.rs", "agent_files"),
    ("agent-core/src/permit_rules.rs", "permits"),
    ("agent-core/src/report.rs", "events"),
    ("agent-core/src/state.rs", "agent_files"),
    ("agent-core/src/serve.rs", "agent_request"),
    ("agent-core/src/stub/door.rs", "agent_request"),
    ("manager-fs/src/cli/client.rs", "admin_event"),
    ("manager-fs/src/cli/profile.rs", "events"),
    ("manager-fs/src/host/control/daemon.rs", "manager_request"),
    ("manager-fs/src/host/control/jobs.rs", "events"),
    ("manager-fs/src/host/control/socket.rs", "daemon_request"),
    ("manager-fs/src/host/control/spool.rs", "spool"),
    ("manager-fs/src/host/data/unpacking.rs", "manifest"),
    ("manager-fs/src/host/enroll.rs", "certificate"),
    ("manager-fs/src/host/mount/heard.rs", "local_messages"),
    ("manager-fs/src/host/mount/message.rs", "local_messages"),
    ("manager-fs/src/host/objects/numbers.rs", "local_messages"),
    ("manager-fs/src/manager/admin/mod.rs", "admin_request"),
    ("manager-fs/src/manager/control/bring_over/old.rs", "old_record"),
    ("manager-fs/src/manager/control/database/tables.rs", "control_records"),
    ("manager-fs/src/manager/control/observations/database/tables.rs", "control_records"),
    ("manager-fs/src/manager/control/state/records.rs", "backup"),
    ("manager-fs/src/manager/crossing/load.rs", "saved_generations"),
    ("manager-fs/src/manager/elf/reach/links.rs", "elf"),
    ("manager-fs/src/manager/elf/reach/mod.rs", "elf"),
    ("manager-fs/src/manager/identity.rs", "certificate"),
    ("manager-fs/src/manager/ingest/acl.rs", "acl"),
    ("manager-fs/src/manager/ingest/gzip.rs", "compressed"),
    ("manager-fs/src/manager/ingest/image/mod.rs", "container"),
    ("manager-fs/src/manager/ingest/rpm/header.rs", "rpm"),
    ("manager-fs/src/manager/ingest/stream.rs", "compressed"),
    ("manager-fs/src/manager/ingest/xattr.rs", "tar"),
    ("manager-fs/src/manager/ingest/zip/header.rs", "zip"),
    ("manager-fs/src/manager/ingest/zip/mod.rs", "zip"),
    ("manager-fs/src/manager/jobs/drive.rs", "events"),
    ("manager-fs/src/manager/parcel.rs", "manager_backup"),
    ("manager-fs/src/manager/session.rs", "host_request"),
    ("manager-fs/src/manager/store/pack.rs", "pack_index"),
    ("manager-fs/src/manager/toml_text.rs", "descriptor"),
    ("manager-fs/src/manager/upkeep/restore.rs", "manager_backup"),
    ("manager-fs/src/net/link.rs", "host_reply"),
];

/// Where what is read is our own, or was hashed and signed before; and what has tests of its own with damaged bytes.
const NOT_OF_ITS_OWN: &[(&str, &str)] = &[
    (
        "agent-bin/src/",
        "repositories: sealed with the host's own key; engine/format/damaged_tests.rs damages what is in the seals; \
         wire/http.rs has tests of what other readers might read differently, and TLS verifies certificates first; \
         wire/chunks.rs reads what servers of others say, and its tests cut and change every byte; engine/s3/answers.rs has \
         the target s3_answer",
    ),
    ("proto/src/door.rs", "a grant: its seal is checked before it is decoded, and its tests change every digit"),
    (
        "proto/src/recovery.rs",
        "random bytes as numbers; what is sealed is authenticated before it is read, and its tests change every digit",
    ),
    ("manager-fs/src/cli/daemon.rs", "a document of the own daemon, shown as it is"),
    ("manager-fs/src/cli/demo/", "lines of the own program"),
    ("manager-fs/src/cli/remote.rs", "a document of a manager within its bound, of which one text is shown"),
    ("manager-fs/src/host/objects/mod.rs", "an id as a number"),
    ("manager-fs/src/manager/control/ids.rs", "random bytes"),
    ("manager-fs/src/manager/delta/anchors.rs", "any eight bytes of a chunk are a number"),
    (
        "manager-fs/src/manager/http/ask.rs",
        "a body within its bound, by serde_json into types that take no field they do not know; its own tests read \
         queries of any bytes",
    ),
    ("manager-fs/src/manager/http/storage.rs", "an operation that was encoded in the line before, for its bounds"),
    ("manager-fs/src/manager/policy/board.rs", "a hash as a number"),
    ("manager-fs/src/manager/rollout/run.rs", "a hash as a number"),
    ("manager-fs/src/manager/targets.rs", "a hash as a number"),
    ("manager-fs/src/patch.rs", "the target patch; any eight bytes are a number"),
];

/// Names of the targets, as their tables have them.
fn targets() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in ["archives", "formats", "records", "storages"] {
        let text = fs::read_to_string(root().join(format!("tests/fuzz/src/{file}.rs"))).unwrap();
        let table = text.split("TARGETS: &[Target] = &[").nth(1).unwrap().split("\n];").next().unwrap();
        let name = |line: &str| Some(line.trim().strip_prefix("(\"")?.split('"').next()?.to_owned());
        names.extend(table.lines().filter_map(name));
    }
    assert!(names.len() > 35, "the test no longer sees the targets: {names:?}");
    names
}

#[test]
fn whatever_reads_bytes_has_a_fuzz_target_or_a_reason() {
    let targets = targets();
    let mut seen = BTreeSet::new();
    let mut without = Vec::new();
    for source in ["proto", "agent-core", "agent-bin", "manager-fs"].iter().flat_map(|name| Source::all(name)) {
        let path = source.path.to_string_lossy().into_owned();
        // The codec itself is what all of them call.
        if source.is_test() || path.contains("fuzz") || path == "proto/src/codec.rs" || !path.contains("/src/") {
            continue;
        }
        if !READERS.iter().any(|reader| source.own.contains(reader)) {
            continue;
        }
        let covered = COVERED.iter().find(|(file, _)| *file == path);
        let reasoned = NOT_OF_ITS_OWN.iter().find(|(place, _)| source.is_in(&[place]));
        match (covered, reasoned) {
            (Some((file, target)), _) => {
                assert!(targets.contains(*target), "{path}: there is no target '{target}'");
                seen.insert(*file);
            }
            (None, Some((place, _))) => drop(seen.insert(*place)),
            (None, None) => without.push(path),
        }
    }
    assert!(
        without.is_empty(),
        "these read bytes, and tests/tests/fuzz.rs names no target of tests/fuzz: {without:?}"
    );
    let gone: Vec<&str> = [COVERED, NOT_OF_ITS_OWN]
        .concat()
        .into_iter()
        .map(|(place, _)| place)
        .filter(|place| !seen.contains(place))
        .collect();
    assert!(gone.is_empty(), "these read no bytes any more: {gone:?}");
}

/// The packages of a lock file: name, version, and the names of what each depends on.
fn packages(lock: &str) -> Vec<(String, String, BTreeSet<String>)> {
    let text = fs::read_to_string(root().join(lock)).unwrap();
    let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let package = |block: &str| {
        let field = |name: &str| block.lines().find(|line| line.starts_with(name)).and_then(quoted);
        let list = block.split("dependencies = [").nth(1).unwrap_or_default().split(']').next().unwrap_or_default();
        // Of several versions of one name the version stands behind it.
        let dependencies =
            list.lines().filter_map(quoted).filter_map(|name| Some(name.split(' ').next()?.to_owned()));
        Some((field("name = ")?, field("version = ")?, dependencies.collect()))
    };
    text.split("[[package]]").filter_map(package).collect()
}

/// What a crate of ours depends on, tests aside.
fn dependencies(crate_name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(crate_name).join("Cargo.toml")).unwrap();
    let section = text.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap().to_owned();
    let name = |line: &str| Some(line.split(['.', ' ', '=']).next()?.to_owned()).filter(|name| !name.is_empty());
    section.lines().filter(|line| !line.starts_with('#')).filter_map(name).collect()
}

/// Built seldom, so what it is built of would be found to be stale by whoever needs it most.
#[test]
fn the_fuzz_workspace_is_built_of_what_this_one_is_built_of() {
    const HOW: &str = "cargo metadata --offline --manifest-path tests/fuzz/Cargo.toml puts its Cargo.lock right";
    let (ours, fuzz) = (packages("Cargo.lock"), packages("tests/fuzz/Cargo.lock"));
    // What only libFuzzer brings is its own affair.
    let known = |name: &str| ours.iter().any(|(known, ..)| known == name);
    let same = |name: &str, version: &str| ours.iter().any(|(n, v, _)| n == name && v == version);
    let other: Vec<String> = fuzz
        .iter()
        .filter(|(name, version, _)| known(name) && !same(name, version))
        .map(|(name, version, _)| format!("{name} {version}"))
        .collect();
    assert!(other.is_empty(), "tests/fuzz/Cargo.lock has other versions: {other:?}; {HOW}");
    for name in ["proto", "agent-core", "manager-fs"] {
        let locked = fuzz.iter().find(|(package, ..)| package == name).map(|(_, _, locked)| locked.clone());
        assert_eq!(locked, Some(dependencies(name)), "{name} in tests/fuzz/Cargo.lock: {HOW}");
    }
}
