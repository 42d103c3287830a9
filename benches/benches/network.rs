//! Cold starts and upgrades over networks of different speed, each contender in turn. Run as root:
//! `cargo bench --locked -p benches --bench network`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use benches::choice::Choice;
use benches::cold::{self, Contender, Start};
use benches::lab::Lab;
use benches::ours::Ours;
use benches::pair::Spread;
use benches::patch::PATCHERS;
use benches::plot::Bars;
use benches::profile::{PROFILES, Profile};
use benches::report::Report;
use benches::rival;
use benches::tool;
use benches::trees::{self, Tree};
use benches::upgrade;
use serde_json::json;

/// A contender that takes longer than this is started once on that network: more rounds would say no more.
const SLOW_SECONDS: f64 = 10.0;

/// Starts by tree, network and contender, each with its round.
type Starts = BTreeMap<(usize, usize, usize), Vec<(usize, Start)>>;

fn main() -> Result<()> {
    let choice = Choice::read(&PROFILES)?;
    tool::build_manager()?;
    let dir = PathBuf::from("target/bench");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let mut lab = Lab::start(PROFILES[0])?;
    let mut trees = trees::find(lab.scratch())?;
    trees.retain(|tree| choice.has_tree(tree));
    let mut report = Report::default();
    for profile in &choice.profiles {
        report.note(profile.describe());
    }
    let mut ours = Ours::publish(&lab, &trees, choice.has_part("upgrade"))?;
    if !choice.records {
        report.note("starts are not recorded: BENCH_RECORD=0");
    } else if !ours.record_starts(&lab, &trees)? {
        report.note("starts are not recorded: this manager-fs has no command 'profile'");
    }
    progress("waiting until the manager has nothing more to do");
    ours.wait_until_idle(&trees, choice.has_part("upgrade"))?;
    if choice.has_part("cold") {
        ours = cold_starts(&mut lab, ours, &trees, &choice, (&mut report, &dir))?;
        lab.shape(PROFILES[0])?;
        for tree in &trees {
            let alone = ours.start_alone(&lab, tree)?;
            let name = format!("{}: ours, background fetch at rest, received", tree.name);
            report.figure(name, &[megabytes(alone.end_bytes)], "MB", "");
        }
    }
    let upgraded = trees.iter().filter(|tree| tree.versions.len() > 1).cloned().collect::<Vec<_>>();
    upgrades(&lab, &mut ours, &upgraded, &choice, (&mut report, &dir))?;
    drop(ours);
    report.finish("network", &dir)
}

/// Every contender starts every tree on every network, round by round; the order turns, so that none always comes after
/// the same other.
fn cold_starts(
    lab: &mut Lab,
    ours: Ours,
    trees: &[Tree],
    choice: &Choice,
    (report, dir): (&mut Report, &Path),
) -> Result<Ours> {
    progress("preparing what rivals serve");
    let (mut rivals, left_out) = rival::prepare(lab, trees, choice);
    let mut ours = ours;
    let mut starts = Starts::new();
    for (tree_at, tree) in trees.iter().enumerate() {
        for (network, profile) in choice.profiles.iter().enumerate() {
            lab.shape(*profile)?;
            let mut fallen = Vec::new();
            for round in 0..choice.rounds {
                progress(&format!("{} on {}, round {}", tree.name, profile.name, round + 1));
                for turn in 0..=rivals.len() {
                    let at = (turn + round) % (rivals.len() + 1);
                    let key = (tree_at, network, at);
                    if fallen.contains(&at) || is_slow(starts.get(&key)) {
                        continue;
                    }
                    let contender: &mut dyn Contender = match at {
                        0 => &mut ours,
                        at => rivals[at - 1].as_mut(),
                    };
                    match cold::measure(contender, lab, tree) {
                        Ok(start) => starts.entry(key).or_default().push((round, start)),
                        Err(error) if at == 0 => return Err(error),
                        Err(error) => {
                            report.note(format!("{error:#}"));
                            fallen.push(at);
                        }
                    }
                }
            }
        }
    }
    let names: Vec<&str> = [ours.name()].into_iter().chain(rivals.iter().map(|rival| rival.name())).collect();
    tell(&starts, trees, &choice.profiles, &names, report);
    for (tree_at, tree) in trees.iter().enumerate() {
        chart(&starts, (tree_at, tree), &choice.profiles, &names)
            .write(&dir.join(format!("cold-start-{}.svg", tree.name)))?;
    }
    left_out.into_iter().for_each(|line| report.note(line));
    Ok(ours)
}

fn is_slow(starts: Option<&Vec<(usize, Start)>>) -> bool {
    starts.is_some_and(|starts| starts.iter().any(|(_, start)| start.seconds > SLOW_SECONDS))
}

