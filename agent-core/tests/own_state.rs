//! What a program has in memory: handed over whatever its size, given back when the next version fails, and kept for a
//! version that cannot read what came after it.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Host, Order, PATIENCE, Spec};
use proto::agent::Step;
use proto::record::SchemaRange;
use rustix::process::{Pid, Signal};

/// A host with versions that note what they restore.
struct Bench {
    host: Host,
    note: PathBuf,
    arguments: Vec<String>,
}

impl Bench {
    /// Version 1.0 serves, and has performed one operation, which it remembers in memory alone.
    fn new(arguments: &[&str], schemas: (u32, u32)) -> Self {
        let host = Host::new();
        let note = host.dir().join("restored");
        let mut all: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        all.extend(["--restored".to_owned(), note.to_str().unwrap().to_owned()]);
        let mut bench = Self { host, note, arguments: all };
        let first = bench.publish("1.0", schemas, &[]);
        bench.host.set_newest(&first);
        bench.host.launch().wait_for("stub: ready");
        bench.host.wait_serving("1.0");
        bench.host.finish(&Host::backup(1, 1));
        bench
    }

    fn publish(&self, version: &str, (min, max): (u32, u32), more: &[&str]) -> Vec<u8> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let schemas = SchemaRange { min, max };
        self.host.publish(&Spec { schemas, probation_ms: common::PROBATION_MS, ..Spec::new(version, &arguments) })
    }

    /// What was restored last: schema, operations, bytes; by the process that is there now.
    #[track_caller]
    fn restored(&mut self, wanted: &str) {
        let (until, wanted) = (Instant::now() + PATIENCE, format!("{wanted} {}", self.host.status().pid));
        loop {
            let found = std::fs::read_to_string(&self.note).unwrap_or_default();
            if found == wanted {
                return;
            }
            if Instant::now() > until {
                panic!("restored {found:?}, want {wanted:?}\n{}", self.host.stub().log().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&self) {
        let status = self.host.status();
        rustix::process::kill_process(Pid::from_raw(status.pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        self.host.wait_status("started again", |s| s.pid != status.pid);
        self.host.wait_serving(status.version.as_str());
    }
}

#[test]
fn a_state_larger_than_a_handoff_crosses_in_both_directions() {
    let mut bench = Bench::new(&["--state-bytes", "300000000"], (1, 1));
    let pid = bench.host.status().pid;
    let (one, two) = (bench.publish("1.0", (1, 1), &[]), bench.publish("2.0", (1, 1), &[]));
    bench.host.upgrade(&two);
    bench.restored("1 1 300000000");
    bench.host.finish(&Host::backup(2, 1));
    bench.host.upgrade(&one);
    bench.host.wait_serving("1.0");
    bench.restored("1 2 300000000");
    assert_eq!(bench.host.status().pid, pid);
}

#[test]
fn a_version_that_fails_costs_the_one_before_it_nothing_that_it_had_in_memory() {
    for (bytes, failing) in [("4", "--sick"), ("100000000", "--hang"), ("4", "--exit-at-once")] {
        let mut bench = Bench::new(&["--state-bytes", bytes], (1, 1));
        let pid = bench.host.status().pid;
        let two = bench.publish("2.0", (1, 1), &[failing, "3"]);
        let (change, told) = bench.host.tell(&two, &Order::default());
        told.unwrap();
        assert_eq!(bench.host.wait_end(change).step, Step::Returned);
        bench.host.wait_status("back", |s| s.pid != pid && s.version.as_str() == "1.0");
        bench.restored(&format!("1 1 {bytes}"));
        // Once: after a crash of its own later on, that would be the past.
        std::fs::remove_file(&bench.note).unwrap();
        bench.kill();
        assert!(!bench.note.exists(), "a crash begins anew");
    }
}

#[test]
fn a_version_that_cannot_be_executed_leaves_nothing_kept() {
    let mut bench = Bench::new(&[], (1, 1));
    let two = bench.publish("2.0", (1, 1), &[]);
    std::fs::write(bench.host.program("2.0"), "#!/no/such/interpreter\n").unwrap();
    let (change, told) = bench.host.tell(&two, &Order::default());
    told.unwrap();
    assert_eq!(bench.host.wait_end(change).step, Step::ExecFailed);
    bench.kill();
    assert!(!bench.note.exists(), "what was saved for a change-over that never was is not given back");
}

#[test]
fn who_goes_back_to_a_version_that_cannot_read_the_newer_schema_finds_what_that_one_had_saved() {
    let mut bench = Bench::new(&[], (1, 1));
    let (one, two) = (bench.publish("1.0", (1, 1), &[]), bench.publish("2.0", (1, 2), &[]));
    bench.host.upgrade(&two);
    bench.restored("1 1 4");
    bench.host.finish(&Host::backup(2, 1));
    bench.host.finish(&Host::backup(3, 1));
    // The stub has it, too.
    bench.host.wait_report("confirmed", |step| step.step == Step::Confirmed && step.detail != "first");
    bench.kill();
    let change = bench.host.upgrade(&one);
    bench.host.wait_serving("1.0");
    bench.restored("1 1 4");
    let drained = bench.host.wait_step(change, Step::Drained).detail;
    assert!(drained.contains("1.0 reads no state of 2.0") && drained.contains("schema 1"), "{drained}");
}

#[test]
fn a_version_that_goes_back_and_fails_gives_the_newer_one_its_own_state_back() {
    let mut bench = Bench::new(&[], (1, 1));
    let two = bench.publish("2.0", (1, 2), &[]);
    bench.host.upgrade(&two);
    bench.restored("1 1 4");
    bench.host.finish(&Host::backup(2, 1));
    let sick = bench.publish("1.1", (1, 1), &["--sick"]);
    let (change, told) = bench.host.tell(&sick, &Order::default());
    told.unwrap();
    assert_eq!(bench.host.wait_end(change).step, Step::Returned);
    bench.host.wait_status("back", |s| s.version.as_str() == "2.0");
    bench.restored("2 2 4");
}
