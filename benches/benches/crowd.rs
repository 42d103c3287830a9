//! Many hosts that start the same program at the same moment, against one manager on this machine, in turn with as many
//! downloads of the archive. Run as root: `cargo bench --locked -p benches --bench crowd`.
//!
//! The hosts are one process and do not unpack, verify or run anything: the figure is the manager's.

use std::path::Path;
use std::sync::{Barrier, OnceLock};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use benches::choice::Choice;
use benches::crowd::{Crowd, Served};
use benches::http;
use benches::lab::Lab;
use benches::ours::Ours;
use benches::pair::Spread;
use benches::profile::PROFILES;
use benches::report::Report;
use benches::rival::{self, Shelf};
use benches::tool;
use benches::trees::{self, Tree};
use serde_json::json;

/// Hosts, unless `BENCH_HOSTS` says otherwise.
const HOSTS: u16 = 200;

fn main() -> Result<()> {
    // Slower networks measure only themselves when so many share them.
    let choice = Choice::read(&PROFILES[..2])?;
    let count = match std::env::var("BENCH_HOSTS") {
        Ok(text) => text.parse().ok().filter(|count| *count > 0).context("BENCH_HOSTS is no number above 0")?,
        Err(_) => HOSTS,
    };
    tool::build_manager()?;
    let mut lab = Lab::start(PROFILES[0])?;
    let mut trees = trees::find(lab.scratch())?;
    trees.retain(|tree| choice.has_tree(tree));
    let mut report = Report::default();
    let mut ours = Ours::publish(&lab, &trees, false)?;
    if !ours.record_starts(&lab, &trees)? {
        report.note("starts are not recorded: this manager-fs has no command 'profile'");
    }
    let crowd = Crowd::enroll(&lab, &ours, count)?;
    for tree in &trees {
        ours.export(&ours.newest(tree)?, crowd.names());
    }
    let shelf = rival::archives(&lab, &trees)?;
    for profile in &choice.profiles {
        report.note(profile.describe());
        lab.shape(*profile)?;
        for tree in &trees {
            measure((&lab, &ours, &crowd, &shelf), tree, choice.rounds, &mut report)?;
        }
    }
    report.note(format!(
        "{count} hosts in one process, which shares the cores with the manager; the archive comes without TLS"
    ));
    // Their connections end before the manager does.
    drop(crowd);
    drop(ours);
    report.finish("crowd", Path::new("target/bench"))
}

fn measure(
    (lab, ours, crowd, shelf): (&Lab, &Ours, &Crowd, &Shelf),
    tree: &Tree,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let generation = ours.newest(tree)?;
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("crowd: {} on {}, round {}", tree.name, lab.profile().name, round + 1);
        let ours_now = || Ok::<_, anyhow::Error>(Together::of(&crowd.start(lab, ours, &generation)?));
        let archive_now = || Ok::<_, anyhow::Error>(Together::of(&download(lab, shelf, tree, crowd.names().len())?));
        if round % 2 == 0 {
            mine.push(ours_now()?);
            theirs.push(archive_now()?);
        } else {
            theirs.push(archive_now()?);
            mine.push(ours_now()?);
        }
    }
    let row = |what: &str| format!("{} on {}: {what}", tree.name, lab.profile().name);
    let of = |list: &[Together], pick: fn(&Together) -> f64| list.iter().map(pick).collect::<Vec<f64>>();
    for (what, pick) in [
        ("first host has its start", (|one: &Together| one.first * 1e3) as fn(&Together) -> f64),
        ("half of the hosts", |one| one.median * 1e3),
        ("last host", |one| one.last * 1e3),
    ] {
        let (a, b) = (of(&mine, pick), of(&theirs, pick));
        let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
        report.versus(row(what), &a, "ms", &ratios, rival::USUAL);
    }
    for (who, list) in [("ours", &mine), (rival::USUAL, &theirs)] {
        let rates = of(list, |one| one.bytes as f64 / 1e6 / one.last);
        report.figure(row(&format!("{who}, all together")), &rates, "MB/s", "");
        let each = of(list, |one| one.bytes as f64 / 1e6 / one.hosts as f64);
        report.figure(row(&format!("{who}, a host")), &each, "MB", "");
    }
    report.detail(
        &format!("{} on {}", tree.name, lab.profile().name),
        json!({ "ours_last_s": of(&mine, |one| one.last), "archive_last_s": of(&theirs, |one| one.last) }),
    );
    Ok(())
}

/// One moment of all hosts.
struct Together {
    first: f64,
    median: f64,
    last: f64,
    bytes: u64,
    hosts: usize,
}

impl Together {
    fn of(served: &[Served]) -> Self {
        let seconds: Vec<f64> = served.iter().map(|one| one.seconds).collect();
        let Spread { min, median, max } = Spread::of(&seconds);
        let bytes = served.iter().map(|one| one.bytes).sum();
        Self { first: min, median, last: max, bytes, hosts: served.len() }
    }
}

/// As many downloads of the archive over HTTP, without TLS, at the same moment; nothing is unpacked.
fn download(lab: &Lab, shelf: &Shelf, tree: &Tree, count: usize) -> Result<Vec<Served>> {
    let (address, path) = (shelf.dial(lab)?, rival::archive_path(tree));
    let (begin, moment) = (Barrier::new(count), OnceLock::new());
    let one = || {
        begin.wait();
        let since = moment.get_or_init(Instant::now);
        let bytes = http::get(address, &path, &mut std::io::sink())?;
        anyhow::Ok(Served { seconds: since.elapsed().as_secs_f64(), bytes })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))));
        joined.collect()
    })
}
