//! Orders to change over while no agent runs: the stub takes them, carries them out, and every one of them ends in a
//! verdict.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use agent_core::internal::bad;
use agent_core::internal::control::Client;
use agent_core::internal::journal::Phase;
use common::{Host, Order, PATIENCE, Spec, script, tree};
use proto::agent::{AgentReply, AgentRequest, AgentState, ChangeId, Outcome, Step};
use proto::message::Fault;

fn quick<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) }
}

/// A host whose only version had confirmed, and fails at every start while the file is there.
fn failing() -> (Host, PathBuf) {
    let mut host = Host::new();
    let bad_world = host.dir().join("bad-world");
    let one = host.publish(&quick("1.0", &["--exit-if", bad_world.to_str().unwrap()]));
    host.set_newest(&one);
    host.launch().wait_for("stub: ready");
    host.wait_serving("1.0");
    host.stub().wait_for("has confirmed");
    host.terminate();
    fs::write(&bad_world, "").unwrap();
    host.launch().wait_for("starting it again in");
    (host, bad_world)
}

fn works(host: &Host, version: &str) {
    host.wait_serving(version);
    let (Outcome::Done(summary), _) = host.finish(&Host::backup(77, 2)) else { panic!("not done") };
    assert_eq!(summary.versions, [version]);
}

#[test]
fn a_version_that_fails_at_every_start_is_left_by_an_order() {
    let (mut host, _) = failing();
    let stub = host.stub().child.id();
    let status = host.stub_status();
    assert_eq!((status.state, status.pid, status.tree), (AgentState::Stopped, stub, tree("1.0")));
    assert!(status.takes_orders() && status.reason.contains("exit status 9"), "{}", status.reason);
    let two = host.publish(&quick("2.0", &[]));
    let (change, told) = host.tell_stub(&two);
    told.unwrap();
    assert_eq!(host.wait_end(change).step, Step::Confirmed);
    works(&host, "2.0");
    let steps = host.steps(change);
    let want = [Step::MetadataSaved, Step::Staged, Step::Warmed, Step::Journaled, Step::Started, Step::Confirmed];
    assert_eq!(steps, want);
    assert!(host.wait_serving("2.0").reason.starts_with("changed over from 1.0"));
    let journal = host.journal();
    assert_eq!((journal.current.tree, journal.phase, journal.staged), (tree("2.0"), Phase::Confirmed, None));
    assert_eq!(journal.last_good.unwrap().tree, tree("1.0"), "it had confirmed once");
    assert_eq!(agent_core::internal::swap::current(&host.paths), Some(tree("2.0")));
    // From here on the agent takes its orders itself, and the stub sends there whoever asks it.
    let three = host.publish(&quick("3.0", &[]));
    let (_, told) = host.tell_stub(&three);
    assert!(matches!(told, Err(Fault::Unavailable(why)) if why.contains("takes orders itself")));
    assert_eq!(host.stub_status().state, AgentState::Serving);
    host.upgrade(&three);
}

#[test]
fn an_ordered_version_that_fails_as_well_ends_the_order_and_not_the_host() {
    let (mut host, bad_world) = failing();
    let two = host.publish(&quick("2.0", &["--exit-at-once", "3"]));
    let (change, told) = host.tell_stub(&two);
    told.unwrap();
    let failed = host.wait_step(change, Step::ProbationFailed);
    assert!(failed.detail.starts_with("exit status 3") && failed.detail.contains("boom"), "{}", failed.detail);
    let end = host.wait_end(change);
    assert_eq!(end.step, Step::Refused);
    for part in ["2.0 failed: exit status 3", "1.0, which was there before, does not come up either", "exit status 9"]
    {
        assert!(end.detail.contains(part), "{}", end.detail);
    }
    assert_eq!(host.journal().current.tree, tree("1.0"));
    // Another try, with a version that works; and the host's own is back as soon as the world is well.
    fs::remove_file(&bad_world).unwrap();
    works(&host, "1.0");
    host.wait_report("what came of the return", |e| e.step == Step::Returned);
}

/// The version that runs is left for the one before while an order is being made ready: the order is no part of that, and
/// must not be forgotten with it.
#[test]
fn an_order_outlives_a_return_and_whoever_is_killed_then_refuses_it() {
    let (mut host, bad_world) = failing();
    fs::remove_file(&bad_world).unwrap();
    host.wait_serving("1.0");
    let two = host.publish(&quick("2.0", &["--exit-if", bad_world.to_str().unwrap()]));
    let change = host.upgrade(&two);
    assert_eq!(host.wait_end(change).step, Step::Confirmed);
    host.terminate();
    fs::write(&bad_world, "").unwrap();
    host.hold_staging(true);
    host.launch().wait_for("starting it again in");
    let three = host.publish(&quick("3.0", &[]));
    let (change, told) = host.tell_stub(&three);
    told.unwrap();
    host.stub().wait_for("returning to 1.0");
    let until = Instant::now() + PATIENCE;
    while host.journal().current.tree != tree("1.0") {
        assert!(Instant::now() < until, "{:?}", host.journal());
        std::thread::yield_now();
    }
    let stub = host.stub();
    stub.child.kill().unwrap();
    stub.child.wait().unwrap();
    host.hold_staging(false);
    host.launch();
    let end = host.wait_end(change);
    assert_eq!(end.step, Step::Refused, "{}", end.detail);
    assert!(end.detail.contains("give the order again"), "{}", end.detail);
}

