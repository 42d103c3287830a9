//! Change-overs one after the other, there and back, on several hosts side by side, each with a job always under way, and
//! twenty clients that ask their agents all the time: none is refused, no job fails, and nothing grows.
//!
//! `SOAK=10000 cargo test --release --workspace --test soak -- --nocapture` does so many in all and prints a table; without
//! `SOAK` it does what fits into some seconds. A version is believed after half of its probation, so that is the least
//! that a change-over takes: the long form has `SOAK_LANES` hosts, or 12, and a probation of `SOAK_PROBATION`, or 8 s, of
//! which a busy machine has the second half to confirm. A client asks, waits for the answer and pauses: it is one of
//! twenty that are served, and no busy loop that takes the processor from those who serve.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_core::internal::control::Client;
use proto::agent::{AgentReply, AgentRequest};
use tests::command::program;
use tests::{Host, Manager, TreeFixture, noise};

const PRODUCT: &str = "data-agent";
const CLIENTS: usize = 20;
/// Between an answer and the next question of a client.
const PAUSE: Duration = Duration::from_millis(50);
/// Without `SOAK`: the hosts, the change-overs that are made at least, and for how long at most.
const SHORT: (usize, u64, Duration) = (2, 6, Duration::from_secs(15));
/// With it: the hosts, if `SOAK_LANES` does not say.
const LANES: usize = 12;
/// Change-overs that fail are all told in the end; after so many it is of no use to go on.
const FAILED_MAX: usize = 10;
/// Longer than the longest silence of a change-over on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// What a process may have more at the end than after the first quarter.
const MORE_RESIDENT_KIB: u64 = 8 << 10;
const MORE_DESCRIPTORS: u64 = 8;
const MORE_THREADS: u64 = 6;
const MORE_MOUNTS: u64 = 2;
/// What a manager makes of what it has learned (start-up bundles, deltas) is made at the lowest priority and may be under
/// way at the end; what it takes is given back within this.
const SETTLED: Duration = Duration::from_secs(120);

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
    /// By host (none is the manager's) and kind.
    processes: BTreeMap<(Option<usize>, &'static str), Held>,
    mounts: u64,
}

#[derive(Default)]
struct Tally {
    over: AtomicBool,
    begun: AtomicU64,
    done: AtomicU64,
    asked: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    slowest_ms: AtomicU64,
    jobs: AtomicU64,
    failed_jobs: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
    samples: Mutex<Vec<Sample>>,
}

/// What is wanted of a run.
#[derive(Clone, Copy)]
struct Plan {
    wanted: Option<u64>,
    lanes: usize,
    since: Instant,
}

/// One host, and where its agent is asked.
struct Lane {
    name: String,
    host: Host,
    socket: PathBuf,
}

#[test]
fn change_overs_without_end_refuse_nobody_lose_no_job_and_leave_nothing() {
    tests::needs::demand(tests::needs::mounts());
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let wanted = number("SOAK");
    let lanes = number("SOAK_LANES").map_or(if wanted.is_some() { LANES } else { SHORT.0 }, proto::width::index);
    let manager = Manager::start();
    for version in ["1", "2"] {
        manager.publish(PRODUCT, version, tree(version).path());
    }
    let lanes: Vec<Lane> = (1..=lanes).map(|n| lane(&manager, &format!("host-{n}"))).collect();
    for lane in &lanes {
        manager.wait_for_version(&lane.name, PRODUCT, "2");
    }
    let tally = Tally::default();
    let plan = Plan { wanted, lanes: lanes.len(), since: Instant::now() };
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let (socket, tally) = (&lanes[n % lanes.len()].socket, &tally);
            scope.spawn(move || ask_all_the_time(socket, tally));
        }
        for lane in &lanes {
            scope.spawn(|| work_all_the_time(&manager, lane, &tally));
        }
        let changing: Vec<_> =
            lanes.iter().map(|lane| scope.spawn(|| change_over(&manager, &lanes, lane, &tally, plan))).collect();
        let ended: Vec<_> = changing.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        // Also when one failed: the others would go on for ever.
        tally.over.store(true, Ordering::SeqCst);
        ended.into_iter().for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
    let samples = std::mem::take(&mut *tally.samples.lock().unwrap());
    told(tally, plan);
    settled(&samples, || sample(&manager, &lanes, 0));
}

