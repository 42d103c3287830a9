//! Programs whose own work goes wrong: too much of it, callbacks that fork or exit, a stub that does not listen.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Host, Order, PATIENCE, Spec, tree};
use proto::agent::Step;
use rustix::process::{Pid, Signal};

fn spec<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) }
}

/// A file beside the trees, as an argument.
fn file(host: &Host, name: &str) -> (PathBuf, String) {
    let path = host.dir().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[track_caller]
fn wait_for(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Names that a program found, and how many of them it could take; the note of this process only.
fn noted(note: &Path, pid: u32, of: &str) {
    let wanted = format!("{of} {pid}");
    wait_for(&wanted, || std::fs::read_to_string(note).is_ok_and(|text| text == wanted));
}

#[test]
fn all_512_names_cross_a_change_over_and_a_crash() {
    let mut host = Host::with_first(&spec("1.0", &["--keep", "512"]));
    let (note, note_text) = file(&host, "note");
    let two = host.publish(&spec("2.0", &["--note", &note_text]));
    host.wait_serving("1.0");
    host.upgrade(&two);
    let status = host.wait_serving("2.0");
    noted(&note, status.pid, "512 512");
    signal(status.pid, Signal::KILL);
    host.wait_status("started again", |s| s.pid != status.pid);
    noted(&note, host.wait_serving("2.0").pid, "512 512");
}

#[test]
fn nine_hundred_open_files_and_two_hundred_threads_do_not_cross() {
    // With its own descriptors that is nearly all of the usual limit of 1,024.
    let busy = ["--open", "900", "--threads", "200", "--keep", "1"];
    let mut host = Host::with_first(&spec("1.0", &busy));
    let (note, note_text) = file(&host, "note");
    let two = host.publish(&spec("2.0", &["--note", &note_text]));
    let pid = host.wait_serving("1.0").pid;
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    assert!(open() > 900 && threads() > 200);
    host.upgrade(&two);
    assert_eq!(host.wait_serving("2.0").pid, pid);
    noted(&note, pid, "1 1");
    assert!(open() < 100 && threads() < 50, "{} descriptors, {} threads", open(), threads());
}

#[test]
fn ten_thousand_open_files_and_a_thousand_threads_do_not_cross() {
    let busy = ["--open", "10000", "--threads", "1000", "--keep", "1"];
    let mut host = Host::with_first(&spec("1.0", &busy));
    let (note, note_text) = file(&host, "note");
    let two = host.publish(&Spec { probation_ms: 3000, ..spec("2.0", &["--note", &note_text]) });
    let pid = host.wait_serving("1.0").pid;
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert!(open() as u64 >= most.min(10_000) && threads() > 1000, "{} and {}", open(), threads());
    host.upgrade(&two);
    assert_eq!(host.wait_serving("2.0").pid, pid);
    noted(&note, pid, "1 1");
    assert!(open() < 100 && threads() < 50, "{} descriptors, {} threads", open(), threads());
}

#[test]
fn a_panic_in_a_callback_has_the_outcome_that_its_refusal_has() {
    // Of the version that leaves: the callback, the step that ends it, what the report says.
    for (callback, end, said) in [
        ("quiesce", Step::Confirmed, ""),
        ("resume", Step::Confirmed, ""),
        ("confirmed", Step::Confirmed, ""),
        ("save_state", Step::ExecFailed, "save_state panicked: told to panic"),
    ] {
        let mut host = Host::with_first(&spec("1.0", &["--panics", callback]));
        let two = host.publish(&spec("2.0", &[]));
        let pid = host.wait_serving("1.0").pid;
        let (change, told) = host.tell(&two, &Order::default());
        told.unwrap();
        let ended = host.wait_end(change);
        assert_eq!((ended.step, host.status().pid), (end, pid), "{callback}: {}", ended.detail);
        assert!(ended.detail.contains(said), "{callback}: {}", ended.detail);
        if callback == "quiesce" {
            let drained = host.wait_step(change, Step::Drained).detail;
            assert!(drained.contains("quiesce panicked: told to panic"), "{drained}");
        }
    }
    // Of the version that comes: it is gone back from.
    for callback in ["restore_state", "healthy"] {
        let mut host = Host::with_first(&spec("1.0", &[]));
        let two = host.publish(&spec("2.0", &["--panics", callback]));
        host.wait_serving("1.0");
        let (change, told) = host.tell(&two, &Order::default());
        told.unwrap();
        assert_eq!(host.wait_end(change).step, Step::Returned, "{callback}");
        host.wait_serving("1.0");
    }
}

#[test]
fn a_version_that_cannot_read_what_a_later_one_left_gives_way_to_that_and_keeps_nothing_from_it() {
    for what in ["handoff", "inherited"] {
        let mut host = Host::new();
        let (note, note_text) = file(&host, "note");
        let one = host.publish(&spec("2.0", &["--keep", "3", "--note", &note_text]));
        host.set_newest(&one);
        host.launch().wait_for("stub: ready");
        let older = host.publish(&spec("1.0", &["--later", what]));
        let pid = host.wait_serving("2.0").pid;
        let (change, told) = host.tell(&older, &Order::default());
        told.unwrap();
        let ended = host.wait_end(change);
        assert_eq!(ended.step, Step::Returned, "{what}: {}", ended.detail);
        let failed = host.wait_step(change, Step::ProbationFailed).detail;
        assert!(failed.contains("newer version"), "{what}: {failed}");
        let back = host.wait_serving("2.0").pid;
        assert_ne!(back, pid);
        noted(&note, back, "3 3");
    }
}

#[test]
fn a_callback_that_closes_what_is_not_its_own_ends_its_program_and_the_same_version_begins_anew() {
    // Before the intent is written, and after it.
    for (callback, end, said) in
        [("quiesce", Step::Refused, "1.0 is started again"), ("save_state", Step::Returned, "ended by SIGABRT")]
    {
        let mut host = Host::with_first(&spec("1.0", &["--closes", callback]));
        let two = host.publish(&spec("2.0", &[]));
        let pid = host.wait_serving("1.0").pid;
        let (change, _) = host.try_tell(&two, &Order::default());
        host.wait_status("started again", |s| s.pid != pid && s.version.as_str() == "1.0");
        let ended = host.wait_end(change);
        assert_eq!(ended.step, end, "{callback}: {}", ended.detail);
        assert!(ended.detail.contains(said), "{callback}: {}", ended.detail);
        assert!(
            !host.paths.bad().join(tree("2.0").to_hex()).exists(),
            "{callback}: it is not the next version's fault"
        );
    }
}

#[test]
fn a_working_directory_crosses_unless_it_is_in_a_tree_and_a_signal_mask_does_not() {
    let host = Host::new();
    let (outside, tree) = (host.dir().canonicalize().unwrap(), host.paths.generation(&tree("1.0")));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (directory, crosses) in [(outside.clone(), outside.clone()), (tree, PathBuf::from("/"))] {
        let mut host = Host::new();
        // Its own tree lies elsewhere than that of the host above.
        let directory = directory.strip_prefix(&outside).map_or(directory.clone(), |below| host.dir().join(below));
        let crosses = crosses.strip_prefix(&outside).map_or(crosses.clone(), |below| host.dir().join(below));
        let usr1 = Signal::USR1.as_raw().to_string();
        let one = host.publish(&spec("1.0", &["--directory", &text(&directory), "--blocks", &usr1]));
        host.set_newest(&one);
        host.launch().wait_for("stub: ready");
        let two = host.publish(&spec("2.0", &[]));
        let pid = host.wait_serving("1.0").pid;
        let blocked = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
            u64::from_str_radix(&mask, 16).unwrap()
        };
        assert_ne!(blocked(), 0);
        host.upgrade(&two);
        assert_eq!(host.wait_serving("2.0").pid, pid);
        assert_eq!((blocked(), std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap()), (0, crosses));
        assert!(host.terminate().success(), "and it hears what it is told");
    }
}

#[test]
fn a_version_that_gives_up_the_user_who_owns_its_files_is_gone_back_from() {
    if !tests::needs::root() {
        return;
    }
    let mut host = Host::with_first(&spec("1.0", &[]));
    let two = host.publish(&spec("2.0", &["--user", "65534"]));
    host.wait_serving("1.0");
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    assert_eq!(host.wait_end(change).step, Step::Returned);
    host.wait_serving("1.0");
}

#[test]
fn what_is_kept_while_the_stub_is_stopped_reaches_it_when_it_goes_on() {
    let mut host = Host::new();
    let ((note, note_text), (when, when_text)) = (file(&host, "note"), file(&host, "when"));
    let arguments = ["--note", &note_text, "--keep", "3", "--keep-when", &when_text];
    let one = host.publish(&spec("1.0", &arguments));
    host.set_newest(&one);
    host.launch().wait_for("stub: ready");
    let pid = host.wait_serving("1.0").pid;
    let stub = host.stub().child.id();
    noted(&note, pid, "0 0");
    signal(stub, Signal::STOP);
    std::fs::write(&when, "").unwrap();
    noted(&note, pid, "3 3");
    assert_eq!(host.status().pid, pid, "and it answers meanwhile");
    signal(pid, Signal::KILL);
    signal(stub, Signal::CONT);
    host.wait_status("started again", |s| s.pid != pid);
    noted(&note, host.wait_serving("1.0").pid, "3 3");
}

#[test]
fn a_child_that_quiescing_starts_ends_with_the_change_over() {
    let mut host = Host::new();
    let (note, note_text) = file(&host, "child");
    let one = host.publish(&spec("1.0", &["--quiesce-forks", &note_text]));
    host.set_newest(&one);
    host.launch().wait_for("stub: ready");
    let two = host.publish(&spec("2.0", &[]));
    host.wait_serving("1.0");
    host.upgrade(&two);
    let child = std::fs::read_to_string(&note).unwrap();
    wait_for("the child's end", || {
        // The new program may not have reaped it yet.
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ")
    });
}

#[test]
fn a_program_that_exits_while_it_is_quiesced_is_started_again_and_the_order_is_refused() {
    let mut host = Host::with_first(&spec("1.0", &["--quiesce-exits"]));
    let two = host.publish(&spec("2.0", &[]));
    let pid = host.wait_serving("1.0").pid;
    let (change, _) = host.try_tell(&two, &Order::default());
    let end = host.wait_end(change);
    assert_eq!(end.step, Step::Refused, "{}", end.detail);
    host.wait_status("started again", |s| s.pid != pid && s.version.as_str() == "1.0");
}
