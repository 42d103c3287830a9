//! The stub: starts from what is on disk, ends in good order, and bad days.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;

use agent_core::internal::bad;
use agent_core::internal::journal::{Entry, Journal, Phase};
use common::{Host, PATIENCE, Spec, tree};
use proto::agent::{ChangeId, Outcome, Step};
use rustix::process::{Pid, Signal, kill_process};
use tests::needs;

fn quick<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) }
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn an_end_is_clean_at_any_moment() {
    for _ in 0..5 {
        let mut host = Host::with_first(&quick("1.0", &[]));
        assert_eq!(host.terminate().code(), Some(0));
        // Also while it waits for a daemon that is not there.
        host.stop_daemon();
        host.launch().wait_for("waiting for the mount daemon");
        assert_eq!(host.terminate().code(), Some(0));
    }
}

#[test]
fn later_starts_need_neither_manager_nor_message() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    host.wait_report("the launch", |e| e.step == Step::Launched && e.change == ChangeId(0));
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    host.terminate();
    host.set_newest(b"a manager that would say anything");
    // As after a boot: no link, no socket, and the daemon comes up later than the stub.
    fs::remove_dir_all(host.paths.run().join("agents")).unwrap();
    host.stop_daemon();
    host.launch().wait_for("waiting for the mount daemon to give tree");
    host.start_daemon();
    host.stub().wait_for("stub: ready: tiny@2.0");
    assert_eq!(host.wait_serving("2.0").reason, "changed over from 1.0");
}

#[test]
fn the_saved_metadata_alone_says_what_is_started() {
    let mut host = Host::with_first(&quick("1.0", &["--exit-if", "/nowhere"]));
    host.terminate();
    let path = host.paths.record(&"1.0".parse().unwrap());
    let good = fs::read(&path).unwrap();
    // Another valid record there starts differently: other arguments, other tree.
    host.publish(&quick("9.9", &[]));
    fs::write(&path, host.sign(&quick("1.0", &["--unit-ms", "77"]), tree("9.9"))).unwrap();
    host.launch().wait_for("stub: ready: tiny@1.0");
    let pid = host.wait_serving("1.0").pid;
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), host.program("9.9"));
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.ends_with(b"\0--unit-ms\x0077\0"), "{line:?}");
    host.terminate();
    // A record that was tampered with, of another product, or missing: a refusal that names file and fault.
    let mut tampered = good.clone();
    let argument = tampered.windows(8).position(|bytes| bytes == b"/nowhere").unwrap();
    tampered[argument + 1] = b'N';
    let copy = host.paths.record_copy(&"1.0".parse().unwrap());
    for (bytes, fault) in [(Some(tampered), "changed after it was signed"), (None, "is missing")] {
        for path in [&path, &copy] {
            match &bytes {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
        }
        let stub = host.launch();
        let line = stub.wait_for(fault);
        assert!(line.contains("1.0.record"), "{line}");
        assert_eq!(stub.wait().code(), Some(1));
    }
    fs::write(&path, good).unwrap();
    host.launch().wait_for("stub: ready");
}

#[test]
fn a_killed_agent_is_started_again_and_its_work_goes_on() {
    let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "20"]));
    let first = host.wait_serving("1.0");
    let run = Host::backup(5, 50);
    let outcome = std::thread::scope(|scope| {
        let watch = scope.spawn(|| host.finish(&run));
        host.wait_status("at work", |s| s.jobs.len() == 1);
        kill(first.pid);
        watch.join().unwrap()
    });
    let (Outcome::Done(summary), progress) = outcome else { panic!("{outcome:?}") };
    assert_eq!(summary.files, 50);
    let restarts = progress.windows(2).filter(|w| w[1].units_done < w[0].units_done).count();
    assert_eq!(restarts, 0, "a unit that was checkpointed is not worked again: {progress:?}");
    assert_ne!(host.wait_serving("1.0").pid, first.pid);
    host.stub().wait_for("ended by SIGKILL; starting it again");
    assert_eq!(bad::reason(&host.paths, &tree("1.0")), None, "it had confirmed");
}