/// A host with an agent, under the first of the two versions that it goes to and fro between.
fn lane(manager: &Manager, name: &str) -> Lane {
    let mut host = Host::mounted(name, manager);
    for version in ["1", "2"] {
        manager.export(&format!("{PRODUCT}@{version}"), name);
    }
    host.launch(PRODUCT);
    Lane { name: name.to_owned(), socket: host.path(&format!("run/agents/{PRODUCT}.sock")), host }
}

/// Says what came of it, and holds it to what was promised.
fn told(tally: Tally, plan: Plan) {
    let (asked, refused) = (tally.asked.into_inner(), tally.refused.into_inner());
    let (broken, jobs) = (tally.broken.into_inner(), tally.jobs.into_inner());
    let (failed_jobs, failed) = (tally.failed_jobs.into_inner().unwrap(), tally.failed.into_inner().unwrap());
    let (done, seconds) = (tally.done.into_inner(), plan.since.elapsed().as_secs());
    println!("{done} change-overs on {} hosts in {seconds} s, {} failed", plan.lanes, failed.len());
    println!("{jobs} jobs, {} failed", failed_jobs.len());
    let slowest = tally.slowest_ms.into_inner();
    println!(
        "{asked} questions, {refused} refused, {broken} cut off by an exec and asked again, {slowest} ms at most"
    );
    assert_eq!(refused, 0, "connections were refused");
    assert!(failed_jobs.is_empty(), "jobs failed: {failed_jobs:#?}");
    assert!(failed.is_empty(), "change-overs failed: {failed:#?}");
    assert!(jobs > 0 && asked > 0);
}

/// The example agent, which counts; `version` makes it another object.
fn tree(version: &str) -> TreeFixture {
    let tree = TreeFixture::new();
    let mut bytes = fs::read(program("examples/tiny_agent")).unwrap();
    bytes.extend(noise(version.len() as u64, 1_000));
    let seed = version.bytes().map(u64::from).sum();
    tree.file("bin/agent", 0o755, bytes).file("share/data", 0o644, noise(seed, 300_000));
    let mut head =
        String::from("entrypoint = 'bin/agent'\narguments = ['--unit-ms', '250']\ndrain_deadline = '200ms'\n");
    if std::env::var_os("SOAK").is_some() {
        let probation = std::env::var("SOAK_PROBATION").unwrap_or_else(|_| String::from("8s"));
        head += &format!("probation = '{probation}'\n");
    }
    tree.file("manager-fs.toml", 0o644, head);
    tree
}

