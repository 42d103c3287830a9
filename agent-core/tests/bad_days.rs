//! One bad day: whatever cannot be read, written or started on a host, it ends with an agent that works, and every order
//! ends in a verdict.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_core::internal::bad;
use agent_core::internal::control::Client;
use agent_core::internal::journal::Phase;
use common::{Host, Order, Spec, script, tree};
use proto::agent::{AgentState, ChangeId, Outcome, Step};
use proto::message::Fault;
use rustix::process::{Pid, Signal, kill_process};

/// Within this a stub that is told to end has ended, although its daemon's answer is waited for 30 s. How long a cold
/// start with something that cannot be read takes is measured by `reliability`, beside which nothing runs.
const END: Duration = Duration::from_secs(15);

fn quick<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) }
}

/// A host that went from 1.0 to 2.0, and whose stub has been told to end.
fn changed_over() -> Host {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    host.terminate();
    host
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn journals(host: &Host) -> [PathBuf; 2] {
    [host.paths.journal(), host.paths.directory().join("journal.2")]
}

/// Starts, and does a job under this version.
fn comes_up(host: &mut Host, version: &str) {
    host.launch().wait_for("stub: ready");
    host.wait_serving(version);
    static JOB: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(100);
    let job = JOB.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (Outcome::Done(summary), _) = host.finish(&Host::backup(job, 2)) else { panic!("not done") };
    assert_eq!(summary.versions, [version]);
}

#[test]
fn a_version_is_what_it_was_started_as_and_not_what_nobody_could_write() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &["--crash-after-ms", "50"]));
    host.wait_serving("1.0");
    // The disk is full when the stub returns, and stays so while 1.0 proves itself.
    host.set_faults("stub-return enospc\njournal-confirmed enospc\n");
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::Returned);
    let status = host.wait_serving("1.0");
    assert!(status.reason.starts_with("returned from 2.0"), "{}", status.reason);
    assert!(matches!(host.journal().phase, Phase::Probation { .. }), "nobody could write");
    assert_eq!(host.journal().current.tree, tree("2.0"));
    // Its process ends: it is started as the same again, and no version becomes another one's confirmation.
    kill_process(Pid::from_raw(status.pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    host.wait_status("started again", |s| s.pid != status.pid && s.version.as_str() == "1.0");
    host.set_faults("");
    let until = Instant::now() + Duration::from_secs(20);
    while (host.journal().current.tree, host.journal().phase) != (tree("1.0"), Phase::Confirmed) {
        assert!(Instant::now() < until, "it is never written: {:?}", host.journal());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_version_that_dies_between_its_confirmation_and_its_report_ends_its_order_all_the_same() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    // Held at its confirmation for as long as this test needs.
    let two = host.publish(&Spec { probation_ms: 20_000, ..Spec::new("2.0", &[]) });
    host.wait_serving("1.0");
    host.set_faults("journal-confirmed hold\n");
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::Started);
    // The next report is the one of the confirmation.
    host.set_faults("report kill\n");
    host.wait_step(change, Step::Confirmed);
    let pid = host.wait_serving("2.0").pid;
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), host.program("2.0"), "and is itself");
}

/// Removes a directory in which somebody may be writing.
/// The disk is slow, and the report of a confirmation comes after the end of the probation.
#[test]
fn a_version_whose_confirmation_is_on_disk_is_not_ended_because_its_report_is_late() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&Spec { probation_ms: 3_000, ..quick("2.0", &[]) });
    let pid = host.wait_serving("1.0").pid;
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::Started);
    host.set_faults("report hold\n");
    host.stub().wait_for("2.0 has confirmed, and has not said so yet");
    assert_eq!(host.journal().phase, Phase::Confirmed);
    host.set_faults("");
    host.wait_step(change, Step::Confirmed);
    assert_eq!(host.wait_serving("2.0").pid, pid, "it was ended");
}

fn lose(path: &Path) {
    while let Err(e) = fs::remove_dir_all(path) {
        if e.kind() == std::io::ErrorKind::NotFound {
            return;
        }
        assert_eq!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{e}");
    }
}

