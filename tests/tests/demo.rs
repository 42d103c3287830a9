//! The demo as an operator meets it: what is missing is said before anything starts, Ctrl-C is answered at once, and the
//! document has identifiers and numbers.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::Output;
use tests::command::program;

fn demo(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program("manager-fs"));
    command.args(["demo", "--data-bytes", "20MB", "--dir"]).arg(dir).args(more);
    command
}

#[test]
fn what_is_missing_is_said_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for (dir, more, named) in [
        (missing.as_path(), &[][..], "missing"),
        // Also root cannot write there.
        (Path::new("/proc"), &[], "cannot write to /proc"),
        (dir.path(), &["--agent", "/no/such/agent"], "/no/such/agent"),
    ] {
        let output = Output::of(&mut demo(dir, more)).expect(1);
        assert!(output.stderr.contains(named), "{}", output.stderr);
        assert!(output.stdout.is_empty(), "{}", output.stdout);
    }
    let mut command = Command::new(program("manager-fs"));
    command.args(["demo", "--data-bytes", "900TB", "--dir"]).arg(dir.path());
    let output = Output::of(&mut command).expect(1);
    let said = ["free, and the demo needs 2700.0 TB", "--dir", "--data-bytes"];
    assert!(said.iter().all(|said| output.stderr.contains(said)), "{}", output.stderr);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
}

#[test]
fn ctrl_c_is_answered_at_once_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut child =
        demo(dir.path(), &[]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Manager and mount daemon run by then.
    let published = lines.by_ref().map_while(Result::ok).find(|line| line.contains("Version 1 is published"));
    assert!(published.is_some());
    let since = Instant::now();
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let mut said = String::new();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    errors.read_line(&mut said).unwrap();
    assert!(said.contains("cleaning up"), "{said}");
    assert!(since.elapsed() < Duration::from_secs(5), "answered after {:?}", since.elapsed());
    errors.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left: {said}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&dir.path().display().to_string()), "left mounted:\n{mounts}");
}

#[test]
fn every_step_is_checked_and_its_document_is_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let output = Output::of(&mut demo(dir.path(), &["--json"])).expect(0);
    let document = output.json();
    assert_eq!((&document["ok"], &document["clean"]), (&true.into(), &true.into()), "{document}");
    let steps = document["steps"].as_array().unwrap();
    for step in steps {
        let id = step["step"].as_str().unwrap();
        assert!(id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{id}");
        assert!(step["duration_ms"].is_u64() && step["at_ms"].is_u64(), "{step}");
    }
    let fact = |id: &str, name: &str| {
        let step = steps.iter().find(|step| step["step"] == id).unwrap_or_else(|| panic!("no step {id}: {document}"));
        step["facts"][name].clone()
    };
    let number = |id: &str, name: &str| fact(id, name).as_u64().unwrap_or_else(|| panic!("{id}: {name}: {document}"));
    assert!(number("publish_2", "differing_bytes") > 1_000_000);
    assert!(number("upgrade_to_2", "fetched_bytes") < number("publish_2", "differing_bytes"), "a delta is at work");
    assert_eq!(fact("upgrade_to_2", "same_process"), true);
    assert_eq!(number("finish_backup", "snapshots"), number("prepare_data", "parts"));
    assert!(number("restore", "equal_files") > 0 && number("return_by_itself", "away_ms") > 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");
}
