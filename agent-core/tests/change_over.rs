//! Real change-overs of real processes: up and down, under load, with work under way.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_core::internal::control::Client;
use agent_core::internal::journal::Phase;
use common::{Host, Order, PATIENCE, Spec, is_no_refusal, tree};
use proto::agent::{AgentReply, AgentRequest, Outcome, Step};
use proto::message::Fault;
use proto::record::SchemaRange;

fn quick<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) }
}

#[test]
fn up_and_down_in_one_process_and_nobody_is_refused() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let (one, two) = (host.publish(&quick("1.0", &[])), host.publish(&quick("2.0", &[])));
    let pid = host.wait_serving("1.0").pid;
    let stop = AtomicBool::new(false);
    let socket = host.paths.socket();
    let changes = std::thread::scope(|scope| {
        let hammer = scope.spawn(|| {
            let (mut answers, mut cut) = (0u32, 0u32);
            while !stop.load(Ordering::Relaxed) {
                match Client::ask::<_, AgentReply>(&socket, &AgentRequest::Status, PATIENCE) {
                    Ok(AgentReply::Status(status)) => {
                        assert_eq!(status.pid, pid);
                        answers += 1;
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(e) => {
                        assert!(is_no_refusal(&e), "refused: {e}");
                        cut += 1;
                    }
                }
            }
            (answers, cut)
        });
        let mut changes = Vec::new();
        for record in [&two, &one, &two] {
            changes.push(host.upgrade(record));
        }
        stop.store(true, Ordering::Relaxed);
        let (answers, cut) = hammer.join().unwrap();
        assert!(answers > 100, "{answers} answers");
        assert!(cut <= 6, "{cut} connections were cut in three change-overs");
        changes
    });
    for change in &changes {
        let want = [
            Step::MetadataSaved,
            Step::Staged,
            Step::Warmed,
            Step::Drained,
            Step::Journaled,
            Step::Swapped,
            Step::Started,
            Step::Confirmed,
        ];
        assert_eq!(host.steps(*change), want);
        let started = host.wait_step(*change, Step::Started);
        assert!(started.detail.starts_with("blackout "), "{}", started.detail);
        println!("{}, swap {} us", started.detail, host.wait_step(*change, Step::Swapped).duration_us);
    }
    let status = host.wait_serving("2.0");
    assert_eq!((status.pid, status.reason.as_str()), (pid, "changed over from 1.0"));
    assert_eq!(agent_core::internal::swap::current(&host.paths), Some(tree("2.0")));
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(exe, host.program("2.0"), "the versioned path, not the link");
    let journal = host.journal();
    assert_eq!((journal.phase, journal.current.tree), (Phase::Confirmed, tree("2.0")));
    assert_eq!(journal.last_good.unwrap().tree, tree("1.0"));
}

#[test]
fn work_under_way_finishes_before_the_change_over() {
    let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "20"]));
    let two = host.publish(&quick("2.0", &[]));
    host.wait_serving("1.0");
    let run = Host::backup(1, 20);
    std::thread::scope(|scope| {
        let work =
            scope.spawn(|| Client::ask::<_, AgentReply>(&host.paths.socket(), &AgentRequest::Status, PATIENCE));
        work.join().unwrap().unwrap();
    });
    let socket = host.paths.socket();
    let job = std::thread::spawn(move || {
        Client::connect(&socket).unwrap().request::<_, proto::agent::Progress, AgentReply>(&run, None, |_| {})
    });
    host.wait_status("at work", |s| s.jobs.len() == 1);
    let change = host.upgrade(&two);
    let AgentReply::Outcome(Outcome::Done(summary)) = job.join().unwrap().unwrap() else { panic!("not done") };
    assert_eq!((summary.files, summary.versions), (20, vec!["1.0".to_owned()]));
    assert!(host.wait_step(change, Step::Drained).duration_us > 10_000);
    // The outcome is kept, also by the new version, and is not worked for again.
    let (again, progress) = host.finish(&Host::backup(1, 20));
    let Outcome::Done(again) = again else { panic!("{again:?}") };
    assert_eq!((again.files, again.versions, progress.len()), (20, vec!["1.0".to_owned()], 0));
}