/// The arguments of the agent that serves as this version.
fn arguments(host: &Host, version: &str) -> String {
    let pid = host.wait_serving(version).pid;
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), host.program(version));
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8(line).unwrap().split('\0').skip(1).collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

#[test]
fn an_order_leaves_what_runs_and_what_ran_their_own_records() {
    let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "1"]));
    for (version, ms) in [("2.0", "2"), ("3.0", "3")] {
        let record = host.publish(&quick(version, &["--unit-ms", ms]));
        host.upgrade(&record);
    }
    // Names that are in use go on standing for what they stand for.
    for version in ["2.0", "3.0"] {
        let other = host.sign(&quick(version, &["--exit-at-once", "3"]), tree(version));
        let (_, told) = host.tell(&other, &Order::default());
        let why = "has other metadata (arguments?) than on this host, where it is in use";
        assert!(matches!(told, Err(Fault::Refused(said)) if said.contains(why)));
        let elsewhere = host.sign(&quick(version, &[]), tree("1.0"));
        let (_, told) = host.tell(&elsewhere, &Order::default());
        assert!(matches!(told, Err(Fault::Refused(said)) if said.contains("which is in use")));
    }
    // One that is neither: refused at B, or nobody is there any more to carry it out.
    let record = host.paths.record(&"1.0".parse().unwrap());
    let before = fs::read(&record).unwrap();
    let other = host.sign(&quick("1.0", &["--unit-ms", "11"]), tree("1.0"));
    bad::remember(&host.paths, &tree("1.0"), "it was bad once").unwrap();
    let (_, told) = host.tell(&other, &Order::default());
    assert!(matches!(told, Err(Fault::Refused(why)) if why.contains("it was bad once")));
    bad::withdraw(&host.paths, &tree("1.0"), "it is good").unwrap();
    assert_eq!(fs::read(host.paths.ordered()).unwrap(), other, "its own place");
    for moment in ["journal-staged", "record-place", "journal-intent"] {
        assert_eq!(fs::read(&record).unwrap(), before, "before {moment}");
        host.faults().forget_reached();
        host.set_faults(&format!("{moment} kill\n"));
        let (_, _) = host.try_tell(&other, &Order::default());
        let until = Instant::now() + common::PATIENCE;
        while !host.faults().reached().contains(moment) {
            assert!(Instant::now() < until, "{moment} is not reached");
            std::thread::sleep(Duration::from_millis(5));
        }
        host.set_faults("");
        host.stub().wait_for("starting it again in");
        assert_eq!(arguments(&host, "3.0"), "--unit-ms 3");
        host.terminate();
        comes_up(&mut host, "3.0");
        assert_eq!(arguments(&host, "3.0"), "--unit-ms 3", "cold, after {moment}");
    }
    // Carried out, it is started as it says, again and again.
    host.upgrade(&other);
    assert_eq!(arguments(&host, "1.0"), "--unit-ms 11");
    assert!(!host.paths.ordered().exists());
    host.terminate();
    comes_up(&mut host, "1.0");
    assert_eq!(arguments(&host, "1.0"), "--unit-ms 11");
}

#[test]
fn one_damaged_copy_of_the_journal_costs_nothing_and_two_cost_words() {
    let mut host = changed_over();
    for at in 0..2 {
        flip(&journals(&host)[at]);
        comes_up(&mut host, "2.0");
        assert!(host.stub().log().iter().any(|line| line.contains("damaged")), "it is said aloud");
        host.terminate();
    }
    let aside = fs::read_dir(host.paths.directory()).unwrap().flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains(".damaged-")).count();
    assert_eq!(aside, 2, "what could not be read is kept");
    journals(&host).iter().for_each(|path| flip(path));
    comes_up(&mut host, "2.0");
    assert!(host.stub().log().iter().any(|line| line.contains("no copy of the journal can be read")));
    assert!(host.wait_serving("2.0").reason.contains("the journal cannot be read"));
    host.terminate();
    // As after a boot, where nothing says what was attached: one of them comes up.
    journals(&host).iter().filter(|path| path.exists()).for_each(|path| flip(path));
    fs::remove_dir_all(host.paths.run().join("agents")).unwrap();
    host.launch().wait_for("stub: ready");
    host.wait_serving_any();
}