#[test]
fn an_agent_that_comes_up_after_all_is_given_the_order() {
    let (mut host, bad_world) = failing();
    let two = host.publish(&quick("2.0", &[]));
    host.hold_staging(true);
    let (change, told) = host.tell_stub(&two);
    told.unwrap();
    // Told twice, followed once.
    let again = AgentRequest::Finish { change, drain_deadline_ms: 1 };
    let reply: AgentReply = Client::ask(&host.paths.stub_socket(), &again, PATIENCE).unwrap();
    assert_eq!(reply, AgentReply::Done);
    fs::remove_file(&bad_world).unwrap();
    let pid = host.wait_status("at work again", |s| s.version.as_str() == "1.0").pid;
    host.stub().wait_for("giving the order to change over to 2.0 to the agent");
    host.hold_staging(false);
    assert_eq!(host.wait_end(change).step, Step::Confirmed);
    assert_eq!(host.wait_serving("2.0").pid, pid, "the agent itself changed over");
    works(&host, "2.0");
}

#[test]
fn an_order_is_taken_while_the_stub_waits_for_a_tree_that_cannot_be_had() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    host.wait_serving("1.0");
    host.terminate();
    host.set_absent("1.0", true);
    host.launch().wait_for("waiting for the mount daemon to give tree");
    assert_eq!(host.stub_status().state, AgentState::Stopped);
    // One that cannot be had either: refused as soon as the other one is there.
    let three = host.publish(&quick("3.0", &[]));
    host.set_absent("3.0", true);
    let (change, told) = host.tell_stub(&three);
    told.unwrap();
    let two = host.publish(&quick("2.0", &[]));
    let (second, told) = host.tell_stub(&two);
    told.unwrap();
    assert!(host.wait_end(change).detail.contains("a newer change-over took its place"));
    assert_eq!(host.wait_end(second).step, Step::Confirmed);
    works(&host, "2.0");
    host.terminate();
    host.set_absent("2.0", true);
    host.set_absent("1.0", true);
    host.launch().wait_for("waiting for the mount daemon to give tree");
    let (change, told) = host.tell_stub(&three);
    told.unwrap();
    host.set_absent("2.0", false);
    let end = host.wait_end(change);
    assert_eq!(end.step, Step::Refused);
    assert!(end.detail.contains("it cannot be started here"), "{}", end.detail);
    works(&host, "2.0");
}

#[test]
fn every_order_at_the_stub_ends_with_its_reason() {
    let (mut host, bad_world) = failing();
    let two = host.publish(&quick("2.0", &[]));
    // What cannot be staged.
    host.set_stage_fault(Some(Fault::Failed("no network".to_owned())));
    let (change, told) = host.tell_stub(&two);
    // It may be over before message C has come.
    assert!(matches!(told, Ok(()) | Err(Fault::Refused(_))), "{told:?}");
    assert!(host.wait_end(change).detail.contains("no network"));
    host.set_stage_fault(None);
    // What runs here already, or would.
    let one = host.sign(&quick("1.0", &["--exit-if", bad_world.to_str().unwrap()]), tree("1.0"));
    let (change, told) = host.tell_stub(&one);
    assert!(matches!(told, Err(Fault::Refused(why)) if why.contains("does not come up: exit status 9")));
    assert_eq!(host.wait_end(change).step, Step::Refused);
    // What is remembered as bad, is for another machine, has no program, or is not believed.
    bad::remember(&host.paths, &tree("2.0"), "it was bad once").unwrap();
    let (_, told) = host.tell_stub(&two);
    assert!(matches!(told, Err(Fault::Refused(why)) if why.contains("it was bad once")));
    let foreign = host.publish(&Spec { architecture: Some("s390x"), ..quick("4.0", &[]) });
    let (change, told) = host.tell_stub(&foreign);
    assert!(matches!(told, Err(Fault::Refused(why)) if why.contains("s390x")));
    host.wait_end(change);
    let empty = host.publish(&quick("5.0", &[]));
    fs::remove_file(host.program("5.0")).unwrap();
    let (change, told) = host.tell_stub(&empty);
    assert!(matches!(told, Ok(()) | Err(Fault::Refused(_))), "{told:?}");
    assert!(host.wait_end(change).detail.contains("is not in the tree"));
    assert!(bad::reason(&host.paths, &tree("5.0")).is_some());
    let mut changed = host.publish(&quick("6.0", &[]));
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let save = AgentRequest::SaveMetadata { change: ChangeId(900), record: changed };
    let reply: AgentReply = Client::ask(&host.paths.stub_socket(), &save, PATIENCE).unwrap();
    assert!(matches!(reply, AgentReply::Fault(Fault::Refused(_))), "{reply:?}");
    // A message that comes out of order, and a job.
    let finish = AgentRequest::Finish { change: ChangeId(901), drain_deadline_ms: 1 };
    for wrong in [finish, Host::backup(3, 1)] {
        let reply: AgentReply = Client::ask(&host.paths.stub_socket(), &wrong, PATIENCE).unwrap();
        assert!(matches!(reply, AgentReply::Fault(Fault::BadRequest(_))), "{reply:?}");
    }
    // Its stub is told to end, or dies.
    let three = host.publish(&quick("3.0", &[]));
    host.hold_staging(true);
    let (change, told) = host.tell_stub(&three);
    told.unwrap();
    assert_eq!(host.terminate().code(), Some(0));
    assert!(host.wait_end(change).detail.contains("told to end"));
    host.launch().wait_for("starting it again in");
    let (change, told) = host.tell_stub(&three);
    told.unwrap();
    host.stub().child.kill().unwrap();
    host.stub().child.wait().unwrap();
    host.launch().wait_for("starting it again in");
    assert_eq!(host.wait_end(change).step, Step::Refused);
    host.hold_staging(false);
    let (change, told) = host.tell_stub(&three);
    told.unwrap();
    assert_eq!(host.wait_end(change).step, Step::Confirmed);
    works(&host, "3.0");
}