fn ask_all_the_time(socket: &Path, tally: &Tally) {
    while !tally.over.load(Ordering::SeqCst) {
        tally.asked.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
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
        tally.slowest_ms.fetch_max(u64::try_from(since.elapsed().as_millis()).unwrap(), Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
}

/// Each job takes a quarter of a minute, so all of them go over from one version to the other, most of them several times.
fn work_all_the_time(manager: &Manager, lane: &Lane, tally: &Tally) {
    let repository = lane.host.path("repository").to_string_lossy().into_owned();
    let sources: Vec<String> = (0..60).map(|n| format!("/{n}")).collect();
    let mut args = vec!["job", "backup", "--host", &lane.name, "--repository", &repository, "--json"];
    args.extend(sources.iter().map(String::as_str));
    while !tally.over.load(Ordering::SeqCst) {
        let output = manager.run(&args);
        tally.jobs.fetch_add(1, Ordering::Relaxed);
        if output.code != Some(0) {
            let text = format!("{}: {}{}", lane.name, output.stdout, output.stderr);
            println!("a job failed: {text}");
            tally.failed_jobs.lock().unwrap().push(text);
        }
    }
}

/// There and back, until all lanes together have done what is wanted.
fn change_over(manager: &Manager, lanes: &[Lane], lane: &Lane, tally: &Tally, plan: Plan) {
    let every = plan.wanted.map_or(1, |wanted| (wanted / 100).max(1));
    let (mut at_one, enough) = (false, || match plan.wanted {
        Some(wanted) => tally.begun.fetch_add(1, Ordering::SeqCst) >= wanted,
        None => tally.done.load(Ordering::SeqCst) >= SHORT.1 && plan.since.elapsed() >= SHORT.2,
    });
    while !enough() && tally.failed.lock().unwrap().len() < FAILED_MAX {
        let generation = format!("{PRODUCT}@{}", if at_one { "2" } else { "1" });
        let args = ["upgrade", PRODUCT, &generation, "--to", &lane.name, "--json", "--retry-bad"];
        let output = manager.run(&args);
        if output.code == Some(0) {
            at_one = !at_one;
        } else {
            let text = format!("{} to {generation}: {}{}", lane.name, output.stdout, output.stderr);
            println!("a change-over failed: {text}");
            tally.failed.lock().unwrap().push(text);
        }
        let done = tally.done.fetch_add(1, Ordering::SeqCst) + 1;
        if done.is_multiple_of(every) {
            let sample = sample(manager, lanes, done);
            if plan.wanted.is_some() {
                println!("{}", row(&sample, plan.since.elapsed(), tally));
            }
            tally.samples.lock().unwrap().push(sample);
        }
    }
}

fn sample(manager: &Manager, lanes: &[Lane], change_overs: u64) -> Sample {
    let text = |path: &Path| path.to_string_lossy().trim_end_matches('/').to_owned();
    let hosts: Vec<String> = lanes.iter().map(|lane| text(&lane.host.path(""))).collect();
    let managers = text(&manager.path(""));
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let kinds = ["serve", "__worker", "__helper", "mount", "launch"];
        let words = || line.split(' ').take(2);
        let name = kinds.into_iter().find(|kind| words().any(|word| word == *kind));
        let Some(name) = name.or_else(|| line.contains("bin/agent").then_some("agent")) else { continue };
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let is_of = |dir: &String| environment.contains(&format!("{dir}/"));
        let of = match hosts.iter().position(is_of) {
            None if !is_of(&managers) => continue,
            of => of,
        };
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
        processes.insert((of, name), held);
    }
    let runs: Vec<String> = lanes.iter().map(|lane| text(&lane.host.path("run"))).collect();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = mounts.lines().filter(|line| runs.iter().any(|run| line.contains(&format!("{run}/")))).count();
    Sample { change_overs, processes, mounts: mounts as u64 }
}

/// What all processes of a kind hold together.
fn row(sample: &Sample, since: Duration, tally: &Tally) -> String {
    let mut kinds: BTreeMap<&str, Held> = BTreeMap::new();
    for ((_, kind), held) in &sample.processes {
        let sum = kinds.entry(kind).or_default();
        sum.resident_kib += held.resident_kib;
        sum.descriptors += held.descriptors;
        sum.threads += held.threads;
    }
    let held = kinds
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

/// Nothing has grown since the first quarter, or it is given back when all have ended.
fn settled(samples: &[Sample], again: impl Fn() -> Sample) {
    let quarter = (samples.len() / 4).max(1);
    let (first, mut last) = (&samples[..quarter], samples[samples.len() - quarter..].to_vec());
    let until = Instant::now() + SETTLED;
    while let Some(grown) = grown(first, &last) {
        assert!(Instant::now() < until, "{grown}");
        println!("at the end: {grown}");
        std::thread::sleep(Duration::from_secs(1));
        last = vec![again()];
    }
}

/// What the later samples have more of than the first: the least of them is compared with the most of those, since what is
/// held goes up and down within a change-over.
fn grown(first: &[Sample], last: &[Sample]) -> Option<String> {
    let names: std::collections::BTreeSet<_> = last.iter().flat_map(|sample| sample.processes.keys()).collect();
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
            if now > before + more {
                return Some(format!("{name:?} has {now} {what}; it had {before} at first"));
            }
        }
    }
    let (before, now) = (first.iter().map(|s| s.mounts).max()?, last.iter().map(|s| s.mounts).min()?);
    (now > before + MORE_MOUNTS).then(|| format!("{now} mounts; there were {before} at first"))
}