#[test]
fn a_killed_stub_leaves_no_agent_and_the_next_one_takes_over() {
    let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "20"]));
    let first = host.wait_serving("1.0");
    let run = Host::backup(5, 50);
    host.launch_refused();
    let outcome = {
        let stub = host.stub();
        stub.child.kill().unwrap();
        stub.child.wait().unwrap();
        host.launch().wait_for("stub: ready");
        assert_ne!(host.wait_serving("1.0").pid, first.pid);
        assert!(!std::path::Path::new(&format!("/proc/{}/exe", first.pid)).exists(), "two agents");
        host.finish(&run)
    };
    assert!(matches!(outcome.0, Outcome::Done(_)));
}

#[test]
fn an_agent_that_dies_on_the_way_out_is_no_evidence_against_the_new_version() {
    let host = Host::with_first(&quick("1.0", &[]));
    host.publish(&quick("2.0", &[]));
    let pid = host.wait_serving("1.0").pid;
    // The intent is on disk, and the old version dies before it tells the stub that it executes.
    let entry = |v: &str| Entry { version: v.parse().unwrap(), tree: tree(v) };
    let phase = Phase::Probation { change: ChangeId(9), attempts: 1, probation_ms: common::PROBATION_MS };
    let mut intent = Journal { last_good: Some(entry("1.0")), phase, ..Journal::first(entry("2.0")) };
    intent.write(&host.paths.journal()).unwrap();
    kill(pid);
    host.wait_step(ChangeId(9), Step::Returned);
    assert_ne!(host.wait_serving("1.0").pid, pid);
    assert_eq!(bad::reason(&host.paths, &tree("2.0")), None);
    assert_eq!(host.journal().phase, Phase::Confirmed);
}

/// The journal as a power cut would have left it, and what the next start makes of it.
#[test]
fn a_power_cut_leaves_the_old_version_or_the_new() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    host.terminate();
    let entry = |v: &str| Entry { version: v.parse().unwrap(), tree: tree(v) };
    let probation = |attempts| Phase::Probation {
        change: ChangeId(70 + u64::from(attempts)),
        attempts,
        probation_ms: common::PROBATION_MS,
    };
    let journal = |current: &str, phase: Phase| Journal {
        last_good: Some(entry(if current == "1.0" { "2.0" } else { "1.0" })),
        phase,
        ..Journal::first(entry(current))
    };
    // Cut after the intent was written, wherever the link led: the new one gets its second chance, and confirms.
    for link in ["1.0", "2.0"] {
        agent_core::internal::swap::swap(&host.paths, &tree(link), &host.paths.generation(&tree(link))).unwrap();
        journal("2.0", probation(1)).write(&host.paths.journal()).unwrap();
        host.launch().wait_for("stub: ready: tiny@2.0");
        host.wait_step(ChangeId(71), Step::Confirmed);
        host.wait_serving("2.0");
        assert_eq!(agent_core::internal::swap::current(&host.paths), Some(tree("2.0")));
        host.terminate();
    }
    // Cut in the second try as well: it had its chance.
    journal("2.0", probation(2)).write(&host.paths.journal()).unwrap();
    host.launch().wait_for("returning to 1.0");
    host.wait_serving("1.0");
    host.wait_step(ChangeId(72), Step::Returned);
    assert!(bad::reason(&host.paths, &tree("2.0")).unwrap().contains("ended twice"));
    host.terminate();
    // Cut while something was being staged: forgotten.
    let mut staging = journal("1.0", Phase::Confirmed);
    staging.staged = Some(agent_core::internal::journal::Staged { change: ChangeId(80), entry: entry("2.0") });
    staging.write(&host.paths.journal()).unwrap();
    host.launch().wait_for("stub: ready: tiny@1.0");
    host.wait_serving("1.0");
    assert_eq!(host.journal().staged, None);
    host.terminate();
}

#[test]
fn a_first_version_that_does_not_come_up_gives_way_to_a_newer_one() {
    let mut host = Host::new();
    let one = host.publish(&quick("1.0", &["--exit-at-once", "5"]));
    host.set_newest(&one);
    host.launch().wait_for("exit status 5; starting it again");
    host.wait_report("the evidence", |e| e.step == Step::ProbationFailed && e.detail.contains("boom"));
    let two = host.publish(&quick("2.0", &[]));
    host.set_newest(&two);
    host.stub().wait_for("stub: ready: tiny@2.0");
    host.wait_serving("2.0");
}

#[test]
fn a_product_that_is_not_exported_is_refused_at_once() {
    let mut host = Host::new();
    let stub = host.launch();
    stub.wait_for("no generation of tiny is exported here");
    assert_eq!(stub.wait().code(), Some(1));
}