#[test]
fn a_damaged_record_is_mended_from_its_copy_and_two_give_way_to_the_last_good_version() {
    let spoils =
        [flip as fn(&Path), |path: &Path| fs::remove_file(path).unwrap(), |path| fs::write(path, "").unwrap()];
    for spoil in spoils {
        let mut host = changed_over();
        let version = "2.0".parse().unwrap();
        let copies = [host.paths.record(&version), host.paths.record_copy(&version)];
        let good = fs::read(&copies[0]).unwrap();
        for copy in &copies {
            spoil(copy);
            comes_up(&mut host, "2.0");
            assert_eq!(fs::read(copy).unwrap(), good, "mended");
            host.terminate();
        }
        copies.iter().for_each(|copy| spoil(copy));
        comes_up(&mut host, "1.0");
        host.stub().wait_for("2.0.record");
        let status = host.wait_serving("1.0");
        assert!(status.reason.starts_with("fell back from 2.0: "), "{}", status.reason);
    }
}

#[test]
fn a_host_that_has_forgotten_whom_it_believes_starts_what_it_had_and_nothing_new() {
    for spoil in [|path: &Path| fs::write(path, "").unwrap(), |path: &Path| fs::remove_file(path).unwrap()] {
        let mut host = changed_over();
        let three = host.publish(&quick("3.0", &[]));
        let good = fs::read(host.paths.publishers()).unwrap();
        spoil(&host.paths.publishers());
        comes_up(&mut host, "2.0");
        host.stub().wait_for("tiny@2.0 is started all the same: it was verified when it was saved");
        let (_, told) = host.tell(&three, &Order::default());
        assert!(matches!(told, Err(Fault::Refused(why)) if why.contains("publishers")), "nothing new is believed");
        // Its record must be unchanged, and of the tree that the journal names.
        host.terminate();
        let version = "2.0".parse().unwrap();
        let record = fs::read(host.paths.record(&version)).unwrap();
        let other = host.sign(&quick("2.0", &[]), tree("3.0"));
        for copy in [host.paths.record(&version), host.paths.record_copy(&version)] {
            fs::write(copy, &other).unwrap();
        }
        comes_up(&mut host, "1.0");
        assert!(host.wait_serving("1.0").reason.contains("publishers"));
        // Mended.
        fs::write(host.paths.publishers(), &good).unwrap();
        fs::write(host.paths.record(&version), record).unwrap();
        host.upgrade(&three);
    }
}

#[test]
fn a_tree_that_cannot_be_had_gives_way_to_one_that_can() {
    let mut host = changed_over();
    host.set_absent("2.0", true);
    comes_up(&mut host, "1.0");
    let reason = host.wait_serving("1.0").reason;
    assert_eq!(reason, "fell back from 2.0: unavailable: the manager is away");
    assert_eq!(host.journal().current.tree, tree("1.0"));
}

#[test]
fn a_state_directory_that_takes_nothing_is_no_reason_to_be_without_an_agent() {
    let mut host = changed_over();
    // Read-only for the stub and its agent alone.
    let state = host.paths.state().display().to_string();
    let mount = format!("mount --bind {state} {state} && mount -o remount,ro,bind {state} && exec \"$@\"");
    let stub = host.stub_command();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"]);
    command.arg(stub.get_program()).args(stub.get_args());
    host.launch_as(command).wait_for("stub: ready");
    host.wait_serving("2.0");
    assert!(host.stub().log().iter().any(|line| line.contains("going on without writing")));
    host.launch_refused();
    assert_eq!(host.terminate().code(), Some(0));
    // Full at every moment at which anything is written.
    host.set_faults("all enospc\n");
    let writes = ["stub-journal", "report", "journal-confirmed", "journal-unstaged", "job-start", "job-end"];
    host.set_faults(&writes.map(|moment| format!("{moment} enospc\n")).concat());
    host.launch().wait_for("stub: ready");
    host.wait_serving("2.0");
}

