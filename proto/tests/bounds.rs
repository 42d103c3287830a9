//! What comes from outside is within its bounds once it is decoded, whoever decodes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proto::agent::{
    AgentReply, AgentRequest, AgentState, AgentStatus, ChangeId, JobId, JobOrigin, Operation, Outcome, Progress,
    Repository, Step, StepEvent, Summary,
};
use proto::codec::{self, CodecError};
use proto::limits::*;
use proto::message::{ChunkRange, Fault, HostReport, HostRequest, ManagerReply};
use proto::{GenerationRef, ObjectId, TreeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message as it arrives.
fn arrived<T: Serialize + DeserializeOwned>(message: &T) -> Result<T, CodecError> {
    codec::decode::<T, MESSAGE_BYTES_MAX>(&codec::encode(message).unwrap())
}

fn refused<T: Serialize + DeserializeOwned>(message: &T, says: &str) {
    match arrived(message) {
        Err(CodecError::Decode(why)) => assert!(why.contains(says), "wanted '{says}', got: {why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken, though beyond: {says}"),
    }
}

fn progress(activity: String) -> Progress {
    Progress { units_done: 0, units: 1, bytes_done: 0, bytes: 0, activity, version: "1".into() }
}

fn status(reason: &str, jobs: usize) -> AgentStatus {
    AgentStatus {
        product: "data-agent".parse().unwrap(),
        version: "1.0".parse().unwrap(),
        tree: TreeId::of(b"tree"),
        pid: 7,
        started_unix_ms: 0,
        state: AgentState::Serving,
        jobs: vec![JobId(1); jobs],
        reason: reason.into(),
    }
}

#[test]
fn text_for_people_is_cut_and_cleaned() {
    let report = HostReport::JobProgress { job: JobId(1), progress: progress("x".repeat(9 << 20)) };
    let HostReport::JobProgress { progress, .. } = arrived(&report).unwrap() else { panic!() };
    assert!(progress.activity.len() <= ACTIVITY_BYTES_MAX && progress.activity.starts_with(&"x".repeat(400)));
    assert!(progress.activity.ends_with("[… cut: 9437184 bytes in all …]"), "{}", progress.activity);

    let report = HostReport::WrongHash { what: format!("\x1b]52;c;ZXZpbA==\x07{}", "y".repeat(9 << 20)) };
    let HostReport::WrongHash { what } = arrived(&report).unwrap() else { panic!() };
    assert!(what.len() <= WRONG_HASH_BYTES_MAX && what.starts_with("\\x1b]52;c;ZXZpbA==\\x07y"), "{what}");

    let fault = arrived(&Fault::Refused("no\nok  every-host  healthy\n".into())).unwrap();
    assert_eq!(fault.to_string(), "refused: no\\nok  every-host  healthy\\n");
    assert_eq!(arrived(&status("launched\r\x1b[2K", 1)).unwrap().reason, "launched\\r\\x1b[2K");
}

#[test]
fn the_last_words_of_a_program_stay() {
    let detail = format!("exit status 127\n{}libfoo.so: cannot open", "noise\x1b[0m\n".repeat(100_000));
    let event = StepEvent {
        change: ChangeId(1),
        product: "data-agent".parse().unwrap(),
        from: None,
        to: TreeId::of(b"tree"),
        step: Step::ProbationFailed,
        at_unix_ms: 0,
        duration_us: 0,
        detail,
    };
    let HostReport::Step(event) = arrived(&HostReport::Step(event)).unwrap() else { panic!() };
    assert!(event.detail.len() <= DETAIL_BYTES_MAX && event.detail.starts_with("exit status 127\nnoise\\x1b[0m\n"));
    assert!(event.detail.ends_with("libfoo.so: cannot open"));
}

#[test]
fn problems_beyond_the_bound_are_counted() {
    let summary = Summary { problems: vec!["z".repeat(2000); 1000], ..Summary::default() };
    let Outcome::Done(summary) = arrived(&Outcome::Done(summary)).unwrap() else { panic!() };
    assert_eq!(summary.problems.len(), PROBLEMS_MAX);
    assert_eq!(summary.problems[PROBLEMS_MAX - 1], format!("… and {} more", 1000 - PROBLEMS_MAX + 1));
    assert!(summary.problems.iter().all(|line| line.len() <= PROBLEM_BYTES_MAX));
    assert_eq!(arrived(&Outcome::Done(summary.clone())).unwrap(), Outcome::Done(summary), "once is enough");
}

#[test]
fn lists_and_identifiers_are_refused() {
    let report = |count| HostRequest::Report { reports: vec![HostReport::Agents(vec![]); count] };
    assert!(arrived(&report(REPORTS_MAX)).is_ok());
    refused(&report(5000), "a list of more than 256 elements");
    refused(&HostReport::Agents(vec![status("", 0); AGENTS_MAX + 1]), "a list of more than 64");
    refused(&HostReport::Agents(vec![status("", JOBS_MAX + 1)]), "a list of more than 256");
    refused(&HostReport::Attached(vec![TreeId::of(b""); TREES_MAX + 1]), "a list of more than 4096");
    let want = ChunkRange { object: ObjectId::of(b""), first: 0, count: 1 };
    let wants = vec![want; CHUNKS_PER_REQUEST_MAX + 1];
    refused(&HostRequest::Chunks { tree: TreeId::of(b""), wants }, "a list of more than 1024");
    refused(&HostRequest::Renew { csr: vec![0; CSR_BYTES_MAX + 1] }, "8193 bytes where at most 8192 are allowed");
    refused(&ManagerReply::Exports(vec![vec![0; RECORD_BYTES_MAX + 1]]), "bytes where at most");
    let summary = |id: &str| Outcome::Done(Summary { snapshots: vec![id.into()], ..Summary::default() });
    refused(&summary(&"0".repeat(65)), "65 bytes where at most 64");
    refused(&summary("a b"), "an identifier");
    refused(&summary(""), "an identifier");
}

#[test]
fn paths_are_exact_or_refused() {
    let repository = |path: &str| Repository { path: path.into(), password_file: None };
    let backup = |sources: Vec<String>| AgentRequest::Run {
        job: JobId(1),
        origin: JobOrigin::new("host-1".parse().unwrap(), "data-agent".parse().unwrap()),
        operation: Operation::Backup { repository: repository("/r"), sources },
    };
    let odd = String::from("/data/a name\nwith a line end");
    assert_eq!(arrived(&backup(vec![odd.clone()])).unwrap(), backup(vec![odd]));
    refused(&backup(vec!["/a".into(); SOURCES_MAX + 1]), "a list of more than 1024");
    refused(&backup(vec!["/".repeat(4000); 66]), "paths of more than 262144 bytes together");
    refused(&backup(vec!["/".repeat(4096)]), "4096 bytes where at most 4095");
    refused(&repository("/a\0b"), "a NUL byte");
    refused(&Repository { path: "/r".into(), password_file: Some("\0".into()) }, "a NUL byte");
}

#[test]
fn the_start_of_a_tree_id_is_checked_on_arrival_too() {
    let prefix = |text: &str| GenerationRef::TreePrefix(text.into());
    assert_eq!(arrived(&prefix("0af3")).unwrap(), prefix("0af3"));
    for bad in ["", "0af", "0AF3", "../../etc", &"0".repeat(65)] {
        assert!(arrived(&prefix(bad)).is_err(), "{bad}");
    }
}

#[test]
fn a_claimed_length_makes_no_room() {
    // `Outcome::Done` with a claim of 2^19 snapshots, and nothing behind it.
    let mut bytes = codec::encode(&0_u32).unwrap();
    bytes.extend(codec::encode(&(1_u64 << 19)).unwrap());
    assert!(codec::decode::<AgentReply, MESSAGE_BYTES_MAX>(&bytes).is_err());
    assert!(codec::decode::<Outcome, MESSAGE_BYTES_MAX>(&bytes).is_err());
}

/// No field of a message holds text, bytes or a list without naming a bound. The tree formats are bounded by their readers.
#[test]
fn every_text_and_list_of_a_message_names_its_bound() {
    let sources = ["message", "agent", "daemon", "record", "name"];
    let mut fields = 0;
    for source in sources {
        let path = format!("{}/src/{source}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let declared = text.split("#[cfg(test)]").next().unwrap();
        let mut derived = false;
        let mut before = "";
        for line in declared.lines().map(str::trim) {
            derived |= line.starts_with("#[derive(") && line.contains("Deserialize");
            derived &= line != "}" || before.ends_with("},") || before.ends_with("],");
            let holds = ["String,", "Vec<", "Option<String>", "String)"].iter().any(|kind| line.contains(kind));
            let is_field =
                line.ends_with(',') && !line.contains("fn ") && !line.contains("=>") && !line.starts_with("///");
            if derived && holds && is_field {
                let bounded = |text: &str| text.contains("deserialize_with = ");
                assert!(bounded(line) || bounded(before), "{source}.rs: a field without a bound: {line}");
                fields += 1;
            }
            before = line;
        }
    }
    assert!(fields > 45, "only {fields} fields found: the test no longer sees them");
}