#[test]
fn an_agent_that_is_told_to_end_keeps_its_work_for_the_next() {
    let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "20"]));
    host.wait_serving("1.0");
    let run = Host::backup(5, 100);
    let socket = host.paths.socket();
    let (sent, request) = (std::time::Instant::now(), run.clone());
    let watch = std::thread::spawn(move || {
        let mut client = agent_core::internal::control::Client::connect(&socket).unwrap();
        client.request::<_, proto::agent::Progress, proto::agent::AgentReply>(&request, Some(PATIENCE), |_| {})
    });
    host.wait_status("at work", |s| s.jobs.len() == 1);
    assert_eq!(host.terminate().code(), Some(0));
    assert!(sent.elapsed().as_millis() < 2000, "it stopped at a unit, and did not finish first");
    drop(watch.join().unwrap());
    host.launch().wait_for("stub: ready");
    let (Outcome::Done(summary), progress) = host.finish(&run) else { panic!("not done") };
    assert_eq!(summary.files, 100);
    assert!(progress.first().is_some_and(|p| p.units_done > 1), "{progress:?}");
}

/// Everything dies at a random moment of a change-over, again and again, as in a power cut: the next start is of the
/// old version or the new, never of none, and no work is lost.
#[test]
fn whatever_moment_everything_dies_at_one_of_the_versions_comes_up() {
    let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "1"]));
    let records =
        [host.publish(&quick("2.0", &["--unit-ms", "1"])), host.publish(&quick("1.0", &["--unit-ms", "1"]))];
    let mut came_up = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..24u64 {
        let before = host.wait_serving_any();
        let record = &records[usize::from(before.version.as_str() == "2.0")];
        let work = Host::backup(1000 + round, 30);
        let socket = host.paths.socket();
        let sent = work.clone();
        let watch = std::thread::spawn(move || {
            let client = agent_core::internal::control::Client::connect(&socket);
            drop(client.and_then(|mut client| {
                client.request::<_, proto::agent::Progress, proto::agent::AgentReply>(&sent, None, |_| {})
            }));
        });
        host.wait_status("at work", |s| s.jobs.len() == 1 || s.version != before.version);
        let order = common::Order { drain_ms: 5, retry_bad: true };
        drop(host.tell(record, &order));
        // Spread over staging, drain, journal, swap, exec, and the first moments of the new version.
        std::thread::sleep(std::time::Duration::from_micros(round * 1500));
        kill(before.pid);
        let stub = host.stub();
        stub.child.kill().unwrap();
        stub.child.wait().unwrap();
        watch.join().unwrap();
        host.launch().wait_for("stub: ready");
        let (Outcome::Done(summary), _) = host.finish(&work) else { panic!("work was lost") };
        assert_eq!(summary.files, 30);
        *came_up.entry(host.wait_serving_any().version.to_string()).or_default() += 1;
    }
    println!("came up: {came_up:?}");
}

#[test]
fn without_root_the_agent_lives_in_the_daemons_namespaces() {
    needs::demand(needs::user_namespaces());
    let mut host = Host::new();
    let one = host.publish(&quick("1.0", &[]));
    host.set_newest(&one);
    // The holder of a daemon without root, as far as namespaces go.
    let mut holder = std::process::Command::new("unshare");
    holder.args(["--user", "--map-root-user", "--mount", "sh", "-c", "echo inside; exec sleep 600"]);
    let mut holder = holder.stdout(std::process::Stdio::piped()).spawn().expect("unshare (util-linux) is needed");
    let mut line = String::new();
    let mut out = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "inside\n", "user namespaces are not permitted here");
    host.set_namespace(holder.id());
    host.launch().wait_for("stub: ready");
    let pid = host.wait_serving("1.0").pid;
    let namespace = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "mnt"] {
        assert_eq!(namespace(pid, kind), namespace(holder.id(), kind));
        assert_ne!(namespace(pid, kind), namespace(std::process::id(), kind));
    }
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    host.terminate();
    holder.kill().unwrap();
    holder.wait().unwrap();
    // A holder that is gone is named.
    let stub = host.launch();
    stub.wait_for("cannot enter the mount daemon's namespaces");
    assert_eq!(stub.wait().code(), Some(1));
}
