//! Every way of being a bad version ends with the previous one running again and taking jobs, without the manager.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agent_core::internal::bad;
use agent_core::internal::journal::Phase;
use common::{Host, Order, Spec, patch, script, tree};
use proto::agent::{ChangeId, Outcome, Step};
use proto::message::Fault;

const PROBATION_MS: u64 = 1500;

fn spec<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: PROBATION_MS, ..Spec::new(version, arguments) }
}

/// A host at 1.0 that is told to change over to this version.
fn meet(bad: &Spec<'_>, spoil: impl FnOnce(&Path)) -> (Host, Vec<u8>, ChangeId, Result<(), Fault>) {
    let mut host = Host::with_first(&spec("1.0", &[]));
    let record = host.publish(bad);
    spoil(&host.program(bad.version));
    host.wait_serving("1.0");
    let (change, told) = host.tell(&record, &Order::default());
    (host, record, change, told)
}

/// After the return: the old version works, the bad one is remembered and is not tried again by itself.
fn check_remembered(host: &mut Host, record: &[u8], word: &str) {
    let (Outcome::Done(summary), _) = host.finish(&Host::backup(99, 2)) else { panic!("not done") };
    assert_eq!(summary.versions, ["1.0"]);
    assert_eq!(agent_core::internal::swap::current(&host.paths), Some(tree("1.0")));
    let journal = host.journal();
    assert_eq!((journal.phase, journal.current.tree), (Phase::Confirmed, tree("1.0")));
    let evidence = bad::evidence(&host.paths, &tree("2.0")).expect("no evidence was kept");
    assert!(evidence.contains(word), "{evidence}");
    let (_, again) = host.tell(record, &Order::default());
    let Err(Fault::Refused(reason)) = again else { panic!("{again:?}") };
    assert!(reason.contains("remembered as bad"), "{reason}");
}

/// The stub returns, and says why to the manager.
fn check_return(bad: &Spec<'_>, spoil: impl FnOnce(&Path), words: &[&str]) {
    let (mut host, record, change, told) = meet(bad, spoil);
    told.unwrap();
    let failed = host.wait_step(change, Step::ProbationFailed);
    for word in words {
        assert!(failed.detail.contains(word), "{word:?} is not in: {}", failed.detail);
    }
    let kept = bad::evidence(&host.paths, &tree("2.0")).unwrap();
    assert!(kept.contains("Journaled") && kept.contains(words[0]), "no timeline: {kept}");
    let returned = host.wait_step(change, Step::Returned);
    assert_eq!((returned.from, returned.to), (Some(tree("2.0")), tree("1.0")));
    let status = host.wait_serving("1.0");
    assert!(status.reason.starts_with("returned from 2.0: "), "{}", status.reason);
    check_remembered(&mut host, &record, words[0]);
    // On demand it may be tried again.
    let (again, told) = host.tell(&record, &Order { retry_bad: true, ..Order::default() });
    told.unwrap();
    host.wait_step(again, Step::ProbationFailed);
    host.wait_step(again, Step::Returned);
}

#[test]
fn exit_at_once() {
    check_return(&spec("2.0", &["--exit-at-once", "3"]), |_| {}, &["exit status 3", "tiny agent: boom"]);
}

#[test]
fn crash_after_a_while() {
    check_return(&spec("2.0", &["--crash-after-ms", "300"]), |_| {}, &["SIGABRT", "crashing as told"]);
}

#[test]
fn never_healthy() {
    // Long enough for a busy machine to have asked it once.
    let sick = Spec { probation_ms: 4_000, ..spec("2.0", &["--sick"]) };
    check_return(&sick, |_| {}, &["did not confirm within 4000 ms: ", "told to be sick"]);
}

#[test]
fn not_an_agent_at_all() {
    check_return(&spec("2.0", &["--hang"]), |_| {}, &["did not confirm within 1500 ms"]);
}

#[test]
fn a_missing_library() {
    let spoil = |program: &Path| patch(program, b"libc.so.6\0", b"libX.so.6\0");
    check_return(&spec("2.0", &[]), spoil, &["exit status 127", "libX.so.6"]);
}

#[test]
fn children_of_a_bad_version_do_not_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("child");
    let text = format!("#!/bin/sh\nsleep 1000 &\necho $! > {}\nexit 4\n", note.display());
    check_return(&spec("2.0", &[]), |program| script(program, &text), &["exit status 4"]);
    let child = std::fs::read_to_string(&note).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    assert!(stat.is_err(), "the child is still there: {stat:?}");
}

/// What execve itself refuses: the old version never stops.
fn check_never_left(bad: &Spec<'_>, spoil: impl FnOnce(&Path), step: Step, word: &str) {
    let (mut host, record, change, told) = meet(bad, spoil);
    let pid = host.status().pid;
    let ended = host.wait_step(change, step);
    assert!(ended.detail.contains(word), "{}", ended.detail);
    if step == Step::Refused {
        assert!(!host.steps(change).contains(&Step::Drained), "{:?}", host.steps(change));
    } else {
        told.unwrap();
    }
    let status = host.wait_serving("1.0");
    assert_eq!((status.pid, status.reason.as_str()), (pid, "launched"));
    check_remembered(&mut host, &record, word);
    // The way is free for another version.
    let good = host.publish(&spec("3.0", &[]));
    host.upgrade(&good);
    assert_eq!(host.wait_serving("3.0").pid, pid);
}

#[test]
fn a_missing_entry_point() {
    let spoil = |program: &Path| std::fs::remove_file(program).unwrap();
    check_never_left(&spec("2.0", &[]), spoil, Step::Refused, "entry point bin/agent: is not in the tree");
}

#[test]
fn an_entry_point_that_is_not_executable() {
    let spoil = |program: &Path| {
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o644)).unwrap();
    };
    check_never_left(&spec("2.0", &[]), spoil, Step::Refused, "is not executable");
}

#[test]
fn another_architecture_by_its_record() {
    let bad = Spec { architecture: Some("s390x"), ..spec("2.0", &[]) };
    check_never_left(&bad, |_| {}, Step::Refused, "2.0 is for s390x, and this host is ");
}

#[test]
fn another_architecture_that_only_execve_finds_out() {
    // The machine field of the ELF header: 0x16 is s390.
    let spoil = |program: &Path| {
        let mut bytes = std::fs::read(program).unwrap();
        bytes[18] = 0x16;
        std::fs::write(program, bytes).unwrap();
    };
    check_never_left(&spec("2.0", &[]), spoil, Step::ExecFailed, "Exec format error");
}

#[test]
fn a_world_in_which_the_previous_version_fails_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let world = dir.path().join("bad");
    let arguments = ["--exit-if", world.to_str().unwrap()];
    let mut host = Host::with_first(&spec("1.0", &arguments));
    let two = host.publish(&spec("2.0", &arguments));
    host.wait_serving("1.0");
    std::fs::write(&world, b"").unwrap();
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    assert!(host.wait_step(change, Step::ProbationFailed).detail.contains("the world is bad"));
    host.stub().wait_for("2.0 is no longer held to be bad");
    assert_eq!(bad::reason(&host.paths, &tree("2.0")), None);
    // It never gives up, and the version that had worked is never held to be bad.
    // The order has ended by then: nobody waits for a world to mend.
    host.wait_step(change, Step::Refused);
    std::fs::remove_file(&world).unwrap();
    host.wait_report("the return", |e| e.step == Step::Returned && e.to == tree("1.0"));
    host.wait_serving("1.0");
    assert_eq!(bad::reason(&host.paths, &tree("1.0")), None);
    host.upgrade(&two);
}