#[test]
fn a_confirmed_version_that_only_runs_when_it_is_handed_over_to_gives_way_at_a_cold_start() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &["--only-handed-over"]));
    host.upgrade(&two);
    host.terminate();
    host.launch().wait_for("stub: ready: tiny@1.0");
    let status = host.wait_serving("1.0");
    assert!(status.reason.starts_with("returned from 2.0: failed 3 times in a row"), "{}", status.reason);
    let evidence = bad::evidence(&host.paths, &tree("2.0")).unwrap();
    assert!(evidence.contains("nothing was handed over"), "{evidence}");
    host.wait_step(ChangeId(0), Step::Returned);
}

#[test]
fn what_a_failed_version_left_behind_is_named_and_killed() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    let note = host.dir().join("stray");
    // A session of its own: the process group does not reach it, and it has inherited the lock.
    let text =
        format!("#!/bin/sh\nsetsid sh -c 'echo $$ > {}; exec sleep 1000' &\nsleep 0.2\nexit 4\n", note.display());
    script(&host.program("2.0"), &text);
    host.wait_serving("1.0");
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::Returned);
    host.stub().wait_for("left behind: process");
    let stray = fs::read_to_string(&note).unwrap();
    assert!(!Path::new("/proc").join(stray.trim()).exists(), "the stray lives on");
    // Also one whose stub is gone: the next stub says what it waits for, and does not wait for ever.
    let lock = fs::File::open(host.paths.lock()).unwrap();
    host.terminate();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut stray = std::process::Command::new("setsid").args(["sleep", "1000"]).stdin(lock).spawn().unwrap();
    let stub = host.launch();
    assert!(stub.wait_for("holds the lock").contains("sleep 1000"));
    stub.wait_for("stub: ready");
    assert!(stray.wait().unwrap().code().is_none());
}

#[test]
fn a_child_of_an_agent_has_none_of_its_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("open");
    let arguments = ["--child", note.to_str().unwrap()];
    let mut host = Host::with_first(&quick("1.0", &arguments));
    let two = host.publish(&quick("2.0", &arguments));
    for round in 0..2 {
        let until = Instant::now() + common::PATIENCE;
        while !note.exists() {
            assert!(Instant::now() < until, "no child");
            std::thread::sleep(Duration::from_millis(5));
        }
        let open = fs::read_to_string(&note).unwrap();
        for ours in ["socket:", "memfd:", "/lock", "anon_inode", "/gens/"] {
            assert!(!open.contains(ours), "{ours} in round {round}: {open}");
        }
        fs::remove_file(&note).unwrap();
        if round == 0 {
            host.upgrade(&two);
        }
    }
}

#[test]
fn a_standard_error_that_nobody_reads_stops_neither_clock_nor_return_nor_end() {
    let mut host = Host::with_first(&quick("1.0", &["--flood"]));
    let two = host.publish(&quick("2.0", &["--flood", "--crash-after-ms", "100"]));
    let pid = host.wait_serving("1.0").pid;
    host.terminate();
    let mut command = host.stub_command();
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The pipe is held open and never read.
    let unread = child.stderr.take().unwrap();
    host.wait_status("started", |s| s.pid != pid && s.state == proto::agent::AgentState::Serving);
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::Returned);
    host.wait_serving("1.0");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(unread);
}

#[test]
fn an_order_ends_with_the_agent_that_had_taken_it() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    let pid = host.wait_serving("1.0").pid;
    host.hold_staging(true);
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let refused = host.wait_step(change, Step::Refused);
    assert!(refused.detail.contains("the agent ended before it changed over to 2.0"), "{}", refused.detail);
    assert_eq!(host.wait_serving("1.0").reason, "launched");
    // Both of them, and a new stub.
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    let pid = host.status().pid;
    host.stub().child.kill().unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    host.stub().child.wait().unwrap();
    host.launch().wait_for("stub: ready");
    host.wait_step(change, Step::Refused);
    // Told to end.
    let (change, told) = {
        host.wait_serving("1.0");
        host.tell(&two, &Order::default())
    };
    told.unwrap();
    assert_eq!(host.terminate().code(), Some(0));
    host.wait_step(change, Step::Refused);
    host.hold_staging(false);
}

