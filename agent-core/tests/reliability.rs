//! How long a host is without its agent on a bad day. `TRIALS=100 cargo test --release -p agent-core --test reliability
//! -- --nocapture` prints what `docs/reliability.md` shows; without `TRIALS` it is a short form of the same.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_core::internal::control::Client;
use common::{Host, Order, PATIENCE, Spec, tree};
use proto::agent::{AgentReply, AgentRequest, ChangeId, Step};

fn trials() -> usize {
    std::env::var("TRIALS").ok().and_then(|n| n.parse().ok()).unwrap_or(4)
}

fn quick<'a>(version: &'a str, arguments: &'a [&'a str]) -> Spec<'a> {
    Spec { probation_ms: 1500, ..Spec::new(version, arguments) }
}

/// Prints one line of the table, and holds the measurement to its bound.
fn judge(what: &str, mut times: Vec<Duration>, bound: Duration) {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
    let worst = at(100);
    println!("| {what} | {} | {} | {} | {} |", times.len(), ms(at(50)), ms(at(95)), ms(worst));
    assert!(worst <= bound, "{what}: {worst:?}");
}

/// The longest time between two answers of the agent, while `change` goes to its end.
fn longest_silence(host: &mut Host, change: impl FnOnce(&mut Host)) -> Duration {
    let (socket, over) = (host.paths.socket(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !over.load(Ordering::Relaxed) {
                let answer = Client::ask::<_, AgentReply>(&socket, &AgentRequest::Status, PATIENCE);
                if matches!(answer, Ok(AgentReply::Status(_))) {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            longest
        });
        change(host);
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    })
}

fn silences(host: &mut Host, bad: &[u8], end: Step) -> Vec<Duration> {
    let order = || Order { retry_bad: true, ..Order::default() };
    (0..trials())
        .map(|_| {
            host.wait_serving("1.0");
            longest_silence(host, |host| {
                let (change, told): (ChangeId, _) = host.tell(bad, &order());
                told.unwrap();
                host.wait_step(change, end);
                host.wait_serving("1.0");
            })
        })
        .collect()
}

#[test]
fn a_failed_exec_is_over_in_a_tenth_of_a_second() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let bad = host.publish(&quick("2.0", &[]));
    let mut bytes = fs::read(host.program("2.0")).unwrap();
    // The machine field of the ELF header: 0x16 is s390.
    bytes[18] = 0x16;
    fs::write(host.program("2.0"), bytes).unwrap();
    let times = silences(&mut host, &bad, Step::ExecFailed);
    judge("`execve` fails: until the old version answers", times, Duration::from_millis(100));
}

#[test]
fn a_crash_at_the_start_is_over_in_a_second() {
    let mut host = Host::with_first(&quick("1.0", &[]));
    let bad = host.publish(&quick("2.0", &["--exit-at-once", "3"]));
    let times = silences(&mut host, &bad, Step::Returned);
    judge("the new version ends at its start: until the old version answers", times, Duration::from_secs(1));
}

/// What it is called, what is done to the host before the start, and what the version that is to start is told.
type Way<'a> = (&'a str, &'a dyn Fn(&Host), &'a [&'a str]);

/// Each way in which a cold start cannot be of the version that the journal names.
#[test]
fn a_cold_start_that_falls_back_takes_five_seconds_at_most() {
    let spoil_record = |host: &Host| {
        let version = "2.0".parse().unwrap();
        let copies = [host.paths.record(&version), host.paths.record_copy(&version)];
        copies.iter().for_each(|path| fs::write(path, b"nonsense").unwrap());
    };
    let spoil_journals = |host: &Host| {
        let journals = ["journal", "journal.2"].map(|name| host.paths.directory().join(name));
        journals.iter().for_each(|path| fs::write(path, b"MFSJRN\0\x01nonsense").unwrap());
        agent_core::internal::swap::swap(&host.paths, &tree("1.0"), &host.paths.generation(&tree("1.0"))).unwrap();
    };
    let no_tree = |host: &Host| host.set_absent("2.0", true);
    let nothing = |_: &Host| {};
    let ways: [Way<'_>; 4] = [
        ("cold start, both copies of the record are damaged", &spoil_record, &[]),
        ("cold start, both copies of the journal are damaged", &spoil_journals, &[]),
        ("cold start, the tree cannot be had", &no_tree, &[]),
        ("cold start, the version ends three times", &nothing, &["--only-handed-over"]),
    ];
    for (what, spoil, arguments) in ways {
        let mut host = Host::with_first(&quick("1.0", &[]));
        let two = host.publish(&quick("2.0", arguments));
        host.upgrade(&two);
        host.terminate();
        let saved = host.dir().join("saved");
        copy(host.paths.state(), &saved);
        let times = (0..trials()).map(|_| {
            spoil(&host);
            let began = Instant::now();
            host.launch();
            let until = began + PATIENCE;
            while !matches!(
                Client::ask::<_, AgentReply>(&host.paths.socket(), &AgentRequest::Status, PATIENCE),
                Ok(AgentReply::Status(status)) if status.version.as_str() == "1.0"
            ) {
                assert!(Instant::now() < until, "{what}: no agent; {:#?}", host.stub().log());
                std::thread::sleep(Duration::from_millis(1));
            }
            let time = began.elapsed();
            host.terminate();
            fs::remove_dir_all(host.paths.state()).unwrap();
            copy(&saved, host.paths.state());
            time
        });
        let times = times.collect();
        judge(what, times, Duration::from_secs(5));
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}
