//! Change-overs one after the other, there and back, with a job always under way and twenty clients that ask the agent
//! all the time: none is refused, no job fails, and nothing grows.
//!
//! `SOAK=10000 cargo test --release --workspace --test soak -- --nocapture` does so many and prints a table; without
//! `SOAK` it does what fits into some seconds. A version is believed after half of its probation, so that is the least
//! that a change-over takes: the long form has a probation of `SOAK_PROBATION`, or 2 s, which wants a machine that has
//! little else to do.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_core::internal::control::Client;
use proto::agent::{AgentReply, AgentRequest};
use tests::command::program;
use tests::{Host, Manager, TreeFixture, noise};

const PRODUCT: &str = "data-agent";
const CLIENTS: usize = 20;
/// Without `SOAK`: the change-overs that are made at least, and for how long at most.
const SHORT: (u64, Duration) = (6, Duration::from_secs(15));
/// Longer than the longest silence of a change-over on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// What a process may have more at the end than after the first quarter.
const MORE_RESIDENT_KIB: u64 = 8 << 10;
const MORE_DESCRIPTORS: u64 = 8;
const MORE_THREADS: u64 = 6;
const MORE_MOUNTS: u64 = 2;

/// What one process holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    resident_kib: u64,
    descriptors: u64,
    threads: u64,
}

/// Everything that could grow, at one time.
#[derive(Debug, Clone, Default)]
struct Sample {
    change_overs: u64,
    processes: BTreeMap<String, Held>,
    mounts: u64,
}

#[derive(Default)]
struct Tally {
    over: AtomicBool,
    asked: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    jobs: AtomicU64,
    failed: Mutex<Vec<String>>,
}

#[test]
fn change_overs_without_end_refuse_nobody_lose_no_job_and_leave_nothing() {
    tests::needs::demand(tests::needs::mounts());
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    for version in ["1", "2"] {
        manager.publish(PRODUCT, version, tree(version).path());
        manager.export(&format!("{PRODUCT}@{version}"), "host-1");
    }
    host.launch(PRODUCT);
    let (wanted, whole) = (std::env::var("SOAK").ok().map(|text| text.parse().unwrap()), SHORT.1);
    let tally = Tally::default();
    let samples = std::thread::scope(|scope| {
        let socket = host.path(&format!("run/agents/{PRODUCT}.sock"));
        for _ in 0..CLIENTS {
            let (socket, tally) = (socket.clone(), &tally);
            scope.spawn(move || ask_all_the_time(&socket, tally));
        }
        scope.spawn(|| work_all_the_time(&manager, &host, &tally));
        let samples = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            change_over(&manager, &host, &tally, wanted, whole)
        }));
        // Also when it failed: the others would go on for ever.
        tally.over.store(true, Ordering::SeqCst);
        samples.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let (asked, refused) = (tally.asked.into_inner(), tally.refused.into_inner());
    let (broken, jobs) = (tally.broken.into_inner(), tally.jobs.into_inner());
    let failed = tally.failed.into_inner().unwrap();
    let done = samples.last().unwrap().change_overs;
    println!("{done} change-overs, {jobs} jobs, {} failed", failed.len());
    println!("{asked} questions, {refused} refused, {broken} cut off by an exec and asked again");
    assert_eq!(refused, 0, "connections were refused");
    assert!(failed.is_empty(), "jobs failed: {failed:#?}");
    assert!(jobs > 0 && asked > 0);
    flat(&samples);
}

/// The example agent, which counts; `version` makes it another object.
fn tree(version: &str) -> TreeFixture {
    let tree = TreeFixture::new();
    let mut bytes = fs::read(program("examples/tiny_agent")).unwrap();
    bytes.extend(noise(version.len() as u64, 1_000));
    let seed = version.bytes().map(u64::from).sum();
    tree.file("bin/agent", 0o755, bytes).file("share/data", 0o644, noise(seed, 300_000));
    let mut head = String::from("entrypoint = 'bin/agent'\narguments = ['--unit-ms', '5']\ndrain_deadline = '5s'\n");
    if std::env::var_os("SOAK").is_some() {
        let probation = std::env::var("SOAK_PROBATION").unwrap_or_else(|_| String::from("2s"));
        head += &format!("probation = '{probation}'\n");
    }
    tree.file("manager-fs.toml", 0o644, head);
    tree
}