#[test]
fn a_host_is_put_on_a_version_by_hand() {
    use agent_core::internal::rescue::{RescueError, rescue};
    let mut host = Host::with_first(&quick("1.0", &[]));
    let wanted = |version: &str| format!("tiny@{version}").parse().unwrap();
    assert!(matches!(rescue(&host.paths, &wanted("1.0")), Err(RescueError::Running(_))));
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    host.terminate();
    host.stop_daemon();
    let unknown = rescue(&host.paths, &wanted("3.0")).unwrap_err().to_string();
    assert!(unknown.contains("saved are: tiny@1.0, tiny@2.0"), "{unknown}");
    bad::remember(&host.paths, &tree("1.0"), "it was bad once").unwrap();
    let rescued = rescue(&host.paths, &wanted("1.0")).unwrap();
    assert_eq!((rescued.to.tree, rescued.last_good.unwrap().tree), (tree("1.0"), tree("2.0")));
    host.start_daemon();
    comes_up(&mut host, "1.0");
    assert_eq!(host.wait_serving("1.0").reason, "rescued by hand from 2.0");
    assert_eq!(bad::reason(&host.paths, &tree("1.0")), None);
    host.terminate();
    // What does not prove itself gives way here, too.
    let three = host.sign(&quick("3.0", &["--exit-at-once", "3"]), tree("3.0"));
    host.publish(&quick("3.0", &[]));
    host.set_known("3.0", &three);
    rescue(&host.paths, &wanted("3.0")).unwrap();
    comes_up(&mut host, "2.0");
    assert!(host.wait_serving("2.0").reason.starts_with("returned from 3.0"));
}

#[test]
fn a_lock_whose_file_is_gone_keeps_others_out_all_the_same() {
    use agent_core::internal::rescue::{RescueError, rescue};
    type Spoil = fn(&Host);
    let removed: Spoil = |host| lose(&host.paths.directory());
    let moved: Spoil = |host| fs::rename(host.paths.directory(), host.dir().join("elsewhere")).unwrap();
    let file: Spoil = |host| fs::remove_file(host.paths.lock()).unwrap();
    for spoil in [removed, moved, file] {
        let mut host = Host::with_first(&quick("1.0", &["--unit-ms", "2000"]));
        let pid = host.wait_serving("1.0").pid;
        spoil(&host);
        host.launch_refused();
        assert!(matches!(rescue(&host.paths, &"tiny@1.0".parse().unwrap()), Err(RescueError::Running(_))));
        assert_eq!(host.wait_serving("1.0").pid, pid, "and it works on");
        // Its stub is killed: the next one waits for the agent's end, which comes at the end of a unit.
        let mut client = Client::connect(&host.paths.socket()).unwrap();
        let job = std::thread::spawn(move || {
            let begun = |_: proto::agent::Progress| {};
            drop(client.request::<_, _, proto::agent::AgentReply>(&Host::backup(1, 9), None, begun));
        });
        host.wait_status("at work", |status| !status.jobs.is_empty());
        host.stub().child.kill().unwrap();
        host.stub().child.wait().unwrap();
        lose(&host.dir().join("elsewhere"));
        spoil(&host);
        host.launch().wait_for("waiting for the agent that an earlier stub left to end");
        host.stub().wait_for("stub: ready");
        let status = host.wait_serving("1.0");
        assert_ne!(status.pid, pid);
        let gone = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(gone.is_empty(), "it has ended, whoever reaps it");
        assert_eq!(host.processes(), 2, "the new stub, and its agent");
        job.join().unwrap();
    }
}

#[test]
fn a_tree_that_is_lost_while_its_version_runs_gives_way_to_one_that_is_here() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    let pid = host.wait_serving("2.0").pid;
    let path = host.paths.generation(&tree("2.0"));
    fs::rename(&path, path.with_extension("gone")).unwrap();
    host.set_absent("2.0", true);
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let status = host.wait_status("another one", |s| s.version.as_str() == "1.0");
    assert_eq!(status.reason, "fell back from 2.0: unavailable: the manager is away");
    assert_eq!(host.journal().current.tree, tree("1.0"));
}

