//! Programs whose own work goes wrong: too much of it, callbacks that fork or exit, a stub that does not listen.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Host, Order, PATIENCE, Spec};
use proto::agent::Step;
use rustix::process::{Pid, Signal};

fn spec<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: 400, ..Spec::new(version, arguments) }
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