/// Rows of the table: seconds by network, then bytes.
fn tell(starts: &Starts, trees: &[Tree], profiles: &[Profile], names: &[&str], report: &mut Report) {
    let mut all = Vec::new();
    for (tree_at, tree) in trees.iter().enumerate() {
        for (network, profile) in profiles.iter().enumerate() {
            let mine = starts.get(&(tree_at, network, 0)).cloned().unwrap_or_default();
            for (at, name) in names.iter().enumerate() {
                let Some(theirs) = starts.get(&(tree_at, network, at)) else { continue };
                let seconds: Vec<f64> = theirs.iter().map(|(_, start)| start.seconds).collect();
                let ratios = if at == 0 { Vec::new() } else { ratios(&mine, theirs) };
                let milliseconds: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e3).collect();
                let row = format!("{} on {}: {name}", tree.name, profile.name);
                report.versus(row, &milliseconds, "ms", &ratios, "ours to it");
                let bytes = |of: fn(&Start) -> u64| theirs.iter().map(|(_, start)| of(start)).collect::<Vec<_>>();
                all.push(json!({
                    "tree": tree.name,
                    "network": profile.name,
                    "contender": name,
                    "seconds": seconds,
                    "first_bytes": bytes(|start| start.first_bytes),
                    "end_bytes": bytes(|start| start.end_bytes),
                }));
            }
        }
        for (at, name) in names.iter().enumerate() {
            let of_all = |of: fn(&Start) -> u64| {
                let networks =
                    (0..profiles.len()).filter_map(|network| starts.get(&(tree_at, network, at))).flatten();
                networks.map(|(_, start)| megabytes(of(start))).collect::<Vec<_>>()
            };
            let (first, end) = (of_all(|start| start.first_bytes), of_all(|start| start.end_bytes));
            if !end.is_empty() {
                report.figure(format!("{}: {name}, received by the first byte", tree.name), &first, "MB", "");
                report.figure(format!("{}: {name}, received by the end", tree.name), &end, "MB", "");
            }
        }
    }
    report.detail("cold_starts", json!(all));
}

/// Ours over theirs, of the rounds that both have.
fn ratios(ours: &[(usize, Start)], theirs: &[(usize, Start)]) -> Vec<f64> {
    let of_round = |round: usize| ours.iter().find(|(other, _)| *other == round).map(|(_, start)| start.seconds);
    theirs.iter().filter_map(|(round, start)| Some(of_round(*round)? / start.seconds)).collect()
}

fn chart(starts: &Starts, (tree_at, tree): (usize, &Tree), profiles: &[Profile], names: &[&str]) -> Bars {
    let median = |network: usize, at: usize| {
        let seconds: Vec<f64> = starts.get(&(tree_at, network, at))?.iter().map(|(_, start)| start.seconds).collect();
        Some(Spread::of(&seconds).median)
    };
    let all = |at: usize| (0..profiles.len()).map(|network| median(network, at)).collect();
    Bars {
        title: format!("Cold start of {}: from nothing to the first output byte", tree.name),
        unit: "seconds".to_owned(),
        groups: profiles.iter().map(|profile| profile.name.to_owned()).collect(),
        series: names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), all(at))).collect(),
        logarithmic: true,
    }
}

/// Bytes of upgrades, ours and of tools that patch file by file.
fn upgrades(
    lab: &Lab,
    ours: &mut Ours,
    trees: &[Tree],
    choice: &Choice,
    (report, dir): (&mut Report, &Path),
) -> Result<()> {
    let mut series: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    let mut add = |name: &str, tree_at: usize, bytes: u64| {
        let at = series.iter().position(|(other, _)| other == name).unwrap_or(series.len());
        if at == series.len() {
            series.push((name.to_owned(), vec![None; trees.len()]));
        }
        series[at].1[tree_at] = Some(megabytes(bytes));
    };
    for (tree_at, tree) in trees.iter().enumerate() {
        if choice.has_part("upgrade") {
            progress(&format!("{}: upgrade", tree.name));
            let upgrade = upgrade::measure(ours, lab, tree)?;
            add("ours, all of it", tree_at, upgrade.whole_bytes);
            add("ours, its first start", tree_at, upgrade.end_bytes);
            add("ours, by its first byte", tree_at, upgrade.first_bytes);
            add("ours, by its first byte, later host", tree_at, upgrade.later_first_bytes);
        }
        for patcher in PATCHERS.into_iter().filter(|_| choice.has_part("patches")) {
            progress(&format!("{}: {}", tree.name, patcher.name()));
            match patcher.measure(tree, lab.scratch()) {
                Ok(sizes) => add(patcher.name(), tree_at, sizes.bytes),
                Err(error) => report.note(format!("{}: {} is left out: {error:#}", tree.name, patcher.name())),
            }
        }
    }
    for (name, figures) in &series {
        for (tree, figure) in trees.iter().zip(figures) {
            let Some(figure) = figure else { continue };
            report.figure(format!("{}: upgrade, {name}", tree.name), &[*figure], "MB", "");
        }
    }
    if !series.is_empty() {
        let groups = trees.iter().map(|tree| tree.name.clone()).collect();
        let title = "Upgrade to the next version: bytes that a host with all of the one before receives".to_owned();
        let bars = Bars { title, unit: "MB".to_owned(), groups, series, logarithmic: false };
        bars.write(&dir.join("upgrade-bytes.svg"))?;
    }
    Ok(())
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What is being done, for whoever waits.
fn progress(what: &str) {
    eprintln!("network: {what}");
}