#[test]
fn what_a_killed_agent_could_not_tell_is_told_though_none_starts_again() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&quick("2.0", &[]));
    host.wait_serving("1.0");
    host.hold_staging(true);
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    host.wait_step(change, Step::MetadataSaved);
    host.hold_staging(false);
    host.wait_step(change, Step::Staged);
    host.stop_daemon();
    host.wait_serving("2.0");
    let until = Instant::now() + common::PATIENCE;
    while host.journal().phase != Phase::Confirmed {
        assert!(Instant::now() < until, "2.0 is not confirmed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = host.status().pid;
    for version in ["1.0", "2.0"] {
        let path = host.paths.generation(&tree(version));
        fs::rename(&path, path.with_extension("gone")).unwrap();
        host.set_absent(version, true);
    }
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    host.start_daemon();
    let wanted = [Step::Staged, Step::Drained, Step::Journaled, Step::Swapped, Step::Started, Step::Confirmed];
    for step in wanted {
        host.wait_step(change, step);
    }
    let told = host.steps(change);
    let mut order = told.clone();
    order.dedup();
    let places: Vec<_> = wanted.iter().map(|step| order.iter().position(|told| told == step)).collect();
    assert!(places.is_sorted(), "{told:?}");
    assert_eq!(host.stub_status().state, AgentState::Stopped, "an agent runs, and may have told it");
}

#[test]
fn a_stub_that_waits_for_a_daemon_that_does_not_speak_ends_when_it_is_told_to() {
    let ends = |host: &mut Host| {
        // Whoever waits for its own question cannot hear anything else.
        let until = Instant::now() + common::PATIENCE;
        while Client::connect(&host.paths.stub_socket()).is_err() {
            assert!(Instant::now() < until, "no stub");
        }
        std::thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        assert_eq!(host.terminate().code(), Some(0));
        assert!(began.elapsed() < END, "{:?}", began.elapsed());
    };
    // At the first start, at a later one, and when a version is started again.
    let mut host = Host::new();
    let one = host.publish(&quick("1.0", &[]));
    host.set_newest(&one);
    host.set_stopped(true);
    host.launch();
    ends(&mut host);
    host.set_stopped(false);
    host.launch().wait_for("stub: ready");
    host.terminate();
    host.set_stopped(true);
    host.launch();
    ends(&mut host);
    host.set_stopped(false);
    host.launch().wait_for("stub: ready");
    let pid = host.wait_serving("1.0").pid;
    host.set_stopped(true);
    fs::rename(host.paths.generation(&tree("1.0")), host.dir().join("gone")).unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    host.stub().wait_for("starting it again in");
    ends(&mut host);
}

#[test]
fn a_version_that_closes_what_it_was_given_is_not_waited_for() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let two = host.publish(&Spec { probation_ms: 25_000, ..Spec::new("2.0", &[]) });
    let close =
        "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || [ $fd = 255 ] || eval \"exec $fd>&-\"; done";
    script(&host.program("2.0"), &format!("#!/bin/bash\n{close}\nexec sleep 1000\n"));
    host.wait_serving("1.0");
    let began = Instant::now();
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    let failed = host.wait_step(change, Step::ProbationFailed);
    assert!(failed.detail.starts_with("it closed the channel to its stub"), "{}", failed.detail);
    host.wait_step(change, Step::Returned);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn what_is_lost_of_the_state_while_an_agent_runs_is_written_again() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let pid = host.wait_serving("1.0").pid;
    host.stub().wait_for("has confirmed");
    lose(&host.paths.directory());
    // The agent works on, and takes an order.
    let done = host.finish(&Host::backup(4, 2)).0;
    assert!(matches!(done, Outcome::Done(_)), "{done:?}");
    let zero = host.publish(&quick("0.9", &[]));
    host.upgrade(&zero);
    assert_eq!(host.journal().current.tree, tree("0.9"));
    let one = host.sign(&quick("1.0", &[]), tree("1.0"));
    host.upgrade(&one);
    assert_eq!(host.wait_serving("1.0").pid, pid);
    lose(&host.paths.directory());
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    host.wait_status("started again", |s| s.pid != pid && s.version.as_str() == "1.0");
    host.wait_serving("1.0");
    let (Outcome::Done(_), _) = host.finish(&Host::backup(5, 2)) else { panic!("not done") };
    let two = host.publish(&quick("2.0", &[]));
    host.upgrade(&two);
    assert_eq!(host.journal().current.tree, tree("2.0"));
}