fn ask_all_the_time(socket: &Path, tally: &Tally) {
    while !tally.over.load(Ordering::SeqCst) {
        tally.asked.fetch_add(1, Ordering::Relaxed);
        match Client::connect(socket) {
            Err(_) => drop(tally.refused.fetch_add(1, Ordering::Relaxed)),
            Ok(mut client) => {
                let reply = client.request::<_, (), AgentReply>(&AgentRequest::Status, Some(ANSWER_MAX), |()| {});
                // A connection that was made before the exec ends with it, as its users are told.
                if !matches!(reply, Ok(AgentReply::Status(_))) {
                    tally.broken.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

fn work_all_the_time(manager: &Manager, host: &Host, tally: &Tally) {
    let repository = host.path("repository").to_string_lossy().into_owned();
    let sources: Vec<String> = (0..100).map(|n| format!("/{n}")).collect();
    let mut args = vec!["job", "backup", "--host", "host-1", "--repository", &repository, "--json"];
    args.extend(sources.iter().map(String::as_str));
    while !tally.over.load(Ordering::SeqCst) {
        let output = manager.run(&args);
        tally.jobs.fetch_add(1, Ordering::Relaxed);
        if output.code != Some(0) {
            tally.failed.lock().unwrap().push(format!("{}{}", output.stdout, output.stderr));
        }
    }
}

/// There and back. Returns what was held every now and then.
fn change_over(manager: &Manager, host: &Host, tally: &Tally, wanted: Option<u64>, short: Duration) -> Vec<Sample> {
    manager.wait_for_version("host-1", PRODUCT, "2");
    let (mut samples, since) = (Vec::new(), Instant::now());
    let every = wanted.map_or(1, |wanted| (wanted / 100).max(1));
    let mut done = 0;
    while wanted.map_or(done < SHORT.0 || since.elapsed() < short, |wanted| done < wanted) {
        let version = if done % 2 == 0 { "1" } else { "2" };
        let generation = format!("{PRODUCT}@{version}");
        manager.run(&["upgrade", PRODUCT, &generation, "--to", "host-1", "--json"]).expect(0);
        done += 1;
        if done % every == 0 {
            let sample = sample(manager, host, done);
            if wanted.is_some() {
                println!("{}", row(&sample, since.elapsed(), tally));
            }
            samples.push(sample);
        }
    }
    samples
}

fn sample(manager: &Manager, host: &Host, change_overs: u64) -> Sample {
    let dirs = [host.path("").to_string_lossy().into_owned(), manager.path("").to_string_lossy().into_owned()];
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let kinds = ["serve", "__worker", "__helper", "mount", "launch"];
        let words = || line.split(' ').take(2);
        let name = kinds.into_iter().find(|kind| words().any(|word| word == *kind));
        let name = name.or_else(|| line.contains("bin/agent").then_some("agent"));
        if let Some(name) = name.filter(|_| dirs.iter().any(|dir| environment.contains(dir.trim_end_matches('/')))) {
            let status = String::from_utf8_lossy(&read("status")).into_owned();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name))?;
                line.split_whitespace().nth(1)?.parse::<u64>().ok()
            };
            let held = Held {
                resident_kib: field("VmRSS:").unwrap_or_default(),
                descriptors: fs::read_dir(entry.path().join("fd")).map_or(0, Iterator::count) as u64,
                threads: field("Threads:").unwrap_or_default(),
            };
            processes.insert(name.to_owned(), held);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(&*host.path("run").to_string_lossy())).count() as u64;
    Sample { change_overs, processes, mounts }
}

fn row(sample: &Sample, since: Duration, tally: &Tally) -> String {
    let held = sample
        .processes
        .iter()
        .map(|(name, held)| format!("{name} {} KiB {} fd {} thr", held.resident_kib, held.descriptors, held.threads));
    let held: Vec<_> = held.collect();
    format!(
        "{} in {} s | {} mounts | {} | {} jobs, {} asked, {} refused",
        sample.change_overs,
        since.as_secs(),
        sample.mounts,
        held.join(" | "),
        tally.jobs.load(Ordering::Relaxed),
        tally.asked.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed)
    )
}

/// Nothing has grown since the first quarter: the least of the last quarter is compared with the most of the first, since
/// what is held goes up and down within a change-over.
fn flat(samples: &[Sample]) {
    let quarter = (samples.len() / 4).max(1);
    let (first, last) = (&samples[..quarter], &samples[samples.len() - quarter..]);
    let names: std::collections::BTreeSet<_> = samples.iter().flat_map(|sample| sample.processes.keys()).collect();
    for name in names {
        for (what, of, more) in [
            ("KiB resident", (|held: &Held| held.resident_kib) as fn(&Held) -> u64, MORE_RESIDENT_KIB),
            ("descriptors", |held| held.descriptors, MORE_DESCRIPTORS),
            ("threads", |held| held.threads, MORE_THREADS),
        ] {
            let values =
                |part: &[Sample]| part.iter().filter_map(|s| s.processes.get(name)).map(of).collect::<Vec<_>>();
            let (Some(before), Some(now)) = (values(first).into_iter().max(), values(last).into_iter().min()) else {
                continue;
            };
            assert!(now <= before + more, "{name} has {now} {what}; it had {before} at first");
        }
    }
    let (before, now) = (first.iter().map(|s| s.mounts).max().unwrap(), last.iter().map(|s| s.mounts).min().unwrap());
    assert!(now <= before + MORE_MOUNTS, "{now} mounts; there were {before} at first");
}