#[test]
fn past_the_deadline_work_stops_at_a_unit_and_goes_on_under_the_new_version() {
    for arguments in [["--unit-ms", "100", "--x"], ["--unit-ms", "100", "--stubborn"]] {
        let host = Host::with_first(&quick("1.0", &arguments));
        let two = host.publish(&quick("2.0", &["--unit-ms", "1"]));
        host.wait_serving("1.0");
        let run = Host::backup(7, 100);
        let began = Instant::now();
        let outcome = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let host = &host;
                host.finish(&run)
            });
            host.wait_status("at work", |s| s.jobs.len() == 1);
            let mut client = Client::connect(&host.paths.socket()).unwrap();
            let change = proto::agent::ChangeId(1);
            for message in [
                AgentRequest::SaveMetadata { change, record: two.clone() },
                AgentRequest::Attach {
                    change,
                    release: Some(tree("1.0")),
                    attach: tree("2.0"),
                    lazy: false,
                    retry_bad: false,
                },
                AgentRequest::Finish { change, drain_deadline_ms: 250 },
            ] {
                let reply: AgentReply = client.request(&message, Some(PATIENCE), |_: ()| {}).unwrap();
                assert_eq!(reply, AgentReply::Done);
            }
            // Whoever asks for new work meanwhile is told to come again.
            host.wait_status("draining", |s| s.state == proto::agent::AgentState::Draining);
            assert_eq!(host.ask(&Host::backup(8, 1)), AgentReply::Fault(Fault::Draining));
            watch.join().unwrap()
        });
        let (Outcome::Done(summary), progress) = outcome else { panic!("{outcome:?}") };
        assert_eq!((summary.files, summary.versions), (100, vec!["1.0".to_owned(), "2.0".to_owned()]));
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "100 units of 100 ms were not all worked by the old version"
        );
        assert!(progress.iter().any(|p| p.version == "1.0") && progress.iter().any(|p| p.version == "2.0"));
        let drained = host.wait_step(proto::agent::ChangeId(1), Step::Drained);
        let word = if arguments[2] == "--stubborn" { "abandoned" } else { "checkpointed" };
        assert!(drained.detail.contains(word), "{}", drained.detail);
        host.wait_serving("2.0");
    }
}

#[test]
fn state_crosses_and_a_version_that_cannot_read_it_is_refused() {
    let schemas = |min, max| SchemaRange { min, max };
    let mut host = Host::with_first(&Spec { schemas: schemas(1, 2), ..quick("2.0", &[]) });
    host.wait_serving("2.0");
    for job in [1, 2] {
        host.finish(&Host::backup(job, 1));
    }
    let old = host.publish(&Spec { schemas: schemas(1, 1), ..quick("1.0", &[]) });
    let (change, refused) = host.tell(&old, &Order::default());
    let Err(Fault::Refused(reason)) = refused else { panic!("{refused:?}") };
    assert!(
        reason.contains("1.0 reads agent state of schemas 1 to 1, and the running 2.0 writes 2 to 2"),
        "{reason}"
    );
    assert_eq!(host.wait_step(change, Step::Refused).detail, reason);
    let new = host.publish(&Spec { schemas: schemas(2, 3), ..quick("3.0", &[]) });
    host.upgrade(&new);
    let (Outcome::Done(summary), _) = host.finish(&Host::backup(3, 1)) else { panic!("not done") };
    assert_eq!(summary.bytes, 3, "the two operations of the version before are counted");
}

#[test]
fn what_cannot_be_staged_changes_nothing() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    host.wait_serving("1.0");
    host.set_stage_fault(Some(Fault::Failed("disk full".to_owned())));
    let (change, _) = host.tell(&two, &Order::default());
    let refused = host.wait_step(change, Step::Refused);
    assert!(refused.detail.contains("disk full"), "{}", refused.detail);
    assert_eq!(host.wait_serving("1.0").reason, "launched");
    assert_eq!(host.journal().staged, None);
    assert!(!host.steps(change).contains(&Step::Staged));
    // A newer change-over takes the place of one that still stages.
    host.set_stage_fault(None);
    host.hold_staging(true);
    let (older, told) = host.tell(&two, &Order::default());
    told.unwrap();
    let three = host.publish(&quick("3.0", &[]));
    let (newer, told) = host.tell(&three, &Order::default());
    told.unwrap();
    assert!(host.wait_step(older, Step::Refused).detail.contains("newer"));
    host.hold_staging(false);
    host.wait_step(newer, Step::Confirmed);
    assert_eq!(host.wait_serving("3.0").reason, "changed over from 1.0");
    // A name that is in use here keeps its tree: what is saved must be what a start finds.
    let (_, told) = host.tell(&host.sign(&quick("3.0", &[]), tree("2.0")), &Order::default());
    assert!(matches!(&told, Err(Fault::Refused(text)) if text.contains("which is in use")), "{told:?}");
    // The version that runs already is nothing to do.
    let (same, told) = host.tell(&three, &Order::default());
    told.unwrap();
    assert!(host.wait_step(same, Step::Confirmed).detail.contains("runs already"));
}

#[test]
fn a_daemon_that_is_away_loses_no_report() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    host.wait_serving("1.0");
    host.hold_staging(true);
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::MetadataSaved);
    host.hold_staging(false);
    // Staging itself needs the daemon; what comes after does not.
    host.wait_step(change, Step::Staged);
    host.stop_daemon();
    host.wait_serving("2.0");
    host.start_daemon();
    for step in [Step::Staged, Step::Drained, Step::Journaled, Step::Swapped, Step::Started, Step::Confirmed] {
        host.wait_step(change, step);
    }
}
