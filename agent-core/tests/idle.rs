//! A program that nobody asks for anything costs nothing: no thread of the agent or of its stub wakes up.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Host, PATIENCE, Spec};

/// For so long nothing happens.
const IDLE: Duration = Duration::from_secs(4);
/// The library's own waits, where there are any, are no longer than this, so they would be seen in [`IDLE`].
const QUIET: Duration = Duration::from_millis(1500);

/// How often each thread of these processes gave the processor away or lost it.
fn switches(processes: &[u32]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for process in processes {
        for thread in std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
            let read = |name: &str| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let count = |line: &str| line.split_once("_ctxt_switches:")?.1.trim().parse::<u64>().ok();
            let id = thread.file_name().to_string_lossy().into_owned();
            let name = format!("{process}/{id} {}", read("comm").trim());
            found.insert(name, read("status").lines().filter_map(count).sum());
        }
    }
    found
}

#[test]
fn no_thread_of_an_agent_or_its_stub_wakes_while_nothing_happens() {
    let mut host = Host::with_first(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new("1.0", &[]) });
    let two = host.publish(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new("2.0", &["--keep", "3"]) });
    host.upgrade(&two);
    let agent = host.wait_serving("2.0").pid;
    let processes = [agent, host.stub().child.id()];
    // What the change-over leaves to be done is done soon.
    let until = Instant::now() + PATIENCE;
    let mut before = switches(&processes);
    loop {
        std::thread::sleep(QUIET);
        let now = switches(&processes);
        if now == before {
            break;
        }
        assert!(Instant::now() < until, "it never comes to rest: {before:?}, then {now:?}");
        before = now;
    }
    std::thread::sleep(IDLE);
    let woken: Vec<String> = switches(&processes)
        .into_iter()
        .filter(|(thread, count)| before.get(thread) != Some(count))
        .map(|(thread, count)| format!("{thread}: {count} and {:?} before", before.get(&thread)))
        .collect();
    assert!(woken.is_empty(), "in {IDLE:?} in which nothing happened these woke: {woken:?}");
    assert!(before.len() >= 4, "{before:?}");
    assert_eq!(host.status().pid, agent, "and it answers");
}