#[test]
fn a_pinned_product_takes_no_order_at_the_stub_either() {
    let (mut host, bad_world) = failing();
    let two = host.publish(&quick("2.0", &[]));
    let permits = host.paths.state().join("permits.toml");
    fs::write(&permits, "[change-over]\npinned = [\"tiny\"]\n").unwrap();
    let (_, told) = host.tell_stub(&two);
    assert!(matches!(told, Err(Fault::Refused(why)) if why.contains("it is pinned") && why.contains("line 2")));
    assert!(!host.paths.ordered().exists(), "nothing is saved for it");
    // Pinned between A and B.
    fs::remove_file(&permits).unwrap();
    let change = ChangeId(900);
    let ask = |request: &AgentRequest| Client::ask(&host.paths.stub_socket(), request, PATIENCE).unwrap();
    assert_eq!(ask(&AgentRequest::SaveMetadata { change, record: two.clone() }), AgentReply::Done);
    fs::write(&permits, "nonsense").unwrap();
    let attach = AgentRequest::Attach { change, release: None, attach: tree("2.0"), lazy: false, retry_bad: false };
    let reply: AgentReply = ask(&attach);
    let why = "nothing is permitted here until that is mended";
    assert!(matches!(reply, AgentReply::Fault(Fault::Refused(said)) if said.contains(why)));
    assert_eq!(host.wait_end(change).step, Step::Refused);
    // A first version that never came up does not give way to a newer one either.
    fs::write(&permits, "[change-over]\npinned = [\"tiny\"]\n").unwrap();
    fs::remove_file(&bad_world).unwrap();
    works(&host, "1.0");
    host.terminate();
    let mut host = Host::new();
    fs::write(host.paths.state().join("permits.toml"), "[change-over]\npinned = [\"tiny\"]\n").unwrap();
    let one = host.publish(&quick("1.0", &[]));
    script(&host.program("1.0"), "#!/bin/sh\nexit 5\n");
    host.set_newest(&one);
    host.launch().wait_for("starting it again in 400 ms");
    let two = host.publish(&quick("2.0", &[]));
    host.set_newest(&two);
    host.stub().wait_for("starting it again in 3200 ms");
    assert_eq!(host.stub_status().version.as_str(), "1.0");
}

#[test]
fn a_first_version_that_never_came_up_is_left_by_an_order() {
    let mut host = Host::new();
    let one = host.publish(&quick("1.0", &["--hang"]));
    script(&host.program("1.0"), "#!/bin/sh\nexit 5\n");
    host.set_newest(&one);
    host.launch().wait_for("exit status 5; starting it again in");
    let two = host.publish(&quick("2.0", &[]));
    let (change, told) = host.tell_stub(&two);
    told.unwrap();
    assert_eq!(host.wait_end(change).step, Step::Confirmed);
    works(&host, "2.0");
}

#[test]
fn a_version_that_is_believed_and_sick_takes_an_order() {
    let mut host = Host::new();
    let one = host.publish(&quick("1.0", &["--sick"]));
    host.set_newest(&one);
    host.launch().wait_for("stub: ready");
    let two = host.publish(&quick("2.0", &[]));
    // Before it has shown that it is sick it may still prove itself: asked again until it has.
    let until = std::time::Instant::now() + PATIENCE;
    let change = loop {
        match host.tell(&two, &Order::default()) {
            (change, Ok(())) => break change,
            (_, Err(Fault::Unavailable(_))) if std::time::Instant::now() < until => {}
            (_, other) => panic!("{other:?}"),
        }
    };
    assert_eq!(host.wait_end(change).step, Step::Confirmed);
    works(&host, "2.0");
}
