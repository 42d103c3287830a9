//! A rollout over all hosts of one manager, and what it costs that manager.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::tests::{Manager, TreeFixture};
use anyhow::{Context, Result, ensure};

use crate::fleet::Fleet;
use crate::http;

const PRODUCT: &str = "agent";
/// A rollout that is not over by then is not going to be.
const DEADLINE: Duration = Duration::from_secs(900);
/// Names of one command line.
const NAMES_AT_ONCE: usize = 1_000;
/// `status` is asked this often while a rollout is under way.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What `/proc/PID/stat` counts in, a second.
const TICKS: f64 = 100.0;

/// What one rollout over a whole fleet cost. Seconds, unless they say otherwise.
#[derive(Debug)]
pub struct Cost {
    /// Until every host had its identity.
    pub enrolled: f64,
    /// Until every host had said hello, heard what is exported to it and reported.
    pub connected: f64,
    /// From `rollout start` until the manager said that it is done.
    pub rolled_out: f64,
    /// The manager's processor time for the connections, and for the rollout.
    pub processor: [f64; 2],
    /// Synced commits of the rollout: what was decided, and what was observed.
    pub commits: [f64; 2],
    /// The manager's resident memory without hosts, with all of them, and at its highest; MiB.
    pub memory: [f64; 3],
    /// How long each `rollout status` took meanwhile, the program's start included; milliseconds.
    pub status: Vec<f64>,
    /// Requests that were refused, or not answered, on either side.
    pub refused: usize,
}

/// Enrols `count` hosts at a new manager, connects them, and changes them over.
///
/// # Errors
/// One of them is refused, or the rollout does not get to its end.
pub fn measure(count: usize) -> Result<Cost> {
    let metrics = free_address()?;
    let manager = Manager::start_with(&["--metrics", &metrics.to_string()]);
    for version in ["1", "2"] {
        let tree = TreeFixture::new();
        tree.file("bin/agent", 0o755, format!("#!/bin/sh\necho {version}\n"));
        tree.file("manager-fs.toml", 0o644, "entrypoint = \"bin/agent\"\n");
        manager.publish(PRODUCT, version, tree.path());
    }
    let names: Vec<String> = (0..count).map(|at| format!("host-{at}")).collect();
    for names in names.chunks(NAMES_AT_ONCE) {
        let names = names.iter().map(String::as_str);
        let line: Vec<&str> = ["host", "group", "add", "all"].into_iter().chain(names).collect();
        manager.run(&line).expect(0);
    }
    manager.export("agent@1", "@all");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (began, address) = (Instant::now(), manager.address());
    let mut fleet = runtime.block_on(Fleet::enroll(&manager.store(), &address, &names))?;
    let enrolled = began.elapsed().as_secs_f64();
    eprintln!("fleet: {count} hosts are enrolled after {enrolled:.1} s");

    let (pid, without) = (manager.pid(), memory(manager.pid(), "VmRSS:")?);
    let (began, before) = (Instant::now(), processor(pid)?);
    runtime.block_on(fleet.connect(&address))?;
    let (connected, for_connections) = (began.elapsed().as_secs_f64(), processor(pid)? - before);
    eprintln!("fleet: they are connected after {connected:.1} s");
    let with_all = memory(pid, "VmRSS:")?;

    let (before, commits_before) = (processor(pid)?, commits(metrics)?);
    let (rolled_out, status) = roll_out(&manager)?;
    let for_rollout = processor(pid)? - before;
    let [decided, observed] = commits(metrics)?;
    ensure!(fleet.running("2") == count, "{} of {count} hosts run the new version", fleet.running("2"));
    ensure!(fleet.connected() == count, "{} of {count} hosts are still connected", fleet.connected());
    let counts = fleet.counts();
    let twice = counts.ordered.load(Ordering::Relaxed).abs_diff(counts.confirmed.load(Ordering::Relaxed));
    Ok(Cost {
        enrolled,
        connected,
        rolled_out,
        processor: [for_connections, for_rollout],
        commits: [decided - commits_before[0], observed - commits_before[1]],
        memory: [without, with_all, memory(pid, "VmHWM:")?],
        status,
        refused: counts.refused.load(Ordering::Relaxed) + twice,
    })
}

/// Seconds that a rollout to all hosts took, and milliseconds of each look at it.
fn roll_out(manager: &Manager) -> Result<(f64, Vec<f64>)> {
    let plan = manager.path("plan.toml");
    let text = format!(
        "product = \"{PRODUCT}\"\ngeneration = \"{PRODUCT}@2\"\nexport = true\n\
         [[ring]]\nname = \"all\"\nto = [\"@all\"]\ncanaries = 5\nin-flight = \"10%\"\n"
    );
    std::fs::write(&plan, text)?;
    let id = manager.run(&["rollout", "plan", &plan.to_string_lossy()]).expect(0).text();
    let (began, mut status) = (Instant::now(), Vec::new());
    manager.run(&["rollout", "start", &id]).expect(0);
    loop {
        let asked = Instant::now();
        let said = manager.run(&["rollout", "status", &id, "--json"]);
        status.push(asked.elapsed().as_secs_f64() * 1e3);
        let said = said.json();
        let state = said["state"].as_str().unwrap_or_default();
        ensure!(["running", "done"].contains(&state), "the rollout is {state}: {said}");
        if state == "done" {
            return Ok((began.elapsed().as_secs_f64(), status));
        }
        ensure!(began.elapsed() < DEADLINE, "the rollout is not over after {DEADLINE:?}: {said}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// An address of this machine on which nobody listens.
fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Synced commits so far: decisions, observations.
fn commits(metrics: SocketAddr) -> Result<[f64; 2]> {
    let mut page = Vec::new();
    http::get(metrics, "/metrics", &mut page)?;
    let page = String::from_utf8(page)?;
    let of = |store: &str| {
        let name = format!("manager_fs_commits_total{{store=\"{store}\"}} ");
        let sample = page.lines().find_map(|line| line.strip_prefix(&name));
        sample.with_context(|| format!("no '{name}' on the page"))?.parse::<f64>().context("a number of commits")
    };
    Ok([of("decisions")?, of("observations")?])
}

/// MiB of one line of a process's status.
fn memory(pid: u32, line: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|found| found.strip_prefix(line)).context("the process's memory")?;
    let kib: f64 = found.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Seconds of processor time of all threads of a process.
fn processor(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the program's name, which may hold anything, come `state`, and as the 12th and 13th after it both times.
    let (_, fields) = stat.rsplit_once(')').context("the process's times")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds of time are the benchmark's; what it costs by count holds however busy the machine is.
    #[test]
    fn two_hundred_hosts_change_over_and_nobody_is_refused() {
        let count = std::env::var("BENCH_HOSTS").map_or(200, |text| text.parse().unwrap());
        let cost = measure(count).unwrap();
        println!("{count} hosts: {cost:?}");
        assert_eq!(cost.refused, 0, "{cost:?}");
        assert!(!cost.status.is_empty() && cost.processor[1] > 0.0, "{cost:?}");
        assert!(cost.memory[2] >= cost.memory[1], "{cost:?}");
    }
}
